package objective

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"cftune/trainer/config"
)

// Course says which stage holds for each step of a run. It begins with the configuration's stages; a Change puts others
// in their place from a step on. The zero State is the start.
//
// Where a course stands is a function of its changes, of the steps, epochs and tokens so far, and of the validation
// losses since the stage began (State): a resumed run that restores the State goes on as the unbroken one.
type Course struct {
	changes []Change
	state   State
}

// Change replaces the stages from a step on (counted from 1).
type Change struct {
	Step   int            `json:"step"`
	Stages []config.Stage `json:"stages"`
}

// State is where a course stands.
type State struct {
	Change int `json:"change"` // 0: the configuration's stages; k: those of the k-th change
	Stage  int `json:"stage"`  // of them
	// Best is the lowest validation loss since the stage began, nil before the first; Stale counts the validations after it.
	Best  *float64 `json:"best,omitempty"`
	Stale int      `json:"stale"`
}

// At is a place in a run: before a step.
type At struct {
	Step   int   // the one that comes, from 1
	Epoch  int   // that its records are of, from 0
	Tokens int64 // trained so far
}

// NewCourse begins a course.
func NewCourse(stages []config.Stage, changes ...Change) *Course {
	return &Course{changes: append([]Change{{Step: 1, Stages: stages}}, changes...)}
}

// Clone returns a copy that goes its own way.
func (c *Course) Clone() *Course {
	return &Course{changes: slices.Clone(c.changes), state: c.state}
}

// Add appends a change. Of several that hold for a step the one that was added last counts.
func (c *Course) Add(change Change) { c.changes = append(c.changes, change) }

// Changes returns the changes that were added.
func (c *Course) Changes() []Change { return c.changes[1:] }

// State returns where the course stands.
func (c *Course) State() State { return c.state }

// Restore sets where the course stands.
func (c *Course) Restore(s State) error {
	if s.Change < 0 || s.Change >= len(c.changes) || s.Stage < 0 || s.Stage >= len(c.changes[s.Change].Stages) || s.Stale < 0 {
		return fmt.Errorf("restore objective: change %d, stage %d is not one of the run's", s.Change, s.Stage)
	}
	c.state = s
	return nil
}

// Stage returns the stage that the course stands in.
func (c *Course) Stage() config.Stage { return c.Stages()[c.state.Stage] }

// Stages returns the stages in force: the configuration's, or those of the change that the course stands in.
func (c *Course) Stages() []config.Stage { return c.changes[c.state.Change].Stages }

// Number returns the number of the stage, from 0, counted through all changes: another stage has another number.
func (c *Course) Number() int {
	n := c.state.Stage
	for _, change := range c.changes[:c.state.Change] {
		n += len(change.Stages)
	}
	return n
}

// Advance moves the course on to the stage that holds at a place. Ends count from the start of the run: {steps: 200}
// holds for steps 1..200, {epochs: 1} for epoch 0, {tokens: n} until n tokens are trained; {plateau: 3} ends after
// three validations in a row that were not below the best one since the stage began. The last stage has no end.
func (c *Course) Advance(at At) {
	newest := 0
	for i, change := range c.changes {
		if change.Step <= at.Step {
			newest = i
		}
	}
	if newest != c.state.Change {
		c.state = State{Change: newest}
	}
	stages := c.Stages()
	for c.state.Stage < len(stages)-1 && c.ended(stages[c.state.Stage].Until, at) {
		c.state = State{Change: newest, Stage: c.state.Stage + 1}
	}
}

func (c *Course) ended(u config.Until, at At) bool {
	switch {
	case u.Steps > 0:
		return at.Step > u.Steps
	case u.Epochs > 0:
		return at.Epoch >= u.Epochs
	case u.Tokens > 0:
		return at.Tokens >= int64(u.Tokens)
	case u.Plateau > 0:
		return c.state.Stale >= u.Plateau
	}
	return false
}

// Validated tells the course a validation loss.
func (c *Course) Validated(loss float64) {
	if c.state.Best == nil || loss < *c.state.Best {
		c.state.Best, c.state.Stale = &loss, 0
		return
	}
	c.state.Stale++
}

// Pick returns the objective of the record at a position of the run (epoch times records plus index in the epoch's
// order). It depends on the seed, the position and the stage only.
func (c *Course) Pick(seed, position uint64) string {
	return Draw(c.Stage().Mix, seed, position, c.Number())
}

// Objectives lists the objectives with a weight in some stage of the stages.
func Objectives(stages ...config.Stage) []string {
	used := map[string]bool{}
	for _, s := range stages {
		for name, weight := range s.Mix {
			if weight > 0 {
				used[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(used))
}

// MixText writes a mix as the configuration has it.
func MixText(mix map[string]float64) string {
	names := Objectives(config.Stage{Mix: mix})
	if len(names) == 1 {
		return names[0]
	}
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = fmt.Sprintf("%s: %g", name, mix[name])
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
