// Package metrics records what each step of a run was: lines of JSON in a file, and progress for people. Its subfolders show
// the same records to TensorBoard and to Prometheus.
//
// Lines are appended whole; after a crash the last one may be torn, and lines may run past the newest checkpoint. Rewind
// takes both off before a run goes on.
package metrics

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// Step is the record of one optimizer step.
type Step struct {
	Step     int     `json:"step"`  // from 1
	Epoch    float64 `json:"epoch"` // passes over the records so far
	Loss     float64 `json:"loss"`  // mean over the step's targets
	Targets  int     `json:"targets"`
	Tokens   int     `json:"tokens"`   // positions of the examples
	Computed int     `json:"computed"` // positions computed: fewer where prefixes are shared
	Examples int     `json:"examples"`
	Packs    int     `json:"packs"`
	LR       float64 `json:"lr"`
	GradNorm float64 `json:"grad_norm"` // before clipping
	// Objective has the number of examples of each objective.
	Objective map[string]int `json:"objective"`
	// Stage is the number of the stage, from 0, counted through all that the run has had.
	Stage            int       `json:"stage"`
	TokensPerS       float64   `json:"tokens_per_s"`
	TargetTokensPerS float64   `json:"target_tokens_per_s"`
	MemoryBytes      uint64    `json:"memory_bytes"`
	Time             time.Time `json:"time"`
	Seconds          float64   `json:"seconds"` // that the step took
}

// Validation is the record of one pass over the held-out records.
type Validation struct {
	Step      int       `json:"step"` // taken so far
	Loss      float64   `json:"validation_loss"`
	Targets   int       `json:"validation_targets"`
	Objective string    `json:"validation_objective,omitempty"` // where several are measured; empty for all together
	Time      time.Time `json:"time"`
	Seconds   float64   `json:"seconds"`
}

// Skip is the record of a step's examples that were left out.
type Skip struct {
	Step     int       `json:"step"`    // the step that was to be made of them
	Skipped  int64     `json:"skipped"` // how many groups of examples were left out so far, this one included
	Reason   string    `json:"reason"`
	Examples []string  `json:"examples"`
	Time     time.Time `json:"time"`
}

// Log appends records to a file.
type Log struct {
	path string
	f    durable.File
	rest []byte // that is not written yet: a disk was full
}

// OpenLog opens the file at path, making it if needed.
func OpenLog(fs durable.FS, path string) (*Log, error) {
	f, err := fs.Append(path)
	if err != nil {
		return nil, fmt.Errorf("open metrics: %w", err)
	}
	return &Log{path: path, f: f}, nil
}

// Write appends one record. Where it fails, Flush tries again.
func (l *Log) Write(record Record) error {
	line, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("write metrics %s: %w", l.path, err)
	}
	l.rest = append(append(l.rest, line...), '\n')
	return l.Flush()
}

// Flush writes what a Write that failed has left: a full disk may have taken a part of a line.
func (l *Log) Flush() error {
	n, err := l.f.Write(l.rest)
	l.rest = l.rest[n:]
	if err != nil {
		return fmt.Errorf("write metrics %s: %w", l.path, err)
	}
	return nil
}

// Sync makes all records so far durable.
func (l *Log) Sync() error {
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("sync metrics %s: %w", l.path, err)
	}
	return nil
}

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }

// ErrCorrupt is wrapped by errors about lines that are no records.
var ErrCorrupt = errors.New("damaged")

var errNoStep = errors.New("it has no step")

// line is what every record has.
type line struct {
	Step    *int     `json:"step"`
	Loss    *float64 `json:"loss"`    // only of steps
	Skipped *int64   `json:"skipped"` // only of skips
}

// scan calls visit for each whole line. A last line without a newline is torn and not visited.
func scan(text []byte, visit func(line line, end int) error) error {
	at := 0
	for number := 1; ; number++ {
		n := bytes.IndexByte(text[at:], '\n')
		if n < 0 {
			return nil
		}
		var l line
		err := json.Unmarshal(text[at:at+n], &l)
		if err == nil && l.Step == nil {
			err = errNoStep
		}
		if err != nil {
			return fmt.Errorf("line %d: %w: %w", number, ErrCorrupt, err)
		}
		at += n + 1
		if err := visit(l, at); err != nil {
			return err
		}
	}
}

// Place is how far a run's records count: its steps, the step of its last validation, its skips.
type Place struct {
	Step, Validated int
	Skipped         int64
}

func (p Place) has(l line) bool {
	switch {
	case l.Skipped != nil:
		return *l.Skipped <= p.Skipped
	case l.Loss != nil:
		return *l.Step <= p.Step
	}
	return *l.Step <= p.Validated
}

// Rewind takes off a torn last line and every record beyond the place. A missing file is empty.
func Rewind(fs durable.FS, path string, to Place) error {
	text, err := regular.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rewind metrics: %w", err)
	}
	keep := 0
	err = scan(text, func(l line, end int) error {
		if to.has(l) {
			keep = end
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("rewind metrics: %s: %w", path, err)
	}
	if keep == len(text) {
		return nil
	}
	_, err = durable.ReplaceFile(fs, path, func(w io.Writer) error {
		_, err := w.Write(text[:keep])
		return err
	})
	if err != nil {
		return fmt.Errorf("rewind metrics: %w", err)
	}
	return nil
}

// Summary is what Check found.
type Summary struct {
	LastStep int     `json:"last_step"` // 0 if there is no step yet
	LastLoss float64 `json:"last_loss"`
	Skipped  int64   `json:"skipped"` // groups of examples that were left out
	Torn     bool    `json:"torn"`    // the last line is cut off
}

// Check reads a file of records: steps must follow each other from 1. A missing file is empty.
func Check(path string) (Summary, error) {
	text, err := regular.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Summary{}, nil
	}
	if err != nil {
		return Summary{}, fmt.Errorf("check metrics: %w", err)
	}
	s := Summary{Torn: len(text) > 0 && text[len(text)-1] != '\n'}
	err = scan(text, func(l line, _ int) error {
		if l.Skipped != nil {
			s.Skipped = *l.Skipped
		}
		if l.Loss == nil {
			return nil
		}
		if *l.Step != s.LastStep+1 {
			return fmt.Errorf("%w: step %d follows step %d", ErrCorrupt, *l.Step, s.LastStep)
		}
		s.LastStep, s.LastLoss = *l.Step, *l.Loss
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("check metrics: %s: %w", path, err)
	}
	return s, nil
}

// Losses returns the losses of the last n steps, oldest first. A missing file has none.
func Losses(path string, n int) ([]float64, error) {
	text, err := regular.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	var losses []float64
	err = scan(text, func(l line, _ int) error {
		if l.Loss != nil {
			losses = append(losses, *l.Loss)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read metrics: %s: %w", path, err)
	}
	return losses[max(0, len(losses)-n):], nil
}

// SpikeWindow is how many losses before a step's are what it is compared with.
const SpikeWindow = 20

// Median of a list that is not empty.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
