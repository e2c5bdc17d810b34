package pack

import (
	"cmp"
	"fmt"
	"slices"
)

// SharedPlan tells how BuildShared lays a group out, without its arrays.
type SharedPlan struct {
	// Items[p] are the examples of pack p by their index, in the order of their branches. Every example is in one pack.
	Items [][]int
	// Positions[p] is the number of positions that pack p computes: the length of its arrays.
	Positions []int
}

// Total is the number of positions computed.
func (p SharedPlan) Total() int {
	sum := 0
	for _, n := range p.Positions {
		sum += n
	}
	return sum
}

// BuildShared packs the examples of one accumulation group into batches of at most seqLen positions, in which examples
// that begin with the same tokens share the common prefix: it is computed once, and each branch sees prefix and itself
// only. items[p] are the indices of the examples in batches[p], in the order of their branches; the number of positions
// computed is the sum of the batches' lengths. The error is a *TooLong, or wraps ErrNoTargets, as Build's.
//
// A position is shared by examples that have the same tokens up to it and no target up to it. The first position with
// a target, the last token of the prompt, is each branch's own, and so is all that follows; thus the targets and weights
// of a pack are those of its rows, equal rows included. Prefixes nest: a query shared by all, an answer by some.
//
// Loss and gradient are those of Build's packs but for the order of summation, unless the adapter has dropout: its masks
// are drawn for each position computed, so the examples that share a position share its mask. Each example's loss then
// has the same distribution as alone, but those of one pack are no longer drawn independently.
//
// PlanShared tells the algorithm and its bounds.
func BuildShared(examples []Example, seqLen int) (batches []Batch, items [][]int, err error) {
	branches, err := newBranches(examples, seqLen)
	if err != nil {
		return nil, nil, err
	}
	items = distribute(branches, seqLen)
	batches = make([]Batch, len(items))
	for p := range items {
		batches[p].addTree(examples, branches, items[p])
	}
	return batches, items, nil
}

// PlanShared tells what BuildShared would build. The packs are a function of the examples' tokens, labels and order.
//
// The examples' paths make a trie. Its leaves, depth first with siblings in the order of the examples, are cut into runs
// of at most seqLen positions; a cut costs the depth at which its two leaves part, since that much is computed again, and
// the cuts are those of the lowest total cost, then of the fewest runs (dynamic programming over a sliding window, one
// pass). Then runs that fit into one pack join, the deepest nodes first, the fullest partner first; there each join saves
// the node's depth. What is left is distributed by Plan, which saves packs only.
//
// Bounds: no order-keeping division into runs computes fewer positions, so the total is never above that of Build, nor
// below the trie's size. Without common prefixes the packs are Build's. Work: n log n comparisons of paths to sort, then
// linear in the tokens and n log n in the joins, and Plan's.
func PlanShared(examples []Example, seqLen int) (SharedPlan, error) {
	branches, err := newBranches(examples, seqLen)
	if err != nil {
		return SharedPlan{}, err
	}
	plan := SharedPlan{Items: distribute(branches, seqLen)}
	for _, items := range plan.Items {
		plan.Positions = append(plan.Positions, treeSize(branches, items))
	}
	return plan, nil
}

func newBranches(examples []Example, seqLen int) ([]branch, error) {
	if err := Fit(examples, seqLen); err != nil {
		return nil, err
	}
	branches := make([]branch, len(examples))
	for i, e := range examples {
		if len(e.Tokens) != len(e.Labels) {
			return nil, fmt.Errorf("example %s: %d tokens but %d labels", e.ID, len(e.Tokens), len(e.Labels))
		}
		if Len(e) == 0 {
			return nil, fmt.Errorf("example %s: %w", e.ID, ErrNoTargets)
		}
		branches[i] = newBranch(i, e)
	}
	return branches, nil
}

// run is a set of leaves, by their place in the walk, that go into one pack.
type run struct {
	leaves []int
	// size bounds the positions that the leaves take together. It is exact until runs join of which one lies around
	// the other.
	size int
}

// distribute returns the examples of each pack.
func distribute(branches []branch, seqLen int) [][]int {
	root := newTrie(branches)
	var w walk
	w.visit(root, 0)
	runs := joinRuns(cutRuns(branches, w, seqLen), root, len(w.leaves), seqLen)
	sizes := make([]int, len(runs))
	for r := range runs {
		sizes[r] = runs[r].size
	}
	plan := Plan(sizes, seqLen)
	items := make([][]int, len(plan))
	for p, members := range plan {
		var leaves []int
		for _, r := range members {
			leaves = append(leaves, runs[r].leaves...)
		}
		slices.Sort(leaves)
		for _, leaf := range leaves {
			items[p] = append(items[p], branches[w.leaves[leaf]].item)
		}
	}
	return items
}

// cutRuns divides the walk into runs of neighbours of at most seqLen positions, at the cuts of the lowest total depth,
// and of those with the fewest runs.
func cutRuns(branches []branch, w walk, seqLen int) []run {
	type best struct {
		cost, runs int // of all leaves before this one
		start      int // of the run that ends before this one
	}
	n := len(w.leaves)
	bests := make([]best, n+1)
	// before[k] is what the leaves before k add to one another, each without what it shares with its left neighbour.
	before := make([]int, n+1)
	for k, leaf := range w.leaves {
		before[k+1] = before[k] + branches[leaf].depth - w.cuts[k]
	}
	size := func(start, end int) int { return w.cuts[start] + before[end] - before[start] }
	// cheaper compares runs that start at i and at j and end at the same place.
	cheaper := func(i, j int) int {
		return cmp.Or(cmp.Compare(bests[i].cost+w.cuts[i], bests[j].cost+w.cuts[j]), cmp.Compare(bests[i].runs, bests[j].runs))
	}
	var starts []int // ascending, each cheaper than those after it: the first one is the window's best
	for end := 1; end <= n; end++ {
		if w.cuts[end-1] == 0 {
			starts = starts[:0] // a new tree: nothing is shared across
		}
		for len(starts) > 0 && cheaper(starts[len(starts)-1], end-1) > 0 {
			starts = starts[:len(starts)-1]
		}
		starts = append(starts, end-1)
		for size(starts[0], end) > seqLen {
			starts = starts[1:]
		}
		s := starts[0]
		bests[end] = best{cost: bests[s].cost + w.cuts[s], runs: bests[s].runs + 1, start: s}
	}
	var runs []run
	for end := n; end > 0; end = bests[end].start {
		r := run{size: size(bests[end].start, end)}
		for leaf := bests[end].start; leaf < end; leaf++ {
			r.leaves = append(r.leaves, leaf)
		}
		runs = append(runs, r)
	}
	slices.Reverse(runs)
	return runs
}
