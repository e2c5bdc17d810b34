package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cftune/trainer/checkpoint"
)

// Report tells how the copies of a run stand.
type Report struct {
	URL string `json:"url"` // less its options
	// Step is the newest checkpoint that is in the mirror, verified; -1 if there is none.
	Step int `json:"step"`
	// Wanted is the newest checkpoint that should be there; -1 if there is none.
	Wanted int `json:"wanted"`
	// Uploaded counts checkpoints, Skipped those that were passed over for a newer one, Failed the attempts at a
	// checkpoint that came to nothing.
	Uploaded int `json:"uploaded"`
	Skipped  int `json:"skipped"`
	Failed   int `json:"failed"`
	// Error is why the newest checkpoint is not there, as far as that is known.
	Error string    `json:"error,omitempty"`
	Time  time.Time `json:"time"` // of the last change
}

// Behind reports whether the newest checkpoint is not in the mirror.
func (r Report) Behind() bool { return r.Wanted > r.Step }

// String is a line for people.
func (r Report) String() string {
	state := fmt.Sprintf("step %d is there, verified", r.Step)
	switch {
	case r.Behind() && r.Step < 0:
		state = fmt.Sprintf("it has NO checkpoint, step %d should be there", r.Wanted)
	case r.Behind():
		state = fmt.Sprintf("the newest there is step %d, NOT step %d", r.Step, r.Wanted)
	case r.Step < 0:
		state = "there was nothing to copy"
	}
	text := fmt.Sprintf("mirror %s: %s; copied %d, passed over %d, failed attempts %d", r.URL, state, r.Uploaded, r.Skipped, r.Failed)
	if r.Error != "" {
		text += ": " + r.Error
	}
	return text
}

// Worker copies snapshots to a mirror in the background, one at a time.
type Worker struct {
	claim   *Claim
	changed func(Report)
	cancel  context.CancelFunc
	wake    chan struct{} // there is something new in waiting or ending
	ended   chan struct{}

	mu      sync.Mutex
	waiting *Snapshot // the newest one that is not under way
	busy    bool      // one is under way
	ending  bool
	report  Report
	notes   []string

	telling sync.Mutex // held while changed is called
}

// Start begins to work. changed, if not nil, is called after every change of the report, by one goroutine at a time.
func Start(c *Claim, changed func(Report)) *Worker {
	if changed == nil {
		changed = func(Report) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &Worker{
		claim: c, changed: changed, cancel: cancel, wake: make(chan struct{}, 1), ended: make(chan struct{}),
		report: Report{URL: c.store.name, Step: -1, Wanted: -1}, notes: c.Notes,
	}
	go w.work(ctx)
	return w
}

// Offer hands a snapshot over, and never waits. One that was offered before and is not under way yet is passed over.
func (w *Worker) Offer(s *Snapshot) {
	w.mu.Lock()
	older := w.waiting
	w.waiting = s
	w.report.Wanted = max(w.report.Wanted, s.Step)
	if older != nil {
		w.pass(older.Step)
	}
	w.mu.Unlock()
	if older != nil {
		older.Close()
	}
	w.rouse()
}

// Miss counts a checkpoint of which no snapshot could be taken.
func (w *Worker) Miss(step int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.Wanted = max(w.report.Wanted, step)
	w.fail(step, err)
	w.note("warning: step %d was not copied: %v", step, err)
}

// pass and fail count; the lock is held.
func (w *Worker) pass(step int) {
	w.report.Skipped++
	w.note("step %d is passed over: a newer checkpoint came before it could be copied", step)
}

func (w *Worker) fail(step int, err error) {
	w.report.Failed++
	w.report.Error = fmt.Sprintf("step %d: %v", step, err)
	w.report.Time = time.Now().UTC()
}

func (w *Worker) note(format string, args ...any) {
	w.notes = append(w.notes, fmt.Sprintf("mirror %s: ", w.claim.store.name)+fmt.Sprintf(format, args...))
}

func (w *Worker) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Notes returns what is to be told since the last call.
func (w *Worker) Notes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	notes := w.notes
	w.notes = nil
	return notes
}

// Pending returns the step of the newest snapshot that is not in the mirror yet, and whether there is one.
func (w *Worker) Pending() (step int, is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.report.Wanted, w.busy || w.waiting != nil
}

// endGrace is how long an attempt has to end once it is told to. A file system that does not answer may never let it.
const endGrace = 5 * time.Second

// Finish waits until all is copied, the limit is over or ctx ends, and ends the work. Nothing may be offered after it.
func (w *Worker) Finish(ctx context.Context, limit time.Duration) Report {
	w.mu.Lock()
	w.ending = true
	w.mu.Unlock()
	w.rouse()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	gaveUp := ""
	select {
	case <-w.ended:
	case <-timer.C:
		gaveUp = fmt.Sprintf("it was not done within %v", limit)
	case <-ctx.Done():
		gaveUp = "the wait was interrupted"
	}
	w.cancel()
	select {
	case <-w.ended:
	case <-time.After(endGrace):
	}
	w.mu.Lock()
	if w.waiting != nil {
		w.waiting.Close()
		w.waiting = nil
	}
	if gaveUp != "" && w.report.Behind() {
		if w.report.Error != "" {
			gaveUp += "; " + w.report.Error
		}
		w.report.Error = gaveUp
	}
	r := w.report
	w.mu.Unlock()
	w.tell()
	return r
}

// next waits for a snapshot; nil means that there will be none.
func (w *Worker) next(ctx context.Context) *Snapshot {
	for {
		w.mu.Lock()
		s, ending := w.waiting, w.ending
		w.waiting, w.busy = nil, s != nil
		w.mu.Unlock()
		if s != nil || ending {
			return s
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *Worker) work(ctx context.Context) {
	defer close(w.ended)
	for {
		s := w.next(ctx)
		if s == nil {
			return
		}
		for w.attempt(ctx, s) && w.pause(ctx) {
		}
		s.Close()
		w.mu.Lock()
		w.busy = false
		w.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
	}
}

// pause waits before another attempt at a snapshot; false says that there is a newer one, or no time left.
func (w *Worker) pause(ctx context.Context) bool {
	timer := time.NewTimer(w.claim.store.patience.Again)
	defer timer.Stop()
	for {
		w.mu.Lock()
		newer := w.waiting != nil
		w.mu.Unlock()
		if newer {
			return false
		}
		select {
		case <-w.wake:
			w.mu.Lock()
			ending := w.ending && w.waiting == nil
			w.mu.Unlock()
			if ending {
				return true // at once: there is not much time
			}
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// attempt copies one snapshot, and says whether to try it again.
func (w *Worker) attempt(ctx context.Context, s *Snapshot) (again bool) {
	copied, err := w.claim.upload(ctx, s)
	var pruned error
	if err == nil {
		pruned = w.claim.prune(ctx, s)
	}
	if err != nil && ctx.Err() != nil {
		return false // Finish tells
	}
	w.mu.Lock()
	if err != nil {
		again = w.failed(s.Step, err)
	} else {
		w.report.Step, w.report.Error, w.report.Time = s.Step, "", time.Now().UTC()
		if copied {
			w.report.Uploaded++
		}
		if pruned != nil {
			w.note("older checkpoints could not be removed: %v", pruned)
		}
	}
	w.mu.Unlock()
	w.tell()
	return again
}

// failed counts a failure and notes it, unless it is the one before once more. The lock is held.
func (w *Worker) failed(step int, err error) (again bool) {
	before := w.report.Error
	w.fail(step, err)
	final := errors.Is(err, errLocal) || errors.Is(err, ErrTaken) || errors.Is(err, checkpoint.ErrIncompatible)
	if before != w.report.Error {
		advice := "; it is tried again until a newer one comes"
		if final {
			advice = ""
		}
		w.note("warning: step %d was not copied: %v%s", step, err, advice)
	}
	return !final
}

// tell calls changed, without the lock: it may take its time.
func (w *Worker) tell() {
	w.telling.Lock()
	defer w.telling.Unlock()
	w.mu.Lock()
	r := w.report
	w.mu.Unlock()
	w.changed(r)
}
