package hub

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ollamaStore writes a store with one model of these layers.
func ollamaStore(t *testing.T, at string, layers map[string]string) string {
	t.Helper()
	store := t.TempDir()
	var manifest struct {
		Layers []layer `json:"layers"`
	}
	require.NoError(t, os.MkdirAll(filepath.Join(store, "blobs"), 0o755))
	for _, kind := range []string{"model", "adapter", "template", "params", "license", "system"} {
		text, ok := layers[kind]
		if !ok {
			continue
		}
		digest := digestOf([]byte(text))
		require.NoError(t, os.WriteFile(filepath.Join(store, "blobs", "sha256-"+digest), []byte(text), 0o644))
		manifest.Layers = append(manifest.Layers, layer{layerPrefix + kind, "sha256:" + digest, int64(len(text))})
	}
	text, err := json.Marshal(manifest)
	require.NoError(t, err)
	path := filepath.Join(store, "manifests", filepath.FromSlash(at))
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, text, 0o644))
	return store
}

func TestOllamasStoreIsRead(t *testing.T) {
	store := ollamaStore(t, "registry.ollama.ai/library/tiny/1b", map[string]string{
		"model": "GGUF...", "template": "{{ .Prompt }}", "params": `{"stop": ["<end>"], "temperature": 0.5}`, "license": "MIT", "adapter": "GGUFa",
	})
	var notes []string
	s := &Store{Ollama: []string{t.TempDir(), store}, Note: func(text string) { notes = append(notes, text) }}
	found := find(t, s, "ollama://tiny:1b")
	assert.Equal(t, filepath.Join(store, "blobs", "sha256-"+digestOf([]byte("GGUF..."))), found.Path)
	assert.Equal(t, "{{ .Prompt }}", found.Ollama.Template)
	assert.Equal(t, []any{"<end>"}, found.Ollama.Parameters["stop"])
	assert.Equal(t, []string{"MIT"}, found.Ollama.Licenses)
	require.Len(t, notes, 1)
	assert.Contains(t, notes[0], "1 adapters")
	require.NoError(t, found.Verify())

	require.NoError(t, os.WriteFile(found.Path, []byte("GGUF.!."), 0o644))
	require.ErrorIs(t, found.Verify(), ErrDigest)
	require.NoError(t, os.WriteFile(found.Path, []byte("GG"), 0o644))
	_, err := s.Find(context.Background(), "ollama://tiny:1b")
	require.ErrorIs(t, err, ErrDigest)
	_, err = s.Find(context.Background(), "ollama://tiny")
	require.ErrorIs(t, err, ErrNotFound)
}

func TestOllamasNames(t *testing.T) {
	for name, want := range map[string]string{
		"ollama://m":                      "manifests/registry.ollama.ai/library/m/latest",
		"ollama://m:7b":                   "manifests/registry.ollama.ai/library/m/7b",
		"ollama://me/m:7b":                "manifests/registry.ollama.ai/me/m/7b",
		"ollama://hub.example:80/me/m:7b": "manifests/hub.example:80/me/m/7b",
	} {
		got, err := manifestPath(name)
		require.NoError(t, err, name)
		assert.Equal(t, filepath.FromSlash(want), got)
	}
	for _, name := range []string{"ollama://", "ollama://a/b/c/d", "ollama://../../x", "ollama://m:../x", "ollama://m:", "ollama://../m"} {
		_, err := manifestPath(name)
		assert.Error(t, err, name)
	}
}

func TestAManifestIsNotBelieved(t *testing.T) {
	for name, text := range map[string]string{
		"no json":    "x",
		"no model":   `{"layers": []}`,
		"bad digest": `{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x", "size": 1}]}`,
		"no blob":    `{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:` + digestOf(nil) + `", "size": 1}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readManifest(t.TempDir(), []byte(text))
			assert.Error(t, err)
		})
	}
}
