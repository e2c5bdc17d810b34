package study

import (
	"cftune/trainer/evaluate"
)

// marks are what one model's texts about a set are worth, item by item.
type marks struct {
	answers, loose, drifted, ended []bool
	tokens                         int // of answers
	// others and self are the verdicts on given answers and on the model's own.
	others, self []evaluate.Verdict
	labels       []bool // whether the given answers are right
}

// grade marks a model's texts; complete is false where some are missing.
func grade(set Set, items []Item, judged, self bool, t texts) (m marks, complete bool) {
	for i, item := range items {
		answer, ok := t[place{set.Name, kindAnswer, i}]
		if !ok {
			return m, false
		}
		right, anywhere := set.right(answer.Text, item.Gold)
		m.answers, m.loose = append(m.answers, right), append(m.loose, anywhere)
		m.drifted, m.ended = append(m.drifted, evaluate.Drifted(answer.Text)), append(m.ended, answer.Ended)
		m.tokens += answer.Tokens
		if judged {
			c, ok := t[place{set.Name, kindOthers, i}]
			if !ok {
				return m, false
			}
			m.others = append(m.others, evaluate.ParseVerdict(c.Text))
			m.labels = append(m.labels, item.Label == string(evaluate.Right))
		}
		if self {
			c, ok := t[place{set.Name, kindSelf, i}]
			if !ok {
				return m, false
			}
			m.self = append(m.self, evaluate.ParseVerdict(c.Text))
		}
	}
	return m, true
}

// right says whether an answer is right by the set's grader, and whether the right value is anywhere in it.
func (s Set) right(answer, gold string) (right, anywhere bool) {
	if s.Grader == graderForm {
		m := evaluate.MatchAnswer(answer, gold)
		return m.Leading, m.Anywhere
	}
	right = evaluate.GradeAnswer(answer, evaluate.GoldAnswer(gold)).Right
	return right, right // a value that is somewhere in a calculation says nothing
}

func cells(hits []bool) []cell {
	row := make([]cell, len(hits))
	for i, h := range hits {
		row[i] = cell{hit: h}
	}
	return row
}

// verdictCells judge verdicts by what was right; a critique without a verdict is not right.
func verdictCells(said []evaluate.Verdict, right []bool) []cell {
	row := make([]cell, len(said))
	for i, v := range said {
		row[i] = cell{class: right[i], hit: v == evaluate.Of(right[i])}
	}
	return row
}
