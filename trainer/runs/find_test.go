package runs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func write(t *testing.T, parts ...string) {
	t.Helper()
	path := filepath.Join(parts...)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte("{}"), 0o644))
}

func TestFind(t *testing.T) {
	folder := t.TempDir()
	for _, run := range []string{"a", "study/arm-1", "study/arm-2", "a/within"} {
		write(t, folder, run, "config.json")
		write(t, folder, run, "metrics.jsonl")
	}
	write(t, folder, "model", "config.json") // of a model, not of a run
	write(t, folder, "notes", "metrics.jsonl")
	outside := t.TempDir()
	write(t, outside, "linked", "config.json")
	write(t, outside, "linked", "LOCK")
	require.NoError(t, os.Symlink(filepath.Join(outside, "linked"), filepath.Join(folder, "link")))
	require.NoError(t, os.Symlink(folder, filepath.Join(folder, "study", "round")))
	require.NoError(t, os.Symlink("nowhere", filepath.Join(folder, "broken")))

	found, err := Find(folder)
	require.NoError(t, err)
	want := []string{"a", "link", "study/arm-1", "study/arm-2"}
	for i := range want {
		want[i] = filepath.Join(folder, want[i])
	}
	assert.Equal(t, want, found.Dirs, "a run is not looked into, a link is followed, a loop is not")
	assert.Empty(t, found.Notes)

	found, err = Find(want[2], folder)
	require.NoError(t, err)
	assert.Equal(t, []string{want[2], want[0], want[1], want[3]}, found.Dirs, "a folder may be a run; none comes twice")

	_, err = Find(filepath.Join(folder, "none"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = Find(filepath.Join(folder, "notes", "metrics.jsonl"))
	assert.ErrorContains(t, err, "is not a folder")
}

func TestFindTellsWhatItDoesNotLookAt(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "1/2/3/4/5/6/7/run", "config.json")
	write(t, folder, "1/2/3/4/5/6/7/run", "LOCK")
	write(t, folder, "near", "config.json")
	write(t, folder, "near", "LOCK")
	found, err := Find(folder)
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(folder, "near")}, found.Dirs)
	require.Len(t, found.Notes, 1)
	assert.Contains(t, found.Notes[0], "6 deep")
}

func TestElsewhere(t *testing.T) {
	here, err := os.Hostname()
	require.NoError(t, err)
	for holder, want := range map[string]bool{"": false, "pid 5": false, "pid 5 on " + here: false, "pid 5 on other": true} {
		assert.Equal(t, want, elsewhere(holder), holder)
	}
}
