package main

import (
	"context"

	"cftune/bindings/engine"
	"cftune/trainer"
	"cftune/trainer/chat"
	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
	"cftune/trainer/score"
)

// servedModel lets score's package write and measure through libllama.
type servedModel struct {
	model, adapter string
	chat           config.Chat
	o              servedOptions
	held           *trainer.HeldModel // model's files

	vocab    *engine.Vocab
	template *chat.Template
	session  *engine.Session
	logits   []float32
	short    int // see trainer.ShortContext
}

// servedOptions are what a user decides about serving.
type servedOptions struct {
	parallel, threads, gpuLayers int
	lossContext                  int // longest example whose loss is measured, in tokens
}

var _ score.Model = (*servedModel)(nil)

func openServed(held *trainer.HeldModel, s served, o servedOptions) (*servedModel, error) {
	m := &servedModel{model: s.model, adapter: s.adapter, chat: s.chat, o: o, held: held}
	var err error
	if m.vocab, m.template, err = openChat(m.model, m.chat.TemplateFile, m.chat.System); err != nil {
		return nil, err
	}
	if m.short, err = shortContext(m.model); err != nil {
		m.vocab.Close()
		return nil, err
	}
	m.logits = make([]float32, m.vocab.Info().Tokens)
	return m, nil
}

// Close frees the model.
func (m *servedModel) Close() {
	if m.session != nil {
		m.session.Close()
	}
	m.vocab.Close()
}

// promptBatch is how many tokens of prompts are read at once; more gains nothing.
const promptBatch = 512

// reserve makes a session of at least that size, if the one there is is smaller, or rotates otherwise than sequences of so many tokens are.
func (m *servedModel) reserve(context, batch, sequences, longest int) error {
	rotation := rotationFor(m.short, longest)
	if m.session != nil {
		p := m.session.Params()
		if p.NCtx >= context && p.NBatch >= min(batch, context) && p.NSequences >= sequences && p.MaxSequence == rotation {
			return nil
		}
		m.session.Close()
		m.session = nil
	}
	s, err := newSession(m.model, m.adapter, engine.SessionParams{
		NCtx: context, NBatch: min(batch, context), NSequences: sequences, NThreads: m.o.threads, NGPULayers: m.o.gpuLayers, AdapterScale: 1,
		MaxSequence: rotation,
	})
	if err != nil {
		return engineError(err)
	}
	m.session = s
	return nil
}

// endMarks end a text where they begin: a model that learned critiques ends them so, or goes on into one.
var endMarks = []string{"[END]", "(END)", "**END**", `\[END\]`}

// seedStep keeps the draws of seeds that follow each other apart, whatever rows there are.
const seedStep = 0x9e3779b97f4a7c15

func (m *servedModel) Write(ctx context.Context, requests []score.Request, s score.Sampling, maxTokens int, done func(int, score.Text) error) error {
	prompts, seeds := make([][]int32, len(requests)), make([]uint64, len(requests))
	longest := 0
	for i, r := range requests {
		var err error
		if prompts[i], err = encodeTurn(m.template, r.Prompt); err != nil {
			return codedError{err, codeData}
		}
		seeds[i] = (s.Seed+1)*seedStep + uint64(r.Stream)
		longest = max(longest, len(prompts[i]))
	}
	parallel := min(m.o.parallel, len(requests))
	if err := m.reserve(parallel*(longest+maxTokens), promptBatch, parallel, longest+maxTokens); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var doneErr error
	options := engine.GenerateOptions{
		MaxTokens: maxTokens, StopStrings: endMarks, Seeds: seeds,
		OnDone: func(i int, c engine.Completion) {
			if doneErr != nil {
				return
			}
			// What a model wrote that somebody writes into is not kept under the digest of what it was.
			if doneErr = m.held.Check(); doneErr != nil {
				stop()
				return
			}
			ended := c.Reason != engine.StopLength && c.Reason != engine.StopContext
			if doneErr = done(i, score.Text{Text: c.Text, Tokens: len(c.Tokens), Ended: ended}); doneErr != nil {
				stop()
			}
		},
	}
	if s.Temperature > 0 {
		options.Sampling = engine.Sampling{Temperature: s.Temperature, TopP: s.TopP, Seed: s.Seed}
	}
	_, err := engine.NewGenerator(m.session, m.vocab).Generate(ctx, prompts, options)
	if doneErr != nil {
		return doneErr
	}
	return engineError(err)
}

func (m *servedModel) Loss(_ context.Context, c objective.Conversation) (sum float64, tokens int, tooLong bool, err error) {
	ids, labels, err := m.template.Encode(c.Messages, c.Train)
	if err != nil {
		return 0, 0, false, codedError{err, codeData}
	}
	if len(ids) > m.o.lossContext {
		return 0, 0, true, nil
	}
	first := 1
	for first < len(labels) && labels[first] == dataset.IgnoreLabel {
		first++
	}
	// In powers of two, so that a longer example does not load the model again each time.
	size := promptBatch
	for size < len(ids) {
		size *= 2
	}
	if err := m.reserve(size, size, 1, len(ids)); err != nil {
		return 0, 0, false, err
	}
	s := &scorer{session: m.session, logits: m.logits}
	err = s.forward(ids, first-1, func(i int, logits []float32) {
		if labels[i+1] != dataset.IgnoreLabel {
			sum += negativeLogLikelihood(logits, labels[i+1])
			tokens++
		}
	})
	if err == nil {
		err = m.held.Check()
	}
	return sum, tokens, false, engineError(err)
}
