package study

import (
	"context"
	"fmt"
	"os"
)

// Plan is what a study would do.
type Plan struct {
	Name   string    `json:"name"`
	Output string    `json:"output"`
	Model  Model     `json:"model"`
	Sets   []PlanSet `json:"sets"`
	Notes  []string  `json:"notes,omitempty"`
	Arms   []PlanArm `json:"arms"`
	Runs   []Run     `json:"runs"`
	Claims int       `json:"claims"`
	// Share are the models that fall to the process, where that is not all.
	Share []string `json:"share,omitempty"`
	// Texts are written about every one of Models; TextTokens bounds what they have together.
	Texts      int `json:"texts"`
	Models     int `json:"models"`
	TextTokens int `json:"text_tokens"`
	// Seconds and Bytes are estimates; Seconds is 0 where there is nothing to go by, and SecondsFrom says what there is.
	Seconds     float64 `json:"seconds"`
	SecondsFrom string  `json:"seconds_from"`
	Bytes       int64   `json:"bytes"`
}

// PlanSet counts a set's rows.
type PlanSet struct {
	Name       string `json:"name"`
	Train      int    `json:"train"`
	Validation int    `json:"validation"`
	Test       int    `json:"test"`
}

// PlanArm is what each seed of an arm gets.
type PlanArm struct {
	Arm     string `json:"arm"`
	Seeds   int    `json:"seeds"`
	Steps   int    `json:"steps"`
	Epochs  int    `json:"epochs"`
	Targets int64  `json:"targets"`
	Tokens  int64  `json:"tokens"`
}

// MakePlan looks at model and data, plans every run and writes nothing that stays.
func MakePlan(ctx context.Context, spec Spec, o Options) (Plan, error) {
	share, err := shareOf(spec, o.Shard)
	if err != nil {
		return Plan{}, err
	}
	sets, left, err := openSets(ctx, spec, o.reading())
	if err != nil {
		return Plan{}, &DataError{err}
	}
	model, err := o.Engine.Model(ctx, spec)
	if err != nil {
		return Plan{}, err
	}
	dir, err := os.MkdirTemp("", "cftune-study-")
	if err != nil {
		return Plan{}, err
	}
	defer os.RemoveAll(dir)
	if _, err := writeData(dir, spec, sets); err != nil {
		return Plan{}, err
	}
	p := planner{engine: o.Engine, spec: spec, sets: sets, data: dir, output: spec.Output}
	plan := Plan{Name: spec.Name, Output: spec.Output, Model: model, Notes: notes(sets, left), Claims: len(spec.Claims)}
	if !o.Shard.All() {
		plan.Share = share
	}
	if plan.Runs, err = p.runs(ctx); err != nil {
		return Plan{}, err
	}
	for _, s := range sets {
		plan.Sets = append(plan.Sets, PlanSet{s.Name, len(s.train), len(s.validation), len(s.test)})
	}
	plan.Models = len(plan.Runs)
	if baseKey(spec) != "" {
		plan.Models++
	}
	tokens := 0
	plan.Texts, tokens = p.prompts()
	plan.TextTokens = tokens * plan.Models
	var trained int64
	for i, r := range plan.Runs {
		trained += r.Tokens
		if i%len(spec.Seeds) == 0 {
			plan.Arms = append(plan.Arms, PlanArm{r.Arm, len(spec.Seeds), r.Steps, r.Epochs, r.Targets, r.Tokens})
		}
	}
	plan.Bytes = bytesPerRun(model, spec) * int64(len(plan.Runs))
	plan.Seconds, plan.SecondsFrom = p.seconds(model, trained, plan)
	return plan, nil
}

// seconds estimates the time of a whole study: from its own runs, where some are done already, else from a guess at the
// machine's speed.
func (p planner) seconds(m Model, trained int64, plan Plan) (float64, string) {
	if s, err := ReadState(p.output); err == nil && s.Spec.Digest() == p.spec.Digest() {
		var seconds, scored float64
		var tokens int64
		for _, r := range s.Runs {
			if r.Done {
				seconds, tokens = seconds+r.Seconds, tokens+r.Tokens
			}
		}
		for _, k := range s.Scored {
			scored += k.Seconds
		}
		if tokens > 0 && len(s.Scored) > 0 {
			return seconds/float64(tokens)*float64(trained) + scored/float64(len(s.Scored))*float64(plan.Models),
				fmt.Sprintf("in all, as fast as the %d models that are done", len(s.Scored))
		}
	}
	if m.TrainTokensPerS == 0 {
		return 0, ""
	}
	return float64(trained)/m.TrainTokensPerS + float64(plan.TextTokens)/m.WriteTokensPerS,
		fmt.Sprintf("guessed at %.0f tokens a second in training and %.0f in writing", m.TrainTokensPerS, m.WriteTokensPerS)
}
