package study

import (
	"fmt"
	"slices"
	"strings"
)

// Markdown is the report as text with tables.
func Markdown(r Report) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Study: %s\n", r.Name)
	if r.About != "" {
		line("%s\n", r.About)
	}
	if !r.Complete {
		line("**Partial: not trained or scored are %s.**\n", strings.Join(r.Missing, ", "))
	}
	line("Made by `cftune study` %s, begun %s. Model: %s (sha256 %.12s…). File: sha256 %.12s….\n",
		r.Version, r.Started.Format("2006-01-02 15:04 MST"), r.Model.File, r.Model.SHA256, r.Digest)
	line("## Claims\n\n| claim | set | | effect, 95 %% interval | margin | p | p (Holm) |\n|---|---|---|---|---|---|---|")
	for _, c := range r.Claims {
		effect, p, adjusted := c.Because, "", ""
		if e := c.Effect; e != nil {
			effect, p, adjusted = pointsText(e.Estimate), pText(e.P), pText(c.Holm)
		}
		line("| %s | %s | **%s** | %s | %.0f | %s | %s |", c.Text, c.Set, c.Word, effect, 100*c.Margin, p, adjusted)
	}
	line("\n## What the numbers say\n")
	for _, l := range r.Reading {
		line("- %s", l)
	}
	for _, n := range r.Notes {
		line("- %s", n)
	}
	for _, s := range r.Sets {
		setMarkdown(line, s)
	}
	budgetMarkdown(line, r)
	line("\n## The rule\n\nWritten down before the first run.\n\n%s", r.Rule)
	line("\n## To make it again\n")
	line("report.json has the whole file, seeds, digests of model, data and adapters, prompts and versions. Seeds: %s. System message: %q. Stop texts: %q.",
		strings.Trim(fmt.Sprint(r.Spec.Seeds), "[]"), r.Prompts.System, r.Spec.Scoring.Stop)
	return b.String()
}

func setMarkdown(line func(string, ...any), s SetReport) {
	line("\n## %s\n", s.Name)
	given := ""
	if s.Right.N > 0 {
		given = fmt.Sprintf("; of the given answers %s are right", s.Right)
	}
	line("%d test items%s. Shares in percent with 95 %% intervals; counts are over all seeds.\n", s.Items, given)
	line("| arm | seeds | right answers | by seed | minus base | right verdicts | balanced | on own answers, balanced | said right | no verdict | reads like a critique | ended |")
	line("|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, m := range s.Models {
		if len(m.Missing) > 0 {
			line("| %s | not scored: %s | | | | | | | | | | |", m.Arm, strings.Join(m.Missing, ", "))
			continue
		}
		var seeds []string
		for _, v := range m.BySeed {
			seeds = append(seeds, fmt.Sprintf("%.1f", 100*v))
		}
		versus := ""
		if e := m.VersusBase; e != nil {
			versus = fmt.Sprintf("%+.1f (%+.1f to %+.1f)", 100*e.Value, 100*e.Low, 100*e.High)
		}
		line("| %s | %d | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |", m.Arm, len(m.BySeed), percents(m.Answers), strings.Join(seeds, ", "), versus,
			percents(m.Verdicts), percents(m.Balanced), percents(m.SelfBalanced), m.SaidRight, m.None, m.Drifted, m.Ended)
	}
}

func budgetMarkdown(line func(string, ...any), r Report) {
	met := "It was kept"
	if !r.Budget.Met {
		met = "**It was not kept**"
	}
	line("\n## Budget\n\nEqual %s: %s. %s.\n", r.Budget.Equal, r.Budget.Text, met)
	line("| arm | steps | learned tokens | tokens | seconds of training, all seeds | loss, first and last step | held-out loss, last |\n|---|---|---|---|---|---|---|")
	for _, a := range r.Budget.Arms {
		at := slices.IndexFunc(r.Arms, func(x ArmReport) bool { return x.Arm == a.Arm })
		var losses, held []string
		seconds := 0.0
		if at >= 0 {
			seconds = r.Arms[at].Seconds
			for _, c := range r.Arms[at].Curves {
				if n := len(c.Steps); n > 0 {
					losses = append(losses, fmt.Sprintf("%.3g → %.3g", c.Steps[0].Loss, c.Steps[n-1].Loss))
				}
				if n := len(c.HeldOut); n > 0 {
					held = append(held, fmt.Sprintf("%.3g", c.HeldOut[n-1].Loss))
				}
			}
		}
		line("| %s | %d | %d to %d | %d | %.0f | %s | %s |", a.Arm, a.Steps, a.LeastTarget, a.MostTarget, a.Tokens, seconds, strings.Join(losses, ", "), strings.Join(held, ", "))
	}
}

func percents(e *Estimate) string {
	if e == nil {
		return "–"
	}
	return fmt.Sprintf("%.1f (%.1f to %.1f)", 100*e.Value, 100*e.Low, 100*e.High)
}

func pText(p float64) string {
	if p < 0.001 {
		return "< 0.001"
	}
	return fmt.Sprintf("%.3f", p)
}
