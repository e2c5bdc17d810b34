package engine

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

func tinyModel(t *testing.T, o testmodel.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	require.NoError(t, testmodel.Write(path, o))
	return path
}

func tinyParams() Params {
	return Params{
		Rank: 4, Alpha: 8, Targets: TargetAllLinear, Seed: 1, MaxTokens: 256, Threads: 1,
		Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
	}
}

func newTrainer(t *testing.T, o testmodel.Options, change func(*Params)) *Trainer {
	t.Helper()
	model, err := Load(tinyModel(t, o), "cpu")
	require.NoError(t, err)
	p := tinyParams()
	if change != nil {
		change(&p)
	}
	trainer, err := NewTrainer(model, p)
	require.NoError(t, err)
	t.Cleanup(trainer.Close)
	model.Close() // the trainer keeps it alive
	return trainer
}

// sequence is one segment of n tokens, all of them targets but the last.
func sequence(n int) Batch {
	var b Batch
	for i := range n {
		b.Tokens = append(b.Tokens, int32(3+i*7%200))
		b.Positions = append(b.Positions, int32(i))
		b.VisibleUntil = append(b.VisibleUntil, int32(n))
		b.Weights = append(b.Weights, 1)
	}
	b.Targets = append(append(b.Targets, b.Tokens[1:]...), IgnoreTarget)
	return b
}

func TestTrainingLowersTheLoss(t *testing.T) {
	trainer := newTrainer(t, testmodel.Options{}, nil)
	b := sequence(40)
	before, n, err := trainer.Evaluate(t.Context(), b)
	require.NoError(t, err)
	require.Equal(t, 39, n)
	for range 20 {
		_, n, err := trainer.Accumulate(t.Context(), b)
		require.NoError(t, err)
		norm, err := trainer.Apply(1e-2, 1, float64(n))
		require.NoError(t, err)
		require.Positive(t, norm)
	}
	after, _, err := trainer.Evaluate(t.Context(), b)
	require.NoError(t, err)
	require.Less(t, after, before/2)

	memory, err := trainer.Memory()
	require.NoError(t, err)
	require.Positive(t, memory.Total)
}

func TestStateAndRestore(t *testing.T) {
	a, b := sequence(30), sequence(50)
	step := func(tr *Trainer, batch Batch) float64 {
		t.Helper()
		loss, n, err := tr.Accumulate(t.Context(), batch)
		require.NoError(t, err)
		_, err = tr.Apply(1e-2, 1, float64(n))
		require.NoError(t, err)
		return loss
	}
	dropout := func(p *Params) { p.Dropout = 0.1 }
	straight := newTrainer(t, testmodel.Options{}, dropout)
	step(straight, a)
	state, err := straight.State()
	require.NoError(t, err)
	require.Equal(t, uint64(1), state.Steps)
	require.Equal(t, uint64(1), state.MicroBatches)
	require.Len(t, state.Tensors, 2*7*2) // layers x modules x (A, B)
	want := []float64{step(straight, b), step(straight, a)}

	resumed := newTrainer(t, testmodel.Options{}, dropout)
	_, _, err = resumed.Accumulate(t.Context(), b) // is forgotten
	require.NoError(t, err)
	require.NoError(t, resumed.Restore(state))
	require.Equal(t, want, []float64{step(resumed, b), step(resumed, a)}, "to the last bit")

	end, err := straight.State()
	require.NoError(t, err)
	again, err := resumed.State()
	require.NoError(t, err)
	require.Equal(t, end, again)
}

func TestRestoreRefusesWhatIsNotItsOwn(t *testing.T) {
	trainer := newTrainer(t, testmodel.Options{}, nil)
	state, err := trainer.State()
	require.NoError(t, err)
	for words, change := range map[string]func(*State){
		"is missing":                     func(s *State) { s.Tensors = s.Tensors[1:] },
		"there twice":                    func(s *State) { s.Tensors[1] = s.Tensors[0] },
		"has no tensor blk.9.x":          func(s *State) { s.Tensors = append(s.Tensors, Tensor{TensorInfo: TensorInfo{Name: "blk.9.x"}}) },
		"the trainer's is":               func(s *State) { s.Tensors[0].Rows++ },
		"has 3 elements":                 func(s *State) { s.Tensors[0].Moment1 = make([]float32, 3) },
		s0Name(state) + " has no values": func(s *State) { s.Tensors[0].Value = nil },
	} {
		bad := State{Tensors: append([]Tensor(nil), state.Tensors...), Steps: 5}
		change(&bad)
		err := trainer.Restore(bad)
		require.ErrorIs(t, err, ErrInvalidArgument, words)
		require.ErrorContains(t, err, words)
	}
	now, err := trainer.State()
	require.NoError(t, err)
	require.Equal(t, state, now, "nothing was written")

	// Values alone start with zero moments.
	warm := State{Tensors: append([]Tensor(nil), state.Tensors...)}
	for i := range warm.Tensors {
		warm.Tensors[i].Moment1, warm.Tensors[i].Moment2 = nil, nil
	}
	require.NoError(t, trainer.Restore(warm))
}

func s0Name(s State) string { return s.Tensors[0].Name }

func TestCancelEndsTheCallAndNoOther(t *testing.T) {
	trainer := newTrainer(t, testmodel.Options{Layers: 8, Embd: 256, FF: 1024}, func(p *Params) { p.MaxTokens = 2048 })
	long := sequence(2048)

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("before"))
	_, _, err := trainer.Accumulate(ctx, long)
	require.ErrorIs(t, err, context.Canceled)

	began := time.Now()
	_, _, err = trainer.Evaluate(t.Context(), long)
	require.NoError(t, err)
	whole := time.Since(began)

	ctx, stop := context.WithTimeout(t.Context(), whole/4)
	defer stop()
	_, _, err = trainer.Accumulate(ctx, long)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, ErrCancelled)
	trainer.Discard()

	// Whenever the context ends, during a call or just after its work is done, the next call with another is not touched.
	short := sequence(16)
	for i := range 200 {
		ctx, stop := context.WithTimeout(t.Context(), time.Duration(i)*50*time.Microsecond)
		_, _, err := trainer.Accumulate(ctx, short)
		if err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		stop()
		trainer.Discard()
		_, _, err = trainer.Evaluate(t.Context(), short)
		require.NoError(t, err, "round %d", i)
	}
}

func TestNonFiniteLoss(t *testing.T) {
	trainer := newTrainer(t, testmodel.Options{NaN: true}, nil)
	_, _, err := trainer.Accumulate(t.Context(), sequence(8))
	require.ErrorIs(t, err, ErrNonFinite)
}

func TestTrainerRefuses(t *testing.T) {
	model, err := Load(tinyModel(t, testmodel.Options{}), "auto")
	require.NoError(t, err)
	defer model.Close()
	for words, change := range map[string]func(*Params){
		"rank":    func(p *Params) { p.Rank = 0 },
		"dropout": func(p *Params) { p.Dropout = 1 },
		"targets": func(p *Params) { p.Targets = 0 },
		"alpha":   func(p *Params) { p.Alpha = math.NaN() },
		"tokens":  func(p *Params) { p.MaxTokens = 1 << 40 },
	} {
		p := tinyParams()
		change(&p)
		_, err := NewTrainer(model, p)
		require.ErrorIs(t, err, ErrInvalidArgument, words)
		require.ErrorContains(t, err, words)
	}

	trainer := newTrainer(t, testmodel.Options{}, nil)
	for words, change := range map[string]func(*Batch){
		"no tokens":       func(b *Batch) { *b = Batch{} },
		"3 targets":       func(b *Batch) { b.Targets = b.Targets[:3] },
		"9 positions":     func(b *Batch) { b.Positions = append(b.Positions, 1) },
		"position 3":      func(b *Batch) { b.Tokens[3] = 1 << 30 },
		"visible_until":   func(b *Batch) { b.VisibleUntil[0] = 100 },
		"target":          func(b *Batch) { b.Targets[2] = 1 << 30 },
		"2 visible_until": func(b *Batch) { b.VisibleUntil = b.VisibleUntil[:2] },
	} {
		b := sequence(8)
		change(&b)
		_, _, err := trainer.Accumulate(t.Context(), b)
		require.ErrorIs(t, err, ErrInvalidArgument, words)
		require.ErrorContains(t, err, words)
	}
	_, _, err = trainer.Accumulate(t.Context(), sequence(257))
	require.ErrorIs(t, err, ErrInvalidArgument)
}

func TestClosedTrainer(t *testing.T) {
	trainer := newTrainer(t, testmodel.Options{}, nil)
	trainer.Close()
	trainer.Close()
	trainer.Cancel()
	trainer.Discard()
	_, _, err := trainer.Accumulate(t.Context(), sequence(4))
	require.ErrorIs(t, err, ErrClosed)
	_, err = trainer.Apply(1, 1, 1)
	require.ErrorIs(t, err, ErrClosed)
	_, err = trainer.State()
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, trainer.Restore(State{}), ErrClosed)
	_, err = trainer.Logits(sequence(4), []int32{0})
	require.ErrorIs(t, err, ErrClosed)
	_, err = trainer.Memory()
	require.ErrorIs(t, err, ErrClosed)

	model, err := Load(tinyModel(t, testmodel.Options{}), "cpu")
	require.NoError(t, err)
	model.Close()
	model.Close()
	_, err = model.Info()
	require.ErrorIs(t, err, ErrClosed)
	_, err = model.EstimateMemory(tinyParams())
	require.ErrorIs(t, err, ErrClosed)
	_, err = NewTrainer(model, tinyParams())
	require.ErrorIs(t, err, ErrClosed)
}

// The same F32 weights on both sides of the house: our forward and libllama's, so only the order of sums differs.
func TestLogitsAreThoseOfLibllama(t *testing.T) {
	const tolerance = 1e-4 // logits are of size 1
	path := tinyModel(t, testmodel.Options{Embd: 96, Heads: 6, KVHeads: 2, Layers: 3})
	model, err := Load(path, "cpu")
	require.NoError(t, err)
	defer model.Close()
	info, err := model.Info()
	require.NoError(t, err)
	trainer, err := NewTrainer(model, tinyParams())
	require.NoError(t, err)
	defer trainer.Close()
	b := sequence(60)
	ours, err := trainer.Logits(b, []int32{0, 31, 59})
	require.NoError(t, err)
	require.Len(t, ours, 3*info.Vocab)

	session, err := NewSession(path, "", SessionParams{NCtx: 256, NBatch: 64, NSequences: 1, NThreads: 1, AdapterScale: 1, F32KV: true})
	require.NoError(t, err)
	defer session.Close()
	want := make([]bool, len(b.Tokens))
	want[0], want[31], want[59] = true, true, true
	require.NoError(t, session.Decode(b.Tokens, b.Positions, make([]int32, len(b.Tokens)), want))
	for row, i := range []int{0, 31, 59} {
		theirs := make([]float32, info.Vocab)
		require.NoError(t, session.Logits(i, theirs))
		require.InDeltaSlice(t, theirs, ours[row*info.Vocab:(row+1)*info.Vocab], tolerance)
	}
}
