package gguf

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

func writeImportance(t *testing.T, m ImportanceMatrix) string {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, WriteImportance(&out, m))
	path := filepath.Join(t.TempDir(), "imatrix.gguf")
	require.NoError(t, os.WriteFile(path, out.Bytes(), 0o644))
	return path
}

func TestImportanceIsReadAsItWasWritten(t *testing.T) {
	want := ImportanceMatrix{Datasets: []string{"a.txt", "b"}, Chunks: 3, Chunk: 512, Weights: map[string]Importance{
		"blk.0.attn_q.weight":        {Sums: []float32{1, 2, 3}, Counts: []float32{4}},
		"blk.0.ffn_gate_exps.weight": {Sums: []float32{1, 2, 3, 4}, Counts: []float32{2, 0}},
	}}
	got, err := ReadImportance(writeImportance(t, want))
	require.NoError(t, err)
	assert.Equal(t, want, got)
}

func TestImportanceOfAnotherModelIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, testmodel.Write(path, testmodel.Options{Seed: 1}))
	base, err := Open(path)
	require.NoError(t, err)
	sums := make([]float32, 64)
	sums[3] = 8
	m := ImportanceMatrix{Weights: map[string]Importance{"blk.0.attn_q.weight": {sums, []float32{4}}}}
	values, err := m.ColumnWeights(base)
	require.NoError(t, err)
	assert.Equal(t, float32(2), values["blk.0.attn_q.weight"][3])
	m.Weights["blk.0.attn_q.weight"] = Importance{sums, []float32{0}}
	values, err = m.ColumnWeights(base)
	require.NoError(t, err)
	assert.Equal(t, float32(1), values["blk.0.attn_q.weight"][3], "nothing is known of it")
	for name, one := range map[string]Importance{"blk.9.attn_q.weight": {sums, []float32{1}}, "blk.0.attn_q.weight": {sums[:32], []float32{1}}} {
		_, err := ImportanceMatrix{Weights: map[string]Importance{name: one}}.ColumnWeights(base)
		require.ErrorIs(t, err, ErrFormat)
		assert.ErrorContains(t, err, "another model")
	}
	_, err = ReadImportance(path)
	require.ErrorIs(t, err, ErrFormat)
	_, err = ReadImportance(writeImportance(t, ImportanceMatrix{Weights: map[string]Importance{"w": {[]float32{-1}, []float32{1}}}}))
	require.ErrorIs(t, err, ErrFormat)
}
