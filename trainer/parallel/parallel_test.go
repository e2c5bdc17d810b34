package parallel

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cftune/trainer"
	"cftune/trainer/pack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// table is where the goroutines of a test meet: each call of a round puts its data down and takes everybody's.
type table struct {
	mu      sync.Mutex
	all     *sync.Cond
	size    int
	put     [][]byte
	waiting int
	round   int
	taken   [][]byte
}

func newTable(size int) *table {
	t := &table{size: size, put: make([][]byte, size)}
	t.all = sync.NewCond(&t.mu)
	return t
}

func (t *table) exchange(rank int, data []byte) [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	round := t.round
	t.put[rank] = slices.Clone(data)
	if t.waiting++; t.waiting == t.size {
		t.taken, t.put, t.waiting, t.round = t.put, make([][]byte, t.size), 0, t.round+1
		t.all.Broadcast()
		return t.taken
	}
	for t.round == round {
		t.all.Wait()
	}
	return t.taken
}

// seat is one rank's place at the table.
type seat struct {
	*table
	rank int
}

func (s seat) Rank() int { return s.rank }
func (s seat) Size() int { return s.size }

func (s seat) Broadcast(data []byte) error {
	copy(data, s.exchange(s.rank, data)[0])
	return nil
}

func (s seat) Gather(mine []byte) ([]byte, error) {
	return slices.Concat(s.exchange(s.rank, mine)...), nil
}

func (s seat) Sum(data []float32) error {
	bits := make([]byte, 0, 4*len(data))
	for _, x := range data {
		b := math.Float32bits(x)
		bits = append(bits, byte(b), byte(b>>8), byte(b>>16), byte(b>>24))
	}
	sums := make([]float64, len(data))
	for _, theirs := range s.exchange(s.rank, bits) {
		for i := range sums {
			p := theirs[4*i:]
			sums[i] += float64(math.Float32frombits(uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24))
		}
	}
	for i := range data {
		data[i] = float32(sums[i])
	}
	return nil
}

// local is an engine with one weight. A pack's loss is its first token plus the counter of micro-batches, and so is its
// gradient; certain tokens fail.
type local struct {
	rank         int
	weight, grad float32
	microBatches uint64
	steps        uint64
	computed     []int32
	discarded    int
	wrongStep    bool
}

const (
	failing, nonFinite, nan, waiting, gone = -1, -2, -3, -4, -5
)

var errDevice = errors.New("the device is gone")

func (l *local) Accumulate(ctx context.Context, b pack.Batch) (float64, int, error) {
	token := b.Tokens[0]
	l.computed = append(l.computed, token)
	l.microBatches++
	switch token {
	case failing:
		return 0, 0, errDevice
	case nonFinite:
		return 0, 0, fmt.Errorf("pack: %w", trainer.ErrNonFinite)
	case gone:
		return 0, 0, fmt.Errorf("%w: cut off", trainer.ErrModelGone)
	case nan:
		return math.NaN(), 1, nil
	case waiting:
		<-ctx.Done()
		return 0, 0, fmt.Errorf("pack: %w", ctx.Err())
	}
	loss := float64(token) + float64(l.microBatches)/1000
	l.grad += float32(loss)
	return loss, len(b.Tokens), nil
}

func (l *local) Evaluate(_ context.Context, b pack.Batch) (float64, int, error) {
	l.computed = append(l.computed, b.Tokens[0])
	return 2 * float64(b.Tokens[0]), len(b.Tokens), nil
}

func (l *local) Apply(lr, _, normalizer float64) (float64, error) {
	norm := float64(l.grad) / normalizer
	if l.wrongStep {
		norm += 1
	}
	l.weight -= float32(lr * norm)
	l.grad, l.steps = 0, l.steps+1
	return norm, nil
}

func (l *local) Discard() { l.grad, l.discarded = 0, l.discarded+1 }

func (l *local) State() (trainer.State, error) {
	return trainer.State{Tensors: []trainer.Tensor{{Name: "w", Value: []float32{l.weight}}}, Steps: l.steps, MicroBatches: l.microBatches}, nil
}

func (l *local) Restore(s trainer.State) error {
	if s.Tensors[0].Name != "w" {
		return errors.New("another adapter")
	}
	l.weight, l.steps, l.microBatches = s.Tensors[0].Value[0], s.Steps, s.MicroBatches
	return nil
}

func (l *local) MemoryBytes() uint64                       { return 7 }
func (l *local) Gradient(dst []float32) ([]float32, error) { return []float32{l.grad}, nil }
func (l *local) SetGradient(src []float32) error           { l.grad = src[0]; return nil }
func (l *local) SetMicroBatches(n uint64) error            { l.microBatches = n; return nil }

// crew runs do as rank 0 of so many processes; the others serve. It returns every rank's engine and error.
func crew(size int, prepare func(*local), do func(*Engine)) ([]*local, []error) {
	t := newTable(size)
	locals, errs := make([]*local, size), make([]error, size)
	var all sync.WaitGroup
	for rank := range size {
		locals[rank] = &local{rank: rank}
		if prepare != nil {
			prepare(locals[rank])
		}
		all.Go(func() {
			if rank > 0 {
				errs[rank] = Serve(context.Background(), seat{t, rank}, locals[rank])
				return
			}
			e := New(seat{t, 0}, locals[0])
			do(e)
			errs[0] = e.Close()
		})
	}
	all.Wait()
	return locals, errs
}

func packs(tokens ...int32) []pack.Batch {
	var list []pack.Batch
	for _, token := range tokens {
		list = append(list, pack.Batch{Tokens: []int32{token, 0}})
	}
	return list
}

func TestEveryRankTakesTheStepOfASingleProcess(t *testing.T) {
	alone := &local{}
	var want []float64
	for _, b := range packs(5, 6, 7, 8, 9) {
		loss, _, err := alone.Accumulate(t.Context(), b)
		require.NoError(t, err)
		want = append(want, loss)
	}
	norm, err := alone.Apply(0.1, 1, 10)
	require.NoError(t, err)
	for _, size := range []int{1, 2, 3, 7} {
		locals, errs := crew(size, nil, func(e *Engine) {
			for i, o := range e.AccumulateGroup(t.Context(), 0, packs(5, 6, 7, 8, 9)) {
				assert.NoError(t, o.Err)
				assert.Equal(t, want[i], o.LossSum)
				assert.Equal(t, 2, o.Targets)
			}
			got, err := e.Apply(0.1, 1, 10)
			assert.NoError(t, err)
			assert.InEpsilon(t, norm, got, 1e-6) // the order of the sum differs
		})
		for rank, l := range locals {
			require.NoError(t, errs[rank])
			assert.InEpsilon(t, alone.weight, l.weight, 1e-6)
			assert.Equal(t, locals[0].weight, l.weight, "all ranks have the same bits")
			assert.Equal(t, uint64(5), l.microBatches, "the counter is that of a single process")
		}
		if size == 2 {
			assert.Equal(t, []int32{5, 7, 9}, locals[0].computed)
			assert.Equal(t, []int32{6, 8}, locals[1].computed)
		}
	}
}

func TestMicroBatchesAreCountedByThePlaceInTheRun(t *testing.T) {
	crew(3, nil, func(e *Engine) {
		for i, o := range e.AccumulateGroup(t.Context(), 40, packs(1, 1, 1, 1)) {
			assert.InDelta(t, 1+float64(41+i)/1000, o.LossSum, 1e-12)
		}
	})
}

func TestFailuresAreToldByPackAndTheStepIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		bad  int32
		at   int
		want error
	}{
		"on rank 0":                {failing, 0, errDevice},
		"on another rank":          {failing, 1, nil},
		"not finite, rank 0":       {nonFinite, 2, trainer.ErrNonFinite},
		"not finite, elsewhere":    {nonFinite, 3, trainer.ErrNonFinite},
		"the model is gone":        {gone, 3, trainer.ErrModelGone},
		"a loss that is no number": {nan, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tokens := []int32{1, 2, 3, 4, 5, 6}
			tokens[c.at] = c.bad
			locals, errs := crew(2, nil, func(e *Engine) {
				outcomes := e.AccumulateGroup(t.Context(), 0, packs(tokens...))
				for i := range c.at {
					assert.NoError(t, outcomes[i].Err, "packs before it are as they were")
				}
				if c.bad == nan {
					assert.NoError(t, outcomes[c.at].Err)
					assert.True(t, math.IsNaN(outcomes[c.at].LossSum))
				} else {
					require.Error(t, outcomes[c.at].Err)
				}
				if c.want != nil {
					assert.ErrorIs(t, outcomes[c.at].Err, c.want)
				}
				if c.at%2 == 1 && c.bad != nan {
					assert.ErrorContains(t, outcomes[c.at].Err, "rank 1")
				}
				if c.bad == gone {
					assert.EqualError(t, outcomes[c.at].Err, "rank 1: the base model is not what it was: cut off")
				}
				e.Discard()
				for _, o := range e.AccumulateGroup(t.Context(), 0, packs(1, 2)) {
					assert.NoError(t, o.Err, "the next step goes on")
				}
			})
			for rank, l := range locals {
				assert.NoError(t, errs[rank])
				assert.Equal(t, 1, l.discarded)
				assert.InDelta(t, 3.003, l.grad, 1e-6, "nothing is left of the lost step")
			}
		})
	}
}

func TestAnInterruptedStepIsLost(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, errs := crew(2, nil, func(e *Engine) {
		outcomes := e.AccumulateGroup(ctx, 0, packs(waiting, 2))
		assert.ErrorIs(t, outcomes[0].Err, context.Canceled)
		e.Discard()
	})
	assert.Equal(t, []error{nil, nil}, errs)
}

func TestEvaluationIsSharedAndLeavesGradientsAlone(t *testing.T) {
	locals, _ := crew(2, nil, func(e *Engine) {
		for i, o := range e.EvaluateGroup(t.Context(), packs(1, 2, 3)) {
			assert.NoError(t, o.Err)
			assert.Equal(t, 2*float64(i+1), o.LossSum)
		}
		sum, targets, err := e.Evaluate(t.Context(), packs(4)[0])
		assert.NoError(t, err)
		assert.Equal(t, 8.0, sum)
		assert.Equal(t, 2, targets)
	})
	assert.Equal(t, []int32{1, 3, 4}, locals[0].computed)
	assert.Equal(t, []int32{2}, locals[1].computed)
	assert.Zero(t, locals[0].grad+locals[1].grad)
}

func TestRestoreReachesAllOrNone(t *testing.T) {
	state := trainer.State{Tensors: []trainer.Tensor{{Name: "w", Rows: 1, Cols: 1, Value: []float32{0.25}}}, Steps: 3, MicroBatches: 11}
	locals, errs := crew(3, nil, func(e *Engine) { assert.NoError(t, e.Restore(state)) })
	for rank, l := range locals {
		assert.NoError(t, errs[rank])
		assert.Equal(t, float32(0.25), l.weight)
		assert.Equal(t, uint64(11), l.microBatches)
	}
	state.Tensors[0].Name = "v"
	_, errs = crew(2, nil, func(e *Engine) { assert.ErrorContains(t, e.Restore(state), "another adapter") })
	assert.ErrorContains(t, errs[1], "another adapter", "a rank that cannot go on says so")
}

func TestARankThatComputesOtherwiseIsFound(t *testing.T) {
	_, errs := crew(2, func(l *local) { l.wrongStep = l.rank == 1 }, func(e *Engine) {
		e.AccumulateGroup(t.Context(), 0, packs(1, 2))
		_, err := e.Apply(0.1, 1, 4)
		assert.ErrorContains(t, err, "rank 1 is not where rank 0 is")
	})
	assert.ErrorContains(t, errs[1], "rank 1 is not where rank 0 is")
}

func TestAgreeNamesRankAndFact(t *testing.T) {
	table := newTable(2)
	errs := make([]error, 2)
	var all sync.WaitGroup
	for rank := range 2 {
		all.Go(func() {
			errs[rank] = Agree(seat{table, rank}, map[string]string{"version": "1", "base model": fmt.Sprint("sha", rank)})
		})
	}
	all.Wait()
	for _, err := range errs {
		assert.EqualError(t, err, "rank 1 has another base model than rank 0: sha1, not sha0")
	}
}
