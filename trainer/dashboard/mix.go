package dashboard

import (
	"fmt"
	"html/template"
	"slices"
	"strings"

	"cftune/trainer/chart"
	"cftune/trainer/config"
	"cftune/trainer/objective"
)

const mixHeight = 170.0

// colorOf an objective is the same on all pages.
func colorOf(name string) int {
	if i := slices.Index([]string{"cft", "sft", "refine", "tokenized"}, name); i >= 0 {
		return i
	}
	return 4
}

// stageText tells what a run learns in the stage of a number, counted through its configuration and journal.
func (r *run) stageText(number int) string {
	if r.record == nil || number < 0 {
		return fmt.Sprintf("stage %d", number)
	}
	lists := [][]config.Stage{r.record.Config.Objective.Stages}
	for _, change := range r.changes {
		lists = append(lists, change.Stages)
	}
	n := number
	for _, stages := range lists {
		if n < len(stages) {
			return objective.MixText(stages[n].Mix)
		}
		n -= len(stages)
	}
	return fmt.Sprintf("stage %d", number)
}

// mixPicture shows of which objectives the steps' examples were, with stages, changes, skips and checkpoints.
func (r *run) mixPicture() template.HTML {
	s := &r.series
	buckets := s.steps.thin(narrowColumns, overSteps)
	if len(buckets) == 0 {
		return ""
	}
	c := &chart.Chart{Width: wide, Height: mixHeight, Left: float64(buckets[0].first), Right: float64(s.last.Step), High: 1}
	widen(&c.Left, &c.Right)
	r.drawShares(c, buckets)
	for _, v := range []float64{0, 0.5, 1} {
		c.TickY(v, fmt.Sprintf("%.0f%%", 100*v))
	}
	picture{over: overSteps, width: wide}.tickX(c)
	r.markChanges(c)
	for _, k := range r.checkpoints {
		kind, word := "mark kept", "checkpoint"
		if r.best != nil && r.best.Step == k.Step {
			kind, word = "mark best", "best checkpoint"
		}
		if x := float64(k.Step); x >= c.Left && x <= c.Right {
			c.Flag(x, kind, fmt.Sprintf("%s, step %d", word, k.Step))
		}
	}
	return c.HTML("objectives of the examples by step, with stages, changes, skipped steps and checkpoints")
}

// markChanges draws where stages begin, what was changed by hand, and what was skipped.
func (r *run) markChanges(c *chart.Chart) {
	s, mark := &r.series, func(step int, class, title string) { c.Mark(min(float64(step), c.Right), class, title) }
	for i, stage := range s.stages {
		byHand := slices.ContainsFunc(r.changes, func(c objective.Change) bool { return c.Step == stage.step })
		if i > 0 && !byHand {
			mark(stage.step, "mark stage", fmt.Sprintf("from step %d: %s", stage.step, r.stageText(stage.stage)))
		}
	}
	for _, change := range r.changes {
		if change.Step <= s.last.Step {
			mark(change.Step, "mark change", fmt.Sprintf("changed by hand from step %d: %s", change.Step, changeWords(change)))
		}
	}
	for _, skip := range s.skips.list {
		mark(skip.step, "mark skip", fmt.Sprintf("skipped before step %d: %s", skip.step, skip.text))
	}
}

func (r *run) drawShares(c *chart.Chart, buckets []bucket) {
	xs, lows := make([]float64, len(buckets)), make([]float64, len(buckets))
	for i := range buckets {
		xs[i] = float64(buckets[i].last)
	}
	for o, name := range r.series.objectives {
		highs := make([]float64, len(buckets))
		for i := range buckets {
			sum := int32(0)
			for _, n := range buckets[i].mix {
				sum += n
			}
			highs[i] = lows[i]
			if sum > 0 {
				highs[i] += float64(buckets[i].mix[o]) / float64(sum)
			}
		}
		c.Area(xs, lows, highs, chart.Color(colorOf(name)))
		lows = highs
	}
}

// stageWords tells a stage and its end.
func stageWords(s config.Stage) string {
	text := objective.MixText(s.Mix)
	switch u := s.Until; {
	case u.Steps > 0:
		return fmt.Sprintf("%s until step %d", text, u.Steps)
	case u.Epochs > 0:
		return fmt.Sprintf("%s until %d epochs are over", text, u.Epochs)
	case u.Tokens > 0:
		return fmt.Sprintf("%s until %d tokens are trained", text, u.Tokens)
	case u.Plateau > 0:
		return fmt.Sprintf("%s until %d validations bring nothing better", text, u.Plateau)
	}
	return text
}

func changeWords(c objective.Change) string {
	words := make([]string, len(c.Stages))
	for i, stage := range c.Stages {
		words[i] = stageWords(stage)
	}
	return strings.Join(words, ", then ")
}
