package metrics

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"cftune/internal/regular"
)

// Sink is shown what a run records, after the log has it. What goes wrong with a sink is its own affair, never the run's,
// so its methods return no errors; and they must not wait for anybody. It is used by one goroutine at a time.
type Sink interface {
	Step(s Step)
	Validation(v Validation)
	Skip(s Skip)
	// Saved tells that a checkpoint of the step was committed.
	Saved(step int, at time.Time)
	Close()
}

// Record is a line of the log: a Step, a Validation or a Skip.
type Record interface {
	// Show calls the sink's method for this kind of record.
	Show(to Sink)
}

// Show implements Record.
func (s Step) Show(to Sink) { to.Step(s) }

// Show implements Record.
func (v Validation) Show(to Sink) { to.Validation(v) }

// Show implements Record.
func (s Skip) Show(to Sink) { to.Skip(s) }

// Read calls visit for each record of a file, in order. A missing file is empty; a last line that is cut off is left out
// and reported.
func Read(path string, visit func(Record)) (torn bool, err error) {
	text, err := regular.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read metrics: %w", err)
	}
	at := 0
	err = scan(text, func(l line, end int) error {
		r, err := l.record(text[at:end])
		at = end
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		visit(r)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("read metrics: %s: %w", path, err)
	}
	return at < len(text), nil
}

// record reads a line whole.
func (l line) record(text []byte) (Record, error) {
	switch {
	case l.Skipped != nil:
		return decode[Skip](text)
	case l.Loss != nil:
		return decode[Step](text)
	}
	return decode[Validation](text)
}

func decode[R Record](text []byte) (Record, error) {
	var r R
	if err := json.Unmarshal(bytes.TrimSpace(text), &r); err != nil {
		return nil, err
	}
	return r, nil
}
