package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cftune/bindings/engine"
	"cftune/trainer/chat"
	"cftune/trainer/critic"
)

// localTeacher answers requests with a GGUF, several at once. Requests come one by one; what waits is generated together.
type localTeacher struct {
	session  *engine.Session
	vocab    *engine.Vocab
	template *chat.Template
	parallel int

	asked   chan localRequest
	stop    context.CancelFunc
	ctx     context.Context
	stopped chan struct{}
}

type localRequest struct {
	critic.Request
	prompt []int32
	reply  chan<- localReply // has room for one
}

type localReply struct {
	critic.Reply
	err error
}

// localOptions are what a local teacher is made of.
type localOptions struct {
	model, adapter, templateFile string
	adapterScale                 float64
	parallel, context            int // context: tokens of the cache for all answers at once
	threads, gpuLayers           int
}

// localTogether is how many requests are generated in one go, for each sequence: with more, sequences idle less at its end.
const localTogether = 4

// gatherFor is how long requests wait for others to be generated with. As many come as there are workers, each with its next
// one as soon as its last is answered, so this is waited for only at the end of a run. What is generated together decides the
// last bits of sums, and so now and then a token: with full groups, a run that is not interrupted has the same ones each time.
const gatherFor = time.Second

func openLocalTeacher(o localOptions, vocab *engine.Vocab, template *chat.Template) (*localTeacher, error) {
	const batch = 512 // tokens of prompts read at once; more gains nothing
	session, err := newSession(o.model, o.adapter, engine.SessionParams{
		NCtx: o.context, NBatch: min(batch, o.context), NSequences: o.parallel, NThreads: o.threads, NGPULayers: o.gpuLayers,
		AdapterScale: o.adapterScale,
	})
	if err != nil {
		return nil, engineError(err)
	}
	t := &localTeacher{
		session: session, vocab: vocab, template: template, parallel: o.parallel,
		asked: make(chan localRequest), stopped: make(chan struct{}),
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	go t.serve()
	return t, nil
}

// Close ends what is being generated.
func (t *localTeacher) Close() {
	t.stop()
	<-t.stopped
	t.session.Close()
	t.vocab.Close()
}

// Complete answers a request.
func (t *localTeacher) Complete(ctx context.Context, r critic.Request) (critic.Reply, error) {
	prompt, err := t.template.EncodePrompt(r.Messages)
	if err != nil {
		return critic.Reply{}, &critic.Fault{Kind: critic.FaultRefused, Err: err}
	}
	if n := t.session.Params().NCtx; len(prompt) >= n {
		return critic.Reply{}, &critic.Fault{Kind: critic.FaultRefused, Err: fmt.Errorf("the prompt has %d tokens, the context %d", len(prompt), n)}
	}
	reply := make(chan localReply, 1)
	select {
	case t.asked <- localRequest{r, prompt, reply}:
	case <-ctx.Done():
		return critic.Reply{}, ctx.Err()
	}
	select {
	case answer := <-reply:
		return answer.Reply, answer.err
	case <-ctx.Done():
		return critic.Reply{}, ctx.Err()
	}
}

// serve generates what is asked until Close.
func (t *localTeacher) serve() {
	defer close(t.stopped)
	for {
		var group []localRequest
		select {
		case r := <-t.asked:
			group = append(group, r)
		case <-t.ctx.Done():
			return
		}
		timer := time.NewTimer(gatherFor)
	gather:
		for len(group) < localTogether*t.parallel {
			select {
			case r := <-t.asked:
				group = append(group, r)
				timer.Reset(gatherFor)
			case <-timer.C:
				break gather
			case <-t.ctx.Done():
				break gather // generate tells them
			}
		}
		timer.Stop()
		slices.SortFunc(group, func(a, b localRequest) int { return a.Job - b.Job })
		t.generate(group)
	}
}

// generate answers a group. All have the options of a run, so those of the first hold for each.
func (t *localTeacher) generate(group []localRequest) {
	first := group[0]
	sampling := engine.Greedy()
	if first.Temperature > 0 {
		sampling = engine.Sampling{Temperature: first.Temperature, TopP: first.TopP}
	}
	prompts, seeds := make([][]int32, len(group)), make([]uint64, len(group))
	for i, r := range group {
		prompts[i], seeds[i] = r.prompt, r.Seed
	}
	done := make([]bool, len(group))
	_, err := engine.NewGenerator(t.session, t.vocab).Generate(t.ctx, prompts, engine.GenerateOptions{
		MaxTokens: first.MaxTokens, Sampling: sampling, StopStrings: first.Stop, Seeds: seeds,
		OnDone: func(i int, c engine.Completion) {
			done[i] = true
			reply := critic.Reply{Text: c.Text, Finish: "stop", In: len(prompts[i]), Out: max(1, len(c.Tokens))}
			if c.Reason == engine.StopLength || c.Reason == engine.StopContext {
				reply.Finish = critic.FinishLength
			}
			group[i].reply <- localReply{Reply: reply}
		},
	})
	if err == nil {
		return
	}
	if !errors.Is(err, context.Canceled) {
		// The same prompts would fail again.
		err = &critic.Fault{Kind: critic.FaultDenied, Err: engineError(err)}
	}
	for i := range group {
		if !done[i] {
			group[i].reply <- localReply{err: err}
		}
	}
}
