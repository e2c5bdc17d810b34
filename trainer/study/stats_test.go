package study

import (
	"math"
	"math/rand/v2"
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

// With one seed the bootstrap of a share is the binomial's, of the items and the four that are added: n = 8 and p = 1/2 gives 0 with probability
// 1/256 and at most 1 with 9/256, at most 2 with 37/256, and at most 3 with 93/256.
func TestIntervalsByHand(t *testing.T) {
	e, ok := estimate(grid{row("xxoo")}, false, level)
	require.True(t, ok)
	assert.Equal(t, 0.5, e.Value)
	assert.Equal(t, [2]float64{1.0 / 8, 7.0 / 8}, [2]float64{e.Low, e.High})
	e, _ = estimate(grid{row("xxoo")}, false, 0.5)
	assert.Equal(t, [2]float64{3.0 / 8, 5.0 / 8}, [2]float64{e.Low, e.High})
}

// Four items that all agree say little of a fifth: p = 3/4 of eight gives at most 2 with probability 0.4 % and at most 3 with 2.7 %.
func TestItemsThatAllAgreeAreNoCertainty(t *testing.T) {
	sure, ok := estimate(grid{row("xxxx"), row("xxxx")}, false, level)
	require.True(t, ok)
	assert.Equal(t, [3]float64{1, 3.0 / 8, 1}, [3]float64{sure.Value, sure.Low, sure.High})

	a := grid{row("xxxxxxxxoo")}
	same, ok := difference(a, a, false, level)
	require.True(t, ok)
	assert.Equal(t, 0.0, same.Value)
	assert.InDelta(t, -0.25, same.Low, 1e-12, "of twelve, one way and not the other three times in one draw of forty")
	assert.InDelta(t, 0.25, same.High, 1e-12)
	assert.Equal(t, 1.0, same.P)
	assert.Equal(t, WordNotShown, word(same.Estimate, 0))
	assert.Equal(t, WordNotShown, word(same.Estimate, -0.05))
}

// Intervals of simulated items hold the truth as often as they say, about: in 90 of 100 sets at least where 95 are said, few and rare though the items
// are. Without added items they do so in 14 to 96.
func TestIntervalsHoldTheTruth(t *testing.T) {
	if testing.Short() {
		t.Skip("ten thousand draws of each of 700 sets")
	}
	const sets = 100
	rng := rand.New(rand.NewPCG(1, 2))
	for _, tt := range []struct {
		items, seeds    int
		onlyA, onlyB    float64 // how often one side alone has an item right
		alone, balanced bool    // a's share; of two classes, every other item
	}{
		{items: 10, seeds: 1, onlyA: 0.02, alone: true},
		{items: 10, seeds: 3, onlyA: 0.1, alone: true},
		{items: 50, seeds: 1, onlyA: 0.02, alone: true},
		{items: 20, seeds: 1, onlyA: 0.05, alone: true, balanced: true},
		{items: 10, seeds: 1, onlyA: 0.1},
		{items: 20, seeds: 1, onlyA: 0.1},
		{items: 20, seeds: 1, onlyA: 0.2, onlyB: 0.1, balanced: true},
	} {
		holds := 0
		truth := tt.onlyA - tt.onlyB
		for range sets {
			a, b := make([]cell, tt.items), make([]cell, tt.items)
			for i := range a {
				x := rng.Float64()
				a[i] = cell{class: i%2 == 0, hit: x < tt.onlyA}
				b[i] = cell{class: i%2 == 0, hit: x >= tt.onlyA && x < tt.onlyA+tt.onlyB}
			}
			c := compare{b: grid{b}, balanced: tt.balanced}
			for range tt.seeds { // which agree: the seeds bring no knowledge of other items
				c.a = append(c.a, a)
			}
			if tt.alone {
				c.b = nil
			}
			e, ok := c.estimate(level)
			require.True(t, ok)
			if e.Low <= truth+1e-12 && truth-1e-12 <= e.High {
				holds++
			}
		}
		assert.GreaterOrEqual(t, holds, 90, "%+v", tt)
	}
}

// Seeds that differ widen the interval even if each has many items without any doubt.
func TestSeedsAreDrawnToo(t *testing.T) {
	good, bad := make([]cell, 100), make([]cell, 100)
	for i := range good {
		good[i].hit = true
	}
	e, _ := estimate(grid{good, bad}, false, level)
	assert.Equal(t, 0.5, e.Value)
	assert.Less(t, e.Low, 0.03, "a quarter of the draws of two seeds has the bad one twice")
	assert.Greater(t, e.High, 0.97)
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
