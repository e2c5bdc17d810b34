package pack

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Targets returns the next-token targets of one example from its labels. Position i predicts labels[i+1]; the last
// position has nothing to predict, and a label at position 0 has no position that predicts it.
//
// This is the only place where tokens are shifted.
func Targets(labels []int32) []int32 {
	targets := make([]int32, len(labels))
	for i := range targets {
		targets[i] = IgnoreTarget
		if i+1 < len(labels) {
			targets[i] = labels[i+1]
		}
	}
	return targets
}

// Len returns the number of positions that the example takes in a pack: those up to its last target. It is 0 when the
// example has no target. The last supervised token takes no position itself: it is predicted, never read.
func Len(e Example) int {
	for i := len(e.Labels) - 1; i > 0; i-- {
		if e.Labels[i] != IgnoreTarget {
			return i
		}
	}
	return 0
}

// NumTargets returns the number of positions that have a target.
func NumTargets(e Example) int {
	n := 0
	for _, label := range e.Labels[min(1, len(e.Labels)):] {
		if label != IgnoreTarget {
			n++
		}
	}
	return n
}

// ErrNoTargets is wrapped by Check's error for an example without a target.
var ErrNoTargets = errors.New("no token is supervised")

// Check reports an example that cannot be trained on: tokens and labels of different lengths, a token or label outside
// 0..vocabulary-1 (labels may also be IgnoreTarget), a weight that is not a positive finite number, or no target.
func Check(e Example, vocabulary int) error {
	if len(e.Tokens) != len(e.Labels) {
		return fmt.Errorf("example %s: %d tokens but %d labels", e.ID, len(e.Tokens), len(e.Labels))
	}
	for i, token := range e.Tokens {
		if token < 0 || int(token) >= vocabulary {
			return fmt.Errorf("example %s: token %d at position %d is outside the vocabulary of %d", e.ID, token, i, vocabulary)
		}
	}
	for i, label := range e.Labels {
		if label != IgnoreTarget && (label < 0 || int(label) >= vocabulary) {
			return fmt.Errorf("example %s: label %d at position %d is outside the vocabulary of %d", e.ID, label, i, vocabulary)
		}
	}
	if w := float64(e.Weight); !(w > 0) || math.IsInf(w, 0) {
		return fmt.Errorf("example %s: weight must be a finite number above 0, got %v", e.ID, e.Weight)
	}
	if NumTargets(e) == 0 {
		return fmt.Errorf("example %s: %w", e.ID, ErrNoTargets)
	}
	return nil
}

// TooLong says that examples do not fit into a pack.
type TooLong struct {
	SeqLen  int    // capacity of a pack
	Count   int    // examples that do not fit
	Of      int    // examples looked at
	Longest int    // positions that the longest of them takes
	First   string // ID of the first one
}

func (e *TooLong) Error() string {
	return fmt.Sprintf("%d of %d examples are longer than the pack of %d tokens: the longest has %d, the first is %s",
		e.Count, e.Of, e.SeqLen, e.Longest, e.First)
}

// Fit returns a *TooLong if an example takes more than seqLen positions, nil otherwise.
func Fit(examples []Example, seqLen int) error {
	found := TooLong{SeqLen: seqLen, Of: len(examples)}
	for _, e := range examples {
		n := Len(e)
		if n <= seqLen {
			continue
		}
		if found.Count == 0 {
			found.First = e.ID
		}
		found.Count++
		found.Longest = max(found.Longest, n)
	}
	if found.Count == 0 {
		return nil
	}
	return &found
}

// TruncatePrompt drops tokens from the start of the example's prompt until the example fits into seqLen positions. The
// first keep tokens stay (1 keeps a BOS). It fails when the targets alone do not fit.
func TruncatePrompt(e Example, seqLen, keep int) (Example, error) {
	excess := Len(e) - seqLen
	if excess <= 0 {
		return e, nil
	}
	first := 1
	for first < len(e.Labels) && e.Labels[first] == IgnoreTarget {
		first++
	}
	// Position first-1 predicts the first target and must stay.
	if droppable := first - 1 - keep; excess > droppable {
		return Example{}, fmt.Errorf("example %s: %d tokens over a pack of %d, but its prompt has only %d to drop",
			e.ID, excess, seqLen, max(0, droppable))
	}
	e.Tokens = slices.Concat(e.Tokens[:keep], e.Tokens[keep+excess:])
	e.Labels = slices.Concat(e.Labels[:keep], e.Labels[keep+excess:])
	return e, nil
}

// Plan distributes items of the given lengths over packs of at most seqLen and returns each pack's items, ascending.
//
// It is best-fit decreasing: from the longest to the shortest (equal ones in order), each item goes to the fullest
// pack that it fits into, the earliest of equals. Every length must be within 1..seqLen.
func Plan(lengths []int, seqLen int) [][]int {
	order := make([]int, len(lengths))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return lengths[b] - lengths[a] })

	var packs [][]int
	var room []int
	for _, item := range order {
		n := lengths[item]
		if n < 1 || n > seqLen {
			panic(fmt.Sprintf("pack: item %d has length %d, outside 1..%d", item, n, seqLen))
		}
		best := -1
		for p, r := range room {
			if n <= r && (best < 0 || r < room[best]) {
				best = p
			}
		}
		if best < 0 {
			packs, room = append(packs, nil), append(room, seqLen)
			best = len(packs) - 1
		}
		packs[best] = append(packs[best], item)
		room[best] -= n
	}
	for _, p := range packs {
		slices.Sort(p)
	}
	return packs
}

// Build packs the examples of one accumulation group into batches of at most seqLen tokens, as Plan lays them out.
// Positions restart with each example, and no example sees another. The error is a *TooLong, or wraps ErrNoTargets.
func Build(examples []Example, seqLen int) ([]Batch, error) {
	if err := Fit(examples, seqLen); err != nil {
		return nil, err
	}
	lengths := make([]int, len(examples))
	for i, e := range examples {
		if len(e.Tokens) != len(e.Labels) {
			return nil, fmt.Errorf("example %s: %d tokens but %d labels", e.ID, len(e.Tokens), len(e.Labels))
		}
		if lengths[i] = Len(e); lengths[i] == 0 {
			return nil, fmt.Errorf("example %s: %w", e.ID, ErrNoTargets)
		}
	}
	plan := Plan(lengths, seqLen)
	batches := make([]Batch, len(plan))
	for p, items := range plan {
		for _, i := range items {
			batches[p].add(examples[i], lengths[i])
		}
	}
	return batches, nil
}

// add appends the first n positions of the example as a segment of its own.
func (b *Batch) add(e Example, n int) {
	start := len(b.Tokens)
	targets := Targets(e.Labels)
	for i := range n {
		weight := e.Weight
		if targets[i] == IgnoreTarget {
			weight = 0
		}
		b.Tokens = append(b.Tokens, e.Tokens[i])
		b.Targets = append(b.Targets, targets[i])
		b.Positions = append(b.Positions, int32(i))
		b.VisibleUntil = append(b.VisibleUntil, int32(start+n))
		b.Weights = append(b.Weights, weight)
	}
}

// NumTargets returns the number of positions that have a target.
func (b Batch) NumTargets() int {
	n := 0
	for _, target := range b.Targets {
		if target != IgnoreTarget {
			n++
		}
	}
	return n
}
