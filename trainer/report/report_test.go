package report

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/evaluate"
)

func page1() Page {
	share := evaluate.NewShare([]bool{true, true, false})
	versus := evaluate.Compare([]bool{true, true, false}, []bool{false, true, false}, 1)
	return Page{
		Title: "A <comparison>", Reading: []string{"one & two"}, Facts: []Fact{{"rows", "3"}},
		Arms: []Arm{
			{Name: "base", Verdicts: share, Strict: share, Loose: share, Drift: share},
			{Name: "CFT", Verdicts: share, Strict: share, Loose: share, Drift: share, VersusBase: &versus, LooseVsBase: &versus,
				Loss: []Point{{1, 2}, {2, 0.5}, {3, 0.25}}},
		},
		Samples: []Sample{{Question: "q", Gold: "g", Candidate: "<script>", Label: "wrong", Answers: []string{"a", "b"}, Critiques: []string{"c", "d"}}},
	}
}

func TestPageStandsAlone(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, Write(&b, page1()))
	text := b.String()
	assert.Contains(t, text, "A &lt;comparison&gt;")
	assert.Contains(t, text, "one &amp; two")
	assert.NotContains(t, text, "<script>", "what models write is text")
	assert.Contains(t, text, "66.7 % of 3")
	assert.Contains(t, text, `stroke="`+color(1)+`" stroke-width="1.6"`, "the second arm has a curve")
	assert.NotContains(t, text, `stroke="`+color(0)+`" stroke-width="1.6"`, "the base model has none")
	for _, outside := range []string{"http:", "https:", "src=", "@import", "url("} {
		assert.NotContains(t, text, outside)
	}
}

func TestPageWithoutCurves(t *testing.T) {
	p := page1()
	p.Arms[1].Loss = nil
	var b bytes.Buffer
	require.NoError(t, Write(&b, p))
	assert.NotContains(t, b.String(), `class="chart"`+` role`)
}
