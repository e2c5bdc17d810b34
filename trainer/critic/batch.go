package critic

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// BatchOptions say how the batch API is used: requests go as a file, and answers come hours later, at another price.
type BatchOptions struct {
	Requests int           // of one batch at most
	Poll     time.Duration // between two looks at a batch
}

// batchStep is how far a batch is. Each step is in the journal before the next one begins, so that a batch whose making
// was interrupted is looked for at the endpoint, by its metadata, instead of made twice.
type batchStep struct {
	Teacher int    `json:"teacher"`
	Part    int    `json:"part"`
	Step    string `json:"step"`
	Jobs    []int  `json:"jobs,omitempty"` // with stepPlanned
	Worst   Money  `json:"worst,omitempty"`
	ID      string `json:"id,omitempty"` // with stepCreated
	Status  string `json:"status,omitempty"`
}

// The steps of a batch.
const (
	stepPlanned = "planned" // its file is about to be uploaded
	stepCreated = "created" // the endpoint has it
	stepDone    = "done"    // its answers are in the journal
)

// maxBatchBytes bounds a batch's file, which is made in memory; maxBatchReplyBytes what comes back.
const (
	maxBatchBytes      = 16 << 20
	maxBatchReplyBytes = 1 << 30
)

// part is a batch in work.
type part struct {
	number int
	jobs   []int
	worst  Money
	id     string // empty until the endpoint has it
}

// batches works through the teacher's requests: first the batches that an earlier process left, then new ones, in rounds
// until everything is answered or given up.
func (w *worker) batches() error {
	open, next := w.openParts()
	for round := 1; ; round++ {
		if err := w.together(open); err != nil {
			return err
		}
		if round > w.o.Attempts || w.work.Err() != nil {
			return nil
		}
		var err error
		if open, err = w.newParts(next); err != nil || len(open) == 0 {
			return err
		}
		next += len(open)
	}
}

// openParts returns the batches that are not done, and the first number that no batch has.
func (w *worker) openParts() (open []*part, next int) {
	w.journal.mu.Lock()
	steps := w.journal.batches
	w.journal.mu.Unlock()
	parts := map[int]*part{}
	for _, s := range steps {
		if s.Teacher != w.index {
			continue
		}
		next = max(next, s.Part+1)
		switch s.Step {
		case stepPlanned:
			parts[s.Part] = &part{number: s.Part, jobs: s.Jobs, worst: s.Worst}
		case stepCreated:
			if p := parts[s.Part]; p != nil {
				p.id = s.ID
			}
		case stepDone:
			delete(parts, s.Part)
		}
	}
	for n := range next {
		if p := parts[n]; p != nil {
			open = append(open, p)
			w.ledger.settle(-p.worst, 0, 0) // what it may cost is in flight again
		}
	}
	return open, next
}

// newParts divides all requests without an answer into batches, within the budget.
func (w *worker) newParts(first int) ([]*part, error) {
	w.next.Store(0)
	var parts []*part
	now := &part{number: first}
	size := 0
	flush := func() error {
		if len(now.jobs) == 0 {
			return nil
		}
		step := batchStep{Teacher: w.index, Part: now.number, Step: stepPlanned, Jobs: now.jobs, Worst: now.worst}
		if err := w.journal.append(Entry{Kind: kindBatch, Batch: &step}); err != nil {
			return err
		}
		parts = append(parts, now)
		now, size = &part{number: first + len(parts)}, 0
		return nil
	}
	for {
		job, ok := w.take()
		if !ok {
			return parts, flush()
		}
		request, err := w.plan.request(job, w.id)
		if err != nil {
			return nil, err
		}
		in := worstTokens(request.Messages)
		worst := w.teacher.Price.Of(in, request.MaxTokens)
		wait, err := w.ledger.tryReserve(worst)
		if err != nil || wait != nil { // what is planned goes; when it is answered there may be room for more
			if len(parts) == 0 && len(now.jobs) == 0 {
				return nil, w.reserve(worst)
			}
			return parts, flush()
		}
		if size+2*in > maxBatchBytes || len(now.jobs) == w.teacher.Batch.Requests {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		now.jobs, now.worst, size = append(now.jobs, job), now.worst+worst, size+2*in
	}
}

// together works on batches, some at a time.
func (w *worker) together(parts []*part) error {
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		errs  []error
		slots = make(chan struct{}, w.teacher.Concurrency)
	)
	for _, p := range parts {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if err := w.part(p); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// part brings a batch to its end. An interrupt leaves it where it is.
func (w *worker) part(p *part) error {
	e := w.teacher.Backend.(*Endpoint)
	if p.id == "" {
		if err := w.persist(func() (err error) { p.id, err = w.create(e, p); return err }); err != nil || p.id == "" {
			return err
		}
		step := batchStep{Teacher: w.index, Part: p.number, Step: stepCreated, ID: p.id}
		if err := w.journal.append(Entry{Kind: kindBatch, Batch: &step}); err != nil {
			return err
		}
		w.note("batch %s of %d requests is with %s", p.id, len(p.jobs), w.teacher.Name)
	}
	var end batchEnd
	for {
		if err := w.persist(func() (err error) { end, err = e.batch(w.work, p.id); return err }); err != nil {
			return err
		}
		if end.ended {
			break
		}
		if sleep(w.work, w.teacher.Batch.Poll) != nil {
			return nil // it goes on without us
		}
	}
	return w.collect(e, p, end)
}

// persist calls an endpoint until it succeeds; the error is of the last attempt. Nil with an ended context: told to stop.
func (w *worker) persist(call func() error) error {
	for attempt := 1; ; attempt++ {
		if w.work.Err() != nil {
			return nil
		}
		err := call()
		if err == nil {
			return nil
		}
		fault := asFault(w.work, err)
		if fault.Kind == FaultInterrupt {
			return nil
		}
		if !fault.passing() || attempt == w.o.Attempts {
			return fmt.Errorf("teacher %s: batch API: %w", w.teacher.Name, fault)
		}
		if sleep(w.work, max(fault.RetryAfter, w.o.Backoff.delay(attempt))) != nil {
			return nil
		}
	}
}

// create returns the batch's id at the endpoint, where an earlier attempt may have made it.
func (w *worker) create(e *Endpoint, p *part) (string, error) {
	mark := map[string]string{"cftune_run": w.id, "cftune_part": strconv.Itoa(w.index) + "." + strconv.Itoa(p.number)}
	if id, err := e.findBatch(w.work, mark); err != nil || id != "" {
		return id, err
	}
	var file bytes.Buffer
	for _, job := range p.jobs {
		request, err := w.plan.request(job, w.id)
		if err != nil {
			return "", err
		}
		if err := e.writeBatchLine(&file, customID(job), request); err != nil {
			return "", err
		}
	}
	return e.createBatch(w.work, file.Bytes(), mark, "cftune-"+w.id+"-"+mark["cftune_part"])
}

func customID(job int) string { return "cftune-" + strconv.Itoa(job) }

// collect enters a batch's answers. What it has no answer to may go into the next one.
func (w *worker) collect(e *Endpoint, p *part, end batchEnd) error {
	mine := map[string]int{}
	for _, job := range p.jobs {
		mine[customID(job)] = job
	}
	attempt := func(job int) int { return int(w.journal.state(job).attempts) + 1 }
	enter := func(id string, reply Reply, fault *Fault) error {
		job, ours := mine[id]
		if !ours || w.journal.state(job).answer >= 0 {
			return nil // a line twice, or fetched again after a crash
		}
		request, err := w.plan.request(job, w.id)
		if err != nil {
			return err
		}
		entry, possible := w.answer(job, attempt(job), request, reply), Money(0)
		if fault != nil {
			entry = Entry{Kind: kindFault, Job: job, Fault: fault.Kind, Error: fault.Error(), MayBePaid: fault.MayBePaid, Final: !fault.passing()}
			if fault.MayBePaid {
				possible = w.teacher.Price.Of(worstTokens(request.Messages), request.MaxTokens)
				entry.Worst = possible
			}
		}
		delete(mine, id)
		if err := w.journal.append(entry); err != nil {
			return err
		}
		w.ledger.settle(0, entry.Cost, possible)
		w.observe(false)
		return nil
	}
	for _, file := range end.files {
		var ours error // not the endpoint's: no reason to try again
		err := w.persist(func() error {
			return e.batchFile(w.work, file, func(id string, reply Reply, fault *Fault) bool {
				ours = enter(id, reply, fault)
				return ours == nil
			})
		})
		if err = errors.Join(ours, err); err != nil {
			return err
		}
	}
	if w.work.Err() != nil {
		return nil // it may not have been read to its end
	}
	missing := 0
	for _, job := range mine {
		if w.journal.state(job).answer < 0 {
			missing++
		}
	}
	if missing > 0 || end.status != "completed" {
		w.note("batch %s of %s ended as %s, with %d of %d requests unanswered: %s", p.id, w.teacher.Name, end.status, missing, len(p.jobs), end.message)
	}
	w.ledger.settle(p.worst, 0, 0)
	step := batchStep{Teacher: w.index, Part: p.number, Step: stepDone, Status: end.status}
	return w.journal.append(Entry{Kind: kindBatch, Batch: &step})
}
