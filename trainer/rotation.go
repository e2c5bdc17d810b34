package trainer

import (
	"fmt"
	"slices"

	"cftune/trainer/config"
	"cftune/trainer/gguf"
)

// Some models (Phi-3, Phi-4-mini) have two sets of rotary factors, for contexts up to a length and for longer ones. Which of them a run
// trains with is decided once, by its longest example: were it decided anew on the way, what was learned before would no longer fit.

// ShortContext is the length, in tokens, up to which a model has other rotary factors than for longer contexts; 0: it has one set.
func ShortContext(base *gguf.File) int {
	if !slices.ContainsFunc(base.Tensors, func(t gguf.TensorInfo) bool { return t.Name == "rope_factors_long.weight" }) {
		return 0
	}
	for _, key := range []string{".rope.scaling.original_context_length", ".context_length"} {
		if n, ok := base.Uint(base.Architecture() + key); ok {
			return int(n)
		}
	}
	return 0
}

// ShortContext is that of the run's model.
func (t *Trainer) ShortContext() int { return t.shortContext }

// MaxSequence is how long a sequence the engine is to be made for; 0 leaves it to the length of a pack, as in runs of versions that did not
// look at their longest example.
func (r Record) MaxSequence() int { return r.Plan.Longest }

// keepRotation has a run that goes on, or is made again, rotate as it did. Where that was for short contexts, and the plan has longer
// examples now, it is an error.
func (t *Trainer) keepRotation(was Record) error {
	longest := t.record.Plan.Longest
	t.record.Plan.Longest = was.Plan.Longest
	return t.checkRotation(longest)
}

// checkRotation refuses examples of a length that the run does not rotate for.
func (t *Trainer) checkRotation(longest int) error {
	if trained := t.record.Plan.Longest; trained == 0 || trained > t.shortContext || longest <= t.shortContext {
		return nil
	}
	return &config.Problems{List: []config.Problem{{Message: fmt.Sprintf(
		"the longest example would take %d positions: the model has other rotary factors for contexts of more than %d, and this run trains with those for shorter ones; "+
			"begin another run, from this one's adapter (adapter.init_from)", longest, t.shortContext)}}}
}
