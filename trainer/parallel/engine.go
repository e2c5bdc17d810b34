package parallel

import (
	"context"
	"errors"
	"fmt"
	"math"

	"cftune/trainer"
	"cftune/trainer/pack"
)

// Local is the engine of one process.
type Local interface {
	trainer.Engine
	// Gradient is what was accumulated since the last Apply or Discard; SetGradient writes one in its place.
	Gradient(dst []float32) ([]float32, error)
	SetGradient(src []float32) error
	// SetMicroBatches sets the counter that dropout draws its masks from.
	SetMicroBatches(n uint64) error
}

// Engine is rank 0's: to the loop it is an engine like any other. Close tells the other ranks that it is over.
type Engine struct {
	member
	next   uint64 // micro-batch
	broken error  // why the ranks do not go on together
}

var _ trainer.GroupEngine = (*Engine)(nil)

// New makes the engine of rank 0; the other ranks call Serve.
func New(g Group, local Local) *Engine { return &Engine{member: member{group: g, local: local}} }

// Serve does what rank 0 says until it is over. It is called by all ranks but 0.
func Serve(ctx context.Context, g Group, local Local) error {
	m := member{group: g, local: local}
	for {
		var o order
		if err := Share(g, &o); err != nil {
			return err
		}
		switch o.Do {
		case doAccumulate, doEvaluate:
			if _, err := m.compute(ctx, o); err != nil {
				return err
			}
		case doApply:
			if _, err := m.apply(o); err != nil && !errors.Is(err, trainer.ErrNonFinite) {
				return err
			}
		case doDiscard:
			local.Discard()
		case doRestore:
			if err := m.restore(o); err != nil {
				return err
			}
		case doEnd:
			return nil
		default:
			return fmt.Errorf("rank 0 says %q, which this version does not know", o.Do)
		}
	}
}

// order is what rank 0 says.
type order struct {
	Do                          string
	First                       uint64 // micro-batch
	Batches                     []pack.Batch
	LR, MaxGradNorm, Normalizer float64
	State                       trainer.State
}

const (
	doAccumulate = "accumulate"
	doEvaluate   = "evaluate"
	doApply      = "apply"
	doDiscard    = "discard"
	doRestore    = "restore"
	doEnd        = "end"
)

func (e *Engine) AccumulateGroup(ctx context.Context, first uint64, batches []pack.Batch) []trainer.Outcome {
	e.next = first + uint64(len(batches))
	return e.computeAll(ctx, order{Do: doAccumulate, First: first, Batches: batches})
}

func (e *Engine) EvaluateGroup(ctx context.Context, batches []pack.Batch) []trainer.Outcome {
	return e.computeAll(ctx, order{Do: doEvaluate, Batches: batches})
}

func (e *Engine) computeAll(ctx context.Context, o order) []trainer.Outcome {
	err := e.tell(o)
	var outcomes []trainer.Outcome
	if err == nil {
		outcomes, err = e.compute(ctx, o)
	}
	if e.breaks(err) != nil {
		outcomes = make([]trainer.Outcome, len(o.Batches))
		for i := range outcomes {
			outcomes[i].Err = err
		}
	}
	return outcomes
}

func (e *Engine) Accumulate(ctx context.Context, b pack.Batch) (lossSum float64, targets int, err error) {
	o := e.AccumulateGroup(ctx, e.next, []pack.Batch{b})[0]
	return o.LossSum, o.Targets, o.Err
}

func (e *Engine) Evaluate(ctx context.Context, b pack.Batch) (lossSum float64, targets int, err error) {
	o := e.EvaluateGroup(ctx, []pack.Batch{b})[0]
	return o.LossSum, o.Targets, o.Err
}

func (e *Engine) Apply(lr, maxGradNorm, normalizer float64) (gradNorm float64, err error) {
	o := order{Do: doApply, LR: lr, MaxGradNorm: maxGradNorm, Normalizer: normalizer}
	if err := e.tell(o); err != nil {
		return 0, err
	}
	norm, err := e.apply(o)
	return norm, e.breaks(err)
}

// breaks remembers errors after which the ranks do not go on together: the others end as well.
func (e *Engine) breaks(err error) error {
	if err != nil && !errors.Is(err, trainer.ErrNonFinite) {
		e.broken = err
	}
	return err
}

func (e *Engine) Discard() {
	if err := e.tell(order{Do: doDiscard}); err != nil {
		e.broken = err
		return
	}
	e.local.Discard()
}

func (e *Engine) Restore(s trainer.State) error {
	o := order{Do: doRestore, State: s}
	if err := e.tell(o); err != nil {
		return err
	}
	e.next = s.MicroBatches
	return e.breaks(e.restore(o))
}

// State is this rank's: all have the same.
func (e *Engine) State() (trainer.State, error) {
	if e.broken != nil {
		return trainer.State{}, e.broken
	}
	return e.local.State()
}

// MemoryBytes is what this rank's engine takes.
func (e *Engine) MemoryBytes() uint64 { return e.local.MemoryBytes() }

// Close tells the other ranks that it is over, unless they know.
func (e *Engine) Close() error {
	if e.broken != nil {
		return nil
	}
	return e.tell(order{Do: doEnd})
}

func (e *Engine) tell(o order) error {
	if e.broken != nil {
		return e.broken
	}
	return Share(e.group, &o)
}

// member is a rank's part in what all do together.
type member struct {
	group    Group
	local    Local
	gradient []float32
}

// answer is what one rank says of one pack, or of a step.
type answer struct {
	Batch     int
	LossSum   float64
	Targets   int
	NormBits  uint64
	Failed    string
	NonFinite bool
	Gone      bool  // the rank's base model: trainer.ErrModelGone
	err       error // only on the rank itself
}

func answerOf(err error) answer {
	if err == nil {
		return answer{}
	}
	return answer{Failed: err.Error(), NonFinite: errors.Is(err, trainer.ErrNonFinite), Gone: errors.Is(err, trainer.ErrModelGone), err: err}
}

// told is an error of another rank in its own words, which tell its kind as well.
type told struct {
	words string
	kind  error
}

func (t *told) Error() string { return t.words }

func (t *told) Unwrap() error { return t.kind }

// failure is the error behind an answer of a rank.
func (a answer) failure(rank int) error {
	switch {
	case a.Failed == "":
		return nil
	case a.err != nil:
		return a.err
	case a.NonFinite:
		return fmt.Errorf("rank %d: %s: %w", rank, a.Failed, trainer.ErrNonFinite)
	case a.Gone:
		return fmt.Errorf("rank %d: %w", rank, &told{a.Failed, trainer.ErrModelGone})
	}
	return fmt.Errorf("rank %d: %s", rank, a.Failed)
}

// compute runs this rank's share of the packs, tells the others what came of it, and adds the gradients up if all is well.
// The error is of the group; what became of the packs is in the outcomes.
func (m *member) compute(ctx context.Context, o order) ([]trainer.Outcome, error) {
	var mine []answer
	for i := m.group.Rank(); i < len(o.Batches); i += m.group.Size() {
		a := m.computeOne(ctx, o, i)
		mine = append(mine, a)
		if a.Failed != "" {
			break // the step is lost
		}
	}
	all, err := collect(m.group, mine)
	if err != nil {
		return nil, err
	}
	all[m.group.Rank()] = mine // with its own errors
	outcomes := make([]trainer.Outcome, len(o.Batches))
	for i := range outcomes {
		outcomes[i].Err = errors.New("not computed: a pack before it failed")
	}
	for rank, answers := range all {
		for _, a := range answers {
			if a.Batch < 0 || a.Batch >= len(outcomes) {
				return nil, fmt.Errorf("rank %d answers for pack %d of %d", rank, a.Batch, len(outcomes))
			}
			outcomes[a.Batch] = trainer.Outcome{LossSum: a.LossSum, Targets: a.Targets, Err: a.failure(rank)}
		}
	}
	if o.Do == doEvaluate {
		return outcomes, nil
	}
	for _, outcome := range outcomes {
		if outcome.Err != nil || math.IsNaN(outcome.LossSum) || math.IsInf(outcome.LossSum, 0) {
			return outcomes, nil // rank 0 will say what is to become of it
		}
	}
	return outcomes, m.sum(o.First + uint64(len(o.Batches)))
}

func (m *member) computeOne(ctx context.Context, o order, i int) answer {
	if o.Do == doEvaluate {
		sum, targets, err := m.local.Evaluate(ctx, o.Batches[i])
		a := answerOf(err)
		a.Batch, a.LossSum, a.Targets = i, sum, targets
		return a
	}
	// Masks of dropout are those that the pack would get in a single process.
	err := m.local.SetMicroBatches(o.First + uint64(i))
	var sum float64
	var targets int
	if err == nil {
		sum, targets, err = m.local.Accumulate(ctx, o.Batches[i])
	}
	a := answerOf(err)
	a.Batch, a.LossSum, a.Targets = i, sum, targets
	return a
}

// sum gives every rank the gradient of all packs.
func (m *member) sum(microBatches uint64) error {
	var err error
	if m.gradient, err = m.local.Gradient(m.gradient); err != nil {
		return err
	}
	if err := m.group.Sum(m.gradient); err != nil {
		return err
	}
	if err := m.local.SetGradient(m.gradient); err != nil {
		return err
	}
	return m.local.SetMicroBatches(microBatches)
}

// apply takes the step on every rank, and makes sure that it was the same one.
func (m *member) apply(o order) (float64, error) {
	norm, err := m.local.Apply(o.LR, o.MaxGradNorm, o.Normalizer)
	mine := answerOf(err)
	mine.NormBits = math.Float64bits(norm)
	all, err := collect(m.group, mine)
	if err != nil {
		return 0, err
	}
	for rank, a := range all {
		if a.Failed != all[0].Failed || a.NormBits != all[0].NormBits {
			return 0, fmt.Errorf("rank %d is not where rank 0 is: gradient norm %v and %v, %q and %q: their processors may compute differently; every rank needs the same build, and as many threads",
				rank, math.Float64frombits(a.NormBits), math.Float64frombits(all[0].NormBits), a.Failed, all[0].Failed)
		}
	}
	return norm, mine.failure(m.group.Rank())
}

func (m *member) restore(o order) error {
	mine := answerOf(m.local.Restore(o.State))
	all, err := collect(m.group, mine)
	if err != nil {
		return err
	}
	all[m.group.Rank()] = mine
	for rank, a := range all {
		if err := a.failure(rank); err != nil {
			return err
		}
	}
	return nil
}

// Agree refuses a group whose ranks differ in one of the facts, and names it.
func Agree(g Group, facts map[string]string) error {
	all, err := collect(g, facts)
	if err != nil {
		return err
	}
	for rank, theirs := range all {
		for name, want := range all[0] {
			if got := theirs[name]; got != want {
				return fmt.Errorf("rank %d has another %s than rank 0: %s, not %s", rank, name, got, want)
			}
		}
	}
	return nil
}
