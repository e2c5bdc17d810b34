package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"cftune/trainer/evaluate"
	"cftune/trainer/report"
	"cftune/trainer/wordforms"
)

const (
	demoSamples = 8
	demoRows    = 3
)

// demoComparisons are the questions that people come with.
var demoComparisons = []struct{ better, other, measure string }{
	{armCFT, armNoisy, measureStrict},
	{armCFT, armSFT, measureStrict},
	{armMixed, armSFT, measureStrict},
	{armMixed, armCFT, measureVerdicts},
}

const (
	measureStrict   = "strict answers"
	measureVerdicts = "right verdicts"
)

// report turns the scores into report.html and summary.json and tells the main figures.
func (d *demo) report(scores []armScore) error {
	p, err := d.page(scores)
	if err != nil {
		return err
	}
	var html bytes.Buffer
	if err := report.Write(&html, p); err != nil {
		return err
	}
	if err := writeWhole(d.path("report.html"), html.Bytes()); err != nil {
		return err
	}
	summary, err := json.MarshalIndent(demoSummary{len(d.data.Test), p.Checks, p.Arms, p.Comparisons, p.Rules}, "", " ")
	if err != nil {
		return err
	}
	if err := writeWhole(d.path("summary.json"), append(summary, '\n')); err != nil {
		return err
	}
	d.note("done")
	d.tell(p)
	_, err = fmt.Fprintln(d.out, d.path("report.html"))
	return err
}

// tell writes the table and the checks for people at a terminal.
func (d *demo) tell(p report.Page) {
	w := tabwriter.NewWriter(d.notes, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nmodel\tright verdicts\t95 %\tstrict answers\t95 %\tagainst base")
	for _, a := range p.Arms {
		versus := ""
		if v := a.Answering.VersusBase; v != nil {
			versus = fmt.Sprintf("%+.1f points (%+.1f to %+.1f)", 100*v.Leading.Value, 100*v.Leading.Low, 100*v.Leading.High)
		}
		verdicts, leading := a.Judging.Verdicts, a.Answering.Leading
		fmt.Fprintf(w, "%s\t%d of %d\t%.1f-%.1f\t%d of %d\t%.1f-%.1f\t%s\n", a.Name, verdicts.Count, verdicts.N, 100*verdicts.Low, 100*verdicts.High,
			leading.Count, leading.N, 100*leading.Low, 100*leading.High, versus)
	}
	w.Flush()
	fmt.Fprintln(d.notes)
	for _, c := range p.Checks {
		answer := "NO "
		if c.Met {
			answer = "YES"
		}
		fmt.Fprintf(d.notes, "%s  %s\n", answer, c.Text)
	}
}

// page is the report of the scores; the first is the base model's.
func (d *demo) page(scores []armScore) (report.Page, error) {
	p := report.Page{
		Title: "Critiques against answers, on English word forms",
		Intro: []string{
			"Adapters were trained on the same questions about English words, once through: on critiques of given answers (CFT), on clean " +
				"answers (SFT), on the given answers unchecked, and on a mix. They and the base model then answer questions about other words, " +
				"and judge other answers to them.",
			"The task is small so that a model of this size can learn it in minutes. It shows that the whole loop works on your machine; what " +
				"critiques do for your model and your data takes your own run.",
		},
		Facts:    d.facts(),
		Commands: d.commands(),
	}
	results := map[string]outcomes{}
	for i, s := range scores {
		o := s.outcomes(d.data.Test)
		results[s.Name] = o
		arm := report.Arm{Name: s.Name, Description: s.Description, Judging: d.judging(o), Answering: answering(o)}
		if i > 0 {
			base := results[scores[0].Name]
			arm.Answering.VersusBase = &report.AnswerDifferences{
				Leading:  evaluate.Compare(o.leading, base.leading),
				Exact:    evaluate.Compare(o.exact, base.exact),
				Anywhere: evaluate.Compare(o.anywhere, base.anywhere),
			}
			var err error
			if arm.Training, arm.HeldOut, arm.Seconds, err = d.curves(s.Name); err != nil {
				return p, err
			}
		}
		p.Arms = append(p.Arms, arm)
		p.Reading = append(p.Reading, reading(arm)...)
		p.Checks = append(p.Checks, checks(arm)...)
	}
	for _, c := range demoComparisons {
		a, b := results[c.better].leading, results[c.other].leading
		if c.measure == measureVerdicts {
			a, b = results[c.better].verdicts, results[c.other].verdicts
		}
		p.Comparisons = append(p.Comparisons, report.Comparison{
			Better: c.better, Other: c.other, Measure: c.measure, Difference: evaluate.Compare(a, b),
		})
	}
	p.Rules = d.rules(scores, results)
	p.Samples = d.samples(scores, results)
	for _, i := range d.data.Train[:min(demoRows, len(d.data.Train))] {
		p.Rows = append(p.Rows, report.Row{
			Question: i.Query(), Answer: i.Answer(), Label: i.Label(), Critique: i.Critique(), Solution: i.Solution(), NoisySolution: i.NoisySolution(),
		})
	}
	return p, nil
}

func (d *demo) judging(o outcomes) report.Judging {
	wrong := func(i wordforms.Item) bool { return !i.Right() }
	return report.Judging{
		Verdicts:  evaluate.NewShare(o.verdicts),
		Accepted:  evaluate.NewShare(where(o.verdicts, d.data.Test, wordforms.Item.Right)),
		Rejected:  evaluate.NewShare(where(o.verdicts, d.data.Test, wrong)),
		SaidRight: evaluate.NewShare(o.saidRight),
		None:      evaluate.NewShare(o.none),
		Derived:   evaluate.NewShare(o.derived),
		Sound:     evaluate.NewShare(o.sound),
	}
}

func answering(o outcomes) report.Answering {
	return report.Answering{
		Leading:    evaluate.NewShare(o.leading),
		Exact:      evaluate.NewShare(o.exact),
		Anywhere:   evaluate.NewShare(o.anywhere),
		Drifted:    evaluate.NewShare(o.drifted),
		Ended:      evaluate.NewShare(o.ended),
		MeanTokens: float64(o.answerTokens) / float64(max(1, len(o.leading))),
	}
}

// checks are the two things that the demo exists to show.
func checks(a report.Arm) []report.Check {
	if a.Name != armCFT {
		return nil
	}
	verdicts, versus := a.Judging.Verdicts, a.Answering.VersusBase.Leading
	return []report.Check{
		{Met: verdicts.Low > 0.5, Text: fmt.Sprintf("The model that was trained on critiques judges others' answers better than chance: %d of %d "+
			"verdicts are right, %.1f %% (95 %% interval %.1f to %.1f).", verdicts.Count, verdicts.N, 100*verdicts.Value(), 100*verdicts.Low, 100*verdicts.High)},
		{Met: versus.Low > 0, Text: fmt.Sprintf("It answers better than the base model, although it was trained on no answer of its own: %+.1f "+
			"points (95 %% interval %+.1f to %+.1f).", 100*versus.Value, 100*versus.Low, 100*versus.High)},
	}
}

// reading says in words what an arm's numbers show, also when that is nothing.
func reading(a report.Arm) []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	v := a.Judging.Verdicts
	switch none := a.Judging.None.Count; {
	case none == v.N:
		add("%s concludes with a verdict on none of %d answers.", a.Name, v.N)
	case v.Low > 0.5:
		add("%s judges above chance: %d of %d verdicts are right; it said “right” %d times, when %d answers were.", a.Name, v.Count, v.N, a.Judging.SaidRight.Count, a.Judging.Accepted.N)
	default:
		add("%s does not judge above chance: %d of %d verdicts are right.", a.Name, v.Count, v.N)
	}
	if versus := a.Answering.VersusBase; versus != nil {
		c, how := versus.Leading, "not measurably differently from"
		if c.Low > 0 {
			how = "better than"
		} else if c.High < 0 {
			how = "worse than"
		}
		add("%s answers %s the base model: %.1f %% of its answers lead with the right form, a difference of %+.1f points (95 %% interval %+.1f to %+.1f).",
			a.Name, how, 100*a.Answering.Leading.Value(), 100*c.Value, 100*c.Low, 100*c.High)
	}
	if n := a.Answering.Drifted.Count; n > 0 {
		add("%d of %s's %d answers read like critiques.", n, a.Name, a.Answering.Drifted.N)
	}
	if ended := a.Answering.Ended; a.Answering.VersusBase != nil && 2*ended.Count < ended.N {
		add("Only %d of %s's %d answers end by themselves; the others run on to the bound of %d tokens.", ended.Count, a.Name, ended.N, demoAnswerTokens)
	}
	return lines
}

// rules counts by spelling rule.
func (d *demo) rules(scores []armScore, results map[string]outcomes) []report.Rule {
	count := func(outcomes []bool, class wordforms.Class) int {
		return evaluate.NewShare(where(outcomes, d.data.Test, func(i wordforms.Item) bool { return i.Class == class })).Count
	}
	items := map[wordforms.Class]int{}
	for _, item := range d.data.Test {
		items[item.Class]++
	}
	var rules []report.Rule
	for _, class := range wordforms.Classes() {
		if items[class] == 0 {
			continue
		}
		rule := report.Rule{Name: string(class), Items: items[class]}
		for _, s := range scores {
			o := results[s.Name]
			rule.Cells = append(rule.Cells, report.RuleCell{Verdicts: count(o.verdicts, class), Answers: count(o.leading, class)})
		}
		rules = append(rules, rule)
	}
	return rules
}

func (d *demo) samples(scores []armScore, results map[string]outcomes) []report.Sample {
	var samples []report.Sample
	for i, item := range d.data.Test[:min(demoSamples, len(d.data.Test))] {
		sample := report.Sample{Question: item.Query(), Gold: item.Gold, Candidate: item.Answer(), Label: item.Label()}
		for _, s := range scores {
			o := results[s.Name]
			sample.Cells = append(sample.Cells, report.SampleCell{
				Answer: s.Answers[i].Text, AnswerRight: o.leading[i], Critique: s.Critiques[i].Text, VerdictRight: o.verdicts[i],
			})
		}
		samples = append(samples, sample)
	}
	return samples
}

func (d *demo) facts() []report.Fact {
	return []report.Fact{
		{Name: "base model", Value: filepath.Base(d.model)},
		{Name: "training", Value: fmt.Sprintf("%d questions, half with a right answer to judge, half with a flawed one; every arm sees each question once", len(d.data.Train))},
		{Name: "test", Value: fmt.Sprintf("%d items, balanced alike; no word of theirs, nor any of its forms, is in a training or development row", len(d.data.Test))},
		{Name: "recipe", Value: "LoRA of rank 16 on all linear maps, learning rate 1e-3, cosine, 8 questions a step, one pass; chosen on development words of another division of the words, nothing on the test rows"},
		{Name: "system message", Value: demoSystem},
		{Name: "generation", Value: fmt.Sprintf("greedy, through libllama with the exported adapter; at most %d tokens for answers and %d for critiques", demoAnswerTokens, demoCritiqueTokens)},
		{Name: "intervals", Value: "95 %: Wilson for shares, Tango for paired differences; p by the exact McNemar test"},
		{Name: "made", Value: fmt.Sprintf("in %s, by cftune %s", time.Since(d.began).Round(time.Second), programVersion())},
	}
}

// commands are what to try next with what the demo made.
func (d *demo) commands() []string {
	adapter := d.adapter(armCFT)
	return []string{
		fmt.Sprintf("cftune generate --model %s --adapter %s --prompt 'What is the past tense of \"carry\"?'", d.model, adapter),
		fmt.Sprintf("cftune data preview --config %s", d.path("configs", armCFT+".yaml")),
		fmt.Sprintf("cftune check %s", d.runDir(armCFT)),
	}
}

// demoSummary is summary.json: the report's figures for programs.
type demoSummary struct {
	TestItems   int                 `json:"test_items"`
	Checks      []report.Check      `json:"checks"`
	Models      []report.Arm        `json:"models"`
	Comparisons []report.Comparison `json:"comparisons"`
	Rules       []report.Rule       `json:"rules"` // cells in the order of models
}
