package pack

import (
	"cmp"
	"slices"
)

// joiner puts runs together that share a node and fit into one pack.
type joiner struct {
	seqLen int
	runs   []run  // without leaves once joined to another
	runOf  []int  // of each leaf: the run that it was cut into
	placed []bool // of each run: its node has been reached
}

// joinRuns returns the runs, in their order, after those below the root have joined where they fit.
func joinRuns(runs []run, root *node, numLeaves, seqLen int) []run {
	j := joiner{seqLen: seqLen, runs: runs, runOf: make([]int, numLeaves), placed: make([]bool, len(runs))}
	for r := range runs {
		for _, leaf := range runs[r].leaves {
			j.runOf[leaf] = r
		}
	}
	j.join(root, 0)
	return slices.DeleteFunc(j.runs, func(r run) bool { return len(r.leaves) == 0 })
}

// join joins runs whose leaves all lie under n. It returns those that are left, by ascending size: no two of them fit
// into one pack. The leaves under n are start..end-1.
func (j *joiner) join(n *node, start int) (runs []int, end int) {
	end = start
	var loose []int // may fit to one of the others
	borders := []int{start}
	for _, c := range n.children {
		if c.node == nil {
			end++
		} else {
			var under []int
			under, end = j.join(c.node, end)
			// The larger set stays as it is, so that a run is moved log n times at most.
			if len(under) > len(runs) {
				runs, under = under, runs
			}
			loose = append(loose, under...)
		}
		borders = append(borders, end)
	}
	// A run's own node is where its first and last leaf part. It lies under a node around a border between children, or
	// is a child.
	for _, border := range borders[:len(borders)-1] {
		r := j.runOf[border]
		leaves := j.runs[r].leaves
		if !j.placed[r] && leaves[0] >= start && leaves[len(leaves)-1] < end {
			j.placed[r] = true
			loose = append(loose, r)
		}
	}
	if n.depth == 0 {
		return nil, end // nothing is shared here
	}
	slices.SortFunc(loose, func(a, b int) int { return cmp.Or(cmp.Compare(j.runs[b].size, j.runs[a].size), cmp.Compare(a, b)) })
	for _, r := range loose {
		runs = j.place(runs, r, n.depth)
	}
	return runs, end
}

// place joins a run to the largest of those that it fits to, of which it shares depth positions, or else adds it to them.
func (j *joiner) place(runs []int, r, depth int) []int {
	bySize := func(other, size int) int { return cmp.Compare(j.runs[other].size, size) }
	room := j.seqLen + depth - j.runs[r].size
	// Those before at are no larger than the room; the last one of them is the fullest.
	at, _ := slices.BinarySearchFunc(runs, room+1, bySize)
	if at > 0 {
		partner := &j.runs[runs[at-1]]
		partner.leaves = append(partner.leaves, j.runs[r].leaves...)
		partner.size += j.runs[r].size - depth
		j.runs[r].leaves = nil
		r = runs[at-1]
		runs = slices.Delete(runs, at-1, at)
	}
	at, _ = slices.BinarySearchFunc(runs, j.runs[r].size, bySize)
	return slices.Insert(runs, at, r)
}
