package main

import (
	"fmt"

	"cftune/trainer"
	"cftune/trainer/gguf"
)

// rotationNote tells which of two sets of rotary factors a run trains with; it is empty for models that have one, whose short is 0.
func rotationNote(short, maxSequence int) string {
	switch {
	case short == 0:
		return ""
	case maxSequence <= short:
		return fmt.Sprintf("the model has two sets of rotary factors, and this run trains with those for contexts of up to %d tokens (its longest example takes %d): "+
			"llama.cpp uses them where its context (-c) is no larger", short, maxSequence)
	}
	return fmt.Sprintf("the model has two sets of rotary factors, and this run trains with those for contexts of more than %d tokens (its longest example takes %d): "+
		"llama.cpp uses them where its context (-c) is larger", short, maxSequence)
}

// shortContext is trainer.ShortContext of a model's file.
func shortContext(model string) (int, error) {
	base, err := gguf.Open(model)
	if err != nil {
		return 0, err
	}
	return trainer.ShortContext(base), nil
}

// rotationFor is engine.SessionParams.MaxSequence for sequences of up to n tokens, and the same for all n that a model rotates alike.
func rotationFor(short, n int) int {
	if n > short && short > 0 {
		return short + 1
	}
	return short
}
