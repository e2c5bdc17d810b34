package study

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/evaluate"
)

func TestTurned(t *testing.T) {
	for _, tt := range []struct{ name, critique, want string }{
		{"the last word only", "2 is right here.\nConclusion: wrong [END]", "2 is right here.\nConclusion: right [END]"},
		{"bold, with a capital", "It holds. **Conclusion: Correct [END]**", "It holds. **Conclusion: Incorrect [END]**"},
		{"capitals", "CONCLUSION: WRONG", "CONCLUSION: RIGHT"},
		{"words behind the conclusion", "Conclusion: wrong. The right one is 3.", "Conclusion: right. The right one is 3."},
	} {
		got, ok := turned(tt.critique)
		assert.True(t, ok, tt.name)
		assert.Equal(t, tt.want, got, tt.name)
	}
	got, ok := turned("The answer is right, I think.")
	assert.False(t, ok, "no conclusion, nothing to turn")
	assert.Equal(t, "The answer is right, I think.", got)
}

func critiques(n int) []Item {
	var items []Item
	for i := range n {
		items = append(items, Item{ID: fmt.Sprint(i), Critique: "Conclusion: right [END]"})
	}
	return items
}

func TestCorruptedIsExactNestedAndDeterministic(t *testing.T) {
	items := critiques(50)
	items[7].Critique = "I cannot say."
	which := func(share float64, seed uint64) map[int]bool {
		got, n := corrupted(items, share, seed)
		places := map[int]bool{}
		for i := range got {
			if got[i].Critique != items[i].Critique {
				assert.Equal(t, evaluate.Wrong, evaluate.ParseVerdict(got[i].Critique))
				places[i] = true
			}
		}
		assert.Len(t, places, n)
		return places
	}
	fifth, twoFifths := which(0.2, 1), which(0.4, 1)
	assert.Len(t, fifth, 10, "a fifth of the 49 that have a conclusion, rounded")
	assert.Len(t, twoFifths, 20)
	for i := range fifth {
		assert.True(t, twoFifths[i], "a larger share includes the smaller one")
	}
	assert.Equal(t, fifth, which(0.2, 1))
	assert.NotEqual(t, fifth, which(0.2, 2), "another seed takes others")
	assert.Equal(t, "Conclusion: right [END]", items[0].Critique, "the items given are left as they are")

	// It goes by ids, not by places.
	turnedIDs := func(items []Item) []string {
		got, _ := corrupted(items, 0.2, 1)
		ids := map[string]bool{}
		for _, i := range got {
			if evaluate.ParseVerdict(i.Critique) == evaluate.Wrong {
				ids[i.ID] = true
			}
		}
		return slices.Sorted(maps.Keys(ids))
	}
	reversed := slices.Clone(items)
	slices.Reverse(reversed)
	assert.Equal(t, turnedIDs(items), turnedIDs(reversed))
}

func TestMakeNumbers(t *testing.T) {
	var items []Item
	for i := range 20 {
		items = append(items, Item{ID: fmt.Sprint(i), Gold: fmt.Sprintf("%d.0", i), Solution: fmt.Sprintf("( 0 + %d ) = %d.0.", i, i)})
	}
	require.NoError(t, makeNumbers(4, items))
	wrong := 0
	for i, item := range items {
		gold := fmt.Sprint(i)
		right := evaluate.GradeAnswer(item.Response, gold).Right
		assert.Equal(t, evaluate.Of(right), evaluate.ParseVerdict(item.Critique))
		assert.Equal(t, string(evaluate.Of(right)), item.Label)
		if !right {
			wrong++
		}
	}
	assert.Equal(t, 10, wrong, "half of them are flawed")
	assert.ErrorContains(t, makeNumbers(4, []Item{{ID: "9", Gold: "blue"}}), `row 9: gold "blue" is no number`)
}
