package trainer

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/metrics"
)

// patiently has full disks waited for as long as a test takes.
func patiently(t *testing.T) {
	patience := roomPatience
	roomPatience = time.Hour
	t.Cleanup(func() { roomPatience = patience })
}

// whenFull does something as soon as a run says that it waits for room.
type whenFull struct {
	silent
	said notes
	do   func()
}

func (w *whenFull) Note(text string) {
	w.said.Note(text)
	if strings.Contains(text, "the run waits until there is room") {
		w.do()
	}
}

// fullAfterThreeSteps is an engine whose fourth step finds next to nothing free.
func fullAfterThreeSteps(free *uint64) *fakeEngine {
	e := newFakeEngine()
	e.before = func(int) error {
		if len(e.applied) == 3 {
			*free = 1000
		}
		return nil
	}
	return e
}

func TestAFullDiskIsWaitedFor(t *testing.T) {
	patiently(t)
	s := newSite(t)
	s.train(t, "straight")
	want := s.run.Output
	free := uint64(1 << 30)
	w := &whenFull{do: func() { free = 1 << 30 }}
	s.run.Output = filepath.Join(s.dir, "run")
	tr, err := s.begin(t, func(o *Options) {
		o.fs = &crashpoint.FS{Free: &free}
		o.Progress = func(int, int) metrics.Progress { return w }
	})
	require.NoError(t, err)
	_, err = tr.Run(t.Context(), fullAfterThreeSteps(&free))
	require.NoError(t, err)
	require.NoError(t, tr.Close())
	sameEnd(t, want, s.run.Output)
	assert.Contains(t, w.said.String(), "are needed, 0.0 MiB are free")
	assert.Contains(t, w.said.String(), "there is room again: the run goes on")
}

// Whichever operation (of every third) finds the disk full for a moment, the run comes to the same end, or the one that goes on from it: no line of metrics is
// torn, missing or there twice.
func TestADiskThatIsFullForAMoment(t *testing.T) {
	patiently(t)
	s := newSite(t)
	count := &crashpoint.FS{}
	s.train(t, "straight", func(o *Options) { o.fs = count })
	want := s.run.Output
	waited := 0
	for at := 1; at <= count.Ops; at += 3 {
		name := fmt.Sprintf("full at %d", at)
		s.run.Output = filepath.Join(s.dir, name)
		w := &whenFull{do: func() { waited++ }}
		tr, err := s.begin(t, func(o *Options) {
			o.fs = &crashpoint.FS{At: at, Err: syscall.ENOSPC, Once: true}
			o.Progress = func(int, int) metrics.Progress { return w }
		})
		if err == nil {
			_, err = tr.Run(t.Context(), newFakeEngine())
			require.NoError(t, tr.Close())
		}
		if err != nil {
			require.ErrorIs(t, err, syscall.ENOSPC, "operation %d", at)
			goOn(t, s, name)
		}
		sameEnd(t, want, s.run.Output)
	}
	t.Logf("%d operations, %d of them were waited for", count.Ops, waited)
	assert.Greater(t, waited, 10+3, "each step's line, and each checkpoint")
}

// Who waits for room listens: an interrupt ends the run, and what is on the disk is whole.
func TestAnInterruptEndsTheWaitForRoom(t *testing.T) {
	patiently(t)
	s := newSite(t)
	free := uint64(1 << 30)
	ctx, cancel := context.WithCancel(t.Context())
	w := &whenFull{do: cancel}
	tr, err := s.begin(t, func(o *Options) {
		o.fs = &crashpoint.FS{Free: &free}
		o.Progress = func(int, int) metrics.Progress { return w }
	})
	require.NoError(t, err)
	result, err := tr.Run(ctx, fullAfterThreeSteps(&free))
	var space *checkpoint.SpaceError
	require.ErrorAs(t, err, &space)
	require.NoError(t, tr.Close())
	assert.Equal(t, checkpoint.StepDir(s.run.Output, 2), result.Checkpoint)
	assert.Equal(t, 2, sound(t, s.run.Output).Step)
}
