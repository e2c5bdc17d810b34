package engine

import (
	"context"
	"fmt"
	"slices"
)

// Generator answers prompts on a session, as many at once as it has sequences.
//
// The tokens that all prompts begin with are computed once. An answer depends on its prompt, its index and the options,
// not on what runs beside it, as far as libllama's sums do not: products of several rows are added up in another order
// than those of one. Quantized weights are multiplied by what is rounded to 8 bits, which makes of a last bit one percent now and then, and
// can tip tokens that are nearly as likely.
type Generator struct {
	session *Session
	vocab   *Vocab
	kept    []int32 // what the first sequence holds of the last call's prompt and answer; see GenerateOptions.Keep
}

// NewGenerator makes a generator. The session must not be used otherwise while Generate runs.
func NewGenerator(s *Session, v *Vocab) *Generator { return &Generator{session: s, vocab: v} }

// GenerateOptions decide how prompts are answered.
type GenerateOptions struct {
	MaxTokens   int      // of an answer, at least 1
	Sampling    Sampling // the zero value is greedy
	StopTokens  []int32  // end an answer, beside the vocabulary's own end tokens
	StopStrings []string // end an answer where they begin; they are not part of it
	// Seeds, if set, are the prompts' own instead of Sampling.Seed: an answer then does not depend on the prompt's index.
	Seeds []uint64
	// Keep leaves the one prompt and its answer in the cache, and begins with what it has in common with those that the last call left: of a
	// conversation only what is new is computed.
	Keep bool
	// OnText, if set, gets the answers' text as soon as it is certain: whole characters that no stop string takes back.
	// The parts of an answer make up its Completion's Text. It runs on the caller's goroutine.
	OnText func(prompt int, text string)
	// OnDone, if set, gets each answer when it is complete, in the order in which they end.
	OnDone func(prompt int, c Completion)
}

// StopReason says why an answer ended.
type StopReason string

// Why an answer ended.
const (
	StopEnd     StopReason = "end"         // the model ended it, or a stop token did
	StopString  StopReason = "stop_string" // a stop string came
	StopLength  StopReason = "max_tokens"  // it has MaxTokens tokens
	StopContext StopReason = "context"     // prompt and answer fill the session's context
)

// Completion is an answer.
type Completion struct {
	Tokens []int32 // as drawn, without the end token; with a stop string, the tokens that spell it are there
	Text   string  // without stop string and control tokens
	Reason StopReason
}

// Generate answers all prompts; completion i belongs to prompts[i]. When ctx ends it returns the answers so far, with
// an empty Reason where they are unfinished, and an error that wraps ctx.Err().
func (g *Generator) Generate(ctx context.Context, prompts [][]int32, opts GenerateOptions) ([]Completion, error) {
	const op = "generate"
	params := g.session.Params()
	if opts.MaxTokens < 1 {
		return nil, invalid(op, fmt.Sprintf("max tokens is %d, must be at least 1", opts.MaxTokens))
	}
	if slices.Contains(opts.StopStrings, "") {
		return nil, invalid(op, "a stop string is empty")
	}
	if opts.Seeds != nil && len(opts.Seeds) != len(prompts) {
		return nil, invalid(op, fmt.Sprintf("%d seeds for %d prompts", len(opts.Seeds), len(prompts)))
	}
	if opts.Sampling == (Sampling{}) {
		opts.Sampling = Greedy()
	}
	for i, p := range prompts {
		if len(p) == 0 {
			return nil, invalid(op, fmt.Sprintf("prompt %d is empty", i))
		}
		if len(p) > params.NCtx {
			return nil, invalid(op, fmt.Sprintf("prompt %d has %d tokens, the context %d", i, len(p), params.NCtx))
		}
	}
	if opts.Keep && len(prompts) != 1 {
		return nil, invalid(op, fmt.Sprintf("one prompt can be kept, not %d", len(prompts)))
	}
	if err := g.takeBack(prompts, opts.Keep); err != nil {
		return nil, err
	}
	r := &generation{Generator: g, opts: opts, prompts: prompts, results: make([]Completion, len(prompts)), free: params.NCtx}
	r.slots = make([]*answer, min(params.NSequences, len(prompts)))
	err := r.run(ctx)
	for _, a := range r.slots { // what was cut short
		if a != nil {
			r.results[a.prompt] = a.completion("")
			r.keep(a)
		}
	}
	if opts.Keep && (err == nil || ctx.Err() != nil) {
		return r.results, err
	}
	g.kept = nil
	if forgetErr := g.session.Forget(-1); err == nil {
		err = forgetErr
	}
	return r.results, err
}

// takeBack empties the cache but for what the prompt to be kept begins with. It keeps a token of its own, to draw the next one from.
func (g *Generator) takeBack(prompts [][]int32, keep bool) error {
	n := 0
	for keep && n < min(len(g.kept), len(prompts[0])-1) && g.kept[n] == prompts[0][n] {
		n++
	}
	if n > 0 && g.session.Trim(0, int32(n)) == nil {
		g.kept = g.kept[:n]
		return nil
	}
	g.kept = nil // also where the end of a sequence cannot be taken back, as in recurrent models
	return g.session.Forget(-1)
}

// keep says what the cache has of an answer and its prompt.
func (r *generation) keep(a *answer) {
	if r.opts.Keep {
		r.kept = append(slices.Clone(r.prompts[a.prompt]), a.tokens...)[:a.position]
	}
}

// generation is one call of Generate.
type generation struct {
	*Generator
	opts    GenerateOptions
	prompts [][]int32
	results []Completion
	slots   []*answer // by sequence id; nil = unused
	next    int       // first prompt that has not begun
	prefix  int       // tokens that all prompts begin with, in the cache once
	free    int       // cache tokens that are not promised to an answer
	batch   batch
}

// answer is a prompt in work.
type answer struct {
	prompt   int
	pending  []int32 // to be decoded: what is left of the prompt, then the token drawn last
	position int32   // of pending[0]
	reserved int     // cache tokens promised to it
	room     int     // tokens that it may have
	tokens   []int32
	text     stopText
	row      int // of the current batch that its next token is drawn from; -1 = none
}

func (a *answer) completion(reason StopReason) Completion {
	return Completion{Tokens: a.tokens, Text: a.text.all(), Reason: reason}
}

func (r *generation) run(ctx context.Context) error {
	if err := r.readPrefix(ctx); err != nil {
		return err
	}
	for {
		if err := r.fill(); err != nil {
			return err
		}
		if !slices.ContainsFunc(r.slots, func(a *answer) bool { return a != nil }) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("engine: generate: %w", err)
		}
		r.compose()
		if err := r.session.Decode(r.batch.tokens, r.batch.positions, r.batch.seqIDs, r.batch.want); err != nil {
			return err
		}
		for seq, a := range r.slots {
			if a == nil || a.row < 0 {
				continue
			}
			if err := r.draw(int32(seq), a); err != nil {
				return err
			}
		}
	}
}

// leastPrefix is the shortest prefix, in tokens, that is worth a decode of its own.
const leastPrefix = 8

// readPrefix puts what all prompts begin with into the session's spare sequence. Each prompt keeps a token of its own, to
// draw the next one from.
func (r *generation) readPrefix(ctx context.Context) error {
	if len(r.prompts) < 2 {
		return nil
	}
	prefix := r.prompts[0][:len(r.prompts[0])-1]
	for _, p := range r.prompts[1:] {
		n := 0
		for n < min(len(prefix), len(p)-1) && prefix[n] == p[n] {
			n++
		}
		prefix = prefix[:n]
	}
	if len(prefix) < leastPrefix {
		return nil
	}
	position := 0
	for part := range slices.Chunk(prefix, r.session.Params().NBatch) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("engine: generate: %w", err)
		}
		positions, seqIDs := make([]int32, len(part)), make([]int32, len(part))
		for i := range part {
			positions[i], seqIDs[i] = int32(position+i), r.session.spare()
		}
		if err := r.session.Decode(part, positions, seqIDs, make([]bool, len(part))); err != nil {
			return err
		}
		position += len(part)
	}
	r.prefix = len(prefix)
	r.free -= r.prefix
	return nil
}

// fill gives waiting prompts to unused sequences, in order, as far as the cache has room for whole answers. So no answer
// ever runs out of cache because of the others, and the first prompt in line always gets its turn.
func (r *generation) fill() error {
	for seq := range r.slots {
		if r.slots[seq] != nil || r.next == len(r.prompts) {
			continue
		}
		prompt := r.prompts[r.next]
		nCtx := r.session.Params().NCtx
		// The token drawn last is never decoded, so it takes no cache.
		need := min(len(prompt)+r.opts.MaxTokens-1, nCtx) - r.prefix
		if need > r.free {
			return nil
		}
		if r.prefix > 0 {
			if err := r.session.Share(r.session.spare(), int32(seq), int32(r.prefix)); err != nil {
				return err
			}
		}
		known := max(r.prefix, len(r.kept)) // one of them is 0
		r.slots[seq] = &answer{
			prompt:   r.next,
			pending:  slices.Clone(prompt[known:]),
			position: int32(known),
			reserved: need,
			room:     min(r.opts.MaxTokens, nCtx-len(prompt)+1),
			text:     stopText{stops: r.opts.StopStrings},
		}
		r.free -= need
		r.next++
	}
	return nil
}

type batch struct {
	tokens, positions, seqIDs []int32
	want                      []bool
}

// compose makes the next batch: first one token of each answer in generation, then prompts, as much as fits.
func (r *generation) compose() {
	b := &r.batch
	b.tokens, b.positions, b.seqIDs, b.want = b.tokens[:0], b.positions[:0], b.seqIDs[:0], b.want[:0]
	nBatch := r.session.Params().NBatch
	for _, prompts := range []bool{false, true} {
		for seq, a := range r.slots {
			if a == nil || (len(a.tokens) == 0) != prompts {
				continue
			}
			a.row = -1
			n := min(len(a.pending), nBatch-len(b.tokens))
			for _, token := range a.pending[:n] {
				b.tokens = append(b.tokens, token)
				b.positions = append(b.positions, a.position)
				b.seqIDs = append(b.seqIDs, int32(seq))
				b.want = append(b.want, false)
				a.position++
			}
			a.pending = a.pending[n:]
			if n > 0 && len(a.pending) == 0 {
				a.row = len(b.tokens) - 1
				b.want[a.row] = true
			}
		}
	}
}

// draw takes the next token of an answer and ends the answer if that is its last.
func (r *generation) draw(seq int32, a *answer) error {
	// The counter has the prompt's index in its upper half: no draw of a call is the same as another, and none depends
	// on the order of work.
	sampling, counter := r.opts.Sampling, uint64(a.prompt)<<32|uint64(len(a.tokens))
	if r.opts.Seeds != nil {
		sampling.Seed, counter = r.opts.Seeds[a.prompt], uint64(len(a.tokens))
	}
	token, err := r.session.Sample(a.row, sampling, counter)
	if err != nil {
		return fmt.Errorf("prompt %d: token %d: %w", a.prompt, len(a.tokens), err)
	}
	a.row = -1
	if r.vocab.IsEOG(token) || slices.Contains(r.opts.StopTokens, token) {
		return r.finish(seq, a, StopEnd)
	}
	a.tokens = append(a.tokens, token)
	stopped := false
	if !r.vocab.IsControl(token) {
		stopped = a.text.add(r.vocab.TokenText(token))
	}
	switch {
	case stopped:
		return r.finish(seq, a, StopString)
	case len(a.tokens) == r.opts.MaxTokens:
		return r.finish(seq, a, StopLength)
	case len(a.tokens) == a.room:
		return r.finish(seq, a, StopContext)
	}
	r.emit(a, a.text.certain())
	a.pending = append(a.pending[:0], token)
	return nil
}

func (r *generation) finish(seq int32, a *answer, reason StopReason) error {
	r.emit(a, a.text.rest())
	r.results[a.prompt] = a.completion(reason)
	if r.opts.OnDone != nil {
		r.opts.OnDone(a.prompt, r.results[a.prompt])
	}
	r.slots[seq] = nil
	r.free += a.reserved
	if r.opts.Keep {
		r.keep(a)
		return nil
	}
	return r.session.Forget(seq)
}

func (r *generation) emit(a *answer, text string) {
	if r.opts.OnText != nil && text != "" {
		r.opts.OnText(a.prompt, text)
	}
}
