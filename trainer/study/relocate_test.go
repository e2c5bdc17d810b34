package study

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every study that is shipped is, written out and read again, the same study, wherever its files lie.
func TestARelocatedStudyIsTheSameStudy(t *testing.T) {
	for _, name := range []string{"study-smollm2.yaml", "study-qwen2.5.yaml"} {
		spec, err := Load(filepath.Join("..", "..", "configs", name), []string{"model=m.gguf"})
		require.NoError(t, err)
		for i := range spec.Sets {
			if spec.Sets[i].Path == "" && spec.Sets[i].Optional {
				spec.Sets[i].Path = "here/svamp.json"
			}
		}
		var keys []string
		moved, err := spec.Relocate(func(key, path string) (string, error) {
			keys = append(keys, key)
			return "/far/" + filepath.Base(path), nil
		})
		require.NoError(t, err)
		assert.Contains(t, keys, "model")
		assert.Equal(t, "m.gguf", spec.Model, "the one given stays as it is")
		text, err := moved.File()
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "study.json")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		back, err := Load(path, nil)
		require.NoError(t, err, name)
		assert.Equal(t, moved, back, name)
		assert.Equal(t, spec.Digest(), back.Digest(), name)
		assert.Equal(t, spec.withoutFolders().Sets, back.withoutFolders().Sets, name)
	}

	spec := mustLoad(t, smallFile, "model=m.gguf", "chat.template_file=t.jinja")
	_, err := spec.Relocate(func(key, path string) (string, error) { return "", errors.New(path + " is not here") })
	assert.EqualError(t, err, "model: m.gguf is not here\nchat.template_file: t.jinja is not here")
}
