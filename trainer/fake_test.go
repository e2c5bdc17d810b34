package trainer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cftune/internal/testmodel"
	"cftune/trainer/config"
	"cftune/trainer/pack"
)

func TestMain(m *testing.M) {
	roomPatience, roomLook = 20*time.Millisecond, time.Millisecond // where a test does not say otherwise
	goleak.VerifyTestMain(m)
}

// fakeEngine pulls four weights towards the targets' numbers, with Adam's moments and noise from the micro-batches'
// counter: all that a checkpoint must hold shows in its weights.
type fakeEngine struct {
	tensors             []Tensor
	gradient            []float64
	steps, microBatches uint64

	applied []applied
	// before is called with the number of each Accumulate, from 1; its error is the call's.
	evaluating func() // called before each call of Evaluate
	before     func(call int) error
	calls      int
	cancel     context.CancelFunc // called before the error of an ended context is looked at
}

type applied struct{ lr, maxGradNorm, normalizer float64 }

func newFakeEngine() *fakeEngine {
	e := &fakeEngine{gradient: make([]float64, 4)}
	for _, t := range []Tensor{{Name: "blk.0.attn_q.weight.lora_b", Rows: 2, Cols: 1}, {Name: "blk.0.attn_q.weight.lora_a", Rows: 1, Cols: 2}} {
		t.Value, t.Moment1, t.Moment2 = []float32{0.5, -0.5}, make([]float32, 2), make([]float32, 2)
		e.tensors = append(e.tensors, t)
	}
	return e
}

func (e *fakeEngine) loss(b pack.Batch, noise float64, gradient []float64) (sum float64, targets int) {
	for i, target := range b.Targets {
		if target == pack.IgnoreTarget {
			continue
		}
		targets++
		k := int(b.Tokens[i]) % 4
		difference := float64(e.tensors[k/2].Value[k%2]) - float64(target)/100 + noise
		weight := float64(b.Weights[i])
		sum += weight * difference * difference / 2
		if gradient != nil {
			gradient[k] += weight * difference
		}
	}
	return sum, targets
}

func (e *fakeEngine) Accumulate(ctx context.Context, b pack.Batch) (float64, int, error) {
	e.calls++
	if e.before != nil {
		if err := e.before(e.calls); err != nil {
			return 0, 0, err
		}
	}
	e.microBatches++ // counts a call that is then cancelled, too
	if err := ctx.Err(); err != nil {
		return 0, 0, fmt.Errorf("fake: %w", err)
	}
	sum, targets := e.loss(b, math.Sin(float64(e.microBatches)), e.gradient)
	return sum, targets, nil
}

func (e *fakeEngine) Evaluate(ctx context.Context, b pack.Batch) (float64, int, error) {
	if e.evaluating != nil {
		e.evaluating()
	}
	if err := ctx.Err(); err != nil {
		return 0, 0, fmt.Errorf("fake: %w", err)
	}
	sum, targets := e.loss(b, 0, nil)
	return sum, targets, nil
}

func (e *fakeEngine) Apply(lr, maxGradNorm, normalizer float64) (float64, error) {
	e.applied = append(e.applied, applied{lr, maxGradNorm, normalizer})
	e.steps++
	norm := 0.0
	for k := range e.gradient {
		t, i, g := &e.tensors[k/2], k%2, e.gradient[k]/normalizer
		norm += g * g
		t.Moment1[i] = 0.9*t.Moment1[i] + 0.1*float32(g)
		t.Moment2[i] = 0.99*t.Moment2[i] + 0.01*float32(g*g)
		correction := 1 - math.Pow(0.9, float64(e.steps))
		t.Value[i] -= float32(lr * float64(t.Moment1[i]) / correction / (math.Sqrt(float64(t.Moment2[i])) + 1e-3))
	}
	e.Discard()
	return math.Sqrt(norm), nil
}

func (e *fakeEngine) Discard() { clear(e.gradient) }

func (e *fakeEngine) State() (State, error) {
	s := State{Steps: e.steps, MicroBatches: e.microBatches}
	for _, t := range e.tensors {
		t.Value, t.Moment1, t.Moment2 = append([]float32{}, t.Value...), append([]float32{}, t.Moment1...), append([]float32{}, t.Moment2...)
		s.Tensors = append(s.Tensors, t)
	}
	return s, nil
}

func (e *fakeEngine) Restore(s State) error {
	if len(s.Tensors) != len(e.tensors) {
		return errors.New("fake: another number of tensors")
	}
	for _, from := range s.Tensors {
		for i := range e.tensors {
			to := &e.tensors[i]
			if to.Name != from.Name {
				continue
			}
			copy(to.Value, from.Value)
			clear(to.Moment1)
			clear(to.Moment2)
			copy(to.Moment1, from.Moment1)
			copy(to.Moment2, from.Moment2)
		}
	}
	e.steps, e.microBatches = s.Steps, s.MicroBatches
	e.Discard()
	return nil
}

func (e *fakeEngine) MemoryBytes() uint64 { return 1 << 20 }

const vocabulary = 100

// row is a tokenized row of n tokens, of which the last are learned.
func row(n, learned, seed int) string {
	var ids, labels []string
	for i := range n {
		token := 3 + (seed*31+i*7)%(vocabulary-3)
		label := -100
		if i >= n-learned {
			label = token
		}
		ids, labels = append(ids, fmt.Sprint(token)), append(labels, fmt.Sprint(label))
	}
	return fmt.Sprintf(`{"input_ids": [%s], "labels": [%s]}`, strings.Join(ids, ","), strings.Join(labels, ","))
}

func writeRows(t testing.TB, path string, rows []string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(rows, "\n")+"\n"), 0o600))
}

// site is a folder with a base model, 23 records and 5 held-out ones, and a configuration over them.
type site struct {
	dir string
	run config.Run
}

const siteRecords = 23

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{dir: t.TempDir()}
	require.NoError(t, testmodel.Write(filepath.Join(s.dir, "model.gguf"), testmodel.Options{Layers: 1, Embd: 32, FF: 32, Heads: 2, KVHeads: 1}))
	var rows, held []string
	for i := range siteRecords {
		rows = append(rows, row(4+i*5%17, 1+i%3, i))
	}
	for i := range 5 {
		held = append(held, row(6+i, 2, 50+i))
	}
	writeRows(t, filepath.Join(s.dir, "train.jsonl"), rows)
	writeRows(t, filepath.Join(s.dir, "held.jsonl"), held)
	run := config.Defaults()
	run.Model, run.Output = filepath.Join(s.dir, "model.gguf"), filepath.Join(s.dir, "run")
	run.Data.Sources = []config.Source{{Path: filepath.Join(s.dir, "train.jsonl"), Format: "tokenized", Weight: 1, Sample: 1}}
	run.Data.Validation = config.Validation{Path: filepath.Join(s.dir, "held.jsonl"), Format: "tokenized", EverySteps: 3}
	run.Adapter.Rank, run.Adapter.Alpha, run.Adapter.Targets = 1, 2, "attn_q"
	run.Train.SeqLen = 32
	run.Train.GlobalBatch = config.GlobalBatch{Examples: 5}
	run.Train.Epochs = 2
	run.Optimizer.LR, run.Optimizer.WarmupSteps = 0.01, 2
	run.Checkpoint = config.Checkpoint{EverySteps: 2, KeepLast: 3}
	require.NoError(t, run.Validate())
	s.run = run
	return s
}

func (s *site) options() Options {
	return Options{Config: s.run, Text: Text{Vocabulary: vocabulary, BOS: -1}, Version: "test"}
}

// begin prepares a new run.
func (s *site) begin(t testing.TB, change ...func(*Options)) (*Trainer, error) {
	t.Helper()
	o := s.options()
	for _, f := range change {
		f(&o)
	}
	return New(t.Context(), o)
}

// train makes a whole new run in the folder name.
func (s *site) train(t testing.TB, name string, change ...func(*Options)) (*fakeEngine, Result) {
	t.Helper()
	s.run.Output = filepath.Join(s.dir, name)
	tr, err := s.begin(t, change...)
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	e := newFakeEngine()
	result, err := tr.Run(t.Context(), e)
	require.NoError(t, err)
	return e, result
}

// resume goes on with a run to its end.
func (s *site) resume(t testing.TB, name string, change ...func(*Options)) (*fakeEngine, Result) {
	t.Helper()
	o := s.options()
	o.Config.Output = filepath.Join(s.dir, name)
	for _, f := range change {
		f(&o)
	}
	tr, err := Resume(t.Context(), o.Config.Output, o)
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	e := newFakeEngine()
	result, err := tr.Run(t.Context(), e)
	require.NoError(t, err)
	return e, result
}

func closeTrainer(t testing.TB, tr *Trainer) {
	t.Helper()
	require.NoError(t, tr.Close())
}

func stopAfter(steps int) func(*Options) { return func(o *Options) { o.StopAfter = steps } }

// sound requires that nothing in a run directory is damaged.
func sound(t testing.TB, dir string) Report {
	t.Helper()
	report, err := Check(dir)
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	return report
}

// sameEnd requires that two runs ended with the same newest checkpoint, byte for byte, and the same losses.
func sameEnd(t testing.TB, want, got string) {
	t.Helper()
	wantReport, gotReport := sound(t, want), sound(t, got)
	require.Equal(t, wantReport.Step, gotReport.Step)
	for _, name := range []string{"adapter.gguf", "optimizer.bin", "manifest.json"} {
		file := filepath.Join("checkpoints", fmt.Sprintf("step-%08d", wantReport.Step), name)
		a, err := os.ReadFile(filepath.Join(want, file))
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(got, file))
		require.NoError(t, err)
		require.True(t, bytes.Equal(a, b), "%s differs", file)
	}
	require.Equal(t, curve(t, want), curve(t, got))
}

// curve is what the metrics say, without what depends on time.
func curve(t testing.TB, dir string) []map[string]any {
	t.Helper()
	var lines []map[string]any
	for _, line := range readLines(t, filepath.Join(dir, "metrics.jsonl")) {
		for _, key := range []string{"time", "seconds", "tokens_per_s", "target_tokens_per_s"} {
			delete(line, key)
		}
		lines = append(lines, line)
	}
	return lines
}
