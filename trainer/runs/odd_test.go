package runs

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
)

// Named pipes under the names of a run's files were waited for without end.
func TestNoPipeIsWaitedFor(t *testing.T) {
	step := checkpoint.StepDir("", 4)
	for name, damages := range map[string]bool{
		checkpoint.ConfigName: true, checkpoint.MetricsName: true, checkpoint.LockName: false, checkpoint.EndName: false,
		checkpoint.ChosenName: false, checkpoint.JournalName: false, filepath.Join(step, checkpoint.ManifestName): false,
		filepath.Join(step, "adapter.gguf"): false,
	} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			folder := t.TempDir()
			dir := filepath.Join(folder, "run")
			require.NoError(t, os.CopyFS(dir, os.DirFS("../testdata/run-format-1")))
			path := filepath.Join(dir, name)
			if err := os.Remove(path); err != nil {
				require.ErrorIs(t, err, os.ErrNotExist)
			}
			require.NoError(t, syscall.Mkfifo(path, 0o600))

			found, err := Find(folder)
			require.NoError(t, err)
			assert.Equal(t, []string{dir}, found.Dirs)
			list, err := List(folder)
			require.NoError(t, err)
			require.Len(t, list, 1)
			_, err = Show(dir)
			if damages {
				assert.Equal(t, Damaged, list[0].State)
				assert.Contains(t, list[0].Problem, "is a named pipe, not a regular file")
				assert.ErrorContains(t, err, "is a named pipe, not a regular file")
			} else {
				assert.Equal(t, Stopped, list[0].State) // it has more steps
			}
			_, _ = trainer.Check(dir) // it comes back
		})
	}
}
