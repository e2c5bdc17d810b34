package critic

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"cftune/trainer/internal/durable"
)

// Result is what a run has come to.
type Result struct {
	Jobs  int
	Tally Tally
	// Stopped is why the run ended before all was answered: ErrBudget, a *Fault of an endpoint that takes nothing more, or
	// the context's error. Nil with failed requests: they are given up, and the next run tries them again.
	Stopped error
}

// Complete says that every request has its answer.
func (r Result) Complete() bool { return r.Tally.Answered == r.Jobs }

// UnusableError says that there cannot be a run such as is asked for, or not in that folder.
type UnusableError struct{ Err error }

func (e *UnusableError) Error() string { return e.Err.Error() }

func (e *UnusableError) Unwrap() error { return e.Err }

// Run is a plan with its folder, opened.
type Run struct {
	plan    Plan
	o       Options
	id      string
	lock    *durable.Lock
	journal *journal
	ledger  *ledger

	flying atomic.Int64 // requests on their way

	observing sync.Mutex
	observed  time.Time
}

// Open takes a folder for a plan: a new one, or that of an earlier run of the same plan, which it goes on with. settings
// are what decides the texts, for people and for comparison: a run with others is refused with ErrSettings.
func Open(plan Plan, o Options, settings Settings) (*Run, error) {
	if err := plan.check(); err != nil {
		return nil, &UnusableError{err}
	}
	if o.Attempts < 1 {
		return nil, &UnusableError{fmt.Errorf("attempts: must be at least 1, got %d", o.Attempts)}
	}
	if err := durable.MkdirAll(durable.OS, o.Dir); err != nil {
		return nil, &UnusableError{fmt.Errorf("output: %w", err)}
	}
	lock, err := durable.Acquire(filepath.Join(o.Dir, "LOCK"))
	if err != nil {
		if _, held := errors.AsType[*durable.HeldError](err); !held {
			err = &UnusableError{fmt.Errorf("output: %w", err)}
		}
		return nil, err
	}
	r := &Run{plan: plan, o: o, lock: lock}
	var moved []string
	if r.id, moved, err = settle(durable.OS, o.Dir, settings); err == nil {
		r.journal, err = openJournal(durable.OS, o.Dir, plan.jobs())
	}
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	for _, each := range moved {
		r.note("the teacher is reached otherwise: %s", each)
	}
	t := r.journal.totals()
	r.ledger = newLedger(o.Budget, t.Spent, t.Possible)
	return r, nil
}

// Close gives the folder back.
func (r *Run) Close() error { return errors.Join(r.journal.close(), r.lock.Release()) }

// Tally is what the journal adds up to.
func (r *Run) Tally() Tally { return r.journal.totals() }

// Work asks for everything that has no answer yet. An error is of this side: data, disk. What teachers and budgets do is
// in the result.
func (r *Run) Work(ctx context.Context) (Result, error) {
	work, stop := context.WithCancelCause(ctx) // no new request leaves when it has ended
	defer stop(nil)
	sent, cut := context.WithCancelCause(context.WithoutCancel(ctx)) // requests on their way end with this one
	defer cut(nil)
	done := context.AfterFunc(ctx, func() {
		if n := r.flying.Load(); n > 0 {
			r.note("told to stop: %d answers are on their way, and have %s to arrive; a second interrupt leaves them, to be asked for again", n, r.o.Drain)
		}
		time.AfterFunc(r.o.Drain, func() { cut(context.Cause(ctx)) })
	})
	defer done()
	var all sync.WaitGroup
	for t := range r.plan.Teachers {
		w := &worker{Run: r, teacher: &r.plan.Teachers[t], index: t, work: work, sent: sent, stop: stop}
		w.requests = newBucket(w.teacher.RequestsPerMinute)
		w.tokens = newBucket(w.teacher.TokensPerMinute)
		if w.teacher.Batch != nil {
			all.Go(func() {
				if err := w.batches(); err != nil {
					w.stop(err)
				}
			})
			continue
		}
		for range w.teacher.Concurrency {
			all.Go(w.loop)
		}
	}
	all.Wait()
	result := Result{Jobs: r.plan.jobs(), Tally: r.journal.totals()}
	cause := context.Cause(work)
	var fault *Fault
	switch {
	case work.Err() == nil:
	case ctx.Err() != nil:
		result.Stopped = ctx.Err()
	case errors.Is(cause, ErrBudget), errors.As(cause, &fault):
		result.Stopped = cause
	default:
		return result, cause
	}
	r.observe(true)
	return result, nil
}

// worker asks one teacher.
type worker struct {
	*Run
	teacher  *Teacher
	index    int
	work     context.Context
	sent     context.Context
	stop     context.CancelCauseFunc
	next     atomic.Int64
	requests *bucket
	tokens   *bucket
	pause    pause
	inVain   atomic.Int64 // requests that were given up since the last one that was answered or refused
	told     atomic.Int64 // of those that were given up
}

// take returns the teacher's next request that has no answer and was not given up by this process; false: there is none. Those that an earlier process gave up come
// last: where they take long to fail again, or end the run, the others are done.
func (w *worker) take() (job int, ok bool) {
	each := w.plan.PerRow
	all := w.plan.rows() * each
	for {
		n := int(w.next.Add(1)) - 1 // among the teacher's own
		if n >= 2*all {
			return 0, false
		}
		last := n >= all
		n %= all
		job = (n/each*len(w.plan.Teachers)+w.index)*each + n%each
		s := w.journal.state(job)
		if given := s.failed && !s.late; s.answer < 0 && s.late == last && !given {
			return job, true
		}
	}
}

// leastInVain is how many requests in a row must be given up for a run to end: a teacher that is gone would hold up each of
// thousands until its last attempt.
const leastInVain = 32

// vain counts a request that was given up, and returns an error if the teacher seems to be gone.
func (w *worker) vain(fault *Fault) error {
	if !fault.passing() {
		w.inVain.Store(0) // it is there, but does not take this one
		return nil
	}
	if n := w.inVain.Add(1); n >= int64(max(leastInVain, 2*w.teacher.Concurrency)) {
		return fmt.Errorf("teacher %s: %d requests in a row are given up, the last one as %w", w.teacher.Name, n, fault)
	}
	return nil
}

func (w *worker) loop() {
	for w.work.Err() == nil {
		job, ok := w.take()
		if !ok {
			return
		}
		if err := w.ask(job); err != nil {
			w.stop(err) // the first one counts
			return
		}
	}
}

const (
	longPause = 5 * time.Second // is told
	mostTold  = 20              // requests of a teacher that are given up
)

func attempts(n int) string {
	if n == 1 {
		return "1 attempt"
	}
	return fmt.Sprintf("%d attempts", n)
}

// ask sends a request until it is answered or given up. An error ends the whole run.
func (w *worker) ask(job int) error {
	request, err := w.plan.request(job, w.id)
	if err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		fault, err := w.attempt(job, attempt, request)
		switch {
		case err != nil:
			return err
		case fault == nil:
			return nil
		case fault.Kind == FaultDenied:
			return fmt.Errorf("teacher %s: %w", w.teacher.Name, fault)
		case fault.Kind == FaultInterrupt:
			return nil
		case fault.Kind == FaultRefused || attempt == w.o.Attempts:
			return w.vain(fault)
		}
		delay := w.o.Backoff.delay(attempt)
		if fault.RetryAfter > 0 {
			// All requests of the teacher share its limits.
			if w.pause.extend(fault.RetryAfter) && fault.RetryAfter >= longPause {
				w.note("%s asks for a pause: nothing is sent for %s: %s", w.teacher.Name, fault.RetryAfter.Round(time.Second), fault)
			}
			delay = 0
		}
		if err := sleep(w.work, delay); err != nil {
			return nil // told to stop: the journal has the fault, and the next run goes on
		}
	}
}

// An answer may take so many bytes in the journal. Tokens are some four; more are line breaks, as JSON has them, and other languages.
const (
	roomPerAnswer = 1 << 10
	roomPerToken  = 8
)

// attempt sends a request once. fault: it failed in a way that is in the journal.
func (w *worker) attempt(job, attempt int, request Request) (*Fault, error) {
	in := worstTokens(request.Messages)
	worst := w.teacher.Price.Of(in, request.MaxTokens)
	if err := w.reserve(worst); err != nil {
		return nil, err
	}
	settled := false
	settle := func(spent, possible Money) {
		w.ledger.settle(worst, spent, possible)
		settled = true
	}
	defer func() {
		if !settled {
			settle(0, 0)
		}
	}()
	likely := float64(likelyTokens(in) + request.MaxTokens)
	for _, wait := range []func() error{
		func() error { return w.requests.take(w.work, 1) },
		func() error { return w.tokens.take(w.work, likely) },
		func() error { return w.pause.wait(w.work) },
	} {
		if err := wait(); err != nil {
			return &Fault{Kind: FaultInterrupt, Err: err}, nil
		}
	}
	intent := Entry{Kind: kindIntent, Job: job, Attempt: attempt, Worst: worst}
	if err := w.journal.appendWithRoom(intent, roomPerAnswer+roomPerToken*int64(request.MaxTokens)); err != nil {
		return nil, err
	}
	w.flying.Add(1)
	reply, err := w.teacher.Backend.Complete(w.sent, request)
	w.flying.Add(-1)
	if err != nil {
		w.tokens.giveBack(likely)
		fault := asFault(w.sent, err)
		return fault, w.failed(job, attempt, worst, fault, settle)
	}
	e := w.answer(job, attempt, request, reply)
	w.tokens.giveBack(likely - float64(e.In+e.Out))
	if err := w.journal.append(e); err != nil {
		return nil, err
	}
	w.inVain.Store(0)
	settle(e.Cost, 0)
	w.observe(false)
	return nil, nil
}

// failed enters a fault.
func (w *worker) failed(job, attempt int, worst Money, fault *Fault, settle func(spent, possible Money)) error {
	final := !fault.passing() && fault.Kind != FaultInterrupt || fault.passing() && attempt == w.o.Attempts
	e := Entry{
		Kind: kindFault, Job: job, Attempt: attempt, Fault: fault.Kind, Error: fault.Error(), MayBePaid: fault.MayBePaid,
		Final: final, Worst: worst,
	}
	if err := w.journal.append(e); err != nil {
		return err
	}
	possible := Money(0)
	if fault.MayBePaid {
		possible = worst
	}
	settle(0, possible)
	if final {
		switch n := w.told.Add(1); {
		case n <= mostTold:
			w.note("request %d to %s is given up after %s: %s", job, w.teacher.Name, attempts(attempt), fault)
		case n == mostTold+1:
			w.note("more requests to %s are given up: %s has them all", w.teacher.Name, JournalName)
		}
	}
	w.observe(false)
	return nil
}

// answer is the journal's entry of a reply.
func (w *worker) answer(job, attempt int, request Request, reply Reply) Entry {
	e := Entry{
		Kind: kindAnswer, Job: job, Attempt: attempt, Text: reply.Text, Finish: reply.Finish, Model: reply.Model, In: reply.In, Out: reply.Out,
	}
	if e.Out <= 0 || e.In <= 0 {
		e.Estimated = true
		e.In, e.Out = 0, likelyTokens(len(reply.Text))
		for _, m := range request.Messages {
			e.In += likelyTokens(len(m.Content))
		}
	}
	e.Cost = w.teacher.Price.Of(e.In, e.Out)
	return e
}

func asFault(ctx context.Context, err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	if ctx.Err() != nil {
		return &Fault{Kind: FaultInterrupt, Err: err}
	}
	return &Fault{Kind: FaultServer, Err: err}
}

// reserve waits until the budget has room for a request.
func (w *worker) reserve(worst Money) error {
	for {
		wait, err := w.ledger.tryReserve(worst)
		if err != nil {
			spent, possible := w.ledger.totals()
			return fmt.Errorf("%w: of %s, %s are spent and %s may be; one more request can cost %s", err, w.o.Budget, spent, possible, worst)
		}
		if wait == nil {
			return nil
		}
		select {
		case <-wait:
		case <-w.work.Done():
			return context.Cause(w.work)
		}
	}
}

// observeEvery bounds how often progress is told.
const observeEvery = 100 * time.Millisecond

func (r *Run) observe(last bool) {
	if r.o.Observe == nil {
		return
	}
	r.observing.Lock()
	defer r.observing.Unlock()
	if now := time.Now(); last || now.Sub(r.observed) >= observeEvery {
		r.observed = now
		r.o.Observe(Progress{Jobs: r.plan.jobs(), Tally: r.journal.totals()})
	}
}

func (r *Run) note(format string, args ...any) {
	if r.o.Note != nil {
		r.o.Note(fmt.Sprintf(format, args...))
	}
}
