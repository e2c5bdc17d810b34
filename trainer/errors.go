package trainer

import (
	"errors"
	"fmt"
	"strings"

	"cftune/trainer/config"
)

// ErrNonFinite is wrapped by the errors of an engine about a loss or gradient that is not finite.
var ErrNonFinite = errors.New("not finite")

// ErrSpike is wrapped by errors about a loss far above those before it.
var ErrSpike = errors.New("a spike")

// DataError says that the data cannot be trained on. Its text has a line for each kind of problem.
type DataError struct {
	Problems []string
	// TooLong: there are examples longer than a pack, which another data.over_long would take.
	TooLong bool
	// Overlap: there are records that are held out as well.
	Overlap bool
	// Objective: there are records that lack what their objective needs.
	Objective bool
	// Fields: there are rows without a field that their format needs; it may have another name.
	Fields bool
}

func (e *DataError) Error() string { return "data: " + strings.Join(e.Problems, "\n") }

// MismatchError says that a run cannot be resumed with these settings, data or model.
type MismatchError struct {
	Run    string
	Fields []config.FieldDiff // A is the run's, B what was given
	// Final: differences of this kind are never accepted.
	Final bool
	// Again: the run was to be made again, not to be resumed.
	Again bool
}

func (e *MismatchError) Error() string {
	lines := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		lines[i] = fmt.Sprintf("%s: the run has %s, given is %s", f.Key, f.A, f.B)
	}
	if e.Again {
		return fmt.Sprintf("replay %s: it was made from other files:\n%s", e.Run, strings.Join(lines, "\n"))
	}
	kind := "it was begun with other settings"
	if e.Final {
		kind = "its checkpoints cannot be used with other settings of this kind"
	}
	return fmt.Sprintf("resume %s: %s:\n%s", e.Run, kind, strings.Join(lines, "\n"))
}

// AdapterError says that adapter.init_from does not fit the configuration.
type AdapterError struct {
	Path   string
	Fields []string
}

func (e *AdapterError) Error() string {
	return fmt.Sprintf("adapter.init_from: %s does not fit:\n%s", e.Path, strings.Join(e.Fields, "\n"))
}

// Interrupted says that a run was ended from outside. errors.Is finds the context's error.
type Interrupted struct {
	Run        string
	Step       int    // the last step that was completed
	Checkpoint string // of that step
	Err        error
}

func (e *Interrupted) Error() string {
	return fmt.Sprintf("interrupted: step %d is the last completed one; it is saved in %s", e.Step, e.Checkpoint)
}

func (e *Interrupted) Unwrap() error { return e.Err }

// StepError is a failure of one step, with the examples that were computed when it came.
type StepError struct {
	Step     int
	Examples []string
	Err      error

	counted int // packs of the step that the engine has counted
}

// skippable reports whether the examples of the step are what is wrong.
func (e *StepError) skippable() bool {
	return errors.Is(e.Err, ErrNonFinite) || errors.Is(e.Err, ErrSpike)
}

// maxNamed is how many examples messages name.
const maxNamed = 5

func (e *StepError) Error() string {
	text := fmt.Sprintf("step %d: %v", e.Step, e.Err)
	if len(e.Examples) > 0 && !errors.Is(e.Err, ErrModelGone) { // the examples have no part in that
		text += "; examples: " + named(e.Examples, len(e.Examples))
	}
	return text
}

func (e *StepError) Unwrap() error { return e.Err }

// named lists the first IDs of count.
func named(ids []string, count int) string {
	shown := ids[:min(len(ids), maxNamed)]
	text := strings.Join(shown, ", ")
	if more := count - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
