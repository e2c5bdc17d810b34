package checkpoint

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/durable"
)

func TestAChosenCheckpointIsNeverPruned(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	r, err := Create(durable.OS, dir)
	require.NoError(t, err)
	defer r.Close()
	require.NoError(t, r.WriteConfig([]byte("{}")))
	for step := 1; step <= 4; step++ {
		_, err := r.Write(Manifest{Step: step}, []Content{{Name: "x", Write: func(w io.Writer) error { _, err := w.Write([]byte("x")); return err }}})
		require.NoError(t, err)
	}
	_, found, err := Chosen(dir)
	require.NoError(t, err)
	assert.False(t, found)
	require.NoError(t, Choose(dir, Choice{Step: 2, By: "answers", Value: 0.5}))
	require.NoError(t, r.Prune(Retention{Last: 1}))
	steps, err := List(dir)
	require.NoError(t, err)
	assert.Equal(t, []int{2, 4}, steps)

	require.ErrorIs(t, Choose(dir, Choice{Step: 3}), ErrNotFound, "it was pruned before")
	require.NoError(t, os.WriteFile(filepath.Join(dir, ChosenName), []byte("{"), 0o644))
	_, _, err = Chosen(dir)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorIs(t, r.Prune(Retention{Last: 1}), ErrCorrupt, "what is to be kept is not known")
}
