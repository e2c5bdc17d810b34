package pack

import (
	"fmt"
	"slices"
)

// Split divides an example that is longer than seqLen positions into parts that are not. Every target is in exactly one
// part, and each part reads as much before its targets as fits: the first part is the example's beginning; a later one
// begins with the first keep tokens (1 keeps a BOS), goes on with text that the part before it has as well, about half of
// a pack, and learns what comes after that. A part without a target is left out. Its ID tells which part it is ("a:7#2").
//
// It fails when a pack is too small to read anything: seqLen below keep + 2.
func Split(e Example, seqLen, keep int) ([]Example, error) {
	n := Len(e)
	if n <= seqLen {
		return []Example{e}, nil
	}
	if seqLen < keep+2 {
		return nil, fmt.Errorf("example %s: a pack of %d tokens is too small to split it", e.ID, seqLen)
	}
	context := (seqLen - keep) / 2
	var parts []Example
	// A part takes the positions begin..end-1, and so the targets up to token end; those before learned are others'.
	for begin, learned, number := 0, 1, 1; learned <= n; number++ {
		lead := keep // tokens that are put in front
		if begin <= keep {
			begin, lead = 0, 0
		}
		end := min(n, begin+seqLen-lead)
		part := e
		part.ID = fmt.Sprintf("%s#%d", e.ID, number)
		part.Tokens = slices.Concat(e.Tokens[:lead], e.Tokens[begin:end+1])
		part.Labels = slices.Concat(e.Labels[:lead], e.Labels[begin:end+1])
		for i := range min(lead+learned-begin, len(part.Labels)) {
			part.Labels[i] = IgnoreTarget
		}
		if Len(part) > 0 {
			parts = append(parts, part)
		}
		learned = end + 1
		begin = end - context
	}
	return parts, nil
}
