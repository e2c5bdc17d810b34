package trainer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/internal/bucket"
	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/metrics"
	"cftune/trainer/mirror"
	"cftune/trainer/objective"
)

// objects is a store in memory. fault, if not nil, is asked before every operation.
type objects struct {
	mu    sync.Mutex
	held  map[string][]byte
	fault func(ctx context.Context) error
}

func newObjects() *objects { return &objects{held: map[string][]byte{}} }

func (o *objects) ask(ctx context.Context) error {
	if o.fault != nil {
		return o.fault(ctx)
	}
	return nil
}

func (o *objects) Put(ctx context.Context, key string, r io.Reader) error {
	text, err := io.ReadAll(r)
	if err = errors.Join(err, o.ask(ctx)); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held[key] = text
	return nil
}

func (o *objects) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := o.ask(ctx); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	text, is := o.held[key]
	if !is {
		return nil, iofs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(text)), nil
}

func (o *objects) List(ctx context.Context, prefix string, visit func(string) error) error {
	if err := o.ask(ctx); err != nil {
		return err
	}
	o.mu.Lock()
	keys := slices.Sorted(maps.Keys(o.held))
	o.mu.Unlock()
	for _, key := range keys {
		if strings.HasPrefix(key, prefix) {
			if err := visit(key); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *objects) Delete(ctx context.Context, key string) error {
	if err := o.ask(ctx); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.held, key)
	return nil
}

func (o *objects) Close() error { return nil }

// hurriedMirror is patience for tests: with little between the attempts.
var hurriedMirror = mirror.Patience{
	Attempts: 3, Backoff: bucket.Backoff{First: time.Microsecond, Longest: time.Millisecond}, Object: time.Minute, Again: time.Millisecond,
}

func (o *objects) store() *mirror.Store { return mirror.New("mem://place", o, hurriedMirror) }

// mirroredTo makes a run copy its checkpoints to a store.
func mirroredTo(o *objects) func(*Options) {
	return func(options *Options) {
		options.Config.Checkpoint.Mirror = "s3://place/run"
		options.openMirror = func(context.Context, string, bool) (*mirror.Store, error) { return o.store(), nil }
	}
}

// restored brings the run back to a new folder of the site.
func (s *site) restored(t testing.TB, o *objects, name string) mirror.Restored {
	t.Helper()
	r, err := o.store().Restore(t.Context(), mirror.RestoreOptions{
		Dir: filepath.Join(s.dir, name), Check: checkWhole, Say: func(text string) { t.Log(text) },
	})
	require.NoError(t, err)
	return r
}

func TestARestoredRunEndsAsAnUndisturbedOne(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"plain": func(*Options) {},
		"with a journal": func(o *Options) {
			o.Changes = []objective.Change{{Step: 3, Stages: []config.Stage{{Mix: map[string]float64{"sft": 1}}}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.run.Checkpoint.EverySteps = 1
			s.train(t, "straight", change)
			want := s.run.Output
			for _, k := range []int{1, 3, 9} {
				o := newObjects()
				_, result := s.train(t, "run", change, mirroredTo(o), stopAfter(k))
				require.NotNil(t, result.Mirror)
				require.False(t, result.Mirror.Behind(), "%v", result.Mirror)
				require.NoError(t, os.RemoveAll(s.run.Output)) // the host is gone

				bare := fmt.Sprintf("bare %d", k)
				require.Equal(t, k, s.restored(t, o, bare).Step)
				sound(t, filepath.Join(s.dir, bare))
				_, result = s.resume(t, bare, mirroredTo(o))
				require.False(t, result.Mirror.Behind(), "%v", result.Mirror)
				sameEnd(t, want, filepath.Join(s.dir, bare))
				state, err := ReadMirrorState(filepath.Join(s.dir, bare))
				require.NoError(t, err)
				require.Equal(t, 10, state.Step)
				check, err := o.store().Check(t.Context())
				require.NoError(t, err)
				require.Empty(t, check.Problems)
				require.LessOrEqual(t, len(check.Checkpoints), s.run.Checkpoint.KeepLast)
			}
		})
	}
}

// lives is how often a run in TestHostsComeAndGo may begin anew at most; far more than any of its seeds takes.
const lives = 60

// Hosts come and go: each has an empty disk, goes on from what the mirror has, through a store that is out of order now and
// then, and ends at some operation of its disk. In the end the run is the undisturbed one, to the byte.
func TestHostsComeAndGo(t *testing.T) {
	s := newSite(t)
	s.run.Checkpoint.EverySteps = 1
	s.train(t, "straight")
	want := s.run.Output
	deaths := 0
	for seed := range uint64(4) {
		rng, faults := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
		var mu sync.Mutex
		o := newObjects()
		o.fault = func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if faults.IntN(25) == 0 {
				return errors.New("out of order")
			}
			return nil
		}
		done := false
		for life := 0; !done; life++ {
			require.Less(t, life, lives)
			name := fmt.Sprintf("host %d of %d", life, seed)
			done = s.live(t, o, name, &crashpoint.FS{At: 40 + rng.IntN(110)})
			if !done {
				deaths++
				continue
			}
			sameEnd(t, want, filepath.Join(s.dir, name))
		}
	}
	t.Logf("%d hosts were lost", deaths)
	assert.Greater(t, deaths, 4)
}

// live is what one host does; false: it was lost.
func (s *site) live(t *testing.T, o *objects, name string, fs *crashpoint.FS) bool {
	t.Helper()
	options := s.options()
	options.Config.Output, options.fs = filepath.Join(s.dir, name), fs
	mirroredTo(o)(&options)
	_, err := o.store().Restore(t.Context(), mirror.RestoreOptions{Dir: options.Config.Output, Check: checkWhole, Say: func(string) {}})
	begin := func() (*Trainer, error) { return Resume(t.Context(), options.Config.Output, options) }
	if errors.Is(err, checkpoint.ErrNotFound) {
		begin, err = func() (*Trainer, error) { return New(t.Context(), options) }, nil
	}
	if err != nil {
		require.ErrorContains(t, err, "out of order")
		return false
	}
	tr, err := begin()
	if err == nil {
		defer tr.Close()
		var result Result
		if result, err = tr.Run(t.Context(), newFakeEngine()); err == nil {
			require.False(t, result.Mirror.Behind())
			return true
		}
	}
	require.True(t, errors.Is(err, crashpoint.ErrCrash) || strings.Contains(err.Error(), "out of order"), "%v", err)
	return false
}

// noting keeps what is told.
type noting struct {
	silent
	notes *[]string
}

func (n noting) Note(text string) { *n.notes = append(*n.notes, text) }

func notingIn(notes *[]string) func(*Options) {
	return func(o *Options) { o.Progress = func(int, int) metrics.Progress { return noting{notes: notes} } }
}

// A store that answers nothing takes no step's time: the run ends, and tells.
func TestAMirrorThatHangsDoesNotHoldTheRunUp(t *testing.T) {
	s := newSite(t)
	s.run.Checkpoint.EverySteps, s.run.Checkpoint.MirrorWait = 1, "1m"
	o := newObjects()
	_, before := s.train(t, "begun", mirroredTo(o), stopAfter(1))
	require.False(t, before.Mirror.Behind())
	o.fault = func(ctx context.Context) error {
		if ctx.Value(beginning{}) != nil {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
	var notes []string
	s.run.Checkpoint.MirrorWait = "1ms"
	options := s.options()
	mirroredTo(o)(&options)
	notingIn(&notes)(&options)
	tr, err := Resume(t.Context(), s.run.Output, options)
	require.NoError(t, err)
	result, err := tr.Run(context.WithValue(t.Context(), beginning{}, true), newFakeEngine())
	require.NoError(t, err)
	closeTrainer(t, tr)
	assert.Equal(t, 10, result.Step)
	assert.True(t, result.Mirror.Behind())
	assert.Equal(t, 10, result.Mirror.Wanted)
	said := strings.Join(notes, "\n")
	assert.Contains(t, said, "waiting for the copy of step 10, at most 1ms")
	assert.Contains(t, said, "it has NO checkpoint, step 10 should be there")
	assert.Contains(t, said, "is passed over: a newer checkpoint came")
	state, err := ReadMirrorState(s.run.Output)
	require.NoError(t, err)
	assert.True(t, state.Behind())

	// The next resume has nothing to train, and brings the mirror up to date.
	o.fault = nil
	s.run.Checkpoint.MirrorWait = "1m"
	again := s.options()
	mirroredTo(o)(&again)
	finished, err := Resume(t.Context(), s.run.Output, again)
	require.NoError(t, err)
	defer closeTrainer(t, finished)
	require.True(t, finished.Finished())
	report, err := finished.Mirror(t.Context(), func(string) {})
	require.NoError(t, err)
	assert.False(t, report.Behind())
	assert.Equal(t, 1, report.Uploaded)
}

// beginning is the key by which the claim's context is told from the worker's, which is nobody's child.
type beginning struct{}

func TestAMirrorThatCannotBeUsed(t *testing.T) {
	s := newSite(t)
	down := newObjects()
	down.fault = func(context.Context) error { return errors.New("no such bucket") }
	tr, err := s.begin(t, mirroredTo(down))
	require.NoError(t, err)
	_, err = tr.Run(t.Context(), newFakeEngine())
	var unusable *MirrorError
	require.ErrorAs(t, err, &unusable)
	assert.ErrorContains(t, err, "checkpoint.mirror: mirror mem://place: list: after 3 attempts: no such bucket")
	closeTrainer(t, tr)
	assert.NoDirExists(t, s.run.Output)

	o := newObjects()
	s.train(t, "first", mirroredTo(o), stopAfter(2))
	s.run.Output = filepath.Join(s.dir, "second")
	tr, err = s.begin(t, mirroredTo(o))
	require.NoError(t, err)
	_, err = tr.Run(t.Context(), newFakeEngine())
	assert.ErrorIs(t, err, mirror.ErrForeign)
	closeTrainer(t, tr)

	// A run that comes to nothing leaves a mirror that another one can take.
	empty := newObjects()
	tr, err = s.begin(t, mirroredTo(empty))
	require.NoError(t, err)
	e := newFakeEngine()
	e.before = func(int) error { return errors.New("the device is gone") }
	_, err = tr.Run(t.Context(), e)
	require.ErrorContains(t, err, "the device is gone")
	closeTrainer(t, tr)
	_, result := s.train(t, "third", mirroredTo(empty))
	assert.False(t, result.Mirror.Behind())
}

func TestAnInterruptedRunIsMirrored(t *testing.T) {
	s := newSite(t)
	o := newObjects()
	tr, err := s.begin(t, mirroredTo(o))
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	ctx, cancel := context.WithCancel(t.Context())
	e := newFakeEngine()
	e.before = func(call int) error {
		if e.steps == 5 {
			cancel()
		}
		return nil
	}
	result, err := tr.Run(ctx, e)
	var interrupted *Interrupted
	require.ErrorAs(t, err, &interrupted)
	assert.Equal(t, 5, result.Mirror.Step)
	assert.Equal(t, 5, s.restored(t, o, "bare").Step)
}
