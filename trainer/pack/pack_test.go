package pack

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const ign = IgnoreTarget

// masked makes an example whose mask is drawn: '.' masked, 'x' supervised.
func masked(id, mask string, first int32) Example {
	e := Example{ID: id, Weight: 1}
	for i, c := range mask {
		token := first + int32(i)
		label := int32(ign)
		if c == 'x' {
			label = token
		}
		e.Tokens, e.Labels = append(e.Tokens, token), append(e.Labels, label)
	}
	return e
}

func TestTargets(t *testing.T) {
	tests := []struct {
		name   string
		labels []int32
		want   []int32
	}{
		{"critique only", []int32{ign, ign, ign, 9, 2}, []int32{ign, ign, 9, 2, ign}},
		{"first label has no position to predict it", []int32{5, ign}, []int32{ign, ign}},
		{"nothing supervised", []int32{ign, ign, ign}, []int32{ign, ign, ign}},
		{"label 0 is a token", []int32{ign, 0}, []int32{0, ign}},
		{"gaps stay", []int32{ign, 1, ign, 3}, []int32{1, ign, 3, ign}},
		{"empty", nil, []int32{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, Targets(tt.labels))
		})
	}
}

func TestLenEndsWithLastTarget(t *testing.T) {
	for mask, want := range map[string]int{"": 0, "x": 0, "..": 0, "x.": 0, ".x": 1, "..xx": 3, "..xx..": 3, "xx": 1, ".x.x": 3} {
		assert.Equal(t, want, Len(masked("e", mask, 1)), "%q", mask)
	}
}

func TestNumTargets(t *testing.T) {
	for mask, want := range map[string]int{"": 0, "x": 0, "..xx": 2, "xx": 1, ".x.x.": 2} {
		assert.Equal(t, want, NumTargets(masked("e", mask, 1)), "%q", mask)
	}
}

func TestCheck(t *testing.T) {
	change := func(f func(*Example)) Example {
		e := masked("d.jsonl:3", "..xx", 1)
		f(&e)
		return e
	}
	tests := []struct {
		name    string
		example Example
		want    string
	}{
		{"lengths differ", change(func(e *Example) { e.Labels = e.Labels[1:] }), "example d.jsonl:3: 4 tokens but 3 labels"},
		{"token beyond the vocabulary", change(func(e *Example) { e.Tokens[1] = 10 }), "example d.jsonl:3: token 10 at position 1 is outside the vocabulary of 10"},
		{"negative token", change(func(e *Example) { e.Tokens[0] = -1 }), "example d.jsonl:3: token -1 at position 0 is outside the vocabulary of 10"},
		{"label beyond the vocabulary", change(func(e *Example) { e.Labels[3] = 10 }), "example d.jsonl:3: label 10 at position 3 is outside the vocabulary of 10"},
		{"label of another ignored value", change(func(e *Example) { e.Labels[0] = -1 }), "example d.jsonl:3: label -1 at position 0 is outside the vocabulary of 10"},
		{"weight 0", change(func(e *Example) { e.Weight = 0 }), "example d.jsonl:3: weight must be a finite number above 0, got 0"},
		{"weight NaN", change(func(e *Example) { e.Weight = float32(math.NaN()) }), "example d.jsonl:3: weight must be a finite number above 0, got NaN"},
		{"all masked", masked("d.jsonl:3", "....", 1), "example d.jsonl:3: no token is supervised"},
		{"only the first token supervised", masked("d.jsonl:3", "x...", 1), "example d.jsonl:3: no token is supervised"},
		{"empty", Example{ID: "d.jsonl:3", Weight: 1}, "example d.jsonl:3: no token is supervised"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.EqualError(t, Check(tt.example, 10), tt.want)
		})
	}
	assert.ErrorIs(t, Check(masked("e", "..", 1), 10), ErrNoTargets)
	assert.NoError(t, Check(masked("e", "..xx", 1), 10))
}

func TestBuild(t *testing.T) {
	a, b, c := masked("a", "..xx", 10), masked("b", ".x.x..", 20), masked("c", ".x", 30)
	b.Weight = 0.5
	batches, err := Build([]Example{c, a, b}, 6)
	require.NoError(t, err)
	assert.Equal(t, []Batch{
		{
			Tokens:       []int32{10, 11, 12, 20, 21, 22},
			Targets:      []int32{ign, 12, 13, 21, ign, 23},
			Positions:    []int32{0, 1, 2, 0, 1, 2},
			VisibleUntil: []int32{3, 3, 3, 6, 6, 6},
			Weights:      []float32{0, 1, 1, 0.5, 0, 0.5},
		},
		{
			Tokens: []int32{30}, Targets: []int32{31}, Positions: []int32{0}, VisibleUntil: []int32{1}, Weights: []float32{1},
		},
	}, batches)
	assert.Equal(t, 4, batches[0].NumTargets())

	none, err := Build(nil, 6)
	require.NoError(t, err)
	assert.Empty(t, none)
}

func TestBuildRefuses(t *testing.T) {
	_, err := Build([]Example{masked("a", ".x", 1), masked("b", "....x", 1), masked("c", ".....x", 1)}, 3)
	var tooLong *TooLong
	require.ErrorAs(t, err, &tooLong)
	assert.Equal(t, TooLong{SeqLen: 3, Count: 2, Of: 3, Longest: 5, First: "b"}, *tooLong)
	assert.EqualError(t, err, "2 of 3 examples are longer than the pack of 3 tokens: the longest has 5, the first is b")
	_, err = Build([]Example{masked("a", "..", 1)}, 3)
	assert.ErrorIs(t, err, ErrNoTargets)
	uneven := masked("a", ".x", 1)
	uneven.Tokens = uneven.Tokens[:1]
	_, err = Build([]Example{uneven}, 3)
	assert.EqualError(t, err, "example a: 1 tokens but 2 labels")
	_, err = Build([]Example{masked("a", "...x", 1)}, 3)
	assert.NoError(t, err, "an example with one token more than the pack fits: its last is only predicted")
}

func TestTruncatePrompt(t *testing.T) {
	e := masked("e", "......xx", 0) // takes 7 positions
	got, err := TruncatePrompt(e, 7, 1)
	require.NoError(t, err)
	assert.Equal(t, e, got)
	got, err = TruncatePrompt(e, 4, 1)
	require.NoError(t, err)
	assert.Equal(t, []int32{0, 4, 5, 6, 7}, got.Tokens)
	assert.Equal(t, []int32{ign, ign, ign, 6, 7}, got.Labels)
	assert.Equal(t, 4, Len(got))
	assert.Equal(t, masked("e", "......xx", 0), e, "the example itself was changed")
	got, err = TruncatePrompt(e, 2, 0)
	require.NoError(t, err)
	assert.Equal(t, []int32{5, 6, 7}, got.Tokens)
	_, err = TruncatePrompt(e, 2, 1)
	assert.EqualError(t, err, "example e: 5 tokens over a pack of 2, but its prompt has only 4 to drop")
	_, err = TruncatePrompt(masked("e", "xxxx", 0), 2, 1)
	assert.Error(t, err, "targets were dropped")
}

// seeds is the number of random groups of the property tests.
const seeds = 300

func randomGroup(rng *rand.Rand, seqLen int) []Example {
	group := make([]Example, rng.IntN(40))
	for i := range group {
		mask := make([]byte, 2+rng.IntN(seqLen))
		for k := range mask {
			mask[k] = ".x"[rng.IntN(2)]
		}
		mask[1+rng.IntN(len(mask)-1)] = 'x'
		group[i] = masked(strconv.Itoa(i), string(mask), int32(1000*i))
		group[i].Weight = 0.25 * float32(1+rng.IntN(8))
	}
	return group
}

// Unpacking a batch by its segments must give every example once, whole, with its targets.
func TestPackedIsUnpacked(t *testing.T) {
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 1))
		seqLen := 1 + rng.IntN(64)
		group := randomGroup(rng, seqLen)
		batches, err := Build(group, seqLen)
		require.NoError(t, err)
		again, err := Build(group, seqLen)
		require.NoError(t, err)
		require.Equal(t, batches, again, "the same group was packed otherwise")
		seen := map[int]bool{}
		for _, b := range batches {
			require.LessOrEqual(t, len(b.Tokens), seqLen)
			require.NotEmpty(t, b.Tokens)
			last := -1
			for start := 0; start < len(b.Tokens); {
				i := int(b.Tokens[start]) / 1000
				require.Greater(t, i, last, "examples of a pack are not in their order")
				require.False(t, seen[i], "example %d comes twice", i)
				seen[i], last = true, i
				start = checkSegment(t, b, start, group[i])
			}
		}
		require.Len(t, seen, len(group))
	}
}

// checkSegment compares one segment with its example and returns the segment's end.
func checkSegment(t *testing.T, b Batch, start int, e Example) int {
	t.Helper()
	n := Len(e)
	end := start + n
	targets := Targets(e.Labels)
	require.Equal(t, e.Tokens[:n], b.Tokens[start:end])
	require.Equal(t, targets[:n], b.Targets[start:end])
	require.True(t, allIgnored(targets[n:]), "a target was left out")
	for i := start; i < end; i++ {
		require.Equal(t, int32(i-start), b.Positions[i])
		require.Equal(t, int32(end), b.VisibleUntil[i])
		weight := e.Weight
		if b.Targets[i] == ign {
			weight = 0
		}
		require.Equal(t, weight, b.Weights[i])
	}
	return end
}

func allIgnored(targets []int32) bool {
	return !slices.ContainsFunc(targets, func(target int32) bool { return target != ign })
}

func TestPlan(t *testing.T) {
	tests := []struct {
		name    string
		lengths []int
		want    [][]int
	}{
		{"best fit, not first fit", []int{6, 5, 4, 5}, [][]int{{0, 2}, {1, 3}}},
		{"equal ones in order", []int{5, 5, 5, 5}, [][]int{{0, 1}, {2, 3}}},
		{"the fullest pack, not the first", []int{6, 7, 3}, [][]int{{1, 2}, {0}}},
		{"the longest first", []int{1, 10}, [][]int{{1}, {0}}},
		{"none", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, Plan(tt.lengths, 10))
		})
	}
	assert.Panics(t, func() { Plan([]int{11}, 10) })
	assert.Panics(t, func() { Plan([]int{0}, 10) })
}

// The bound is that of first-fit decreasing (Dosa 2007): 11/9 of the fewest packs and 6/9. Best fit is to be no worse.
func TestPlanIsNearTheBest(t *testing.T) {
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 2))
		lengths := make([]int, 1+rng.IntN(8))
		for i := range lengths {
			lengths[i] = 1 + rng.IntN(20)
		}
		best := fewestPacks(lengths, nil, 20)
		packs := len(Plan(lengths, 20))
		require.GreaterOrEqual(t, packs, best, "%v", lengths)
		require.LessOrEqual(t, 9*packs, 11*best+6, "%v", lengths)
	}
}

// fewestPacks tries every distribution.
func fewestPacks(lengths, room []int, seqLen int) int {
	if len(lengths) == 0 {
		return len(room)
	}
	best := fewestPacks(lengths[1:], append(slices.Clone(room), seqLen-lengths[0]), seqLen)
	for p := range room {
		if room[p] >= lengths[0] {
			next := slices.Clone(room)
			next[p] -= lengths[0]
			best = min(best, fewestPacks(lengths[1:], next, seqLen))
		}
	}
	return best
}
