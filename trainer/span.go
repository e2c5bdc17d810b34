package trainer

import (
	"slices"

	"cftune/trainer/schedule"
)

// Span is a part of a run that was made while another number of steps was planned than now: resume had changed train.epochs or
// train.max_steps. Which records a step is made of does not depend on that; its learning rate does.
type Span struct {
	Step  int `json:"step"`  // the last one of it
	Steps int `json:"steps"` // planned then
	// Measured: the validation loss was measured after its last step, perhaps because it was to be the run's last.
	Measured bool `json:"measured,omitempty"`
}

// keepSpan remembers what was planned up to the checkpoint that the run goes on from, where that was another number of steps. A run that
// goes on from before an earlier change makes the steps up to there as they were made the first time.
func (t *Trainer) keepSpan(was Record) {
	t.record.Spans = slices.Clone(was.Spans)
	last := 0
	if n := len(was.Spans); n > 0 {
		last = was.Spans[n-1].Step
	}
	if c := t.resumed; t.record.Plan.Steps != was.Plan.Steps && c.Step > last {
		t.record.Spans = append(t.record.Spans, Span{Step: c.Step, Steps: was.Plan.Steps, Measured: c.ValidatedStep == c.Step})
	}
}

// measuredAt reports whether a span ends with a validation after a step.
func (r Record) measuredAt(step int) bool {
	return slices.ContainsFunc(r.Spans, func(s Span) bool { return s.Measured && s.Step == step })
}

// rates returns the learning rate as a function of the step.
func (t *Trainer) rates() (func(step int) float64, error) {
	o := t.run.Optimizer
	var schedules []schedule.Schedule // of the spans, and of what follows
	for _, s := range append(slices.Clone(t.record.Spans), Span{Steps: t.record.Plan.Steps}) {
		one, err := schedule.New(o.Schedule, o.LR, o.WarmupSteps, s.Steps, o.MinLRRatio)
		if err != nil {
			return nil, err
		}
		schedules = append(schedules, one)
	}
	return func(step int) float64 {
		for i, s := range t.record.Spans {
			if step <= s.Step {
				return schedules[i].LR(step)
			}
		}
		return schedules[len(schedules)-1].LR(step)
	}, nil
}
