package trainer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
	"cftune/trainer/pack"
)

// endingEngine does something at its n-th pack.
type endingEngine struct {
	*fakeEngine
	left int
	do   func() error
}

func (e *endingEngine) Accumulate(ctx context.Context, b pack.Batch) (float64, int, error) {
	if e.left--; e.left == 0 {
		if err := e.do(); err != nil {
			return 0, 0, err
		}
		return 0, 0, ctx.Err()
	}
	return e.fakeEngine.Accumulate(ctx, b)
}

// What ends a run is in its folder until it goes on; a process that was killed leaves nothing.
func TestEnds(t *testing.T) {
	s := newSite(t)
	end := func(name string) End {
		e, err := ReadEnd(filepath.Join(s.dir, name))
		require.NoError(t, err)
		require.NotNil(t, e, name)
		assert.False(t, e.Time.IsZero())
		steps, err := checkpoint.List(filepath.Join(s.dir, name))
		require.NoError(t, err)
		assert.Equal(t, steps[len(steps)-1], e.Checkpoint)
		return *e
	}
	_, err := life(t, s, "run", newFakeEngine(), stopAfter(2))
	require.NoError(t, err)
	assert.Equal(t, EndStopAfter, end("run").Reason)
	assert.Equal(t, 2, end("run").Step)

	// While it trains there is no end, so that one that is killed has none.
	seen := errors.New("nobody has looked")
	looks := &endingEngine{newFakeEngine(), 1, func() error {
		_, seen = os.Stat(filepath.Join(s.dir, "run", checkpoint.EndName))
		return errors.New("the disk of a test is full")
	}}
	_, err = life(t, s, "run", looks)
	require.Error(t, err)
	require.ErrorIs(t, seen, os.ErrNotExist)
	failed := end("run")
	assert.Equal(t, EndError, failed.Reason)
	assert.Contains(t, failed.Error, "the disk of a test is full")

	o := s.options()
	o.Config.Output = filepath.Join(s.dir, "run")
	ctx, cancel := context.WithCancel(t.Context())
	tr, err := Resume(ctx, o.Config.Output, o)
	require.NoError(t, err)
	_, err = tr.Run(ctx, &endingEngine{newFakeEngine(), 2, func() error { cancel(); return nil }})
	closeTrainer(t, tr)
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, EndInterrupted, end("run").Reason)
	assert.Empty(t, end("run").Error)

	_, err = life(t, s, "run", newFakeEngine(), func(o *Options) { o.Config.Limits.MaxTime = "1ns" })
	require.NoError(t, err)
	assert.Equal(t, EndMaxTime, end("run").Reason)

	last, err := life(t, s, "run", newFakeEngine())
	require.NoError(t, err)
	assert.Equal(t, EndFinished, end("run").Reason)
	assert.Equal(t, last.Steps, end("run").Step)

	// Nothing came of it, so nothing is said of it.
	_, err = life(t, s, "none", &endingEngine{newFakeEngine(), 1, func() error { return errors.New("at once") }})
	require.Error(t, err)
	_, err = os.Stat(filepath.Join(s.dir, "none", checkpoint.EndName))
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestReadEnd(t *testing.T) {
	dir := t.TempDir()
	e, err := ReadEnd(dir)
	assert.NoError(t, err)
	assert.Nil(t, e, "runs of earlier versions have none")
	require.NoError(t, os.WriteFile(filepath.Join(dir, checkpoint.EndName), []byte("{"), 0o644))
	_, err = ReadEnd(dir)
	assert.ErrorIs(t, err, checkpoint.ErrCorrupt)
}
