package shard

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEveryRowFallsToOneShard(t *testing.T) {
	for of := 1; of <= 7; of++ {
		for n := range 20 {
			seen := make([]int, n)
			for number := 1; number <= of; number++ {
				s := Shard{number, of}
				for i := range s.Len(n) {
					seen[s.Row(i)]++
				}
			}
			for _, times := range seen {
				require.Equal(t, 1, times)
			}
		}
	}
	require.Equal(t, 5, Shard{}.Len(5))
	require.Equal(t, 3, Shard{}.Row(3))
}

func TestShardsAreNamed(t *testing.T) {
	none := func(string) string { return "" }
	got, err := Parse("2/4", none)
	require.NoError(t, err)
	require.Equal(t, Shard{2, 4}, got)
	require.Equal(t, "shard-2-of-4", got.Folder())
	got, err = Parse("", none)
	require.NoError(t, err)
	require.True(t, got.All())
	for _, bad := range []string{"0/4", "5/4", "2", "a/b", "2/", "-1/3", "1/2/3"} {
		_, err := Parse(bad, none)
		require.ErrorContains(t, err, "NUMBER/OF", bad)
	}
}

func TestShardsOfLaunchers(t *testing.T) {
	for _, env := range []map[string]string{
		{"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"},
		{"PMI_RANK": "1", "PMI_SIZE": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
		{"SLURM_PROCID": "1", "SLURM_NTASKS": "3"},
		{"JOB_COMPLETION_INDEX": "1", "CFTUNE_SHARDS": "3"},
	} {
		got, err := Parse("auto", func(name string) string { return env[name] })
		require.NoError(t, err)
		require.Equal(t, Shard{2, 3}, got)
	}
	_, err := Parse("auto", func(string) string { return "" })
	require.ErrorContains(t, err, "2/4")
	env := map[string]string{"SLURM_PROCID": "3", "SLURM_NTASKS": "3"}
	_, err = Parse("auto", func(name string) string { return env[name] })
	require.ErrorContains(t, err, "SLURM_PROCID is 3")
}
