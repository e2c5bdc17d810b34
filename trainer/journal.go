package trainer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/internal/durable"
	"cftune/trainer/objective"
)

// A run's journal.jsonl has what people changed while it trained: a line of JSON for each change of the objective, with
// the step from which it holds. It is only appended to. A resumed run reads it and so follows the same changes at the same
// steps; and a new run that is given it (Options.Changes) does all again.

// journalEntry is a line of the journal.
type journalEntry struct {
	objective.Change
	Time time.Time `json:"time"`
}

// ReadJournal returns the changes in a run's journal. torn: its last line is cut off, as a crash leaves it; nobody was
// told that such a change was taken, and it is not among them.
func ReadJournal(dir string) (changes []objective.Change, torn bool, err error) {
	path := filepath.Join(dir, checkpoint.JournalName)
	text, err := regular.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read journal: %w", err)
	}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if line[len(line)-1] != '\n' {
			return changes, true, nil
		}
		entry, err := parseEntry(line)
		if err != nil {
			return nil, false, fmt.Errorf("read journal: %s:%d: %w", path, number, checkpoint.Undecodable(err))
		}
		changes = append(changes, entry.Change)
	}
	return changes, false, nil
}

func parseEntry(line []byte) (journalEntry, error) {
	var entry journalEntry
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&entry); err != nil {
		return entry, err
	}
	if entry.Step < 1 {
		return entry, fmt.Errorf("step is %d, must be at least 1", entry.Step)
	}
	return entry, config.ValidateStages(entry.Stages, true)
}

// appendJournal adds a change and makes it durable. A torn last line is taken off first.
func appendJournal(fs durable.FS, dir string, change objective.Change) error {
	path := filepath.Join(dir, checkpoint.JournalName)
	line, err := json.Marshal(journalEntry{change, time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := trimJournal(fs, path); err != nil {
		return err
	}
	f, err := fs.Append(path)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write journal %s: %w", path, err)
	}
	return fs.SyncDir(dir)
}

// trimJournal takes a torn last line off.
func trimJournal(fs durable.FS, path string) error {
	text, err := regular.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	if len(whole) == len(text) {
		return nil
	}
	_, err = durable.ReplaceFile(fs, path, func(w io.Writer) error {
		_, err := w.Write(whole)
		return err
	})
	return err
}
