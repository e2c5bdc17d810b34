package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// Record is what this machine remembers of a run that it launched.
type Record struct {
	Name   string    `json:"name"`
	Target string    `json:"target"`
	Hosts  string    `json:"hosts"` // the file of targets, absolute
	Output string    `json:"output"`
	Time   time.Time `json:"time"`
}

const recordSuffix = ".json"

// Remember writes a record into folder.
func Remember(folder string, r Record) error {
	if err := os.MkdirAll(folder, privateDir); err != nil {
		return fmt.Errorf("remember %s: %w", r.Name, err)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if _, err := durable.ReplaceFile(durable.OS, filepath.Join(folder, r.Name+recordSuffix), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	}); err != nil {
		return fmt.Errorf("remember %s: %w", r.Name, err)
	}
	return nil
}

// Recall reads the record of a run.
func Recall(folder, name string) (Record, error) {
	if err := CheckName(name); err != nil {
		return Record{}, &UsageError{err}
	}
	text, err := regular.ReadFile(filepath.Join(folder, name+recordSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, usage("no run %q was launched from here (cftune launch list shows which were); --on and --hosts say where it is", name)
	}
	if err != nil {
		return Record{}, err
	}
	var r Record
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("record of %s: %w", name, err)
	}
	return r, nil
}

// Records are all that are remembered, by name.
func Records(folder string) ([]Record, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []Record
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || CheckName(name) != nil {
			continue
		}
		r, err := Recall(folder, name)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, err
}

// Forget removes a record; one that is not there is fine.
func Forget(folder, name string) error {
	if err := os.Remove(filepath.Join(folder, name+recordSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
