package pack

// treeSize is the number of positions that a pack of these examples takes, laid out as addTree does.
func treeSize(branches []branch, items []int) int {
	size := 0
	for k, item := range items {
		size += branches[item].depth
		if k > 0 {
			size -= common(branches[items[k-1]], branches[item])
		}
	}
	return size
}

// addTree appends a forest, depth first: each example adds what it does not share with the one before it. That is all
// it can share, since the examples stand in the order of a walk.
func (b *Batch) addTree(examples []Example, branches []branch, items []int) {
	var path []int // indices of the positions from the root to the last one
	end := func(from int) {
		for _, i := range path[from:] {
			b.VisibleUntil[i] = int32(len(b.Tokens))
		}
		path = path[:from]
	}
	for k, item := range items {
		shared := 0
		if k > 0 {
			shared = common(branches[items[k-1]], branches[item])
		}
		end(shared)
		e := examples[item]
		targets := Targets(e.Labels)
		for i := shared; i < branches[item].depth; i++ {
			weight := e.Weight
			if targets[i] == IgnoreTarget {
				weight = 0
			}
			path = append(path, len(b.Tokens))
			b.Tokens = append(b.Tokens, e.Tokens[i])
			b.Targets = append(b.Targets, targets[i])
			b.Positions = append(b.Positions, int32(i))
			b.VisibleUntil = append(b.VisibleUntil, 0) // set when the walk leaves the position
			b.Weights = append(b.Weights, weight)
		}
	}
	end(0)
}
