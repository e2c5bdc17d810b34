package dashboard

import (
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"cftune/internal/spell"
	"cftune/trainer/chart"
	"cftune/trainer/config"
	"cftune/trainer/metrics"
	"cftune/trainer/runs"
)

// figure is a picture with its title.
type figure struct {
	Title, Note string
	Keys        []key
	Picture     template.HTML
	Wide        bool
}

// key tells the color of a line.
type key struct {
	Name  string
	Color int
}

// fact is a name with a value.
type fact struct{ Name, Value string }

// warning is something to look at; Items say more.
type warning struct {
	Text  string
	Items []string
}

// runPage is what a run's page shows.
type runPage struct {
	common
	row
	Dir         string
	Facts       []fact
	Warnings    []warning
	Figures     []figure
	Checkpoints []checkpointRow
	Commands    []command
	Plan        []fact
	Settings    []setting
	Changes     []change
	Numbers     []numbersRow
	Validates   bool
}

type checkpointRow struct {
	Step          int
	Size, Seen    string
	Best, Chosen  bool
	Problem, Kept string
}

type command struct{ What, Line string }

// setting is a key that is not at its default.
type setting struct{ Key, Value, Default string }

type change struct {
	Step int
	Text string
}

// numbersRow is a line of the table that says what the pictures show.
type numbersRow struct {
	Steps                             string
	Loss, Range, Validation, LR, Norm string
	TokensPerS, TargetsPerS, Memory   string
}

func (r *run) page() runPage {
	p := runPage{row: r.row(), Dir: r.dir}
	p.Title, p.Live = r.name, r.standing.State == runs.Running
	p.Facts, p.Warnings, p.Figures = r.facts(), r.warnings(), r.figures()
	p.Checkpoints, p.Commands = r.checkpointRows(), r.commands()
	p.Numbers, p.Validates = r.numbers(), len(r.series.validations) > 0
	if r.record != nil {
		p.Plan, p.Settings, p.Changes = r.plan(), r.settings(), r.changeRows()
	}
	return p
}

func (r *run) facts() []fact {
	s := &r.series
	var facts []fact
	add := func(name, format string, values ...any) {
		facts = append(facts, fact{name, fmt.Sprintf(format, values...)})
	}
	if r.holder != "" {
		add("trained by", "%s", r.holder)
	}
	if r.standing.Error != "" {
		add("ended with", "%s", discreet(r.standing.Error))
	}
	if s.last.Step > 0 {
		add("trained on", "%s tokens, %s of them targets, %.2f epochs, in %s", short(float64(s.tokens)), short(float64(s.targets)), s.last.Epoch, seconds(s.seconds))
	}
	if r.record != nil {
		add("model", "%s", r.record.Model.Path)
		add("adapter", "%s", r.record.Config.Adapter.Describe())
		add("begun", "%s, with cftune %s", r.record.Started.UTC().Format(timeFormat), r.record.Version)
		if n := r.record.Processes; n > 1 {
			add("processes", "%d", n)
		}
		if from := r.record.WarmStart; from != nil {
			add("started from", "%s", from.Path)
		}
	}
	if r.mirror != nil {
		add("mirror", "%s", discreet(strings.TrimPrefix(r.mirror.String(), "mirror ")))
	}
	return facts
}

const timeFormat = "2006-01-02 15:04 UTC"

func (r *run) warnings() []warning {
	var list []warning
	add := func(text string, items ...string) {
		for i := range items {
			items[i] = discreet(items[i])
		}
		list = append(list, warning{discreet(text), items})
	}
	for _, problem := range r.problems {
		add("damaged: " + problem)
	}
	for _, name := range r.torn {
		add(name + ": the last line is cut off, as a crash leaves it; resume takes it off")
	}
	s := &r.series
	if s.skipped > 0 {
		add(counted(s.skipped, "step was skipped", "steps were skipped")+", with all examples", eventLines(s.skips)...)
	}
	if s.spikes.total > 0 {
		add(counted(int64(s.spikes.total), "loss spike", "loss spikes")+fmt.Sprintf(": more than %g times the median of the %d steps before", s.spikeFactor, metrics.SpikeWindow), eventLines(s.spikes)...)
	}
	if r.record != nil {
		if o := r.record.Plan.OverLong; o.Count > 0 {
			add(counted(int64(o.Count), "example is", "examples are")+fmt.Sprintf(" longer than a pack (the longest has %d tokens): %s", o.Longest, overLongWords(o.Policy)), o.First...)
		}
	}
	if r.mirror != nil && r.mirror.Behind() {
		add("the newest checkpoint is not in the mirror: " + r.mirror.Error)
	}
	if len(r.reports) > 0 {
		add("the trainer left reports in the run directory", r.reports...)
	}
	return list
}

func overLongWords(policy string) string {
	switch policy {
	case "drop":
		return "dropped (data.over_long)"
	case "truncate_prompt":
		return "the prompt is cut (data.over_long)"
	case "split":
		return "split (data.over_long)"
	}
	return "data.over_long is " + policy
}

func eventLines(e events) []string {
	var lines []string
	for _, x := range e.newest() {
		lines = append(lines, fmt.Sprintf("step %d: %s", x.step, x.text))
	}
	if more := e.total - len(lines); more > 0 {
		lines = append(lines, fmt.Sprintf("and %d before", more))
	}
	return lines
}

// figures are the run's pictures; those without data are left out.
func (r *run) figures() []figure {
	s := &r.series
	var list []figure
	add := func(f figure) {
		if f.Picture != "" {
			list = append(list, f)
		}
	}
	note := "faint: single steps; strong: smoothed"
	if len(s.stages) > 1 || len(r.changes) > 0 || len(s.skips.list) > 0 {
		note += "; lines: a new stage, dashed where it was changed by hand, red where steps were skipped"
	}
	add(figure{Title: "Loss", Note: note, Wide: true,
		Picture: picture{label: "loss by step", lines: []line{{curve: &s.steps, column: columnLoss, smooth: true}}, marks: r.markChanges,
			over: overSteps, text: number, width: wide, height: wideHeight, columns: wideColumns}.draw()})
	add(r.validationFigure())
	for _, q := range []struct {
		title  string
		column int
		text   func(float64) string
		zero   bool
		smooth bool
		unit   float64
	}{
		{"Learning rate", columnLR, rate, true, false, 0},
		{"Gradient norm", columnGradNorm, number, false, true, 0},
		{"Tokens per second", columnTokens, short, true, true, 0},
		{"Targets per second", columnTargets, short, true, true, 0},
		{"Memory", columnMemory, size, true, false, sizeUnit(float64(s.last.MemoryBytes))},
	} {
		add(figure{Title: q.title, Picture: picture{label: strings.ToLower(q.title) + " by step",
			lines: []line{{curve: &s.steps, column: q.column, smooth: q.smooth}}, over: overSteps, text: q.text, fromZero: q.zero, unit: q.unit,
			width: narrow, height: narrowHeight, columns: narrowColumns}.draw()})
	}
	mix := figure{Title: "What is learned", Wide: true, Picture: r.mixPicture(),
		Note: "shares of the examples' objectives; lines: a new stage, dashed where it was changed by hand, red where steps were skipped; triangles: checkpoints that are kept, green the best"}
	for _, name := range s.objectives {
		mix.Keys = append(mix.Keys, key{name, colorOf(name)})
	}
	add(mix)
	return list
}

func (r *run) validationFigure() figure {
	f := figure{Title: "Validation loss"}
	var lines []line
	for _, v := range r.series.validations {
		name, color := v.objective, colorOf(v.objective)
		if name == "" {
			name = "all"
		}
		lines = append(lines, line{name: name, curve: &v.curve, number: color})
		f.Keys = append(f.Keys, key{name, color})
	}
	f.Picture = picture{label: "validation loss by step", lines: lines, over: overSteps, text: number, width: narrow, height: narrowHeight,
		columns: narrowColumns}.draw()
	return f
}

func (r *run) checkpointRows() []checkpointRow {
	var rows []checkpointRow
	for _, c := range slices.Backward(r.checkpoints) {
		row := checkpointRow{Step: c.Step, Problem: discreet(c.Problem), Best: r.best != nil && r.best.Step == c.Step}
		if c.Problem == "" {
			row.Size, row.Seen = size(float64(c.Bytes)), fmt.Sprint(c.Counters.Examples)
		}
		row.Chosen = r.chosen != nil && r.chosen.Step == c.Step
		if r.record != nil {
			if every := r.record.Config.Checkpoint.KeepEvery; every > 0 && c.Step%every == 0 {
				row.Kept = "for good"
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// commands are what one does next with the run.
func (r *run) commands() []command {
	dir := spell.Word(r.dir)
	var list []command
	if r.standing.State == runs.Stopped {
		list = append(list, command{"go on with the run", "cftune resume " + dir})
	}
	if r.standing.State == runs.Damaged {
		list = append(list, command{"see what is damaged", "cftune check " + dir})
		list = append(list, command{"go on from the newest checkpoint that is whole", "cftune resume " + dir + " --older"})
	}
	if r.standing.State == runs.Running {
		list = append(list, command{"change what it learns while it trains", "cftune runs set " + dir + " objective=cft"})
	}
	if len(r.checkpoints) > 0 {
		list = append(list, command{"write the adapter of the newest checkpoint as a GGUF", "cftune export " + dir + " --output adapter.gguf"})
		if r.best != nil {
			list = append(list, command{"that of the best one", "cftune export " + dir + " --checkpoint best --output adapter.gguf"})
		}
	}
	return append(list, command{"all of it in the terminal", "cftune runs show " + dir})
}

func (r *run) plan() []fact {
	p := r.record.Plan
	facts := []fact{
		{"steps", fmt.Sprint(p.Steps)},
		{"records of an epoch", fmt.Sprint(p.Records)},
		{"examples", fmt.Sprint(p.Examples)},
		{"tokens", fmt.Sprintf("%d, %d of them targets", p.Tokens, p.Targets)},
	}
	if v := p.Validation; v.Examples > 0 {
		facts = append(facts, fact{"validation", fmt.Sprintf("%d examples, %d targets", v.Examples, v.Targets)})
	}
	for i, stage := range r.record.Config.Objective.Stages {
		facts = append(facts, fact{fmt.Sprintf("stage %d", i+1), stageWords(stage)})
	}
	return facts
}

func (r *run) settings() []setting {
	var list []setting
	for _, d := range config.Diff(config.Defaults(), r.record.Config) {
		list = append(list, setting{d.Key, value(d.B), value(d.A)})
	}
	return list
}

func (r *run) changeRows() []change {
	var list []change
	for _, c := range r.changes {
		list = append(list, change{c.Step, "objective: " + changeWords(c)})
	}
	for _, a := range r.record.Accepted {
		for _, f := range a.Fields {
			list = append(list, change{a.Step + 1, discreet(fmt.Sprintf("%s was %s, is %s (accepted at a resume)", f.Key, f.A, f.B))})
		}
	}
	slices.SortStableFunc(list, func(a, b change) int { return a.Step - b.Step })
	return list
}

// maxNumbers bounds the table of numbers.
const maxNumbers = 24

func (r *run) numbers() []numbersRow {
	s := &r.series
	var rows []numbersRow
	for _, b := range s.steps.thin(maxNumbers, overSteps) {
		w := numbersRow{
			Steps: fmt.Sprintf("%d–%d", b.first, b.last), Loss: spell.Loss(b.mean(columnLoss)),
			Range: number(b.stats[columnLoss].low) + "–" + number(b.stats[columnLoss].high), LR: rate(b.mean(columnLR)),
			Norm: number(b.mean(columnGradNorm)), TokensPerS: fmt.Sprintf("%.0f", b.mean(columnTokens)),
			TargetsPerS: fmt.Sprintf("%.0f", b.mean(columnTargets)), Memory: size(b.stats[columnMemory].high), Validation: "–",
		}
		if b.first == b.last {
			w.Steps, w.Range = fmt.Sprint(b.last), "–"
		}
		for _, v := range s.validations {
			for _, x := range v.curve.buckets {
				if v.objective == "" && x.last >= b.first && x.last <= b.last {
					w.Validation = spell.Loss(x.mean(0))
				}
			}
		}
		rows = append(rows, w)
	}
	return rows
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format(timeFormat)
}

func colorClass(i int) string { return fmt.Sprintf("k%d", i%len(chart.Colors)) }
