package engine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/bindings/engine"
	"cftune/internal/testmodel"
)

func TestRequantize(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "q8.gguf"), filepath.Join(dir, "f32.gguf")
	require.NoError(t, testmodel.Write(from, testmodel.Options{Seed: 1, Type: testmodel.Q8_0}))
	require.NoError(t, engine.Requantize(from, to, engine.FileTypeF32, nil, 1))
	small, err := os.Stat(from)
	require.NoError(t, err)
	large, err := os.Stat(to)
	require.NoError(t, err)
	assert.Greater(t, large.Size(), 2*small.Size(), "four bytes a weight instead of about one")
	m, err := engine.Load(to, "cpu")
	require.NoError(t, err)
	m.Close()
}

// libllama pads tensors to 32 bytes whatever the file says; a copy that still said otherwise had its weights at other places.
func TestRequantizeOfOtherAlignments(t *testing.T) {
	logits := func(path string) []float32 {
		s, err := engine.NewSession(path, "", engine.SessionParams{NCtx: 16, NBatch: 16, NSequences: 1, NThreads: 1, AdapterScale: 1, F32KV: true})
		require.NoError(t, err, path)
		defer s.Close()
		require.NoError(t, s.Decode([]int32{5, 6, 7}, []int32{0, 1, 2}, make([]int32, 3), []bool{false, false, true}))
		out := make([]float32, testmodel.MinVocab())
		require.NoError(t, s.Logits(2, out))
		return out
	}
	dir := t.TempDir()
	var want []float32
	for _, alignment := range []int{0, 8, 64, 4096} {
		from, to := filepath.Join(dir, fmt.Sprintf("%d.gguf", alignment)), filepath.Join(dir, fmt.Sprintf("%d-copy.gguf", alignment))
		require.NoError(t, testmodel.Write(from, testmodel.Options{Seed: 1, Alignment: alignment}))
		if want == nil {
			want = logits(from)
		}
		if alignment > 8 { // where libllama can use them as they lie
			require.Equal(t, want, logits(from), "alignment %d", alignment)
		}
		require.NoError(t, engine.Requantize(from, to, engine.FileTypeF32, nil, 1))
		assert.Equal(t, want, logits(to), "the copy of a file of alignment %d", alignment)
	}
}

func TestRequantizeRefuses(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "f32.gguf"), filepath.Join(dir, "to.gguf")
	require.NoError(t, testmodel.Write(from, testmodel.Options{Seed: 1}))
	text, err := os.ReadFile(from)
	require.NoError(t, err)
	cut := filepath.Join(dir, "cut.gguf")
	require.NoError(t, os.WriteFile(cut, text[:len(text)/2], 0o644))
	for name, call := range map[string]func() error{
		"missing file": func() error {
			return engine.Requantize(filepath.Join(dir, "none.gguf"), to, engine.FileTypeF32, nil, 1)
		},
		"cut off":       func() error { return engine.Requantize(cut, to, engine.FileTypeF32, nil, 1) },
		"unknown type":  func() error { return engine.Requantize(from, to, 999, nil, 1) },
		"negative type": func() error { return engine.Requantize(from, to, -1, nil, 1) },
		"no folder to write": func() error {
			return engine.Requantize(from, filepath.Join(dir, "none", "to.gguf"), engine.FileTypeF32, nil, 1)
		},
	} {
		assert.Error(t, call(), name)
	}
}
