package score

import (
	"fmt"
	"io"
	"strings"

	"cftune/trainer/evaluate"
)

// Table is a part of the report, ready to be shown.
type Table struct {
	Title  string
	Note   string
	Header []string
	Rows   [][]string
}

func percent(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) }

func share(s evaluate.Share) string {
	if s.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%s [%.1f, %.1f] (%d of %d)", percent(s.Value()), 100*s.Low, 100*s.High, s.Count, s.N)
}

func short(s evaluate.Share) string {
	if s.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", s.Count, s.N)
}

func difference(d *evaluate.Difference) string {
	if d == nil {
		return "-"
	}
	return fmt.Sprintf("%+.1f [%+.1f, %+.1f], p = %.3g", 100*d.Value, 100*d.Low, 100*d.High, d.P)
}

func estimate(e evaluate.Estimate) string {
	return fmt.Sprintf("%s [%.1f, %.1f]", percent(e.Value), 100*e.Low, 100*e.High)
}

// Tables returns the report's figures, set by set.
func (r Report) Tables() []Table {
	var tables []Table
	for k, set := range r.Sets {
		tables = append(tables, r.answerTables(k, set.Name)...)
		tables = append(tables, r.critiqueTable(k, set.Name)...)
		tables = append(tables, r.selfTable(k, set.Name)...)
		tables = append(tables, r.lossTable(k, set.Name)...)
	}
	tables = append(tables, r.probeTables()...)
	if r.Chosen != nil {
		t := Table{Title: fmt.Sprintf("Checkpoints, by %s", r.Chosen.By), Header: []string{"checkpoint", "step", r.Chosen.By, ""}}
		if n := r.Chosen.ties(); n > 0 {
			t.Note = fmt.Sprintf("Others with the same figure: %d. Of equals the earliest is chosen.", n)
		}
		for _, c := range r.Chosen.Candidates {
			mark := ""
			if c == r.Chosen.Best {
				mark = "chosen"
			}
			t.Rows = append(t.Rows, []string{c.Name, fmt.Sprint(c.Step), fmt.Sprintf("%.4f", c.Value), mark})
		}
		tables = append(tables, t)
	}
	return tables
}

func (r Report) answerTables(k int, set string) []Table {
	t := Table{
		Title: "Answers on " + set, Note: "The most likely answer, graded against gold. The difference is paired by question, in percentage points, against the first model; p is McNemar's exact test.",
		Header: []string{"model", "right", "against the first", "ended by itself", "form of a critique", "tokens, mean"},
	}
	sampled := Table{Title: "Sampled answers on " + set, Note: fmt.Sprintf("Temperature %v, top-p %v. pass@k is the unbiased estimate from all samples.", r.Options.Sampling.Temperature, r.Options.Sampling.TopP), Header: []string{"model", "right, by seed", "pass@k"}}
	for _, result := range r.Results {
		a := result.Sets[k].Answers
		if a == nil {
			continue
		}
		t.Rows = append(t.Rows, []string{result.Subject.Name, share(a.Greedy), difference(a.Versus), short(a.Form.Ended), short(a.Form.Drifted), fmt.Sprintf("%.1f", a.Form.MeanTokens)})
		var seeds, passes []string
		for _, s := range a.Sampled {
			seeds = append(seeds, fmt.Sprintf("%d: %s", s.Seed, percent(s.Right.Value())))
		}
		for _, p := range a.PassAt {
			passes = append(passes, fmt.Sprintf("%d: %s", p.K, estimate(p.Estimate)))
		}
		if len(seeds) > 0 {
			sampled.Rows = append(sampled.Rows, []string{result.Subject.Name, strings.Join(seeds, "; "), strings.Join(passes, "; ")})
		}
	}
	return nonEmpty(t, sampled)
}

func (r Report) critiqueTable(k int, set string) []Table {
	t := Table{
		Title: "Verdicts on " + set, Note: "Balanced accuracy is the mean of right answers accepted and wrong ones rejected: 50 % is chance, and what a model gets that always says the same. No verdict counts as false.",
		Header: []string{"model", "balanced", "verdicts right", "against the first", "right accepted", "wrong rejected", "said right", "no verdict"},
	}
	for _, result := range r.Results {
		if c := result.Sets[k].Critiques; c != nil {
			t.Rows = append(t.Rows, []string{
				result.Subject.Name, estimate(c.Balanced), share(c.Right), difference(c.Versus), short(c.Accepted), short(c.Rejected), short(c.SaidRight), short(c.None),
			})
		}
	}
	return nonEmpty(t)
}

func (r Report) selfTable(k int, set string) []Table {
	t := Table{
		Title: "Self-critique on " + set, Note: fmt.Sprintf("Single pass: solution, critique and final answer in one turn. Two stages: drawn again until the model's own critique accepts it, at most %d times. Differences are against its direct answers.", r.Options.Tries),
		Header: []string{"model", "single pass", "against direct", "two stages", "against direct", "accepted", "tries, mean", "verdicts on own answers, balanced"},
	}
	for _, result := range r.Results {
		if s := result.Sets[k].Self; s != nil {
			t.Rows = append(t.Rows, []string{
				result.Subject.Name, share(s.Single), difference(s.SingleVersusDirect), share(s.TwoStage), difference(s.TwoStageVersusDirect), short(s.Accepted),
				fmt.Sprintf("%.2f", s.MeanTries), estimate(s.Verdicts.Balanced),
			})
		}
	}
	return nonEmpty(t)
}

func (r Report) lossTable(k int, set string) []Table {
	t := Table{
		Title: "Loss on " + set, Note: "Mean over the target tokens, in nats, with a bootstrap over rows.",
		Header: []string{"model", "objective", "loss", "against the first", "rows", "tokens", "too long"},
	}
	for _, result := range r.Results {
		for _, l := range result.Sets[k].Losses {
			versus := "-"
			if l.Versus != nil {
				versus = fmt.Sprintf("%+.4f [%+.4f, %+.4f]", l.Versus.Value, l.Versus.Low, l.Versus.High)
			}
			t.Rows = append(t.Rows, []string{
				result.Subject.Name, l.Objective, fmt.Sprintf("%.4f [%.4f, %.4f]", l.Mean.Value, l.Mean.Low, l.Mean.High), versus,
				fmt.Sprint(l.Rows), fmt.Sprint(l.Tokens), fmt.Sprint(l.TooLong),
			})
		}
	}
	return nonEmpty(t)
}

func (r Report) probeTables() []Table {
	t := Table{
		Title: "Following instructions about form", Note: "Built-in instructions whose fulfilment can be checked: what training has done to it.",
		Header: []string{"model", "obeyed", "against the first", "ended by itself", "form of a critique", "tokens, mean", "not obeyed"},
	}
	for _, result := range r.Results {
		p := result.Probes
		if p == nil {
			continue
		}
		var failed []string
		for _, item := range p.Items {
			if !item.Obeyed {
				failed = append(failed, item.Name)
			}
		}
		t.Rows = append(t.Rows, []string{
			result.Subject.Name, share(p.Obeyed), difference(p.Versus), short(p.Form.Ended), short(p.Form.Drifted), fmt.Sprintf("%.1f", p.Form.MeanTokens), strings.Join(failed, ", "),
		})
	}
	return nonEmpty(t)
}

func nonEmpty(tables ...Table) []Table {
	var kept []Table
	for _, t := range tables {
		if len(t.Rows) > 0 {
			kept = append(kept, t)
		}
	}
	return kept
}

// Notes are what a reader must know beside the figures: rows that could not be used, or count less often.
func (r Report) Notes() []string {
	var notes []string
	if len(r.Results) == 0 {
		return nil
	}
	for _, s := range r.Results[0].Sets {
		for _, task := range Tasks() {
			if n := s.Unserved[task]; n > 0 {
				notes = append(notes, fmt.Sprintf("%s: %d of %d rows have not what %s needs", s.Set, n, s.Rows, task))
			}
		}
		if s.Repeated > 0 {
			notes = append(notes, fmt.Sprintf("%s: %d of %d rows ask what an earlier row asks; a question is answered, and counts, once", s.Set, s.Repeated, s.Rows))
		}
	}
	return notes
}

// Markdown writes the report as Markdown.
func (r Report) Markdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Evaluation\n\n")
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "- set %s: %d of %d rows, digest %.12s\n", s.Name, s.Rows, s.Of, s.Digest)
	}
	for _, n := range r.Notes() {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	row := func(cells []string) {
		for _, c := range cells {
			b.WriteString("| " + cell.Replace(c) + " ")
		}
		b.WriteString("|\n")
	}
	for _, t := range r.Tables() {
		fmt.Fprintf(&b, "\n## %s\n\n", t.Title)
		if t.Note != "" {
			b.WriteString(t.Note + "\n\n")
		}
		row(t.Header)
		b.WriteString(strings.Repeat("|---", len(t.Header)) + "|\n")
		for _, cells := range t.Rows {
			row(cells)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
