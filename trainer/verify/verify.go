package verify

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
)

// Options decide what is checked and what becomes of rows.
type Options struct {
	Policies   map[Check]Policy
	Weight     float64 // what DownWeight multiplies a row's weight by
	Thresholds evaluate.Thresholds
	Limits     Limits
	Leakage    Leakage
	// TeacherField is where a row names who wrote the critique; a path of names. Empty: source.teacher, then teacher.
	TeacherField string
	Tests        []Test // that the queries must not be in
}

// Test is a test set.
type Test struct {
	Name string
	Set  *dataset.Set
}

// DefaultOptions are what the command has without flags.
func DefaultOptions() Options {
	return Options{
		Policies: DefaultPolicies(), Weight: 0.5, Thresholds: evaluate.DefaultThresholds(), Limits: Limits{Short: 20, Long: 20_000}, Leakage: DefaultLeakage(),
	}
}

// row is what is kept of a record.
type row struct {
	id       string
	group    [32]byte // of query and response: what several teachers criticize
	teacher  int
	verdict  evaluate.Verdict
	label    evaluate.Verdict // gold, the row's own or found by grading the response
	majority evaluate.Verdict // what the label becomes by the majority
	failed   []Check
	drop     bool
	lower    bool
}

// Verifier has looked at all rows.
type Verifier struct {
	set    *dataset.Set
	o      Options
	rows   []row
	Report Report
}

// Run checks all rows of the set. Rows that training could not use at all are an error, not a finding.
func Run(ctx context.Context, set *dataset.Set, o Options) (*Verifier, error) {
	v := &Verifier{set: set, o: o}
	v.Report = newReport(o)
	tests, err := indexTests(ctx, o)
	if err != nil {
		return nil, err
	}
	teachers := map[string]int{}
	seen := map[[32]byte]bool{}
	for i := range set.Len() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		record, err := set.Record(i)
		if err != nil {
			return nil, err
		}
		text, err := set.Text(i)
		if err != nil {
			return nil, err
		}
		name := teacherOf(text, o.TeacherField)
		n, known := teachers[name]
		if !known {
			n = len(teachers)
			teachers[name] = n
			v.Report.Teachers = append(v.Report.Teachers, newTeacher(name))
		}
		r := v.look(record, tests)
		r.teacher = n
		whole := digest(record.Query, record.Response, record.Critique)
		if seen[whole] {
			r.failed = append(r.failed, Duplicate)
		}
		seen[whole] = true
		v.rows = append(v.rows, r)
	}
	v.disagreements()
	for i := range v.rows {
		v.judge(&v.rows[i])
	}
	v.Report.finish(set, v.rows)
	return v, nil
}

func indexTests(ctx context.Context, o Options) ([]*testIndex, error) {
	var tests []*testIndex
	for _, test := range o.Tests {
		index := newTestIndex(test.Name)
		for i := range test.Set.Len() {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			record, err := test.Set.Record(i)
			if err != nil {
				return nil, err
			}
			index.add(queryOf(record), o.Leakage)
		}
		tests = append(tests, index)
	}
	return tests, nil
}

// queryOf is what a record asks: its query, or the user's turns.
func queryOf(r dataset.Record) string {
	if r.Query != "" {
		return r.Query
	}
	var turns []string
	for _, m := range r.Messages {
		if m.Role == dataset.RoleUser {
			turns = append(turns, m.Content)
		}
	}
	return strings.Join(turns, "\n")
}

// look applies the checks that need nothing but the row and the test sets.
func (v *Verifier) look(record dataset.Record, tests []*testIndex) row {
	r := row{id: record.ID, group: digest(record.Query, record.Response)}
	judgement := evaluate.Judge(record.Critique, v.o.Thresholds)
	r.verdict = judgement.Verdict
	r.failed = form(record.Critique, r.verdict, v.o.Limits)
	if r.verdict == evaluate.NoVerdict && !slices.Contains(r.failed, Empty) {
		r.failed = append(r.failed, NoVerdict)
		v.Report.Unjudged[judgement.Reason]++
	}
	switch {
	case record.Label != "":
		r.label = evaluate.Verdict(record.Label)
		v.Report.Labels.Given++
	case record.Gold != "" && record.Response != "":
		r.label = evaluate.Of(evaluate.GradeAnswer(record.Response, evaluate.GoldAnswer(record.Gold)).Right)
		v.Report.Labels.Graded++
	default:
		v.Report.Labels.None++
	}
	for k, test := range tests {
		exact, overlaps := test.has(queryOf(record), v.o.Leakage)
		if exact {
			v.Report.Tests[k].Exact++
		} else if overlaps {
			v.Report.Tests[k].Overlap++
		}
		if overlaps && !slices.Contains(r.failed, Leak) {
			r.failed = append(r.failed, Leak)
		}
	}
	return r
}

// disagreements compares the verdicts about the same response. A majority is of more than half of those that judge;
// duplicates have no second vote.
func (v *Verifier) disagreements() {
	type votes struct{ right, wrong int }
	groups := map[[32]byte]votes{}
	for _, r := range v.rows {
		if slices.Contains(r.failed, Duplicate) {
			continue
		}
		g := groups[r.group]
		switch r.verdict {
		case evaluate.Right:
			g.right++
		case evaluate.Wrong:
			g.wrong++
		}
		groups[r.group] = g
	}
	for _, g := range groups {
		if g.right+g.wrong > 1 {
			v.Report.Groups.Several++
			if g.right > 0 && g.wrong > 0 {
				v.Report.Groups.Disagree++
				if g.right == g.wrong {
					v.Report.Groups.Tied++
				}
			}
		}
	}
	for i := range v.rows {
		r := &v.rows[i]
		g := groups[r.group]
		if g.right == 0 || g.wrong == 0 {
			continue
		}
		if r.verdict != evaluate.NoVerdict {
			r.failed = append(r.failed, Disagree)
		}
		if v.o.Policies[Disagree] == Relabel && r.label == evaluate.NoVerdict && g.right != g.wrong {
			r.majority = evaluate.Of(g.right > g.wrong)
			v.Report.Relabelled++
		}
	}
}

// judge compares verdict and label, and decides what becomes of the row.
func (v *Verifier) judge(r *row) {
	label := r.label
	if r.majority != evaluate.NoVerdict {
		label = r.majority
	}
	if r.verdict != evaluate.NoVerdict && label != evaluate.NoVerdict && r.verdict != label {
		r.failed = append(r.failed, Mismatch)
	}
	for _, c := range r.failed {
		switch v.o.Policies[c] {
		case Drop:
			r.drop = true
		case DownWeight:
			r.lower = true
		}
	}
}

func digest(texts ...string) [32]byte {
	h := sha256.New()
	for _, t := range texts {
		fmt.Fprintf(h, "%d:%s", len(t), strings.TrimSpace(t))
	}
	return [32]byte(h.Sum(nil))
}

// teacherOf returns who wrote a row's critique, "unnamed" if it does not say.
func teacherOf(text []byte, field string) string {
	paths := []string{field}
	if field == "" {
		paths = []string{"source.teacher", "teacher"}
	}
	for _, path := range paths {
		value := json.RawMessage(text)
		for _, name := range strings.Split(path, ".") {
			var fields map[string]json.RawMessage
			if json.Unmarshal(value, &fields) != nil {
				value = nil
				break
			}
			value = fields[name]
		}
		var name string
		if json.Unmarshal(value, &name) == nil && name != "" {
			return name
		}
	}
	return "unnamed"
}

// Source is what a file is opened as when only its path is known.
func Source(path, format string, fields config.Fields) config.Source {
	return config.Source{Path: path, Format: format, Weight: 1, Sample: 1, Fields: fields}
}
