package pack

import (
	"cmp"
	"slices"
)

// branch is an example seen as a path: depth positions, of which the first free ones have no target before or at them
// and may be shared.
type branch struct {
	item  int // index of the example
	free  int
	depth int
	path  []int32 // its tokens, depth of them
}

func newBranch(item int, e Example) branch {
	n := Len(e)
	free := slices.IndexFunc(e.Labels[1:], func(label int32) bool { return label != IgnoreTarget })
	return branch{item: item, free: free, depth: n, path: e.Tokens[:n]}
}

// common is the number of positions that two branches can share.
func common(a, b branch) int {
	n := min(a.free, b.free)
	for i := range n {
		if a.path[i] != b.path[i] {
			return i
		}
	}
	return n
}

// node is a position where branches part, or the start of all of them. Edges between nodes are as long as the
// difference of their depths, so that there are fewer nodes than branches.
type node struct {
	depth    int
	children []child
}

// child is a node, or a branch that shares nothing beyond its parent's depth.
type child struct {
	node *node // nil for a branch
	leaf int   // index of the branch; only without a node
	// first is the lowest example of the subtree: siblings stand in the order in which the examples come.
	first int
}

// newTrie makes the tree of the branches: the LCP intervals of their sorted order. It sorts with n log n comparisons
// and then compares neighbours only. The root has depth 0.
func newTrie(branches []branch) *node {
	order := make([]int, len(branches))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := branches[i], branches[j]
		return cmp.Or(slices.Compare(a.path[:a.free], b.path[:b.free]), cmp.Compare(a.item, b.item))
	})
	// shared[k] is what the k-th in order shares with the one before it; the ends share nothing.
	shared := make([]int, len(order)+1)
	for k := 1; k < len(order); k++ {
		shared[k] = common(branches[order[k-1]], branches[order[k]])
	}
	open := []*node{{}} // the path to the branch before, root first
	// closeTo closes the nodes deeper than depth, so that the last open one has that depth.
	closeTo := func(depth int) {
		for last := open[len(open)-1]; last.depth > depth; last = open[len(open)-1] {
			open = open[:len(open)-1]
			if open[len(open)-1].depth < depth {
				open = append(open, &node{depth: depth})
			}
			parent := open[len(open)-1]
			parent.children = append(parent.children, child{node: last, first: last.sortChildren()})
		}
	}
	for k, i := range order {
		closeTo(shared[k])
		if next := shared[k+1]; next > open[len(open)-1].depth {
			open = append(open, &node{depth: next})
		}
		parent := open[len(open)-1]
		parent.children = append(parent.children, child{leaf: i, first: branches[i].item})
	}
	closeTo(0)
	open[0].sortChildren()
	return open[0]
}

// sortChildren puts the children in the order of their lowest examples and returns the lowest of all.
func (n *node) sortChildren() int {
	slices.SortFunc(n.children, func(a, b child) int { return cmp.Compare(a.first, b.first) })
	if len(n.children) == 0 {
		return 0
	}
	return n.children[0].first
}

// walk is the tree depth first.
type walk struct {
	leaves []int // the branches in that order
	// cuts[k] is the depth of the node where leaf k parts from the one before it: what starting a new pack at leaf k
	// computes once more. cuts[0] is 0.
	cuts []int
}

func (w *walk) visit(n *node, cut int) {
	for _, c := range n.children {
		if c.node != nil {
			w.visit(c.node, cut)
		} else {
			w.leaves, w.cuts = append(w.leaves, c.leaf), append(w.cuts, cut)
		}
		cut = n.depth
	}
}
