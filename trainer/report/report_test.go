package report

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/evaluate"
)

func page1() Page {
	share := evaluate.NewShare([]bool{true, true, false})
	versus := evaluate.Compare([]bool{true, true, false}, []bool{false, true, false})
	judging := Judging{Verdicts: share, Accepted: share, Rejected: share, SaidRight: share, None: share, Derived: share, Sound: share}
	answering := Answering{Leading: share, Exact: share, Anywhere: share, Drifted: share, Ended: share, MeanTokens: 12.34}
	trained := answering
	trained.VersusBase = &AnswerDifferences{versus, versus, versus}
	return Page{
		Title: "A <comparison>", Intro: []string{"first", "second"}, Reading: []string{"one & two"}, Facts: []Fact{{"rows", "3"}},
		Checks: []Check{{"it learns", true}, {"it flies", false}},
		Arms: []Arm{
			{Name: "base", Judging: judging, Answering: answering},
			{Name: "CFT", Judging: judging, Answering: trained, Training: []Point{{1, 2}, {2, 0.5}, {3, 0.25}}, HeldOut: []Point{{3, 0.5}}, Seconds: 61},
		},
		Comparisons: []Comparison{{Better: "CFT", Other: "base", Measure: "answers", Difference: versus}},
		Rules:       []Rule{{Name: "y becomes i", Items: 3, Cells: []RuleCell{{1, 2}, {2, 3}}}},
		Samples: []Sample{{Question: "q", Gold: "g", Candidate: "<script>", Label: "wrong",
			Cells: []SampleCell{{Answer: "a", Critique: "b"}, {Answer: "c", Critique: "d", AnswerRight: true}}}},
		Rows:     []Row{{Question: "rq", Answer: "ra", Label: "right", Critique: "rc", Solution: "rs", NoisySolution: "rn"}},
		Commands: []string{"cftune check run"},
	}
}

func written(t *testing.T, p Page) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, Write(&b, p))
	return b.String()
}

func TestPageStandsAlone(t *testing.T) {
	text := written(t, page1())
	for _, want := range []string{
		"A &lt;comparison&gt;", "one &amp; two", "<p>second</p>", "66.7 %", "2 of 3", "20.8–93.9 %", "33.3 points", "p = 1", "12.3", "1m1s",
		`class="met"><b>Yes.</b> it learns`, `<li><b>No.</b> it flies`, "y becomes i", "<code>cftune check run</code>", "rn",
	} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, text, "<script>", "what models write is text")
	for _, outside := range []string{"http:", "https:", "src=", "@import", "url("} {
		assert.NotContains(t, text, outside)
	}
}

func TestCurves(t *testing.T) {
	text := written(t, page1())
	assert.Contains(t, text, `class="line" stroke="`+colors[1]+`"`, "the second arm has a curve")
	assert.NotContains(t, text, `class="line" stroke="`+colors[0]+`"`, "the base model has none")
	assert.Equal(t, 1, strings.Count(text, "<circle"), "held-out points are rings")

	p := page1()
	p.Arms[1].Training, p.Arms[1].HeldOut = nil, nil
	assert.NotContains(t, written(t, p), `class="plot" role`, "no curves, no picture")
}

func TestCurvesOfOneLoss(t *testing.T) {
	for _, loss := range []float64{1, 3} {
		text := string(curves([]Arm{{Training: []Point{{1, loss}}}}))
		assert.Contains(t, text, "<path class=\"line\"", loss)
		assert.NotContains(t, text, "NaN", loss)
		assert.NotContains(t, text, "Inf", loss)
	}
	assert.Empty(t, curves([]Arm{{Training: []Point{{1, 0}}}}), "a loss of 0 has no logarithm")
}

func TestPValue(t *testing.T) {
	assert.Equal(t, "p = 0.032", pValue(0.0321))
	assert.Equal(t, "p < 0.0001", pValue(1e-9))
}
