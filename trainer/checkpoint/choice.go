package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// ChosenName is the file of a run that says which checkpoint an evaluation found best.
const ChosenName = "chosen.json"

// Choice is a checkpoint that is kept because an evaluation chose it.
type Choice struct {
	Step   int             `json:"step"`
	By     string          `json:"by"` // what was compared
	Value  float64         `json:"value"`
	Detail json.RawMessage `json:"detail,omitempty"` // of the evaluation: candidates, sets
}

// Choose records the choice and so keeps the checkpoint from being removed. The run may be training meanwhile: what it
// removes before it sees the choice is an error here.
func Choose(dir string, c Choice) error {
	if err := exists(dir); err != nil {
		return fmt.Errorf("choose checkpoint: %w", err)
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("choose checkpoint: %w", err)
	}
	if _, err := durable.ReplaceFile(durable.OS, filepath.Join(dir, ChosenName), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	}); err != nil {
		return fmt.Errorf("choose checkpoint: %w", err)
	}
	_, err = Open(dir, c.Step)
	return err
}

// Chosen returns the choice recorded in a run, and false if there is none.
func Chosen(dir string) (Choice, bool, error) {
	text, err := regular.ReadFile(filepath.Join(dir, ChosenName))
	if errors.Is(err, os.ErrNotExist) {
		return Choice{}, false, nil
	}
	if err != nil {
		return Choice{}, false, fmt.Errorf("read choice: %w", err)
	}
	var c Choice
	if err := json.Unmarshal(text, &c); err != nil || c.Step < 1 {
		return Choice{}, false, fmt.Errorf("read choice: %s: %w", filepath.Join(dir, ChosenName), ErrCorrupt)
	}
	return c, true, nil
}
