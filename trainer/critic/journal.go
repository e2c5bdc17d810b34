package critic

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// JournalName is the journal in the output folder: a line of JSON for everything that happened to a request.
const JournalName = "journal.jsonl"

// The kinds of entries.
const (
	kindIntent  = "intent"  // a request is about to leave; Worst is what it may cost
	kindAnswer  = "answer"  // its answer, paid with Cost
	kindFault   = "fault"   // it failed
	kindUnknown = "unknown" // a process died while it was on its way
	kindTorn    = "torn"    // the line before was cut off by a crash
	kindBatch   = "batch"   // a step of a batch: see batch.go
)

// Entry is a line of the journal.
type Entry struct {
	Kind    string    `json:"kind"`
	Job     int       `json:"job"`
	Attempt int       `json:"attempt,omitempty"`
	Time    time.Time `json:"time"`
	Worst   Money     `json:"worst,omitempty"`

	Text      string `json:"text,omitempty"`
	Finish    string `json:"finish,omitempty"`
	Model     string `json:"model,omitempty"`
	In        int    `json:"in,omitempty"`
	Out       int    `json:"out,omitempty"`
	Estimated bool   `json:"estimated,omitempty"` // the endpoint did not say how many tokens there were
	Cost      Money  `json:"cost,omitempty"`

	Fault     string `json:"fault,omitempty"` // FaultKind
	Error     string `json:"error,omitempty"`
	MayBePaid bool   `json:"may_be_paid,omitempty"`
	Final     bool   `json:"final,omitempty"` // it is not tried again by this process

	Batch *batchStep `json:"batch,omitempty"`
}

// state is what the journal says of a request, in some bytes.
type state struct {
	answer   int64 // where its answer's line begins in the journal, -1 = none
	attempts int32
	open     bool // an intent without an outcome
	failed   bool // its last attempt was final
	late     bool // it was so when this process began
}

// journal is the file and what is known of each request.
type journal struct {
	fs   durable.FS
	path string
	file durable.File

	mu      sync.Mutex
	states  []state
	size    int64
	waiting []pending
	err     error // of the first write that failed: nothing can be promised after it
	wake    chan struct{}
	stopped chan struct{}
	tally   Tally
	batches []batchStep

	// Of the writer alone: what is kept of the disk for answers that are on their way, of each request, and beyond the file's end.
	rooms    map[int]int64
	reserved int64
}

type pending struct {
	line  []byte
	entry Entry
	room  int64 // of an intent: bytes that its answer may take
	done  chan error
}

// Tally is what a journal adds up to.
type Tally struct {
	Answered  int            `json:"answered"`
	Failed    int            `json:"failed"`  // given up by the last process that tried
	Unknown   int            `json:"unknown"` // requests that were on their way when a process died
	Lost      int            `json:"lost"`    // requests whose answers did not arrive whole: timeouts, cut streams
	Requests  int            `json:"requests"`
	Faults    map[string]int `json:"faults,omitempty"`
	TokensIn  int            `json:"tokens_in"`
	TokensOut int            `json:"tokens_out"`
	Estimated int            `json:"estimated,omitempty"` // answers whose tokens were not told
	Spent     Money          `json:"spent"`
	Possible  Money          `json:"possible"` // what unknown and lost requests may have cost beside, at most
}

func (t *Tally) add(e Entry) {
	switch e.Kind {
	case kindIntent:
		t.Requests++
	case kindBatch:
		t.Requests += len(e.Batch.Jobs) // of the plan alone
	case kindAnswer:
		t.Answered++
		t.TokensIn += e.In
		t.TokensOut += e.Out
		t.Spent += e.Cost
		if e.Estimated {
			t.Estimated++
		}
	case kindUnknown:
		t.Unknown++
		t.Possible += e.Worst
	case kindFault:
		if t.Faults == nil {
			t.Faults = map[string]int{}
		}
		t.Faults[e.Fault]++
		if e.MayBePaid {
			t.Lost++
			t.Possible += e.Worst
		}
	}
}

// openJournal reads the journal in dir, or begins it, for so many requests. What was on its way when the last process
// died is entered as unknown.
func openJournal(fs durable.FS, dir string, jobs int) (*journal, error) {
	j := &journal{fs: fs, path: filepath.Join(dir, JournalName), states: make([]state, jobs), rooms: map[int]int64{}, wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	for i := range j.states {
		j.states[i].answer = -1
	}
	worst := map[int]Entry{} // of open intents
	torn, err := ScanJournal(j.path, func(at int64, e Entry) error {
		if e.Job < 0 || e.Job >= jobs {
			return fmt.Errorf("request %d of %d", e.Job, jobs)
		}
		if e.Kind == kindAnswer && j.states[e.Job].answer >= 0 {
			return fmt.Errorf("request %d is answered twice", e.Job)
		}
		if e.Kind == kindIntent {
			worst[e.Job] = e
		} else {
			delete(worst, e.Job)
		}
		j.apply(at, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range j.states {
		j.states[i].late = j.states[i].failed
	}
	if j.file, err = fs.Append(j.path); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if info, err := os.Stat(j.path); err == nil {
		j.size = info.Size()
	}
	if err := fs.SyncDir(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), j.file.Close())
	}
	go j.write()
	if torn {
		if err := j.append(Entry{Kind: kindTorn}); err != nil {
			return nil, errors.Join(err, j.close())
		}
	}
	for job := range j.states { // in order, so that a journal tells the same story each time
		e, open := worst[job]
		if !open {
			continue
		}
		if err := j.append(Entry{Kind: kindUnknown, Job: job, Attempt: e.Attempt, Worst: e.Worst}); err != nil {
			return nil, errors.Join(err, j.close())
		}
	}
	return j, nil
}

// apply takes an entry that is in the file at at into the states. The caller holds the lock, or is alone.
func (j *journal) apply(at int64, e Entry) {
	j.tally.add(e)
	s := &j.states[e.Job]
	switch e.Kind {
	case kindIntent:
		s.attempts++
		s.open, s.failed = true, false
	case kindAnswer:
		s.answer, s.open, s.failed = at, false, false
	case kindFault:
		s.open, s.failed = false, e.Final
		s.late = s.late && !e.Final // it had its turn
	case kindUnknown:
		s.open = false
	case kindBatch:
		j.batches = append(j.batches, *e.Batch)
	}
}

// append adds an entry and returns when it is on disk.
func (j *journal) append(e Entry) error { return j.appendWithRoom(e, 0) }

// appendWithRoom adds an intent, and keeps room on the disk for its answer, which is paid when it comes.
func (j *journal) appendWithRoom(e Entry, room int64) error {
	e.Time = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if e.Kind == kindTorn {
		line = append([]byte("\n"), line...)
	}
	p := pending{line: append(line, '\n'), entry: e, room: room, done: make(chan error, 1)}
	j.mu.Lock()
	j.waiting = append(j.waiting, p)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default: // the writer knows already
	}
	return <-p.done
}

// write puts waiting entries into the file, all that wait with one sync.
func (j *journal) write() {
	defer close(j.stopped)
	for range j.wake {
		j.mu.Lock()
		group, err := j.waiting, j.err
		j.waiting = nil
		j.mu.Unlock()
		if err == nil {
			group = j.keepRoom(group)
		}
		if err == nil && len(group) > 0 {
			var text []byte
			for _, p := range group {
				text = append(text, p.line...)
			}
			if _, err = j.file.Write(text); err == nil {
				err = j.file.Sync()
			}
			if err != nil {
				err = fmt.Errorf("journal %s: %w", j.path, err)
			}
		}
		j.mu.Lock()
		j.err = err
		for _, p := range group {
			if err == nil {
				j.apply(j.size, p.entry)
			}
			j.size += int64(len(p.line))
		}
		j.mu.Unlock()
		for _, p := range group {
			p.done <- err
		}
	}
}

// leastReserved is how much of the disk is kept at a time, where there is so much.
const leastReserved = 1 << 20

// keepRoom has the disk keep what the group takes, and the answers that are on their way. Intents for which there is no room get an
// error, and are not among those that it returns: what has left already can still be written down.
func (j *journal) keepRoom(group []pending) []pending {
	need := int64(0)
	for _, p := range group {
		if p.entry.Kind != kindIntent {
			delete(j.rooms, p.entry.Job)
		}
		need += int64(len(p.line)) + p.room
	}
	for _, room := range j.rooms {
		need += room
	}
	if need > j.reserved {
		if err := j.reserve(need); err != nil {
			group = slices.DeleteFunc(group, func(p pending) bool {
				if p.entry.Kind == kindIntent {
					p.done <- fmt.Errorf("journal %s: no room for an answer: %w", j.path, err)
				}
				return p.entry.Kind == kindIntent
			})
		}
	}
	for _, p := range group {
		if p.entry.Kind == kindIntent {
			j.rooms[p.entry.Job] = p.room
		}
		j.reserved -= int64(len(p.line))
	}
	return group
}

func (j *journal) reserve(need int64) (err error) {
	for _, bytes := range []int64{max(need, leastReserved), need} {
		if err = durable.Reserve(j.file, bytes); err == nil {
			j.reserved = bytes
			return nil
		}
	}
	return err
}

// close ends the writer; nothing may be appended any more.
func (j *journal) close() error {
	close(j.wake)
	<-j.stopped
	return errors.Join(durable.Unreserve(j.file), j.file.Close())
}

func (j *journal) state(job int) state {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.states[job]
}

// totals returns the tally, with the number of requests that are given up.
func (j *journal) totals() Tally {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := j.tally
	t.Faults = map[string]int{}
	for kind, n := range j.tally.Faults {
		t.Faults[kind] = n
	}
	for _, s := range j.states {
		if s.failed {
			t.Failed++
		}
	}
	return t
}

// answers calls visit with every answer, in the order of the requests.
func (j *journal) answers(visit func(Entry) error) error {
	f, err := regular.Open(j.path)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	lines := bufio.NewReader(nil)
	for job := range j.states {
		at := j.state(job).answer
		if at < 0 {
			continue
		}
		lines.Reset(io.NewSectionReader(f, at, maxEntryBytes))
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("journal %s: answer %d: %w", j.path, job, err)
		}
		e, err := parseEntry(line)
		if err != nil || e.Kind != kindAnswer || e.Job != job {
			return fmt.Errorf("journal %s: byte %d: %w: not the answer to request %d", j.path, at, ErrCorrupt, job)
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// ErrCorrupt says that a journal has what no crash leaves.
var ErrCorrupt = errors.New("damaged")

// maxEntryBytes bounds a line: answers are bounded by maxReplyBytes, and JSON may escape each byte with six.
const maxEntryBytes = 6*maxReplyBytes + 1<<16

// ScanJournal calls visit with every entry of a journal and where its line begins. torn: the end cannot be read, as a
// crash leaves it; whoever appends then begins with an entry that says so. A missing file has no entries.
func ScanJournal(path string, visit func(at int64, e Entry) error) (torn bool, err error) {
	f, err := regular.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	lines := bufio.NewReaderSize(f, 1<<16)
	var at int64
	var bad error // lines that cannot be read are fine only right before an entry that says so, or at the end
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return false, fmt.Errorf("journal %s: %w", path, err)
		}
		if err == io.EOF {
			// An entry that lacks nothing but its line break is one: the next to append ends the line, and it counts from then on.
			if e, parseErr := parseEntry(line); parseErr == nil && bad == nil && e.Kind != kindTorn {
				if err := visit(at, e); err != nil {
					return false, fmt.Errorf("journal %s:%d: %w: %w", path, number, ErrCorrupt, err)
				}
			}
			return len(line) > 0 || bad != nil, nil
		}
		if len(line) > 1 {
			e, parseErr := parseEntry(line)
			switch {
			case parseErr != nil:
				bad = fmt.Errorf("journal %s:%d: %w: %w", path, number, ErrCorrupt, parseErr)
			case e.Kind == kindTorn:
				bad = nil
			case bad != nil:
				return false, bad
			default:
				if err := visit(at, e); err != nil {
					return false, fmt.Errorf("journal %s:%d: %w: %w", path, number, ErrCorrupt, err)
				}
			}
		}
		at += int64(len(line))
	}
}

func parseEntry(line []byte) (Entry, error) {
	var e Entry
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return e, err
	}
	if e.Kind == kindBatch && e.Batch == nil {
		return e, errors.New("a batch entry without its step")
	}
	switch e.Kind {
	case kindIntent, kindAnswer, kindFault, kindUnknown, kindTorn, kindBatch:
		return e, nil
	}
	return e, fmt.Errorf("unknown kind %q", e.Kind)
}
