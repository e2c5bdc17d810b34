package trainer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"cftune/trainer/checkpoint"
	"cftune/trainer/metrics"
)

// Report is what Check found out about a run directory.
type Report struct {
	Run         string            `json:"run"`
	Step        int               `json:"step"`  // of the newest whole checkpoint, -1 if there is none
	Steps       int               `json:"steps"` // planned
	Checkpoints []CheckpointState `json:"checkpoints"`
	Metrics     metrics.Summary   `json:"metrics"`
	Holder      string            `json:"holder,omitempty"` // who is writing to it
	// Notes tell what is unusual but no damage: leftovers of a crash, a torn last line.
	Notes []string `json:"notes,omitempty"`
	// Problems tell what is damaged.
	Problems []string `json:"problems,omitempty"`
}

// CheckpointState is one checkpoint of a report.
type CheckpointState struct {
	Step    int    `json:"step"`
	Bytes   int64  `json:"bytes"`
	Problem string `json:"problem,omitempty"`
}

// Check verifies everything in a run directory and changes nothing. The error wraps checkpoint.ErrNotFound where there is
// no run; what is damaged is in the report.
func Check(dir string) (Report, error) {
	r := Report{Run: dir, Step: -1}
	steps, err := checkpoint.List(dir)
	if err != nil {
		return Report{}, err
	}
	r.Holder, _ = checkpoint.Holder(dir)
	record, err := ReadRecord(dir)
	if err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	r.Steps = record.Plan.Steps
	for _, step := range steps {
		r.Checkpoints = append(r.Checkpoints, r.checkStep(dir, step, record))
	}
	r.Metrics, err = metrics.Check(filepath.Join(dir, checkpoint.MetricsName))
	switch {
	case err != nil:
		r.Problems = append(r.Problems, err.Error())
	case r.Step > r.Metrics.LastStep:
		r.Problems = append(r.Problems, fmt.Sprintf("%s ends with step %d, before the checkpoint of step %d", checkpoint.MetricsName, r.Metrics.LastStep, r.Step))
	case r.Metrics.Torn && r.Holder == "":
		r.Notes = append(r.Notes, fmt.Sprintf("the last line of %s is cut off; resume takes it off", checkpoint.MetricsName))
	}
	switch _, torn, err := ReadJournal(dir); {
	case err != nil:
		r.Problems = append(r.Problems, err.Error())
	case torn && r.Holder == "":
		r.Notes = append(r.Notes, fmt.Sprintf("the last line of %s is cut off; it does not count", checkpoint.JournalName))
	}
	if chosen, found, err := checkpoint.Chosen(dir); err != nil {
		r.Problems = append(r.Problems, err.Error())
	} else if found && !slices.Contains(steps, chosen.Step) {
		r.Problems = append(r.Problems, fmt.Sprintf("the checkpoint of step %d is gone, which %s names", chosen.Step, checkpoint.ChosenName))
	}
	left, err := checkpoint.Leftovers(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Report{}, err
	}
	if r.Holder == "" {
		for _, path := range left {
			r.Notes = append(r.Notes, fmt.Sprintf("%s is left from a crash; resume removes it", path))
		}
	}
	return r, nil
}

// checkStep verifies one checkpoint: its files against the manifest, and what is in them.
func (r *Report) checkStep(dir string, step int, record Record) CheckpointState {
	state := CheckpointState{Step: step}
	c, err := checkpoint.Open(dir, step)
	if err == nil {
		_, err = loadState(c)
	}
	if err == nil && record.Format != 0 && !record.owns(c) {
		err = fmt.Errorf("open checkpoint step %d of %s: it is not of the run in %s", step, dir, checkpoint.ConfigName)
	}
	if err != nil {
		// The run's writer may have pruned it just now.
		if now, listErr := checkpoint.List(dir); listErr == nil && !slices.Contains(now, step) {
			state.Problem = "removed while it was checked"
			return state
		}
		state.Problem = err.Error()
		r.Problems = append(r.Problems, err.Error())
		return state
	}
	for _, f := range c.Files {
		state.Bytes += f.Bytes
	}
	r.Step = max(r.Step, step)
	return state
}
