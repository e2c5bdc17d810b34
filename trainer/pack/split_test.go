package pack

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every target is learned once, after the text that stands before it.
func TestSplitLosesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		n, seqLen, keep := 2+rng.IntN(60), 3+rng.IntN(20), rng.IntN(2)
		e := Example{ID: "a:1", Weight: 2, Objective: "sft"}
		for i := range n {
			e.Tokens = append(e.Tokens, int32(i))
			label := int32(IgnoreTarget)
			if rng.IntN(3) > 0 {
				label = int32(1000 + i)
			}
			e.Labels = append(e.Labels, label)
		}
		parts, err := Split(e, seqLen, keep)
		require.NoError(t, err)
		seen := map[int32]int{}
		for _, p := range parts {
			assert.LessOrEqual(t, Len(p), seqLen)
			assert.EqualValues(t, 2, p.Weight)
			targets := Targets(p.Labels)
			for i, target := range targets {
				if target == IgnoreTarget {
					continue
				}
				seen[target]++
				assert.Equal(t, target-1000-1, p.Tokens[i], "the token before a target is another")
				if i > keep {
					assert.Equal(t, p.Tokens[i]-1, p.Tokens[i-1], "the text before a target has a gap")
				}
			}
			if keep > 0 {
				assert.EqualValues(t, 0, p.Tokens[0])
			}
		}
		for i, label := range e.Labels {
			if i > 0 && label != IgnoreTarget {
				assert.Equal(t, 1, seen[label], "token %d of %d, pack %d", i, n, seqLen)
				delete(seen, label)
			}
		}
		assert.Empty(t, seen, "something was learned that is not to be")
	}
}

func TestSplitReadsBack(t *testing.T) {
	e := Example{ID: "a:7", Weight: 1}
	for i := range 21 { // 20 positions
		e.Tokens, e.Labels = append(e.Tokens, int32(i)), append(e.Labels, int32(i))
	}
	parts, err := Split(e, 9, 1)
	require.NoError(t, err)
	var ids []string
	for _, p := range parts {
		ids = append(ids, p.ID)
	}
	assert.Equal(t, "a:7#1 a:7#2 a:7#3 a:7#4", strings.Join(ids, " "))
	assert.Equal(t, []int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, parts[0].Tokens)
	assert.Equal(t, []int32{0, 5, 6, 7, 8, 9, 10, 11, 12, 13}, parts[1].Tokens, "the first token, and half a pack of what was read")
	assert.Equal(t, 4, NumTargets(parts[1]))

	whole, err := Split(e, 20, 0)
	require.NoError(t, err)
	assert.Equal(t, []Example{e}, whole, "what fits stays")
	_, err = Split(e, 2, 1)
	assert.ErrorContains(t, err, "a pack of 2 tokens is too small")
}
