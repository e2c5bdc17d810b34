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

// row makes an example from its prompt and what is supervised.
func row(id, prompt, target string) Example {
	e := Example{ID: id, Weight: 1}
	for i, c := range prompt + target {
		label := int32(ign)
		if i >= len(prompt) {
			label = c
		}
		e.Tokens, e.Labels = append(e.Tokens, c), append(e.Labels, label)
	}
	return e
}

func TestBuildSharedLaysOutATree(t *testing.T) {
	group := []Example{row("a", "qx1", "AB"), row("b", "qy", "C"), row("c", "qx1", "DE")}
	group[2].Weight = 0.5
	batches, items, err := BuildShared(group, 100)
	require.NoError(t, err)
	// "q" is everyone's, "x" of a and c; the last token of each prompt predicts, and is each row's own.
	assert.Equal(t, [][]int{{0, 2, 1}}, items)
	assert.Equal(t, []Batch{{
		Tokens:       []int32{'q', 'x', '1', 'A', '1', 'D', 'y'},
		Targets:      []int32{ign, ign, 'A', 'B', 'D', 'E', 'C'},
		Positions:    []int32{0, 1, 2, 3, 2, 3, 1},
		VisibleUntil: []int32{7, 6, 4, 4, 6, 6, 7},
		Weights:      []float32{0, 0, 1, 1, 0.5, 0.5, 1},
	}}, batches)
}

func TestBuildSharedShares(t *testing.T) {
	gap := row("gap", "qrs", "A")
	gap.Labels[1] = 'r' // a target at position 0
	tests := []struct {
		name   string
		group  []Example
		seqLen int
		want   []int // positions of each pack
	}{
		{"nothing", []Example{row("a", "ab", "A"), row("b", "cd", "A")}, 100, []int{4}},
		{"equal rows twice: the prompt but its last token", []Example{row("a", "qrs", "AB"), row("b", "qrs", "AB")}, 100, []int{6}},
		{"a prompt within another", []Example{row("a", "qr", "A"), row("b", "qrs", "A")}, 100, []int{4}},
		{"a prompt within another, of which its end is a target's", []Example{row("a", "qr", "AB"), row("b", "qrAs", "C")}, 100, []int{6}},
		{"not after a target", []Example{row("a", "qrs", "A"), gap}, 100, []int{6}},
		{"a part each when too large", []Example{row("a", "qrsa", "A"), row("b", "qrsb", "A"), row("c", "qrsc", "A")}, 5, []int{5, 4}},
		{"one token alone", []Example{row("a", "q", "A"), row("b", "q", "B")}, 100, []int{2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plan, err := PlanShared(tt.group, tt.seqLen)
			require.NoError(t, err)
			assert.Equal(t, tt.want, plan.Positions)
		})
	}
}

func TestBuildSharedRefuses(t *testing.T) {
	fine := row("a", "qr", "AB")
	tests := []struct {
		name    string
		example Example
		want    string
	}{
		{"too long", row("b", "qrst", "AB"), "1 of 2 examples are longer than the pack of 4 tokens: the longest has 5, the first is b"},
		{"no target", row("b", "qr", ""), "example b: no token is supervised"},
		{"no tokens", row("b", "", ""), "example b: no token is supervised"},
		{"lengths differ", Example{ID: "b", Tokens: []int32{1, 2, 3}, Labels: []int32{ign, 2}}, "example b: 3 tokens but 2 labels"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := BuildShared([]Example{fine, tt.example}, 4)
			assert.EqualError(t, err, tt.want)
			_, err = PlanShared([]Example{fine, tt.example}, 4)
			assert.EqualError(t, err, tt.want)
		})
	}
	batches, items, err := BuildShared(nil, 4)
	assert.NoError(t, err)
	assert.Empty(t, batches)
	assert.Empty(t, items)
}

// Without a common prefix the packs are those of Build, example for example.
func TestBuildSharedWithoutPrefixesIsBuild(t *testing.T) {
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 3))
		seqLen := 1 + rng.IntN(64)
		group := randomGroup(rng, seqLen) // their tokens differ from the first on
		want, err := Build(group, seqLen)
		require.NoError(t, err)
		got, _, err := BuildShared(group, seqLen)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// randomForest makes rows that share prefixes: each begins as one before it, or anew, over few tokens, so that chance
// adds more.
func randomForest(rng *rand.Rand, seqLen int) []Example {
	vocabulary := 1 + rng.IntN(5)
	group := make([]Example, 1+rng.IntN(40))
	for i := range group {
		e := Example{ID: strconv.Itoa(i), Weight: 0.25 * float32(1+rng.IntN(8))}
		n := 2 + rng.IntN(seqLen)
		if i > 0 && rng.IntN(8) > 0 {
			e.Tokens = slices.Clone(group[rng.IntN(i)].Tokens)
			e.Tokens = e.Tokens[:rng.IntN(len(e.Tokens)+1)]
		}
		for len(e.Tokens) < n {
			e.Tokens = append(e.Tokens, int32(rng.IntN(vocabulary)))
		}
		e.Tokens = e.Tokens[:n]
		first := 1 + rng.IntN(n-1)
		for k, token := range e.Tokens {
			label := int32(ign)
			if k == first || k > first && rng.IntN(3) > 0 {
				label = token
			}
			e.Labels = append(e.Labels, label)
		}
		group[i] = e
		if rng.IntN(8) == 0 {
			group[i] = group[rng.IntN(i+1)] // a duplicate
		}
	}
	return group
}

// branchOf reads one branch out of a pack: the positions that the one at last sees, itself included.
func branchOf(b Batch, last int) []int {
	var path []int
	for j := 0; j <= last; j++ {
		if last < int(b.VisibleUntil[j]) {
			path = append(path, j)
		}
	}
	return path
}

// ends returns the last position of each branch: those that the next one does not see.
func ends(b Batch) []int {
	var last []int
	for i := range b.Tokens {
		if int(b.VisibleUntil[i]) == i+1 {
			last = append(last, i)
		}
	}
	return last
}

// checkTree reads every branch of a pack by what its last position sees, and compares it with its example.
func checkTree(t *testing.T, b Batch, items []int, group []Example) {
	t.Helper()
	last := ends(b)
	require.Len(t, last, len(items))
	owners := make([]int, len(b.Tokens))
	targets := 0
	for k, i := range items {
		e := group[i]
		path := branchOf(b, last[k])
		n := Len(e)
		require.Len(t, path, n)
		targets += NumTargets(e)
		for depth, at := range path {
			owners[at]++
			want := Targets(e.Labels)[depth]
			require.Equal(t, e.Tokens[depth], b.Tokens[at])
			require.Equal(t, want, b.Targets[at])
			require.Equal(t, int32(depth), b.Positions[at])
			require.Equal(t, path[:depth+1], branchOf(b, at), "a position does not see its path alone")
			weight := e.Weight
			if want == ign {
				weight = 0
			}
			require.Equal(t, weight, b.Weights[at])
		}
	}
	for at, n := range owners {
		require.NotZero(t, n, "position %d belongs to no example", at)
		if b.Targets[at] != ign {
			require.Equal(t, 1, n, "position %d has a target and %d owners", at, n)
		}
	}
	require.Equal(t, targets, b.NumTargets())
}

func TestSharedPacksHoldEveryExample(t *testing.T) {
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 4))
		seqLen := 1 + rng.IntN(64)
		group := randomForest(rng, seqLen)
		batches, items, err := BuildShared(group, seqLen)
		require.NoError(t, err)
		plan, err := PlanShared(group, seqLen)
		require.NoError(t, err)
		require.Equal(t, items, plan.Items)

		again, _, err := BuildShared(group, seqLen)
		require.NoError(t, err)
		require.Equal(t, batches, again, "the same group was packed otherwise")

		var all []int
		total := 0
		for p, b := range batches {
			require.LessOrEqual(t, len(b.Tokens), seqLen)
			require.Equal(t, plan.Positions[p], len(b.Tokens))
			checkTree(t, b, items[p], group)
			all = append(all, items[p]...)
			total += len(b.Tokens)
		}
		slices.Sort(all)
		for i := range group {
			require.Equal(t, i, all[i])
		}
		require.Len(t, all, len(group))
		require.Equal(t, total, plan.Total())
		require.LessOrEqual(t, total, rowsTotal(group))
		require.GreaterOrEqual(t, total, trieSize(group))
	}
}

// rowsTotal is what the rows take side by side.
func rowsTotal(group []Example) int {
	n := 0
	for _, e := range group {
		n += Len(e)
	}
	return n
}

// trieSize counts the different prefixes that may be shared, and what is each row's own.
func trieSize(group []Example) int {
	size := 0
	seen := map[string]bool{}
	for _, e := range group {
		targets := Targets(e.Labels)
		free := slices.IndexFunc(targets, func(target int32) bool { return target != ign })
		size += Len(e) - free
		for n := 1; n <= free; n++ {
			key := ""
			for _, token := range e.Tokens[:n] {
				key += strconv.Itoa(int(token)) + " "
			}
			if !seen[key] {
				seen[key] = true
				size++
			}
		}
	}
	return size
}

// In one pack with room for all, nothing is computed twice.
func TestSharedPackIsTheTrie(t *testing.T) {
	for seed := range uint64(seeds) {
		group := randomForest(rand.New(rand.NewPCG(seed, 5)), 30)
		plan, err := PlanShared(group, rowsTotal(group))
		require.NoError(t, err)
		require.Equal(t, []int{trieSize(group)}, plan.Positions)
	}
}

// No division of the walk into runs computes less; every one of them is tried.
func TestCutsAreTheBest(t *testing.T) {
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 6))
		seqLen := 4 + rng.IntN(30)
		group := randomForest(rng, seqLen)
		group = group[:min(len(group), 10)]
		branches, err := newBranches(group, seqLen)
		require.NoError(t, err)
		var w walk
		w.visit(newTrie(branches), 0)
		best := math.MaxInt
		for cuts := range 1 << (len(group) - 1) {
			total, start := 0, 0
			for end := 1; end <= len(group); end++ {
				if end == len(group) || cuts>>(end-1)&1 == 1 {
					size := treeSize(branches, w.leaves[start:end])
					if size > seqLen {
						total = math.MaxInt
						break
					}
					total, start = total+size, end
				}
			}
			best = min(best, total)
		}
		total := 0
		for _, r := range cutRuns(branches, w, seqLen) {
			size := treeSize(branches, w.leaves[r.leaves[0]:r.leaves[len(r.leaves)-1]+1])
			require.LessOrEqual(t, size, seqLen)
			require.Equal(t, size, r.size)
			total += size
		}
		require.Equal(t, best, total)
		plan, err := PlanShared(group, seqLen)
		require.NoError(t, err)
		require.LessOrEqual(t, plan.Total(), best)
	}
}

// Runs that are no neighbours share their query too: small answers stand between large ones.
func TestRunsOfOneQueryJoin(t *testing.T) {
	query := "abcdefghij"
	var group []Example
	for i := range 6 {
		prompt := query + string(rune('A'+i)) + "01234567890123456789"[:3+17*(i%2)]
		group = append(group, row(strconv.Itoa(i), prompt, "xy"))
	}
	// Own positions: 5 or 22. Four cannot stand together; the three small ones join.
	plan, err := PlanShared(group, 10+22)
	require.NoError(t, err)
	positions := slices.Sorted(slices.Values(plan.Positions))
	assert.Equal(t, []int{10 + 3*5, 32, 32, 32}, positions)
}

// A chain of prompts, each one token longer than the last, has as many nodes as rows; a star has one.
func TestBuildSharedOfManyRows(t *testing.T) {
	const n = 2000
	chain := make([]Example, n)
	tokens := make([]int32, n+2)
	labels := slices.Repeat([]int32{ign}, n+2)
	for i := range chain {
		own := append(slices.Clone(labels[:i+1]), 7)
		chain[i] = Example{ID: strconv.Itoa(i), Tokens: tokens[:i+2], Labels: own, Weight: 1}
	}
	plan, err := PlanShared(chain, n)
	require.NoError(t, err)
	// Row i has i positions to share and one of its own. Two packs: all but the longest prefixes are in both.
	assert.Equal(t, trieSizeOfChain(n), plan.Total()-cutOf(plan, chain))

	star := make([]Example, n)
	for i := range star {
		star[i] = Example{ID: strconv.Itoa(i), Tokens: []int32{1, int32(i), 3}, Labels: []int32{ign, ign, 3}, Weight: 1}
	}
	plan, err = PlanShared(star, 101)
	require.NoError(t, err)
	assert.Equal(t, n+n/100, plan.Total())
	assert.Len(t, plan.Items, n/100)
}

// trieSizeOfChain counts n - 1 shared positions and one own for each row.
func trieSizeOfChain(n int) int { return n - 1 + n }

// cutOf is what the packs after the first compute again: the longest prefix that each has in common with longer rows.
func cutOf(plan SharedPlan, chain []Example) int {
	var longest []int
	for _, items := range plan.Items {
		longest = append(longest, Len(chain[slices.Max(items)])-1)
	}
	slices.Sort(longest)
	again := 0
	for _, n := range longest[:len(longest)-1] {
		again += n
	}
	return again
}
