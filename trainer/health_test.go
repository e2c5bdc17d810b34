package trainer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	"cftune/trainer/metrics"
	"cftune/trainer/pack"
)

// sickEngine finds no finite loss in packs with an example that begins with one of the tokens, and multiplies losses.
type sickEngine struct {
	*fakeEngine
	poison map[int32]bool
	factor func() float64
}

func (e *sickEngine) Accumulate(ctx context.Context, b pack.Batch) (float64, int, error) {
	for i, token := range b.Tokens {
		if b.Positions[i] == 0 && e.poison[token] {
			return 0, 0, fmt.Errorf("fake: %w", ErrNonFinite)
		}
	}
	sum, targets, err := e.fakeEngine.Accumulate(ctx, b)
	if e.factor != nil {
		sum *= e.factor()
	}
	return sum, targets, err
}

// notes keeps what a run says.
type notes struct {
	silent
	mu   sync.Mutex
	text strings.Builder
}

func (n *notes) Note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintln(&n.text, text)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.String()
}

func listen(n *notes) func(*Options) {
	return func(o *Options) { o.Progress = func(int, int) metrics.Progress { return n } }
}

// firstToken is the first token of a record of the site's training file.
func firstToken(record int) int32 { return int32(3 + (record*31)%(vocabulary-3)) }

// life runs the run in folder name, or goes on with it, with the engine that make makes.
func life(t *testing.T, s *site, name string, engine Engine, change ...func(*Options)) (Result, error) {
	t.Helper()
	o := s.options()
	o.Config.Output = filepath.Join(s.dir, name)
	for _, f := range change {
		f(&o)
	}
	var tr *Trainer
	var err error
	if _, listErr := checkpoint.List(o.Config.Output); listErr == nil {
		tr, err = Resume(t.Context(), o.Config.Output, o)
	} else {
		tr, err = New(t.Context(), o)
	}
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	return tr.Run(t.Context(), engine)
}

// What is skipped is counted, told, recorded, and the same again when the run goes on from anywhere.
func TestSkippedStepsAreTheSameAfterAResume(t *testing.T) {
	s := newSite(t)
	s.run.Data.Shuffle = false
	s.run.Train.GlobalBatch.Examples = 4
	s.run.Health.MaxSkips = 6
	sick := func() *sickEngine {
		return &sickEngine{fakeEngine: newFakeEngine(), poison: map[int32]bool{firstToken(0): true, firstToken(13): true}}
	}
	said := &notes{}
	straight, err := life(t, s, "straight", sick(), listen(said))
	require.NoError(t, err)
	assert.Contains(t, said.String(), "warning: skipped 4 examples (1 of 6): step 1: fake: not finite")
	want := filepath.Join(s.dir, "straight")
	skips := 0
	for _, line := range readLines(t, filepath.Join(want, "metrics.jsonl")) {
		if n, is := line["skipped"]; is {
			skips++
			assert.EqualValues(t, skips, n)
			assert.Len(t, line["examples"], 4)
			assert.Contains(t, line["reason"], "not finite")
		}
	}
	assert.Equal(t, 4, skips, "two of each of the two epochs")
	last, err := checkpoint.Open(want, straight.Step)
	require.NoError(t, err)
	assert.EqualValues(t, 4, last.Counters.Skipped)
	assert.Equal(t, straight.Step, last.ValidatedStep, "the last checkpoint does not know the last validation")
	assert.Equal(t, straight.Best, last.Best)
	assert.EqualValues(t, 2*(siteRecords-8), last.Counters.Examples)
	before := curve(t, want)
	again, err := life(t, s, "straight", sick())
	require.NoError(t, err)
	assert.Equal(t, straight.Step, again.Step, "there is nothing more to do")
	assert.Equal(t, before, curve(t, want))
	for k := 1; k < straight.Step; k++ {
		name := fmt.Sprintf("stopped at %d", k)
		_, err := life(t, s, name, sick(), stopAfter(k))
		require.NoError(t, err)
		_, err = life(t, s, name, sick())
		require.NoError(t, err)
		sameEnd(t, want, filepath.Join(s.dir, name))
	}
}

// Where all is skipped there is no run.
func TestNothingButSkipsIsAFailure(t *testing.T) {
	s := newSite(t)
	s.run.Health.MaxSkips = 100
	e := newFakeEngine()
	e.before = func(int) error { return fmt.Errorf("fake: %w", ErrNonFinite) }
	_, err := life(t, s, "run", e)
	require.ErrorIs(t, err, ErrNonFinite)
	require.ErrorContains(t, err, "no step could be made")
	steps, err := checkpoint.List(filepath.Join(s.dir, "run"))
	require.ErrorIs(t, err, checkpoint.ErrNotFound)
	assert.Empty(t, steps)
}

func TestTooManySkipsEndTheRunAndSaveTheExamples(t *testing.T) {
	s := newSite(t)
	s.run.Data.Shuffle = false
	s.run.Health.MaxSkips = 1
	sick := &sickEngine{fakeEngine: newFakeEngine(), poison: map[int32]bool{firstToken(6): true, firstToken(16): true}}
	_, err := life(t, s, "run", sick)
	require.ErrorIs(t, err, ErrNonFinite)
	path := filepath.Join(s.dir, "run", "failed-step-00000003.json")
	assert.ErrorContains(t, err, "1 steps were skipped before (health.max_skips); its examples are in "+path)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var bad badGroup
	require.NoError(t, json.Unmarshal(text, &bad))
	assert.Equal(t, 3, bad.Step)
	examples := 0
	found := false
	for _, p := range bad.Packs {
		examples += len(p.Examples)
		require.Len(t, p.Targets, len(p.Tokens))
		found = found || slices.Contains(p.Tokens, firstToken(16))
	}
	assert.Equal(t, 5, examples)
	assert.True(t, found, "the file lacks the examples")
	sound(t, filepath.Join(s.dir, "run"))
}

func TestSpikes(t *testing.T) {
	for policy, check := range map[string]func(t *testing.T, s *site, said string, err error){
		"warn": func(t *testing.T, _ *site, said string, err error) {
			require.NoError(t, err)
			assert.Contains(t, said, "warning: step 24: the loss is ")
			assert.NotContains(t, said, "skipped")
		},
		"skip": func(t *testing.T, _ *site, said string, err error) {
			require.NoError(t, err)
			assert.Regexp(t, `warning: skipped [12] examples \(1 of 3\): step 24: the loss is `, said)
		},
		"stop": func(t *testing.T, s *site, _ string, err error) {
			require.ErrorIs(t, err, ErrSpike)
			assert.FileExists(t, filepath.Join(s.dir, "run", "failed-step-00000024.json"))
		},
	} {
		t.Run(policy, func(t *testing.T) {
			s := newSite(t)
			s.run.Data.Shuffle = false
			s.run.Train.GlobalBatch.Examples = 2
			s.run.Train.Epochs = 3
			s.run.Optimizer.LR = 1e-6
			s.run.Health.LossSpike, s.run.Health.OnSpike = 1000, policy
			said := &notes{}
			sick := &sickEngine{fakeEngine: newFakeEngine()}
			spiked := 0
			sick.factor = func() float64 {
				if len(sick.applied) != 23 || spiked > 0 {
					return 1
				}
				spiked++
				return 1e9
			}
			_, err := life(t, s, "run", sick, listen(said))
			check(t, s, said.String(), err)
		})
	}
}

func TestEarlyStop(t *testing.T) {
	s := newSite(t)
	s.run.Data.Validation.EverySteps = 1
	s.run.Data.Validation.Patience = 2
	s.run.Optimizer.LR = 5 // it soon gets worse
	s.run.Checkpoint.KeepBest = true
	s.run.Checkpoint.EverySteps = 100
	said := &notes{}
	first, err := life(t, s, "run", newFakeEngine(), listen(said))
	require.NoError(t, err)
	require.Equal(t, EndPatience, first.Stopped)
	require.NotNil(t, first.Best)
	assert.Equal(t, first.Step, first.Best.Step+2)
	assert.Equal(t, 2, first.Best.Stale)

	again, err := life(t, s, "run", newFakeEngine())
	require.NoError(t, err)
	assert.Equal(t, first.Step, again.Step, "it stops at once")
	assert.Equal(t, EndPatience, again.Stopped)
	on, err := life(t, s, "run", newFakeEngine(), func(o *Options) { o.Config.Data.Validation.Patience = 0 })
	require.NoError(t, err)
	assert.Greater(t, on.Step, first.Step)
	steps, err := checkpoint.List(filepath.Join(s.dir, "run"))
	require.NoError(t, err)
	if on.Best.Step > 0 {
		assert.Contains(t, steps, on.Best.Step, "the best one is kept")
	}
}

func TestRetention(t *testing.T) {
	steps := []int{2, 4, 6, 8, 10, 11}
	for want, keep := range map[string]checkpoint.Retention{
		"[2 4 6 8 10]": {Last: 1},
		"[2 4 6 8]":    {Last: 2},
		"[2 6 10]":     {Last: 1, Every: 4},
		"[2 4 8 10]":   {Last: 1, Also: []int{6, 7}},
		"[]":           {Last: 6},
	} {
		assert.Equal(t, want, fmt.Sprint(keep.Removed(steps)), "%+v", keep)
	}
}

func TestBestAndEveryMthAreKept(t *testing.T) {
	s := newSite(t)
	s.run.Checkpoint.KeepLast, s.run.Checkpoint.KeepEvery, s.run.Checkpoint.KeepBest = 1, 4, true
	s.run.Data.Validation.EverySteps = 3
	_, result := s.train(t, "run")
	steps, err := checkpoint.List(s.run.Output)
	require.NoError(t, err)
	want := []int{4, 8, 10}
	if best := result.Best.Step; best > 0 && !slices.Contains(want, best) {
		want = append(want, best)
		slices.Sort(want)
	}
	assert.Equal(t, want, steps)
}

func TestCheckpointOnRequest(t *testing.T) {
	s := newSite(t)
	s.run.Checkpoint.EverySteps = 100
	ask := make(chan struct{}, 1)
	said := &notes{}
	e := newFakeEngine()
	e.before = func(int) error {
		if len(e.applied) == 3 && len(ask) == 0 {
			ask <- struct{}{}
		}
		return nil
	}
	result, err := life(t, s, "run", e, listen(said), func(o *Options) { o.SaveNow = ask })
	require.NoError(t, err)
	assert.Contains(t, said.String(), "step 4 is saved in ")
	steps, err := checkpoint.List(filepath.Join(s.dir, "run"))
	require.NoError(t, err)
	assert.Equal(t, []int{4, result.Step}, steps, "the run went on")
}

func TestStallIsWrittenDown(t *testing.T) {
	s := newSite(t)
	s.run.Health.StallTimeout = "30ms"
	said := &notes{}
	e := newFakeEngine()
	var once sync.Once
	e.before = func(call int) error {
		if call == 3 {
			once.Do(func() {
				for range 500 { // until the watchdog has barked
					time.Sleep(10 * time.Millisecond)
					if strings.Contains(said.String(), "no progress") {
						return
					}
				}
			})
		}
		return nil
	}
	_, err := life(t, s, "run", e, listen(said), func(o *Options) { o.NativeStacks = func() string { return "thread 1 waits" } })
	require.NoError(t, err)
	require.Contains(t, said.String(), "warning: no progress for ")
	paths, err := filepath.Glob(filepath.Join(s.dir, "run", "stall-*.txt"))
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	text, err := os.ReadFile(paths[0])
	require.NoError(t, err)
	assert.Contains(t, string(text), "TestStallIsWrittenDown")
	assert.Contains(t, string(text), "thread 1 waits")
	report := sound(t, filepath.Join(s.dir, "run"))
	assert.GreaterOrEqual(t, report.Step, 1)
	require.False(t, errors.Is(err, ErrSpike))
}
