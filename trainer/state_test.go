package trainer

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/regular"
	"cftune/internal/testlimit"
	"cftune/internal/testmodel"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/gguf"
	"cftune/trainer/metrics"
)

func optimizerBytes(t testing.TB, s State) []byte {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, writeOptimizer(&out, s))
	return out.Bytes()
}

func sampleState() State {
	return State{Steps: 7, MicroBatches: 21, Tensors: []Tensor{
		{Name: "blk.0.attn_q.weight.lora_a", Rows: 1, Cols: 3, Value: []float32{1, 2, 3}, Moment1: []float32{4, 5, 6}, Moment2: []float32{7, 8, 9}},
		{Name: "blk.0.attn_q.weight.lora_b", Rows: 2, Cols: 1, Value: []float32{1, 2}, Moment1: []float32{-0.5, 1e-30}, Moment2: []float32{0, 1e30}},
	}}
}

func TestOptimizerRoundTrip(t *testing.T) {
	want := sampleState()
	data := optimizerBytes(t, want)
	got, err := readOptimizer(bytes.NewReader(data), int64(len(data)))
	require.NoError(t, err)
	for i := range want.Tensors {
		want.Tensors[i].Value = nil // those are the adapter's
	}
	assert.Equal(t, want, got)

	for n := range data {
		_, err := readOptimizer(bytes.NewReader(data[:n]), int64(n))
		require.ErrorIs(t, err, checkpoint.ErrCorrupt, "cut to %d bytes", n)
	}
	longer := append(bytes.Clone(data), 0)
	_, err = readOptimizer(bytes.NewReader(longer), int64(len(longer)))
	assert.ErrorContains(t, err, "1 bytes follow its end")
	data[8] = 2
	_, err = readOptimizer(bytes.NewReader(data), int64(len(data)))
	assert.ErrorIs(t, err, checkpoint.ErrIncompatible)
}

func FuzzOptimizer(f *testing.F) {
	f.Add(optimizerBytes(f, sampleState()))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s State
		var err error
		testlimit.Bound(t, func() { s, err = readOptimizer(bytes.NewReader(data), int64(len(data))) })
		if err != nil {
			return
		}
		if again := optimizerBytes(t, s); !bytes.Equal(again, data) {
			t.Fatalf("%d bytes were read, %d are written", len(data), len(again))
		}
	})
}

// What a checkpoint holds of the adapter is llama.cpp's: rank, alpha, both matrices as they are.
func TestCheckpointHoldsTheAdapterExactly(t *testing.T) {
	s := newSite(t)
	e, result := s.train(t, "run")
	a, err := gguf.ReadAdapter(filepath.Join(result.Checkpoint, adapterName), nil)
	require.NoError(t, err)
	assert.Equal(t, 1, a.Rank)
	assert.EqualValues(t, 2, a.Alpha)
	assert.Equal(t, "llama", a.Architecture)
	assert.EqualValues(t, 10, a.Step)
	record, err := ReadRecord(s.run.Output)
	require.NoError(t, err)
	assert.Equal(t, record.Model.SHA256, a.ModelDigest)
	require.Len(t, a.Tensors, 2)
	for _, want := range e.tensors {
		for _, got := range a.Tensors {
			if got.Name == want.Name {
				assert.Equal(t, want.Value, got.Data)
			}
		}
	}
}

func TestWarmStart(t *testing.T) {
	s := newSite(t)
	_, first := s.train(t, "first")
	adapter := filepath.Join(first.Checkpoint, adapterName)
	a, err := gguf.ReadAdapter(adapter, nil)
	require.NoError(t, err)

	s.run.Adapter.InitFrom = adapter
	s.run.Output = filepath.Join(s.dir, "second")
	tr, err := s.begin(t)
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	e := newFakeEngine()
	e.before = func(int) error {
		e.before = nil
		for _, got := range e.tensors {
			for _, want := range a.Tensors {
				if got.Name == want.Name {
					assert.Equal(t, want.Data, got.Value, "the first step did not begin with the adapter's values")
				}
			}
			assert.Equal(t, []float32{0, 0}, got.Moment1)
		}
		return nil
	}
	_, err = tr.Run(t.Context(), e)
	require.NoError(t, err)
	require.Nil(t, e.before, "no step was taken")

	for want, change := range map[string]func(*config.Adapter){
		"adapter.rank is 2, the adapter has 1":                     func(a *config.Adapter) { a.Rank = 2 },
		"adapter.alpha is 3, the adapter has 2":                    func(a *config.Adapter) { a.Alpha = 3 },
		"adapter.targets is attn_q,attn_v, the adapter has attn_q": func(a *config.Adapter) { a.Targets = "attn_v,attn_q" },
	} {
		o := s.options()
		change(&o.Config.Adapter)
		_, err := Prepare(t.Context(), o)
		var mismatch *AdapterError
		require.ErrorAs(t, err, &mismatch)
		assert.Equal(t, []string{want}, mismatch.Fields)
	}
}

// An adapter of another model's shape is refused before the first step, and nothing is left.
func TestWarmStartOfAnotherShape(t *testing.T) {
	s := newSite(t)
	var file bytes.Buffer
	require.NoError(t, gguf.WriteAdapter(&file, gguf.Adapter{Architecture: "llama", Rank: 1, Alpha: 2, Tensors: []gguf.Tensor{
		{Name: "blk.0.attn_q.weight.lora_a", Rows: 1, Cols: 3, Data: make([]float32, 3)},
		{Name: "blk.0.attn_q.weight.lora_b", Rows: 2, Cols: 1, Data: make([]float32, 2)},
		{Name: "blk.7.attn_q.weight.lora_a", Rows: 1, Cols: 2, Data: make([]float32, 2)},
		{Name: "blk.7.attn_q.weight.lora_b", Rows: 2, Cols: 1, Data: make([]float32, 2)},
	}}, gguf.F32))
	s.run.Adapter.InitFrom = filepath.Join(s.dir, "other.gguf")
	require.NoError(t, os.WriteFile(s.run.Adapter.InitFrom, file.Bytes(), 0o600))
	tr, err := s.begin(t)
	require.NoError(t, err)
	_, err = tr.Run(t.Context(), newFakeEngine())
	var mismatch *AdapterError
	require.ErrorAs(t, err, &mismatch)
	assert.Equal(t, []string{
		"blk.0.attn_q.weight.lora_a is 1 x 2, the adapter has 1 x 3",
		"the base model has no place for blk.7.attn_q.weight.lora_a",
		"the base model has no place for blk.7.attn_q.weight.lora_b",
	}, mismatch.Fields)
	require.NoError(t, tr.Close())
	assert.NoDirExists(t, s.run.Output)
}

func TestRecordIsStrict(t *testing.T) {
	s := newSite(t)
	s.train(t, "run", stopAfter(1))
	path := filepath.Join(s.run.Output, checkpoint.ConfigName)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(text, &fields))
	change := func(key string, value any) {
		changed := map[string]any{}
		for k, v := range fields {
			changed[k] = v
		}
		changed[key] = value
		data, err := json.Marshal(changed)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	change("format", 2)
	_, err = ReadRecord(s.run.Output)
	assert.ErrorIs(t, err, checkpoint.ErrIncompatible)
	change("extra", true)
	_, err = ReadRecord(s.run.Output)
	assert.ErrorIs(t, err, checkpoint.ErrIncompatible)
	assert.ErrorIs(t, checkWhole(s.run.Output), checkpoint.ErrIncompatible, "a mirror's copy with it is not passed over")
	require.NoError(t, os.WriteFile(path, text[:len(text)/2], 0o600))
	assert.NotErrorIs(t, checkWhole(s.run.Output), checkpoint.ErrIncompatible)
	_, err = Resume(t.Context(), s.run.Output, s.options())
	assert.ErrorIs(t, err, checkpoint.ErrCorrupt)
	report, err := Check(s.run.Output)
	require.NoError(t, err)
	assert.Len(t, report.Problems, 1)
	_, err = ReadRecord(s.dir)
	assert.ErrorIs(t, err, checkpoint.ErrNotFound)
}

var update = flag.Bool("update", false, "write testdata/run-format-1 anew, before its format is released")

// A run of every released format stays readable: check finds it sound, its state loads, and its settings are complete.
func TestRunsOfEveryFormatAreReadable(t *testing.T) {
	if *update {
		s := newSite(t)
		s.run.Checkpoint.KeepLast = 1
		s.train(t, "run", stopAfter(4))
		require.NoError(t, os.RemoveAll(filepath.Join("testdata", "run-format-1")))
		require.NoError(t, os.CopyFS(filepath.Join("testdata", "run-format-1"), os.DirFS(s.run.Output)))
		require.NoError(t, os.Remove(filepath.Join("testdata", "run-format-1", checkpoint.LockName)))
	}
	for format := 1; format <= checkpoint.FormatVersion; format++ {
		dir := filepath.Join("testdata", fmt.Sprintf("run-format-%d", format))
		report := sound(t, dir)
		assert.Equal(t, 4, report.Step)
		record, err := ReadRecord(dir)
		require.NoError(t, err)
		assert.Equal(t, 10, record.Plan.Steps)
		require.NoError(t, record.Config.Validate())
		c, _, err := checkpoint.Latest(dir, false)
		require.NoError(t, err)
		state, err := loadState(c)
		require.NoError(t, err)
		assert.EqualValues(t, 4, state.Steps)
		assert.Len(t, state.Tensors, 2)
		losses, err := metrics.Losses(filepath.Join(dir, checkpoint.MetricsName), 100)
		require.NoError(t, err)
		assert.Len(t, losses, 4)
	}
}

// Another model of the same size, with the time of the one before: an image or a copy may leave it so.
func TestAModelThatWasReplacedIsNoticed(t *testing.T) {
	s := newSite(t)
	s.train(t, "run", stopAfter(4))
	was, err := ReadRecord(s.run.Output)
	require.NoError(t, err)
	info, err := os.Stat(s.run.Model)
	require.NoError(t, err)
	for changed := was.Model.Modified; changed.Equal(was.Model.Modified); { // the system's clock of files ticks some hundred times a second
		require.NoError(t, testmodel.Write(s.run.Model, testmodel.Options{Layers: 1, Embd: 32, FF: 32, Heads: 2, KVHeads: 1, Seed: 5}))
		require.NoError(t, os.Chtimes(s.run.Model, time.Time{}, info.ModTime()))
		now, err := os.Stat(s.run.Model)
		require.NoError(t, err)
		changed = regular.Changed(now)
	}
	now, err := os.Stat(s.run.Model)
	require.NoError(t, err)
	require.Equal(t, info.Size(), now.Size())
	require.True(t, now.ModTime().Equal(info.ModTime()))
	_, err = Resume(t.Context(), s.run.Output, s.options())
	var mismatch *MismatchError
	require.ErrorAs(t, err, &mismatch)
	assert.Equal(t, keyModelDigest, mismatch.Fields[0].Key)
}
