package gguf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

// divided writes a model as one file and as three.
func divided(t *testing.T) (whole string, shards []string) {
	t.Helper()
	dir := t.TempDir()
	whole = filepath.Join(dir, "whole.gguf")
	for i := range uint64(3) {
		shards = append(shards, filepath.Join(dir, "m"+shardSuffix(i, 3)))
	}
	require.NoError(t, testmodel.Write(whole, testmodel.Options{Seed: 3}))
	require.NoError(t, testmodel.Write(shards[0], testmodel.Options{Seed: 3, Shards: 3}))
	return whole, shards
}

func TestAModelInShardsIsOneModel(t *testing.T) {
	whole, shards := divided(t)
	one, err := Open(whole)
	require.NoError(t, err)
	many, err := Open(shards[0])
	require.NoError(t, err)
	assert.Equal(t, shards, many.Shards)
	require.Len(t, many.Tensors, len(one.Tensors))
	for i, info := range one.Tensors {
		assert.Equal(t, info.Name, many.Tensors[i].Name)
		a, b := make([]byte, info.Bytes()), make([]byte, info.Bytes())
		readAt(t, whole, a, info.Offset)
		readAt(t, shards[many.Tensors[i].Shard], b, many.Tensors[i].Offset)
		require.True(t, bytes.Equal(a, b), info.Name)
	}
	// Written anew, it is the very file that was not divided.
	var joined bytes.Buffer
	require.NoError(t, many.Rewrite(&joined, nil, nil))
	want, err := os.ReadFile(whole)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, joined.Bytes()))
}

func readAt(t *testing.T, path string, b []byte, offset uint64) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.ReadAt(b, int64(offset))
	require.NoError(t, err)
}

func TestShardsThatAreNoModelAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, whole string, shards []string) (open string)
		says  string
	}{
		"missing":       {func(t *testing.T, _ string, s []string) string { require.NoError(t, os.Remove(s[1])); return s[0] }, "shard 2 of 3 is missing"},
		"not the first": {func(_ *testing.T, _ string, s []string) string { return s[2] }, "it is shard 3 of 3: name the first one"},
		"another name": {func(t *testing.T, _ string, s []string) string {
			other := filepath.Join(filepath.Dir(s[0]), "other.gguf")
			require.NoError(t, os.Rename(s[0], other))
			return other
		}, "its name should end in -00001-of-00003.gguf"},
		"one twice":     {func(t *testing.T, _ string, s []string) string { copyFile(t, s[1], s[2]); return s[0] }, "says that it is shard 2 of 3"},
		"a whole model": {func(t *testing.T, whole string, s []string) string { copyFile(t, whole, s[1]); return s[0] }, "says that it is shard 1 of 0"},
		"cut off": {func(t *testing.T, _ string, s []string) string {
			require.NoError(t, os.Truncate(s[2], 200))
			return s[0]
		}, "cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			whole, shards := divided(t)
			_, err := Open(c.spoil(t, whole, shards))
			require.ErrorIs(t, err, ErrFormat)
			assert.ErrorContains(t, err, c.says)
		})
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, data, 0o644), fmt.Sprintf("%s to %s", from, to))
}
