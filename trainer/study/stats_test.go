package study

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// row makes a seed's cells: x hits of class true, o misses of class true, X hits and O misses of class false.
func row(text string) []cell {
	var cells []cell
	for _, c := range text {
		cells = append(cells, cell{class: c == 'x' || c == 'o', hit: c == 'x' || c == 'X'})
	}
	return cells
}

func TestSharesByHand(t *testing.T) {
	g := grid{row("xxxoXO"), row("xxooXX")}
	plain, ok := estimate(g, false, level)
	require.True(t, ok)
	assert.InDelta(t, 8.0/12, plain.Value, 1e-12)
	balanced, ok := estimate(g, true, level)
	require.True(t, ok)
	assert.InDelta(t, (5.0/8+3.0/4)/2, balanced.Value, 1e-12)
	assert.Equal(t, 6, plain.Items)
	assert.Equal(t, 2, plain.Seeds)

	_, ok = estimate(grid{row("xxo")}, true, level)
	assert.False(t, ok, "one class only has no balanced share")
	_, ok = estimate(nil, false, level)
	assert.False(t, ok)
}

// With one seed the bootstrap of a share is the binomial's: n = 4 and p = 1/2 gives 0 with probability 1/16, above 2.5 %.
func TestIntervalsByHand(t *testing.T) {
	e, ok := estimate(grid{row("xxoo")}, false, level)
	require.True(t, ok)
	assert.Equal(t, 0.0, e.Low)
	assert.Equal(t, 1.0, e.High)
	e, _ = estimate(grid{row("xxoo")}, false, 0.5)
	assert.Equal(t, 0.25, e.Low, "a quarter of the draws have at most one hit: 1/16 none, 4/16 one")
	assert.Equal(t, 0.75, e.High)
	sure, _ := estimate(grid{row("xxxx"), row("xxxx")}, false, level)
	assert.Equal(t, [2]float64{1, 1}, [2]float64{sure.Low, sure.High})
}

// Seeds that differ widen the interval even if each has many items without any doubt.
func TestSeedsAreDrawnToo(t *testing.T) {
	good, bad := make([]cell, 100), make([]cell, 100)
	for i := range good {
		good[i].hit = true
	}
	e, _ := estimate(grid{good, bad}, false, level)
	assert.Equal(t, 0.5, e.Value)
	assert.Equal(t, [2]float64{0, 1}, [2]float64{e.Low, e.High}, "each with a quarter of the draws of two seeds")
}

func TestDifferenceByHand(t *testing.T) {
	a, b := grid{row("xxxxxxxxoo")}, grid{row("xxooooooox")}
	e, ok := difference(a, b, false, level)
	require.True(t, ok)
	assert.InDelta(t, 0.5, e.Value, 1e-12)
	require.Len(t, e.BySeed, 1)
	assert.Equal(t, 6, e.BySeed[0].OnlyA)
	assert.Equal(t, 1, e.BySeed[0].OnlyB)
	assert.InDelta(t, 2*8.0/128, e.BySeed[0].P, 1e-12, "McNemar: 0 or 1 of 7, two-sided")
	// The permutation of seven differing items is the same test: |sum| of 7 signs at least 5.
	assert.InDelta(t, 16.0/128, e.P, 0.01)

	same, _ := difference(a, a, false, level)
	assert.Equal(t, [3]float64{0, 0, 0}, [3]float64{same.Value, same.Low, same.High})
	assert.Equal(t, 1.0, same.P)
}

// The base model has one row, which stands beside each seed of the other.
func TestOneRowStandsForEverySeed(t *testing.T) {
	e, ok := difference(grid{row("xx"), row("xo"), row("oo")}, grid{row("xo")}, false, level)
	require.True(t, ok)
	assert.Equal(t, 3, e.Seeds)
	assert.InDelta(t, 3.0/6-1.0/2, e.Value, 1e-12)
	assert.Len(t, e.BySeed, 3)
}

func TestHolmByHand(t *testing.T) {
	got := holm([]float64{0.04, 0.01, 0.03, 0.5})
	for i, want := range []float64{0.09, 0.04, 0.09, 0.5} {
		assert.InDelta(t, want, got[i], 1e-12)
	}
	assert.Empty(t, holm(nil))
}

func TestWords(t *testing.T) {
	between := func(low, high float64) Estimate {
		e := Estimate{Value: (low + high) / 2}
		e.Low, e.High = low, high
		return e
	}
	assert.Equal(t, WordYes, word(between(0.01, 0.2), 0))
	assert.Equal(t, WordNotShown, word(between(0, 0.2), 0), "an interval that touches the bound shows nothing")
	assert.Equal(t, WordNotShown, word(between(-0.1, 0.2), 0))
	assert.Equal(t, WordNo, word(between(-0.2, 0), 0))
	assert.Equal(t, WordYes, word(between(-0.04, 0.1), -0.05))
	assert.Equal(t, WordNo, word(between(-0.3, -0.06), -0.05))
	assert.True(t, math.IsNaN(count{}.share(false)))
}
