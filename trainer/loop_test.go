package trainer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/schedule"
)

func readLines(t testing.TB, path string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var lines []map[string]any
	for line := range bytes.Lines(text) {
		var m map[string]any
		require.NoError(t, json.Unmarshal(line, &m))
		lines = append(lines, m)
	}
	return lines
}

func TestRunTakesThePlannedSteps(t *testing.T) {
	s := newSite(t)
	e, result := s.train(t, "run")
	const perEpoch = 5 // 23 examples in groups of 5: the last has 3
	require.Len(t, e.applied, 2*perEpoch)
	assert.Equal(t, 2*perEpoch, result.Steps)
	assert.Equal(t, 2*perEpoch, result.Step)
	assert.Empty(t, result.Stopped)

	rates, err := schedule.New("cosine", 0.01, 2, 2*perEpoch, 0)
	require.NoError(t, err)
	var steps []map[string]any
	var validated []float64
	for _, line := range readLines(t, filepath.Join(s.run.Output, "metrics.jsonl")) {
		if _, is := line["validation_loss"]; is {
			validated = append(validated, line["step"].(float64))
			assert.EqualValues(t, 10, line["validation_targets"])
			continue
		}
		steps = append(steps, line)
	}
	assert.Equal(t, []float64{0, 3, 6, 9, 10}, validated, "before the first step, every three, and at the end")
	require.Len(t, steps, 2*perEpoch)
	for i, line := range steps {
		a := e.applied[i]
		assert.Equal(t, rates.LR(i+1), a.lr)
		assert.EqualValues(t, 1, a.maxGradNorm)
		assert.Equal(t, line["targets"], a.normalizer, "the gradient was not divided by the group's own number of targets")
		wantExamples := 5
		if (i+1)%perEpoch == 0 {
			wantExamples = 3
		}
		assert.EqualValues(t, wantExamples, line["examples"])
		assert.Equal(t, map[string]any{"tokenized": float64(wantExamples)}, line["objective"])
	}
	assert.EqualValues(t, 2, steps[len(steps)-1]["epoch"])

	kept, err := checkpoint.List(s.run.Output)
	require.NoError(t, err)
	assert.Equal(t, []int{6, 8, 10}, kept)
	last, err := checkpoint.Open(s.run.Output, 10)
	require.NoError(t, err)
	record, err := ReadRecord(s.run.Output)
	require.NoError(t, err)
	assert.Equal(t, record.Plan.Examples, last.Counters.Examples)
	assert.Equal(t, record.Plan.Tokens, last.Counters.Tokens)
	assert.Equal(t, record.Plan.Targets, last.Counters.Targets)
	assert.EqualValues(t, 2*siteRecords, last.Counters.Examples)
	assert.Equal(t, last.Dir, result.Checkpoint)
	sound(t, s.run.Output)
}

// Whatever a step is made of, at whichever step a run stops, going on gives the bytes of the unbroken run.
func TestResumeEqualsTheStraightRun(t *testing.T) {
	for _, batch := range []config.GlobalBatch{{Examples: 5}, {Tokens: 50}, {Packs: 2}} {
		t.Run(fmt.Sprintf("%+v", batch), func(t *testing.T) {
			s := newSite(t)
			s.run.Train.GlobalBatch = batch
			_, straight := s.train(t, "straight")
			want := s.run.Output
			require.Greater(t, straight.Steps, 5)
			for k := 1; k < straight.Steps; k++ {
				name := fmt.Sprintf("stopped at %d", k)
				_, first := s.train(t, name, stopAfter(k))
				require.Equal(t, k, first.Step)
				require.Equal(t, "stop_after", first.Stopped)
				_, second := s.resume(t, name)
				require.Equal(t, straight.Steps, second.Step)
				sameEnd(t, want, filepath.Join(s.dir, name))
			}
		})
	}
}

func TestResumeManyTimes(t *testing.T) {
	s := newSite(t)
	_, straight := s.train(t, "straight")
	want := s.run.Output
	s.train(t, "bit by bit", stopAfter(1))
	for range straight.Steps - 1 {
		s.resume(t, "bit by bit", stopAfter(1))
	}
	sameEnd(t, want, filepath.Join(s.dir, "bit by bit"))
}

// An interrupt at any micro-batch throws its step away and saves the one before.
func TestInterruptAtEveryMicroBatch(t *testing.T) {
	s := newSite(t)
	straight, _ := s.train(t, "straight")
	want := s.run.Output
	for call := 1; call <= straight.calls; call++ {
		s.run.Output = filepath.Join(s.dir, fmt.Sprintf("interrupted at %d", call))
		tr, err := s.begin(t)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		e := newFakeEngine()
		e.before = func(n int) error {
			if n == call {
				cancel()
			}
			return nil
		}
		result, err := tr.Run(ctx, e)
		var interrupted *Interrupted
		require.ErrorAs(t, err, &interrupted)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, result.Step, interrupted.Step)
		require.Equal(t, len(e.applied), interrupted.Step)
		require.NoError(t, tr.Close())
		require.Equal(t, interrupted.Step, sound(t, s.run.Output).Step)

		s.resume(t, filepath.Base(s.run.Output))
		sameEnd(t, want, s.run.Output)
	}
}

// An interrupt within any validation, the very last one too: the checkpoint that it leaves learns of the validation when the run is resumed.
func TestInterruptInEveryValidation(t *testing.T) {
	s := newSite(t)
	calls := 0
	s.run.Output = filepath.Join(s.dir, "straight")
	begin := func(evaluating func(cancel func())) error {
		tr, err := s.begin(t)
		require.NoError(t, err)
		defer closeTrainer(t, tr)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		e := newFakeEngine()
		e.evaluating = func() { evaluating(cancel) }
		_, err = tr.Run(ctx, e)
		return err
	}
	require.NoError(t, begin(func(func()) { calls++ }))
	want := s.run.Output
	require.Greater(t, calls, 4)
	for call := 2; call <= calls; call++ { // the first comes before the first step
		name := fmt.Sprintf("interrupted at %d", call)
		s.run.Output = filepath.Join(s.dir, name)
		n := 0
		err := begin(func(cancel func()) {
			if n++; n == call {
				cancel()
			}
		})
		var interrupted *Interrupted
		require.ErrorAs(t, err, &interrupted)
		if interrupted.Step == 0 {
			continue
		}
		s.resume(t, name)
		sameEnd(t, want, s.run.Output)
		tr, err := Resume(t.Context(), s.run.Output, s.options())
		require.NoError(t, err)
		require.True(t, tr.Finished(), "nothing is left to measure")
		closeTrainer(t, tr)
	}
}

func TestNonFiniteLossEndsTheRun(t *testing.T) {
	for name, poison := range map[string]func(*fakeEngine) error{
		"reported by the engine": func(*fakeEngine) error { return fmt.Errorf("fake: %w", ErrNonFinite) },
		"returned as the loss": func(e *fakeEngine) error {
			e.tensors[0].Value[0] = float32(math.Inf(1))
			e.tensors[0].Value[1] = float32(math.Inf(1))
			e.tensors[1].Value[0] = float32(math.Inf(1))
			e.tensors[1].Value[1] = float32(math.Inf(1))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.run.Data.Validation = config.Validation{EverySteps: 1}
			tr, err := s.begin(t)
			require.NoError(t, err)
			defer closeTrainer(t, tr)
			e := newFakeEngine()
			e.before = func(int) error {
				if len(e.applied) == 3 {
					return poison(e)
				}
				return nil
			}
			_, err = tr.Run(t.Context(), e)
			require.ErrorIs(t, err, ErrNonFinite)
			var step *StepError
			require.ErrorAs(t, err, &step)
			assert.Equal(t, 4, step.Step)
			require.NotEmpty(t, step.Examples)
			assert.Contains(t, err.Error(), "step 4: ")
			assert.Contains(t, err.Error(), "train.jsonl:")
			steps, err := checkpoint.List(s.run.Output)
			require.NoError(t, err)
			assert.Equal(t, []int{2}, steps, "the checkpoint before is the newest")
		})
	}
}

// A run that fails before its first step leaves no run, only the examples that it failed on.
func TestFailureAtTheFirstStepLeavesNoRun(t *testing.T) {
	s := newSite(t)
	tr, err := s.begin(t)
	require.NoError(t, err)
	e := newFakeEngine()
	e.before = func(int) error { return fmt.Errorf("fake: %w", ErrNonFinite) }
	_, err = tr.Run(t.Context(), e)
	require.ErrorIs(t, err, ErrNonFinite)
	require.NoError(t, tr.Close())
	entries, err := os.ReadDir(s.run.Output)
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	assert.Subset(t, []string{"failed-step-00000001.json", checkpoint.LockName}, names)
	assert.FileExists(t, filepath.Join(s.run.Output, "failed-step-00000001.json"))
	s.train(t, "run")
}

// The disk fails at each of its operations in turn. What is visible is whole, and the run can go on to the same end.
func TestCrashAtEveryDiskOperation(t *testing.T) {
	for _, powerLoss := range []bool{false, true} {
		t.Run(fmt.Sprintf("power loss %v", powerLoss), func(t *testing.T) {
			s := newSite(t)
			s.run.Train.GlobalBatch.Examples = 8
			s.train(t, "straight")
			want := s.run.Output
			stride := 1
			if testing.Short() {
				stride = 7
			}
			for at := 1; ; at += stride {
				name := fmt.Sprintf("crash at %d", at)
				s.run.Output = filepath.Join(s.dir, name)
				fs := &crashpoint.FS{At: at}
				err := crashRun(t, s, fs)
				if powerLoss {
					require.NoError(t, fs.Lose())
				}
				if !fs.Crashed() {
					require.NoError(t, err)
					require.Greater(t, at, 50, "few operations: the disk under test was not used")
					return
				}
				goOn(t, s, name)
				sameEnd(t, want, s.run.Output)
				require.NoError(t, os.RemoveAll(s.run.Output))
			}
		})
	}
}

func crashRun(t *testing.T, s *site, fs *crashpoint.FS) error {
	tr, err := s.begin(t, func(o *Options) { o.fs = fs })
	if err != nil {
		return err
	}
	_, err = tr.Run(t.Context(), newFakeEngine())
	if closeErr := tr.dir.Close(); closeErr != nil { // a crashed process tidies nothing up
		t.Fatal(closeErr)
	}
	require.NoError(t, errors.Join(tr.set.Close(), tr.heldSet.Close()))
	return err
}

// goOn resumes what a crash left, or begins anew where it left no checkpoint.
func goOn(t *testing.T, s *site, name string) {
	if _, err := checkpoint.List(s.run.Output); err == nil {
		report := sound(t, s.run.Output)
		if report.Step >= 0 {
			s.resume(t, name)
			assert.Empty(t, sound(t, s.run.Output).Notes, "leftovers of the crash are still there")
			return
		}
	}
	require.NoError(t, os.RemoveAll(s.run.Output))
	s.train(t, name)
}

func TestFullDiskKeepsTheRunResumable(t *testing.T) {
	s := newSite(t)
	free := uint64(1 << 30)
	tr, err := s.begin(t, func(o *Options) { o.fs = &crashpoint.FS{Free: &free} })
	require.NoError(t, err)
	_, err = tr.Run(t.Context(), fullAfterThreeSteps(&free))
	var space *checkpoint.SpaceError
	require.ErrorAs(t, err, &space)
	require.NoError(t, tr.Close())
	assert.Equal(t, 2, sound(t, s.run.Output).Step)
	dir := s.run.Output
	s.resume(t, "run")
	s.train(t, "straight")
	sameEnd(t, s.run.Output, dir)
}

func TestDamagedCheckpointIsNotPassedOverSilently(t *testing.T) {
	s := newSite(t)
	s.train(t, "straight")
	want := s.run.Output
	_, stopped := s.train(t, "run", stopAfter(6))
	file := filepath.Join(stopped.Checkpoint, "optimizer.bin")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	data[len(data)-1] ^= 1
	require.NoError(t, os.WriteFile(file, data, 0o600))

	_, err = Resume(t.Context(), s.run.Output, s.options())
	require.ErrorIs(t, err, checkpoint.ErrCorrupt)
	report, err := Check(s.run.Output)
	require.NoError(t, err)
	assert.Len(t, report.Problems, 1)
	assert.Equal(t, 4, report.Step)

	s.resume(t, "run", func(o *Options) { o.Older = true })
	sameEnd(t, want, s.run.Output)
}

func TestFinishedRun(t *testing.T) {
	s := newSite(t)
	s.train(t, "run")
	tr, err := Resume(t.Context(), s.run.Output, s.options())
	require.NoError(t, err)
	assert.True(t, tr.Finished())
	assert.Equal(t, 10, tr.Result().Step)
	require.NoError(t, tr.Close())

	// More epochs make more of it.
	s.run.Train.Epochs = 3
	_, result := s.resume(t, "run")
	assert.Equal(t, 15, result.Step)
	sound(t, s.run.Output)
}

func TestMaxStepsAndMaxTime(t *testing.T) {
	s := newSite(t)
	s.run.Train.MaxSteps = 4
	e, result := s.train(t, "steps")
	assert.Len(t, e.applied, 4)
	assert.Equal(t, 4, result.Steps)
	assert.Empty(t, result.Stopped)

	s.run.Limits.MaxTime = "1ns"
	e, result = s.train(t, "time")
	assert.Len(t, e.applied, 1)
	assert.Equal(t, "max_time", result.Stopped)
	assert.Equal(t, 1, sound(t, s.run.Output).Step)
	for _, step := range []int{2, 3, 4} { // however short the time, who resumes until it is done gets there
		result, err := life(t, s, "time", newFakeEngine())
		require.NoError(t, err)
		assert.Equal(t, step, sound(t, s.run.Output).Step)
		assert.Equal(t, map[bool]string{true: "", false: "max_time"}[step == 4], result.Stopped)
	}
}

func TestResumeRefusesOtherSettings(t *testing.T) {
	s := newSite(t)
	s.train(t, "run", stopAfter(3))
	for key, change := range map[string]func(*config.Run){
		"adapter.rank":                func(r *config.Run) { r.Adapter.Rank = 2 },
		"optimizer.lr":                func(r *config.Run) { r.Optimizer.LR = 0.5 },
		"seed":                        func(r *config.Run) { r.Seed++ },
		"train.global_batch.examples": func(r *config.Run) { r.Train.GlobalBatch.Examples = 4 },
		"data.sources":                func(r *config.Run) { r.Data.Sources[0].Weight = 2 },
		"data.over_long":              func(r *config.Run) { r.Data.OverLong = "drop" },
	} {
		t.Run(key, func(t *testing.T) {
			o := s.options()
			o.Config.Data.Sources = append([]config.Source{}, o.Config.Data.Sources...)
			change(&o.Config)
			_, err := Resume(t.Context(), s.run.Output, o)
			var mismatch *MismatchError
			require.ErrorAs(t, err, &mismatch)
			require.Len(t, mismatch.Fields, 1)
			assert.Equal(t, key, mismatch.Fields[0].Key)
			assert.ErrorContains(t, err, key+": the run has "+mismatch.Fields[0].A+", given is "+mismatch.Fields[0].B)
		})
	}
	other := newSite(t)
	writeRows(t, s.run.Data.Sources[0].Path, []string{row(5, 2, 1)})
	_, err := Resume(t.Context(), s.run.Output, s.options())
	assert.ErrorContains(t, err, "the records' digest")
	s.run.Data.Sources[0].Path = other.run.Data.Sources[0].Path // the same content elsewhere
	s.resume(t, "run")
}

func TestOneProcessAtATime(t *testing.T) {
	s := newSite(t)
	tr, err := s.begin(t)
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	_, err = s.begin(t)
	var held *checkpoint.HeldError
	require.ErrorAs(t, err, &held)
	assert.DirExists(t, s.run.Output)
}

func TestOutputWithARunIsRefused(t *testing.T) {
	s := newSite(t)
	s.train(t, "run")
	_, err := s.begin(t)
	assert.ErrorIs(t, err, checkpoint.ErrExists)
	sound(t, s.run.Output)
}

// Records that somebody changes while the run trains are not learned. What was learned before is kept; with the records put back, the run goes on
// to the end of an undisturbed one.
func TestRecordsThatChangeOnTheWay(t *testing.T) {
	s := newSite(t)
	var rows []string
	for i := range 80 { // more than are kept in memory
		rows = append(rows, strings.Replace(row(4+i*5%17, 1+i%3, i), "{", fmt.Sprintf(`{"note": %q, `, strings.Repeat("x", 20_000)), 1))
	}
	s.write(t, rows...)
	s.run.Data.Validation = config.Validation{}
	s.run.Checkpoint.EverySteps = 1000
	s.train(t, "straight")
	want := s.run.Output

	path := s.run.Data.Sources[0].Path
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	e := newFakeEngine()
	e.before = func(int) error {
		if len(e.applied) == 4 {
			return os.WriteFile(path, bytes.ReplaceAll(whole, []byte("xx"), []byte("yy")), 0o600)
		}
		return nil
	}
	s.run.Output = filepath.Join(s.dir, "run")
	result, err := life(t, s, "run", e)
	require.ErrorContains(t, err, "has changed since it was indexed")
	assert.Greater(t, result.Step, 4)
	assert.Equal(t, result.Step, sound(t, s.run.Output).Step, "the steps before are kept")

	o := s.options()
	_, err = Resume(t.Context(), s.run.Output, o)
	var mismatch *MismatchError
	require.ErrorAs(t, err, &mismatch)
	require.NoError(t, os.WriteFile(path, whole, 0o600))
	s.resume(t, "run")
	sameEnd(t, want, s.run.Output)
}
