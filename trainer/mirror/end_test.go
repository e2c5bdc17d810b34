package mirror

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
)

// Why a run ended comes along with the checkpoint that it was the last of, and with no other.
func TestTheEndComesAlong(t *testing.T) {
	s, objects := inMemory(t)
	r := newRun(t, firstRun)
	end := []byte(`{"step":4,"checkpoint":4,"reason":"max_time"}`)
	c, err := s.Claim(t.Context(), r.name, 0)
	require.NoError(t, err)
	w := Start(c, nil)
	for _, step := range []int{2, 4} {
		r.save(t, step)
		w.Offer(r.take(t, step))
	}
	w.Finish(t.Context(), finishLimit)
	require.NoError(t, w.KeepEnd(t.Context(), 4, end))
	restored := func() string {
		dir := filepath.Join(t.TempDir(), "run")
		_, _, err := restore(t, s, dir)
		require.NoError(t, err)
		text, err := os.ReadFile(filepath.Join(dir, checkpoint.EndName))
		if err != nil {
			require.ErrorIs(t, err, os.ErrNotExist)
		}
		return string(text)
	}
	assert.JSONEq(t, string(end), restored())
	whole := bytesOf(t, objects, checkpoint.EndName)

	put(t, objects, checkpoint.EndName, whole[:len(whole)-9])
	assert.Empty(t, restored(), "damage is told, and keeps no run from coming back")
	state, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Len(t, state.Notes, 1)
	assert.Contains(t, state.Notes[0], "why the run ended is not known")
	assert.Empty(t, state.Problems)

	put(t, objects, checkpoint.EndName, whole)
	c, err = s.Claim(t.Context(), r.name, 4)
	require.NoError(t, err)
	w = Start(c, nil)
	assert.Empty(t, restored(), "it goes on")
	r.save(t, 6)
	w.Offer(r.take(t, 6))
	w.Finish(t.Context(), finishLimit)
	assert.Empty(t, restored(), "it has gone on since")
	put(t, objects, checkpoint.EndName, whole)
	assert.Empty(t, restored(), "of an older checkpoint")
}
