package runs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cftune/internal/regular"
	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/metrics"
)

// The states of a run.
const (
	Running = "running"
	Done    = "done"
	Ended   = "ended"   // by patience: there are steps left, but nothing to be had from them
	Stopped = "stopped" // interrupted, at a limit, or died; it can be resumed
	Damaged = "damaged"
)

// Standing is how a run stands, and why, as far as that is known.
type Standing struct {
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"` // of trainer.End, where it ended before its last step
	Error  string `json:"error,omitempty"`  // that it ended with
}

// String is "done", or "stopped: max_time".
func (s Standing) String() string {
	if s.Reason == "" {
		return s.State
	}
	return s.State + ": " + s.Reason
}

// Summary is where a run stands.
type Summary struct {
	Run string `json:"run"`
	Standing
	Step  int     `json:"step"`
	Steps int     `json:"steps"`
	Loss  float64 `json:"loss"` // of the last step
	// Checkpoint is the step of the newest checkpoint, unverified; 0 if there is none.
	Checkpoint int    `json:"checkpoint"`
	Problem    string `json:"problem,omitempty"`
}

// List returns the runs in a folder.
func List(folder string) ([]Summary, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	runs := []Summary{}
	for _, entry := range entries {
		dir := filepath.Join(folder, entry.Name())
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue // a run is a folder; links to one count
		}
		if r, err := Summarize(dir); err == nil {
			runs = append(runs, r)
		} else if !errors.Is(err, checkpoint.ErrNotFound) {
			runs = append(runs, Summary{Run: dir, Standing: Standing{State: Damaged}, Problem: err.Error()})
		}
	}
	return runs, nil
}

// Summarize reads a run directory. The error wraps checkpoint.ErrNotFound if it is none.
func Summarize(dir string) (Summary, error) {
	steps, err := checkpoint.List(dir)
	if err != nil {
		return Summary{}, err
	}
	record, err := trainer.ReadRecord(dir)
	if err != nil {
		return Summary{}, err
	}
	path := filepath.Join(dir, checkpoint.MetricsName)
	m, err := metrics.Check(path)
	if err != nil {
		return Summary{}, err
	}
	p := Progress{Steps: record.Plan.Steps, Checkpoints: steps, Skipped: m.Skipped}
	if info, err := os.Stat(path); err == nil {
		p.Written = info.ModTime()
	}
	return Summary{
		Run: dir, Standing: Stand(dir, p), Step: m.LastStep, Steps: record.Plan.Steps, Loss: m.LastLoss, Checkpoint: p.newest(),
	}, nil
}

// Progress is what a run's state is decided by.
type Progress struct {
	Steps       int // planned
	Checkpoints []int
	Skipped     int64
	Written     time.Time // the metrics, last
}

func (p Progress) newest() int {
	if n := len(p.Checkpoints); n > 0 {
		return p.Checkpoints[n-1]
	}
	return 0
}

func (p Progress) done() bool {
	newest := p.newest()
	return newest == p.Steps || p.Skipped > 0 && int64(newest)+p.Skipped >= int64(p.Steps)
}

// farRunning is how long after its last step a run of another machine counts as running, where its lock is not seen.
const farRunning = 5 * time.Minute

// Stand decides whether a run trains, is done, has ended or has stopped. A run has a lock while it trains; where a shared folder does
// not carry locks from machine to machine, one of another machine that recorded something just now trains.
func Stand(dir string, p Progress) Standing {
	if _, held := checkpoint.Holder(dir); held {
		return Standing{State: Running}
	}
	if p.done() {
		return Standing{State: Done}
	}
	// What cannot be read says nothing, and no more does the end of a training that others have followed. Of a run that was fetched there
	// may be no checkpoint here.
	if end, err := trainer.ReadEnd(dir); err == nil && end != nil && (end.Checkpoint == p.newest() || len(p.Checkpoints) == 0) {
		switch end.Reason {
		case trainer.EndFinished: // its records made fewer steps than were planned
			return Standing{State: Done}
		case trainer.EndPatience:
			return Standing{Ended, end.Reason, ""}
		}
		return Standing{Stopped, end.Reason, end.Error}
	}
	if time.Since(p.Written) >= farRunning || !elsewhere(checkpoint.LastHolder(dir)) {
		return Standing{State: Stopped}
	}
	// The file may be young because it was copied here just now.
	if at := lastRecord(filepath.Join(dir, checkpoint.MetricsName)); !at.IsZero() && time.Since(at) >= farRunning {
		return Standing{State: Stopped}
	}
	return Standing{State: Running}
}

// tailBytes have the last record of any metrics, but for one with the names of very many examples.
const tailBytes = 64 << 10

// lastRecord is the time of a file's last whole record; zero if there is none, or it has none.
func lastRecord(path string) time.Time {
	f, err := regular.Open(path)
	if err != nil {
		return time.Time{}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return time.Time{}
	}
	tail := make([]byte, min(info.Size(), tailBytes))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return time.Time{}
	}
	tail = tail[:bytes.LastIndexByte(tail, '\n')+1]
	lines := bytes.Split(bytes.TrimSuffix(tail, []byte("\n")), []byte("\n"))
	var record struct{ Time time.Time }
	if err := json.Unmarshal(lines[len(lines)-1], &record); err != nil {
		return time.Time{}
	}
	return record.Time
}

// elsewhere reports whether a lock's holder ("pid 4711 on host") is of another machine.
func elsewhere(holder string) bool {
	_, host, found := strings.Cut(holder, " on ")
	if !found {
		return false
	}
	here, err := os.Hostname()
	return err == nil && host != here
}
