package llama

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"cftune/bindings/engine"
)

// LLama is a model with a context.
type LLama struct {
	path    string
	options ModelOptions

	// turn is held by the call that uses what is below.
	turn    chan struct{}
	vocab   *engine.Vocab
	session *engine.Session
	tokens  []int32 // that the session's cache has
	logits  []float32

	callback struct {
		sync.Mutex
		fn func(token string) bool
	}
}

// New loads a model. Its weights are read, and memory for its context is taken, before New returns.
func New(model string, opts ...ModelOption) (*LLama, error) {
	o := NewModelOptions(opts...)
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.ContextSize < 1 || o.NBatch < 1 {
		return nil, fmt.Errorf("llama: a context of %d tokens, read %d at a time: both must be at least 1", o.ContextSize, o.NBatch)
	}
	vocab, err := engine.OpenVocab(model)
	if err != nil {
		return nil, fmt.Errorf("llama: load %s: %w", model, err)
	}
	l := &LLama{path: model, options: o, vocab: vocab, turn: make(chan struct{}, 1), logits: make([]float32, vocab.Info().Tokens)}
	if err := l.open(); err != nil {
		vocab.Close()
		return nil, err
	}
	return l, nil
}

// open makes the session.
func (l *LLama) open() error {
	p := engine.SessionParams{
		NCtx: l.options.ContextSize, NBatch: l.options.NBatch, NSequences: 1, NThreads: DefaultOptions.Threads, NGPULayers: l.options.NGPULayers, AdapterScale: 1,
		Embeddings: l.options.Embeddings, NoMMap: !l.options.MMap, MLock: l.options.MLock,
	}
	if f := l.options.FreqRopeBase; f != DefaultModelOptions.FreqRopeBase {
		p.RopeFreqBase = float64(f)
	}
	if f := l.options.FreqRopeScale; f != DefaultModelOptions.FreqRopeScale {
		p.RopeFreqScale = float64(f)
	}
	session, err := engine.NewSession(l.path, l.options.LoraAdapter, p)
	if err != nil {
		return fmt.Errorf("llama: load %s: %w", l.path, err)
	}
	l.session = session
	return nil
}

// take waits for the model's other calls to end; the caller gives the turn back.
func (l *LLama) take(ctx context.Context) (give func(), err error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("llama: %w", ctx.Err())
	}
	if l.vocab == nil {
		<-l.turn
		return nil, ErrFreed
	}
	return func() { <-l.turn }, nil
}

// Free gives everything back, after the calls that are running. It can be called again.
func (l *LLama) Free() {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.session != nil {
		l.session.Close()
	}
	if l.vocab != nil {
		l.vocab.Close()
	}
	l.session, l.vocab, l.tokens = nil, nil, nil
}

// Close is Free.
func (l *LLama) Close() error {
	l.Free()
	return nil
}

// SetTokenCallback sets what gets each part of the answers; false ends one. nil removes it. It may be called while
// answers are made, and holds from the next part on.
func (l *LLama) SetTokenCallback(callback func(token string) bool) {
	l.callback.Lock()
	defer l.callback.Unlock()
	l.callback.fn = callback
}

func (l *LLama) tokenCallback() func(string) bool {
	l.callback.Lock()
	defer l.callback.Unlock()
	return l.callback.fn
}

// tokenize reads a prompt: BOS where the model asks for it, and the markup of chat templates as special tokens.
func (l *LLama) tokenize(text string) ([]int32, error) {
	tokens, err := l.vocab.Tokenize(text, true)
	if err != nil {
		return nil, fmt.Errorf("llama: %w", err)
	}
	if l.vocab.AddBOS() {
		tokens = append([]int32{l.vocab.BOS()}, tokens...)
	}
	return tokens, nil
}

// TokenizeString returns the tokens of a text, as a prompt would be read, and their number.
func (l *LLama) TokenizeString(text string, _ ...PredictOption) (int32, []int32, error) {
	give, err := l.take(context.Background())
	if err != nil {
		return 0, nil, err
	}
	defer give()
	tokens, err := l.tokenize(text)
	return int32(len(tokens)), tokens, err
}

// read brings the cache to hold exactly the tokens: what it begins with already stays.
func (l *LLama) read(ctx context.Context, tokens []int32, batch int, want func(i int) bool) (last int, err error) {
	if len(tokens) > l.options.ContextSize {
		return 0, fmt.Errorf("llama: %d tokens, the context has %d (SetContext)", len(tokens), l.options.ContextSize)
	}
	n := 0
	for n < min(len(tokens), len(l.tokens)) && tokens[n] == l.tokens[n] {
		n++
	}
	n = min(n, len(tokens)-1) // the last one is read again, for its logits
	if n, err = l.keep(n); err != nil {
		return 0, err
	}
	if batch < 1 || batch > l.options.NBatch {
		batch = l.options.NBatch
	}
	for n < len(tokens) {
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("llama: %w", err)
		}
		part := tokens[n:min(n+batch, len(tokens))]
		positions, ids, wanted := make([]int32, len(part)), make([]int32, len(part)), make([]bool, len(part))
		for i := range part {
			positions[i], wanted[i] = int32(n+i), n+i == len(tokens)-1 || want != nil && want(n+i)
		}
		if err := l.session.Decode(part, positions, ids, wanted); err != nil {
			l.tokens = nil
			return 0, errors.Join(fmt.Errorf("llama: %w", err), l.session.Forget(-1))
		}
		l.tokens = append(l.tokens, part...)
		n += len(part)
		last = len(part) - 1
	}
	return last, nil
}

// keep takes everything behind the first n tokens off the cache; left is what could be kept.
func (l *LLama) keep(n int) (left int, err error) {
	if n == len(l.tokens) {
		return n, nil
	}
	if n > 0 && l.session.Trim(0, int32(n)) == nil {
		l.tokens = l.tokens[:n:n]
		return n, nil
	}
	// Nothing is to be kept, or the cache cannot be cut (recurrent models): all is read again.
	l.tokens = nil
	if err := l.session.Forget(-1); err != nil {
		return 0, fmt.Errorf("llama: %w", err)
	}
	return 0, nil
}

// Eval reads a text into the context and draws nothing: SaveState keeps it, and a prompt that begins with it is read
// faster.
func (l *LLama) Eval(text string, opts ...PredictOption) error {
	return l.EvalContext(context.Background(), text, opts...)
}

// EvalContext is Eval, until ctx ends.
func (l *LLama) EvalContext(ctx context.Context, text string, opts ...PredictOption) error {
	o := NewPredictOptions(opts...)
	give, err := l.begin(ctx, o)
	if err != nil {
		return err
	}
	defer give()
	tokens, err := l.tokenize(text)
	if err != nil {
		return err
	}
	if len(tokens) == 0 {
		return errors.New("llama: the text has no tokens")
	}
	_, err = l.read(ctx, tokens, o.Batch, nil)
	return err
}

// begin checks options, and waits for the model.
func (l *LLama) begin(ctx context.Context, o PredictOptions) (give func(), err error) {
	if err := o.check(l.options); err != nil {
		return nil, err
	}
	if give, err = l.take(ctx); err != nil {
		return nil, err
	}
	if err := l.session.SetThreads(o.Threads); err != nil {
		give()
		return nil, fmt.Errorf("llama: %w", err)
	}
	return give, nil
}

// Embeddings returns the last layer's output for the text's last token, as wide as the model. It needs EnableEmbeddings.
func (l *LLama) Embeddings(text string, opts ...PredictOption) ([]float32, error) {
	o := NewPredictOptions(opts...)
	give, err := l.begin(context.Background(), o)
	if err != nil {
		return nil, err
	}
	defer give()
	tokens, err := l.tokenize(text)
	if err != nil {
		return nil, err
	}
	return l.embed(tokens, o)
}

// TokenEmbeddings is Embeddings of tokens.
func (l *LLama) TokenEmbeddings(tokens []int, opts ...PredictOption) ([]float32, error) {
	o := NewPredictOptions(opts...)
	give, err := l.begin(context.Background(), o)
	if err != nil {
		return nil, err
	}
	defer give()
	list := make([]int32, len(tokens))
	for i, token := range tokens {
		if token < 0 || token >= len(l.logits) {
			return nil, fmt.Errorf("llama: token %d is not in the vocabulary of %d", token, len(l.logits))
		}
		list[i] = int32(token)
	}
	return l.embed(list, o)
}

func (l *LLama) embed(tokens []int32, o PredictOptions) ([]float32, error) {
	if !l.options.Embeddings {
		return nil, errors.New("llama: the model was loaded without EnableEmbeddings")
	}
	if len(tokens) == 0 {
		return nil, errors.New("llama: the text has no tokens")
	}
	// From the start: what is in the cache would change nothing but the last bits, and those too should be the same.
	if _, err := l.keep(0); err != nil {
		return nil, err
	}
	last, err := l.read(context.Background(), slices.Clone(tokens), o.Batch, nil)
	if err != nil {
		return nil, err
	}
	values, err := l.session.Embedding(last)
	if err != nil {
		return nil, fmt.Errorf("llama: %w", err)
	}
	return values, nil
}
