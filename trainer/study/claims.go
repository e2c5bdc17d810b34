package study

import (
	"fmt"
	"math"
)

// Rule is how claims are decided. It is kept in a study's record from before the first run.
const Rule = `Claims are decided by intervals, on test rows that no run has seen and on which nothing was chosen.

- better: the share of right answers (or of right verdicts on given answers) of one arm minus that of the other.
  yes: the whole interval lies above the margin. no: the whole interval lies at or below it. Otherwise: not shown.
- not-worse: the same difference. yes: the whole interval lies above minus the margin. no: the whole interval lies at or
  below minus the margin. Otherwise: not shown.
- others-over-self: balanced accuracy of an arm's verdicts on given answers minus that on its own answers; balanced means
  that right and wrong answers count half each. yes, no and not shown as for better. It is not measured where an arm's own
  answers are all right or all wrong, or nearly so.

A critique without a verdict counts as a false verdict. An interval is the 2.5th to 97.5th percentile of 10,000 draws of
seeds and, within them, of items, both with replacement and the same for both sides (a hierarchical paired bootstrap).
Added to the items that are drawn from, and to no count that is reported, are for a share two hits and two misses, for a
difference one item that only one side has right and one that only the other has, and where classes count half each one hit
and one miss of each class and side. A few items that all agree are then no certainty (Agresti and Coull 1998, Agresti and
Caffo 2000, Bonett and Price 2012). The interval is widened, where it must be, to hold the value itself. The p-value is
of a permutation test that exchanges the two sides item by item, for all seeds together; it is given once plain
and once adjusted for the number of claims (Holm), and decides nothing. With few seeds the interval knows little about
other seeds.

A set is said to have taught nothing that shows when no trained arm's answers are better than the base model's and no
trained arm's verdicts have a balanced accuracy above one half, each by an interval that is widened for the number of
such comparisons of the set (Bonferroni).`

// The words of decisions.
const (
	WordYes      = "yes"
	WordNo       = "no"
	WordNotShown = "not shown"
	WordNone     = "not measured"
)

// Decided is a claim with what became of it.
type Decided struct {
	Claim
	Word    string  `json:"word"`
	Because string  `json:"because"`
	Effect  *Effect `json:"effect,omitempty"`
	Holm    float64 `json:"p_holm,omitempty"`
}

// word decides by interval: above bound all of it, at or below bound all of it, or neither.
func word(e Estimate, bound float64) string {
	switch {
	case e.Low > bound:
		return WordYes
	case e.High <= bound:
		return WordNo
	}
	return WordNotShown
}

// decide decides all claims on what was measured.
func decide(claims []Claim, measured map[string]measuredSet) []Decided {
	decided := make([]Decided, len(claims))
	var ps []float64
	var of []int
	for i, c := range claims {
		decided[i] = decideOne(c, measured)
		if e := decided[i].Effect; e != nil {
			ps, of = append(ps, e.P), append(of, i)
		}
	}
	for k, p := range holm(ps) {
		decided[of[k]].Holm = p
	}
	return decided
}

func decideOne(c Claim, measured map[string]measuredSet) Decided {
	none := func(format string, args ...any) Decided {
		return Decided{Claim: c, Word: WordNone, Because: fmt.Sprintf(format, args...)}
	}
	set, ok := measured[c.Set]
	if !ok {
		return none("the set %s was left out, or has no test rows", c.Set)
	}
	a, missing := set.arm(c.Arm)
	if missing != "" {
		return none("%s", missing)
	}
	var e Effect
	bound, what := c.Margin, c.Measure
	switch c.Kind {
	case ClaimOthers:
		what = "balanced accuracy of verdicts on others' answers minus that on its own"
		if e, ok = difference(a.others, a.self, true, level); !ok {
			return none("%s's own answers, or the given ones, are all right or all wrong, or nearly so, or were not judged", c.Arm)
		}
	default:
		b, missing := set.arm(c.Than)
		if missing != "" {
			return none("%s", missing)
		}
		x, y := a.answers, b.answers
		if c.Measure == MeasureVerdicts {
			x, y = a.others, b.others
		}
		if e, ok = difference(x, y, false, level); !ok {
			return none("%s has no %s to compare", c.Set, c.Measure)
		}
		if c.Kind == ClaimNotWorse {
			bound = -c.Margin
		}
		what = fmt.Sprintf("%s, %s minus %s", c.Measure, c.Arm, c.Than)
	}
	d := Decided{Claim: c, Word: word(e.Estimate, bound), Effect: &e}
	d.Because = fmt.Sprintf("%s: %s; the bound is %s", what, pointsText(e.Estimate), points(bound))
	return d
}

// points is a share as percentage points.
func points(x float64) string {
	if math.Abs(x) < 0.0005 {
		return "0"
	}
	return fmt.Sprintf("%+.1f", 100*x)
}

func pointsText(e Estimate) string {
	return fmt.Sprintf("%+.1f points (95 %% interval %+.1f to %+.1f; %d items, %d seeds)", 100*e.Value, 100*e.Low, 100*e.High, e.Items, e.Seeds)
}
