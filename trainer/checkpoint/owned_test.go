package checkpoint

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOwnedBy(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	run := filepath.Join(dir, "runs", "a")
	require.NoError(t, os.MkdirAll(StepDir(run, 7), 0o755))
	for _, path := range []string{filepath.Join(run, ConfigName), filepath.Join(run, "notes.txt"), filepath.Join(dir, ConfigName)} {
		require.NoError(t, os.WriteFile(path, []byte("{}"), 0o600))
	}
	require.NoError(t, os.Symlink(StepDir(run, 7), filepath.Join(dir, "newest")))
	for path, want := range map[string]string{
		"runs/a/checkpoints/step-00000007/adapter.gguf":    run,
		"runs/a/checkpoints/step-00000007/new/folder/file": run,
		"runs/a/checkpoints/step-00000007":                 run,
		"runs/a/checkpoints":                               run,
		"runs/a/checkpoints/new":                           run,
		"runs/a/tensorboard/new":                           run,
		"runs/a/metrics.jsonl":                             run,
		"runs/a/./metrics.jsonl":                           run,
		"runs/a/LOCK":                                      run,
		"newest/adapter.gguf":                              run,
		"newest":                                           run,
		"runs/a":                                           "",
		"runs/a/adapter.gguf":                              "",
		"runs/a/notes.txt":                                 "",
		"runs/a/scores/metrics.jsonl":                      "",
		"runs/checkpoints":                                 "",
		"config.json":                                      "",
		"checkpoints/new":                                  "",
		"none/at/all":                                      "",
	} {
		assert.Equal(t, want, OwnedBy(filepath.Join(dir, path)), path)
	}
	t.Chdir(run)
	assert.Equal(t, run, OwnedBy("checkpoints/x.gguf"))
	assert.Empty(t, OwnedBy("x.gguf"))
}
