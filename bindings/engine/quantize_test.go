package engine_test

import (
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
