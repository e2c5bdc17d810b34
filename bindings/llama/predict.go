package llama

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode/utf8"
)

// Predict answers a prompt. The answer's parts go to the callbacks as they come: whole characters, and nothing that a stop
// word would take back.
func (l *LLama) Predict(text string, opts ...PredictOption) (string, error) {
	return l.PredictContext(context.Background(), text, opts...)
}

// PredictContext is Predict, until ctx ends; then it returns what there is of the answer, and an error that wraps ctx.Err().
func (l *LLama) PredictContext(ctx context.Context, text string, opts ...PredictOption) (string, error) {
	o := NewPredictOptions(opts...)
	give, err := l.begin(ctx, o)
	if err != nil {
		return "", err
	}
	defer give()
	a, err := l.newAnswer(text, o)
	if err != nil {
		return "", err
	}
	row, err := l.read(ctx, a.history, o.Batch, nil)
	for err == nil {
		if err = l.session.Logits(row, l.logits); err != nil {
			err = fmt.Errorf("llama: %w", err)
			break
		}
		if a.take(a.sampler.draw(l.logits)) {
			break
		}
		a.shift()
		row, err = l.read(ctx, a.history, o.Batch, nil)
	}
	a.finish()
	return a.text.String(), err
}

// answer is one answer as it grows.
type answer struct {
	model   *LLama
	o       PredictOptions
	sampler *sampler
	history []int32 // what the context is to hold
	keep    int     // tokens of its beginning that a full context keeps
	drawn   int

	text    strings.Builder // what is certain
	pending string          // what a stop word, or the rest of a character, may still change
	stopped bool
}

func (l *LLama) newAnswer(text string, o PredictOptions) (*answer, error) {
	if slices.Contains(o.StopPrompts, "") {
		return nil, errors.New("llama: SetStopWords: a stop word is empty")
	}
	if o.Tokens < 0 {
		return nil, fmt.Errorf("llama: SetTokens(%d) is below 0", o.Tokens)
	}
	tokens, err := l.tokenize(text)
	if err != nil {
		return nil, err
	}
	if len(tokens) == 0 {
		return nil, errors.New("llama: the prompt has no tokens")
	}
	s, err := newSampler(o, l.options, l.vocab, tokens)
	if err != nil {
		return nil, err
	}
	return &answer{model: l, o: o, sampler: s, history: tokens, keep: min(max(o.NKeep, 0), len(tokens))}, nil
}

// take adds a token and reports whether it ends the answer.
func (a *answer) take(token int32) (ended bool) {
	if a.model.vocab.IsEOG(token) {
		return true
	}
	a.drawn++
	a.history = append(a.history, token)
	if !a.model.vocab.IsControl(token) {
		a.add(a.model.vocab.TokenText(token))
	}
	return a.stopped || a.o.Tokens > 0 && a.drawn >= a.o.Tokens
}

// add takes text and hands out what is certain of it.
func (a *answer) add(text string) {
	a.pending += text
	for _, stop := range a.o.StopPrompts {
		if at := strings.Index(a.pending, stop); at >= 0 {
			a.pending, a.stopped = a.pending[:at], true
		}
	}
	certain := len(a.pending)
	if !a.stopped {
		for _, stop := range a.o.StopPrompts {
			certain = min(certain, len(a.pending)-overlap(a.pending, stop))
		}
		certain = wholeCharacters(a.pending[:certain])
	}
	a.emit(certain)
}

// overlap is how many bytes at the end of text a stop word could begin with.
func overlap(text, stop string) int {
	for n := min(len(text), len(stop)-1); n > 0; n-- {
		if strings.HasSuffix(text, stop[:n]) {
			return n
		}
	}
	return 0
}

// wholeCharacters is how much of text ends with a whole character.
func wholeCharacters(text string) int {
	for n := 1; n <= min(utf8.UTFMax, len(text)); n++ {
		if start := len(text) - n; utf8.RuneStart(text[start]) {
			if utf8.FullRuneInString(text[start:]) {
				return len(text)
			}
			return start
		}
	}
	return len(text)
}

func (a *answer) emit(n int) {
	part := a.pending[:n]
	a.pending = a.pending[n:]
	if part == "" {
		return
	}
	a.text.WriteString(part)
	if a.o.DebugMode {
		fmt.Fprint(os.Stdout, part)
	}
	for _, callback := range []func(string) bool{a.o.TokenCallback, a.model.tokenCallback()} {
		if callback != nil && !callback(part) {
			a.stopped = true
		}
	}
}

// finish hands out what no stop word has taken.
func (a *answer) finish() { a.emit(len(a.pending)) }

// shift makes room in a full context: the kept beginning stays, and of the rest the newer half.
func (a *answer) shift() {
	if len(a.history) < a.model.options.ContextSize {
		return
	}
	keep := min(a.keep, a.model.options.ContextSize/2)
	half := (len(a.history) - keep + 1) / 2
	a.history = slices.Concat(a.history[:keep], a.history[keep+half:])
}
