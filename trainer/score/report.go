package score

import (
	"strings"

	"cftune/trainer/evaluate"
)

// Report is what an evaluation gave.
type Report struct {
	Options Options   `json:"options"`
	Sets    []SetInfo `json:"sets"`
	Results []Result  `json:"results"`
	Chosen  *Choice   `json:"chosen,omitempty"`
}

// Empty reports whether there is nothing that could be scored.
func (r Report) Empty() bool {
	for _, result := range r.Results {
		if result.Probes != nil {
			return false
		}
		for _, s := range result.Sets {
			if s.Answers != nil || s.Critiques != nil || s.Self != nil || len(s.Losses) > 0 {
				return false
			}
		}
	}
	return true
}

// SetInfo tells which rows were scored.
type SetInfo struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Rows   int    `json:"rows"`
	Of     int    `json:"of"` // rows of the whole set
}

// Result is one subject's.
type Result struct {
	Subject Subject     `json:"subject"`
	Sets    []SetResult `json:"sets"`
	Probes  *Probes     `json:"probes,omitempty"`
}

// SetResult is one subject's on one set. What has no row to be measured on is nil.
type SetResult struct {
	Set       string         `json:"set"`
	Rows      int            `json:"rows"`
	Unserved  map[string]int `json:"unserved,omitempty"` // rows that a task could not use
	Repeated  int            `json:"repeated,omitempty"` // rows that ask what an earlier one asks: the question is answered, and counts, once
	Answers   *Answers       `json:"answers,omitempty"`
	Critiques *Critiques     `json:"critiques,omitempty"`
	Self      *Self          `json:"self,omitempty"`
	Losses    []Loss         `json:"losses,omitempty"`
}

// Form is what texts look like, whatever they say.
type Form struct {
	Ended        evaluate.Share `json:"ended"`   // by themselves, not at the bound
	Drifted      evaluate.Share `json:"drifted"` // in the form of a critique
	MeanTokens   float64        `json:"mean_tokens"`
	MedianTokens int            `json:"median_tokens"`
	MostTokens   int            `json:"most_tokens"`
}

// Answers are how a model answers the set's queries.
type Answers struct {
	Greedy  evaluate.Share       `json:"greedy"`
	Versus  *evaluate.Difference `json:"versus_first,omitempty"` // greedy, against the first subject
	Marks   map[string]int       `json:"marks"`                  // how the answers were found
	Form    Form                 `json:"form"`
	Sampled []Sampled            `json:"sampled,omitempty"`
	PassAt  []PassAt             `json:"pass_at,omitempty"`
	right   []bool
	items   []int
	texts   []Text
}

// Sampled is one sampled pass.
type Sampled struct {
	Seed  uint64         `json:"seed"`
	Right evaluate.Share `json:"right"`
}

// PassAt is the chance that one of K answers is right.
type PassAt struct {
	K int `json:"k"`
	evaluate.Estimate
}

// Critiques are how a model judges answers.
type Critiques struct {
	Right     evaluate.Share       `json:"right"`    // verdicts that are right, of all; none is wrong
	Balanced  evaluate.Estimate    `json:"balanced"` // mean of Accepted and Rejected: 0.5 is chance
	Versus    *evaluate.Difference `json:"versus_first,omitempty"`
	Accepted  evaluate.Share       `json:"accepted"` // right answers called right
	Rejected  evaluate.Share       `json:"rejected"` // wrong answers called wrong
	SaidRight evaluate.Share       `json:"said_right"`
	None      evaluate.Share       `json:"none"`
	Confusion map[string]int       `json:"confusion"` // "truth/verdict": answers
	Form      Form                 `json:"form"`
	verdicts  []evaluate.Verdict
	truth     []bool
	items     []int
}

func (c *Critiques) hits() []bool {
	hits := make([]bool, len(c.verdicts))
	for i, v := range c.verdicts {
		hits[i] = v == evaluate.Of(c.truth[i])
	}
	return hits
}

func (c *Critiques) count() {
	var accepted, rejected, saidRight, none []bool
	hits := c.hits()
	for i, v := range c.verdicts {
		if c.truth[i] {
			accepted = append(accepted, hits[i])
		} else {
			rejected = append(rejected, hits[i])
		}
		saidRight, none = append(saidRight, v == evaluate.Right), append(none, v == evaluate.NoVerdict)
		said := string(v)
		if v == evaluate.NoVerdict {
			said = "none"
		}
		c.Confusion[string(evaluate.Of(c.truth[i]))+"/"+said]++
	}
	c.Right, c.Accepted, c.Rejected = evaluate.NewShare(hits), evaluate.NewShare(accepted), evaluate.NewShare(rejected)
	c.SaidRight, c.None = evaluate.NewShare(saidRight), evaluate.NewShare(none)
	c.Balanced = evaluate.Balanced(c.verdicts, c.truth)
}

// Self is how a model fares when it criticizes its own answers.
type Self struct {
	Single               evaluate.Share       `json:"single"` // right final answers
	SingleVersusDirect   *evaluate.Difference `json:"single_versus_direct"`
	TwoStage             evaluate.Share       `json:"two_stage"`
	TwoStageVersusDirect *evaluate.Difference `json:"two_stage_versus_direct"`
	Accepted             evaluate.Share       `json:"accepted"` // by its own critique, within the tries
	MeanTries            float64              `json:"mean_tries"`
	Verdicts             *Critiques           `json:"verdicts"` // on its greedy answers
}

// Loss is the mean over all target tokens of a set's rows under one objective.
type Loss struct {
	Objective string             `json:"objective"`
	Mean      evaluate.Estimate  `json:"mean"` // by bootstrap over rows
	Versus    *evaluate.Estimate `json:"versus_first,omitempty"`
	Rows      int                `json:"rows"`
	Tokens    int                `json:"tokens"`
	TooLong   int                `json:"too_long,omitempty"` // rows that were not measured
	rows      []rowLoss
}

type rowLoss struct {
	sum    float64
	tokens int
	item   int
}

func (l *Loss) count(seed uint64) {
	for _, r := range l.rows {
		l.Rows++
		l.Tokens += r.tokens
	}
	l.Mean = evaluate.Resampled(len(l.rows), seed, func(pick []int) float64 { return meanLoss(l.rows, pick) })
}

func meanLoss(rows []rowLoss, pick []int) float64 {
	sum, tokens := 0.0, 0
	for _, i := range pick {
		sum += rows[i].sum
		tokens += rows[i].tokens
	}
	return sum / float64(max(tokens, 1))
}

// Probes are how a model follows instructions about form.
type Probes struct {
	Obeyed evaluate.Share       `json:"obeyed"`
	Versus *evaluate.Difference `json:"versus_first,omitempty"`
	Form   Form                 `json:"form"`
	Items  []ProbeItem          `json:"items"`
	obeyed []bool
}

// ProbeItem is one instruction.
type ProbeItem struct {
	Name   string `json:"name"`
	Obeyed bool   `json:"obeyed"`
	Text   string `json:"text"`
}

// compare adds the paired comparisons with the first subject.
func (r *Report) compare() {
	if len(r.Results) == 0 {
		return
	}
	first, seed := &r.Results[0], r.Options.Seed
	for i := range r.Results[1:] {
		other := &r.Results[i+1]
		for k := range other.Sets {
			a, b := &other.Sets[k], &first.Sets[k]
			if a.Answers != nil && b.Answers != nil {
				d := evaluate.Compare(a.Answers.right, b.Answers.right)
				a.Answers.Versus = &d
			}
			if a.Critiques != nil && b.Critiques != nil {
				d := evaluate.Compare(a.Critiques.hits(), b.Critiques.hits())
				a.Critiques.Versus = &d
			}
			for n := range a.Losses {
				compareLoss(&a.Losses[n], b.Losses, seed)
			}
		}
		if other.Probes != nil && first.Probes != nil {
			d := evaluate.Compare(other.Probes.obeyed, first.Probes.obeyed)
			other.Probes.Versus = &d
		}
	}
}

// compareLoss compares on the rows that both have measured.
func compareLoss(l *Loss, others []Loss, seed uint64) {
	for _, o := range others {
		if o.Objective != l.Objective {
			continue
		}
		at := map[int]rowLoss{}
		for _, r := range o.rows {
			at[r.item] = r
		}
		var mine, theirs []rowLoss
		for _, r := range l.rows {
			if other, ok := at[r.item]; ok {
				mine, theirs = append(mine, r), append(theirs, other)
			}
		}
		e := evaluate.Resampled(len(mine), seed, func(pick []int) float64 { return meanLoss(mine, pick) - meanLoss(theirs, pick) })
		l.Versus = &e
	}
}

func replace(template, query string) string { return strings.ReplaceAll(template, "{query}", query) }
