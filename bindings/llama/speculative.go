package llama

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// defaultDraft is how many tokens a draft model proposes at a time where SetNDraft says nothing.
const defaultDraft = 8

// SpeculativeSampling answers as Predict does, with a small model of the same vocabulary proposing tokens that this one reads
// several at a time. Every token is drawn from this model's logits, so that the answer is Predict's own, but for
// rounding; only the time differs.
func (l *LLama) SpeculativeSampling(ll *LLama, text string, opts ...PredictOption) (string, error) {
	o := NewPredictOptions(opts...)
	ctx := context.Background()
	if ll == nil || ll == l {
		return "", errors.New("llama: speculative sampling needs a second model for the draft")
	}
	give, err := l.begin(ctx, o)
	if err != nil {
		return "", err
	}
	defer give()
	giveDraft, err := ll.begin(ctx, o)
	if err != nil {
		return "", fmt.Errorf("draft: %w", err)
	}
	defer giveDraft()
	if err := sameVocabulary(l, ll); err != nil {
		return "", err
	}
	a, err := l.newAnswer(text, o)
	if err != nil {
		return "", err
	}
	err = l.speculate(ctx, ll, a)
	a.finish()
	return a.text.String(), err
}

func sameVocabulary(l, draft *LLama) error {
	a, b := l.vocab.Info(), draft.vocab.Info()
	if a.Tokens != b.Tokens || a.BOS != b.BOS || a.EOS != b.EOS {
		return fmt.Errorf("llama: the draft model has another vocabulary (%d tokens, not %d)", b.Tokens, a.Tokens)
	}
	for token := range int32(a.Tokens) {
		if l.vocab.TokenText(token) != draft.vocab.TokenText(token) {
			return fmt.Errorf("llama: the draft model has another vocabulary: token %d is %q, not %q", token, draft.vocab.TokenText(token), l.vocab.TokenText(token))
		}
	}
	return nil
}

// speculate draws the answer. In each round the draft proposes tokens, the target reads them all, and draws its own at
// each place as long as they are those that were proposed.
func (l *LLama) speculate(ctx context.Context, draft *LLama, a *answer) error {
	n := a.o.NDraft
	if n <= 0 {
		n = defaultDraft
	}
	for {
		a.shift()
		known := len(a.history)
		room := min(n, l.options.ContextSize-known, draft.options.ContextSize-known, l.options.NBatch-1)
		proposed, err := draft.propose(ctx, a.history, room, a.o.Batch)
		if err != nil {
			return fmt.Errorf("draft: %w", err)
		}
		ended, err := l.verify(ctx, a, proposed)
		if err != nil || ended {
			return err
		}
	}
}

// propose returns the model's likeliest n tokens after the history.
func (l *LLama) propose(ctx context.Context, history []int32, n, batch int) ([]int32, error) {
	tokens := slices.Clone(history)
	for len(tokens) < len(history)+n {
		row, err := l.read(ctx, tokens, batch, nil)
		if err != nil {
			return nil, err
		}
		if err := l.session.Logits(row, l.logits); err != nil {
			return nil, fmt.Errorf("llama: %w", err)
		}
		best := 0
		for i := range l.logits {
			if l.logits[i] > l.logits[best] {
				best = i
			}
		}
		if l.vocab.IsEOG(int32(best)) {
			break
		}
		tokens = append(tokens, int32(best))
	}
	return tokens[len(history):], nil
}

// verify reads what was proposed and adds to the answer what the model itself draws there.
func (l *LLama) verify(ctx context.Context, a *answer, proposed []int32) (ended bool, err error) {
	known := len(a.history)
	// All but the last token of the history, so that it and the proposal are read together and all their logits are there.
	if known > 1 {
		if _, err := l.read(ctx, a.history[:known-1], a.o.Batch, nil); err != nil {
			return false, err
		}
	}
	row, err := l.read(ctx, slices.Concat(a.history, proposed), l.options.NBatch, func(i int) bool { return i >= known-1 })
	if err != nil {
		return false, err
	}
	first := row - len(proposed)
	for i := range len(proposed) + 1 {
		if err := l.session.Logits(first+i, l.logits); err != nil {
			return false, fmt.Errorf("llama: %w", err)
		}
		token := a.sampler.draw(l.logits)
		if a.take(token) {
			return true, nil
		}
		if i == len(proposed) || token != proposed[i] {
			return false, nil
		}
	}
	return false, nil
}
