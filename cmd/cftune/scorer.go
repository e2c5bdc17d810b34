package main

import (
	"math"

	"cftune/bindings/engine"
)

// scorer sums the negative log-likelihoods of tokens through libllama, one sequence after the other.
type scorer struct {
	session *engine.Session
	logits  []float32
	sum     float64
	n       int
}

// forward runs a sequence and calls visit with the logits behind each position from on, but for the last.
func (s *scorer) forward(tokens []int32, from int, visit func(position int, logits []float32)) error {
	if err := s.session.Forget(-1); err != nil {
		return err
	}
	n := len(tokens)
	positions, ids, want := make([]int32, n), make([]int32, n), make([]bool, n)
	for i := range n {
		positions[i], want[i] = int32(i), i >= from && i < n-1
	}
	if err := s.session.Decode(tokens, positions, ids, want); err != nil {
		return err
	}
	for i := from; i < n-1; i++ {
		if err := s.session.Logits(i, s.logits); err != nil {
			return err
		}
		visit(i, s.logits)
	}
	return nil
}

// score predicts the tokens behind position from on.
func (s *scorer) score(tokens []int32, from int) error {
	return s.forward(tokens, from, func(i int, logits []float32) {
		s.sum += negativeLogLikelihood(logits, tokens[i+1])
		s.n++
	})
}

func (s *scorer) value() float64 { return math.Exp(s.sum / float64(s.n)) }

func negativeLogLikelihood(logits []float32, target int32) float64 {
	top := logits[0]
	for _, x := range logits {
		top = max(top, x)
	}
	sum := 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x - top))
	}
	return float64(top) + math.Log(sum) - float64(logits[target])
}
