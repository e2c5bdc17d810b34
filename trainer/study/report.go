package study

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"cftune/trainer/internal/durable"
)

// reportFormat is the version of report.json.
const reportFormat = 1

// Report is everything that a study found, as in report.json.
type Report struct {
	Format  int       `json:"format"`
	Name    string    `json:"name"`
	About   string    `json:"about"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Complete says that every model is trained and scored; Missing names those that are not.
	Complete bool     `json:"complete"`
	Missing  []string `json:"missing,omitempty"`

	Claims  []Decided   `json:"claims"`
	Reading []string    `json:"reading"`
	Budget  BudgetCheck `json:"budget"`
	Sets    []SetReport `json:"sets"`
	Arms    []ArmReport `json:"arms"`
	Notes   []string    `json:"notes,omitempty"`

	Rule    string              `json:"rule"`
	Digest  string              `json:"spec_sha256"`
	Spec    Spec                `json:"spec"`
	Model   Model               `json:"model"`
	Prompts Prompts             `json:"prompts"`
	Data    map[string]DataFile `json:"data"`
	Runs    []RunState          `json:"runs"`
	Scored  map[string]Scored   `json:"scored"`
	Samples []Sample            `json:"samples,omitempty"`
}

// ArmReport is how an arm's training went.
type ArmReport struct {
	Arm     string  `json:"arm"`
	Curves  []Curve `json:"curves"` // one for each seed
	Seconds float64 `json:"seconds"`
}

// BudgetCheck says whether all arms got what the budget promised.
type BudgetCheck struct {
	Equal string      `json:"equal"` // steps or target tokens
	Met   bool        `json:"met"`
	Text  string      `json:"text"`
	Arms  []ArmBudget `json:"arms"`
}

// ArmBudget is what an arm's runs had, the least and the most of its seeds.
type ArmBudget struct {
	Arm         string `json:"arm"`
	Steps       int    `json:"steps"`
	LeastTarget int64  `json:"least_targets"`
	MostTarget  int64  `json:"most_targets"`
	Tokens      int64  `json:"tokens"` // mean over seeds
}

// Sample is a test item with what the models of the first seed wrote about it.
type Sample struct {
	Set, Query, Gold, Response, Label string
	Cells                             []SampleCell
}

// SampleCell is what a model wrote.
type SampleCell struct {
	Arm, Answer, Critique     string
	AnswerRight, VerdictRight bool
}

const samplesPerSet = 3

// MakeReport reports on what is in a study's folder, which need not be complete.
func MakeReport(dir string) (Report, error) {
	s, err := ReadState(dir)
	if err != nil {
		return Report{}, err
	}
	measured, names, err := measure(dir, s)
	if err != nil {
		return Report{}, err
	}
	r := Report{
		Format: reportFormat, Name: s.Spec.Name, About: s.Spec.About, Version: s.Version, Started: s.Started,
		Notes: s.Notes, Rule: s.Rule, Digest: s.Digest, Spec: s.Spec, Model: s.Model, Prompts: s.Prompts, Data: s.Data, Runs: s.Runs, Scored: s.Scored,
	}
	r.Spec = r.Spec.withoutFolders() // a report may be given to others
	r.Spec.Output, r.Spec.Model = filepath.Base(r.Spec.Output), r.Model.File
	r.Missing = s.Missing()
	r.Complete = len(r.Missing) == 0
	r.Claims = decide(s.Spec.Claims, measured)
	for _, name := range names {
		r.Sets = append(r.Sets, measured[name].report(s.Spec))
		r.Samples = append(r.Samples, measured[name].samples(dir, s)...)
	}
	if r.Arms, err = curves(dir, s); err != nil {
		return Report{}, err
	}
	r.Budget = checkBudget(s)
	r.Reading = reading(r)
	if s.Rule != Rule {
		r.Notes = append(r.Notes, "the rule below was written down before the first run, by another version; this one decided by what `cftune study --rule` prints")
	}
	return r, nil
}

// curves reads the losses of the runs that have begun.
func curves(dir string, s State) ([]ArmReport, error) {
	var arms []ArmReport
	for _, arm := range s.Spec.TrainedArms() {
		a := ArmReport{Arm: arm.Name}
		for _, key := range keysOf(s, arm) {
			c, err := ReadCurve(filepath.Join(dir, "runs", key))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			a.Curves = append(a.Curves, c)
			a.Seconds += c.Seconds
		}
		arms = append(arms, a)
	}
	return arms, nil
}

// checkBudget compares what the finished runs had with what was promised.
func checkBudget(s State) BudgetCheck {
	b := BudgetCheck{Equal: "steps", Met: true}
	budget := s.Spec.Budget
	if budget.TargetTokens > 0 {
		b.Equal = "target tokens"
	}
	worst, steps := 0.0, 0
	for _, arm := range s.Spec.TrainedArms() {
		a := ArmBudget{Arm: arm.Name}
		n := int64(0)
		for _, r := range s.Runs {
			if r.Arm != arm.Name || !r.Done {
				continue
			}
			if n == 0 || r.Targets < a.LeastTarget {
				a.LeastTarget = r.Targets
			}
			a.MostTarget, a.Steps = max(a.MostTarget, r.Targets), r.Taken
			a.Tokens += r.Tokens
			n++
			if budget.TargetTokens > 0 {
				off := float64(r.Targets)/float64(budget.TargetTokens) - 1
				worst = max(worst, off, -off)
			}
			if steps == 0 {
				steps = r.Taken
			}
			b.Met = b.Met && (budget.TargetTokens > 0 || r.Taken == steps)
		}
		if n > 0 {
			a.Tokens /= n
			b.Arms = append(b.Arms, a)
		}
	}
	if budget.TargetTokens > 0 {
		b.Met = worst <= budget.Tolerance
		b.Text = fmt.Sprintf("every arm was to learn %d target tokens; the run that is furthest off misses it by %.1f %%, %.1f %% are allowed",
			budget.TargetTokens, 100*worst, 100*budget.Tolerance)
		return b
	}
	b.Text = fmt.Sprintf("every arm was to take the same number of steps of the same size: %d", steps)
	if budget.Epochs > 0 {
		b.Text += fmt.Sprintf(", %d passes over the questions", budget.Epochs)
	}
	b.Text += ". Learned tokens are then not equal: a critique is longer than an answer"
	return b
}

func (m measuredSet) samples(dir string, s State) []Sample {
	var samples []Sample
	for i, item := range m.items[:min(samplesPerSet, len(m.items))] {
		sample := Sample{Set: m.set.Name, Query: item.Query, Gold: item.Gold, Response: item.Response, Label: item.Label}
		for _, arm := range s.Spec.Arms {
			a := m.arms[arm.Name]
			if len(a.keys) == 0 {
				continue
			}
			t, _, _, err := readTexts(scoresPath(dir, a.keys[0]))
			if err != nil {
				continue // it was read a moment ago
			}
			cell := SampleCell{Arm: arm.Name, Answer: t[place{m.set.Name, kindAnswer, i}].Text, AnswerRight: a.marks[0].answers[i]}
			if m.judged {
				cell.Critique, cell.VerdictRight = t[place{m.set.Name, kindOthers, i}].Text, a.others[0][i].hit
			}
			sample.Cells = append(sample.Cells, cell)
		}
		samples = append(samples, sample)
	}
	return samples
}

// reading says in words what the numbers show, also when that is nothing.
func reading(r Report) []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if !r.Complete {
		add("This report is of a part of the study: %d models are not trained or scored.", len(r.Missing))
	}
	if !r.Budget.Met {
		add("The budget was not equal: %s.", r.Budget.Text)
	}
	for _, s := range r.Sets {
		switch {
		case s.Learned == nil:
			add("Whether %s taught anything is %s.", s.Name, s.Verdict)
		case *s.Learned:
			add("From %s something was learned: %s.", s.Name, s.Verdict)
		default:
			add("From %s nothing was learned that shows: %s. What the arms' scores on it differ by means nothing.", s.Name, s.Verdict)
		}
		for _, m := range s.Models {
			if m.Drifted.Share() >= 0.1 {
				add("%s on %s: %s answers have taken on the form of a critique.", m.Arm, s.Name, m.Drifted)
			}
			if m.Answers != nil && m.Ended.Share() < 0.5 {
				add("%s on %s: only %s answers end by themselves.", m.Arm, s.Name, m.Ended)
			}
			if m.Verdicts != nil && (m.SaidRight.Share() > 0.8 || m.SaidRight.Share() < 0.2) && m.None.Share() < 0.5 {
				add("%s on %s: it says “right” of %s given answers, of which %s are right: a habit more than a judgement.", m.Arm, s.Name, m.SaidRight, s.Right)
			}
			if m.Verdicts != nil && m.None.Share() >= 0.5 {
				add("%s on %s: %s critiques come to no verdict.", m.Arm, s.Name, m.None)
			}
		}
	}
	return lines
}

// WriteReport writes report.json, report.md and report.html into a study's folder and returns their paths. It waits for
// another process that does so.
func WriteReport(ctx context.Context, dir string, r Report) ([]string, error) {
	if err := durable.MkdirAll(durable.OS, filepath.Join(dir, locksName)); err != nil {
		return nil, fmt.Errorf("write report: %w", err)
	}
	lock, err := await(ctx, filepath.Join(dir, locksName, "report"), func(string, ...any) {})
	if err != nil {
		return nil, fmt.Errorf("write report: %w", err)
	}
	defer lock.Release()
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("write report: %w", err)
	}
	var html bytes.Buffer
	if err := writePage(&html, r); err != nil {
		return nil, fmt.Errorf("write report: %w", err)
	}
	var paths []string
	for _, f := range []struct {
		name string
		text []byte
	}{{"report.json", append(text, '\n')}, {"report.md", []byte(Markdown(r))}, {"report.html", html.Bytes()}} {
		path := filepath.Join(dir, f.name)
		if err := writeWhole(path, f.text); err != nil {
			return nil, fmt.Errorf("write report: %w", err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}
