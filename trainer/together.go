package trainer

import (
	"context"

	"cftune/trainer/pack"
)

// accumulator computes the packs of a step, one when it is asked for, or all at once where the engine can.
func (t *Trainer) accumulator(ctx context.Context, engine Engine, batches []pack.Batch) func(i int) (float64, int, error) {
	group, together := engine.(GroupEngine)
	if !together {
		return func(i int) (float64, int, error) {
			defer t.watch.beat()
			return engine.Accumulate(ctx, batches[i])
		}
	}
	outcomes := group.AccumulateGroup(ctx, t.counters.MicroBatches, batches)
	t.watch.beat()
	return func(i int) (float64, int, error) { return outcomes[i].LossSum, outcomes[i].Targets, outcomes[i].Err }
}

// evaluator is the same of held-out packs.
func (t *Trainer) evaluator(ctx context.Context, engine Engine, batches []pack.Batch) func(i int) (float64, error) {
	group, together := engine.(GroupEngine)
	if !together {
		return func(i int) (float64, error) {
			defer t.watch.beat()
			sum, _, err := engine.Evaluate(ctx, batches[i])
			return sum, err
		}
	}
	outcomes := group.EvaluateGroup(ctx, batches)
	t.watch.beat()
	return func(i int) (float64, error) { return outcomes[i].LossSum, outcomes[i].Err }
}
