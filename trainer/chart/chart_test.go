package chart

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPlaces(t *testing.T) {
	c := Chart{Width: 400, Height: 200, Left: 1, Right: 11, Low: 1, High: 4}
	assert.Equal(t, MarginLeft, c.X(1))
	assert.Equal(t, 400-MarginRight, c.X(11))
	assert.Equal(t, MarginTop, c.Y(4))
	assert.Equal(t, 200-MarginBottom, c.Y(1))
	c.Logarithmic = true
	assert.InDelta(t, (MarginTop+200-MarginBottom)/2, c.Y(2), 1e-9, "2 lies in the middle between 1 and 4")
}

func TestDrawn(t *testing.T) {
	c := &Chart{Width: 400, Height: 200, Right: 10, High: 10}
	c.TickX(5, "a<b")
	c.Line([]float64{0, 10}, []float64{0, 10}, "#123456", "faint", "")
	c.Line(nil, nil, "#654321", "", "")
	c.Columns([]float64{0, 10}, []float64{1, 2}, []float64{3, 4}, "#abcdef", "")
	c.Area([]float64{0, 10}, []float64{0, 0}, []float64{5, 10}, "#aaaaaa")
	c.Mark(5, "mark", `x"><y`)
	text := string(c.HTML(`what "it" shows`, "data-x", `["'<>]`))
	for _, want := range []string{
		"a&lt;b", `class="line faint" stroke="#123456" d="M56.0 170.0L388.0 10.0"`, `d="M56.0 154.0V122.0L388.0 138.0V106.0"`,
		`d="M56.0 90.0L388.0 10.0L388.0 170.0L56.0 170.0Z"`, "<title>x&#34;&gt;&lt;y</title>", `aria-label="what &#34;it&#34; shows"`, `data-x="[&#34;&#39;&lt;&gt;]"`,
	} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, text, "#654321", "a line without points is none")
}

func TestLogBounds(t *testing.T) {
	for _, x := range []struct{ low, high, wantLow, wantHigh float64 }{{0.3, 3, 0.25, 4}, {2, 2, 2, 4}, {1, 4, 1, 4}, {1e-6, 1e3, math.Exp2(-20), 1024}} {
		c := Chart{Width: 400, Height: 200, Right: 1}
		assert.True(t, c.LogBounds(x.low, x.high))
		assert.Equal(t, []float64{x.wantLow, x.wantHigh}, []float64{c.Low, c.High})
		assert.LessOrEqual(t, strings.Count(c.body.String(), `class="grid"`), 9)
	}
	for _, low := range []float64{0, -1, math.Inf(1), math.NaN()} {
		c := Chart{Width: 400, Height: 200}
		assert.False(t, c.LogBounds(low, 5), low)
		assert.Empty(t, c.body.String())
	}
}

func TestTicks(t *testing.T) {
	for _, x := range []struct {
		low, high float64
		n         int
		want      []float64
	}{
		{0, 10, 5, []float64{0, 2, 4, 6, 8, 10}}, {1, 60, 5, []float64{20, 40, 60}}, {0, 100_000, 4, []float64{0, 25_000, 50_000, 75_000, 100_000}},
		{-1, 1, 2, []float64{-1, 0, 1}}, {3, 3, 5, []float64{3}},
	} {
		assert.InDeltaSlice(t, x.want, Ticks(x.low, x.high, x.n), 1e-9, "%g to %g", x.low, x.high)
	}
	for _, v := range Ticks(-0.5, 2, 5) {
		assert.False(t, v == 0 && math.Signbit(v), "-0 is no number for people")
	}
}
