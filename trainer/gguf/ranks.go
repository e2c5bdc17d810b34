package gguf

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Suffixes of an adapter's tensors, after the name of the base tensor.
const (
	suffixA         = ".lora_a"
	suffixB         = ".lora_b"
	suffixMagnitude = ".lora_magnitude"
)

// Weights of the embedding and the head. The embedding's A is [vocabulary][rank] and its B [embedding][rank], as llama.cpp has
// them: the rows that tokens choose lie together.
const (
	TokenEmbd = "token_embd.weight"
	Output    = "output.weight"
)

// Pair is the tensors of one adapted weight.
type Pair struct {
	Weight    string // name of the base tensor: "blk.0.attn_q.weight"
	A, B      Tensor
	Magnitude Tensor // of DoRA, [out][1]; without data otherwise
}

// Rank is the pair's.
func (p Pair) Rank() int { return p.B.Cols }

// Factors are the two matrices whose product, times the scale, is added to the weight: [rows][rank] and [rank][columns].
func (p Pair) Factors() (left, right Tensor) {
	if p.Weight == TokenEmbd {
		return p.A, transposed(p.B)
	}
	return p.B, p.A
}

// baseName splits a tensor's name.
func baseName(name string) (weight, suffix string, err error) {
	for _, suffix := range []string{suffixA, suffixB, suffixMagnitude} {
		if weight, ok := strings.CutSuffix(name, suffix); ok {
			return weight, suffix, nil
		}
	}
	return "", "", bad("tensor %q is neither an A nor a B matrix, nor a magnitude", name)
}

// Pairs returns the tensors by the base tensor's name, sorted.
func (a Adapter) Pairs() ([]Pair, error) {
	found := map[string]*Pair{}
	for _, t := range a.Tensors {
		weight, suffix, err := baseName(t.Name)
		if err != nil {
			return nil, err
		}
		p := found[weight]
		if p == nil {
			p = &Pair{Weight: weight}
			found[weight] = p
		}
		switch suffix {
		case suffixA:
			p.A = t
		case suffixB:
			p.B = t
		default:
			p.Magnitude = t
		}
	}
	var pairs []Pair
	for _, weight := range slices.Sorted(maps.Keys(found)) {
		if err := found[weight].check(a.DoRA); err != nil {
			return nil, err
		}
		pairs = append(pairs, *found[weight])
	}
	return pairs, nil
}

// check makes sure that the tensors belong together.
func (p Pair) check(dora bool) error {
	for suffix, other := range map[string]Tensor{suffixA: p.A, suffixB: p.B, suffixMagnitude: p.Magnitude} {
		if other.Name == "" && (suffix != suffixMagnitude || dora) {
			return bad("%s%s is not there", p.Weight, suffix)
		}
	}
	rank := p.A.Rows
	if p.Weight == TokenEmbd {
		rank = p.A.Cols
	}
	switch {
	case rank != p.B.Cols:
		return bad("tensor %s has rank %d, %s has rank %d", p.A.Name, rank, p.B.Name, p.B.Cols)
	case p.Magnitude.Name != "" && !dora:
		return bad("tensor %s is there, but the adapter is not one of DoRA", p.Magnitude.Name)
	case dora && (p.Magnitude.Rows != p.B.Rows || p.Magnitude.Cols != 1):
		return bad("tensor %s is %d x %d, the weight has %d rows", p.Magnitude.Name, p.Magnitude.Rows, p.Magnitude.Cols, p.B.Rows)
	}
	return nil
}

// usualRank is the rank of most pairs; of equals, the larger.
func usualRank(pairs []Pair) int {
	counts := map[int]int{}
	for _, p := range pairs {
		counts[p.Rank()]++
	}
	usual := 0
	for rank, n := range counts {
		if n > counts[usual] || n == counts[usual] && rank > usual {
			usual = rank
		}
	}
	return usual
}

// AlphaOf is the alpha of one adapted weight.
func (a Adapter) AlphaOf(weight string) float64 {
	if alpha, other := a.Alphas[weight]; other {
		return alpha
	}
	return a.Alpha
}

// ScaleOf is the factor of a pair's B A x.
func (a Adapter) ScaleOf(p Pair) float64 {
	if a.RSLoRA {
		return a.AlphaOf(p.Weight) / math.Sqrt(float64(p.Rank()))
	}
	return a.AlphaOf(p.Weight) / float64(p.Rank())
}

// llamaAlpha is the one number that llama.cpp divides by each pair's rank; ok is false where no one number gives every pair its
// scale, or where there are magnitudes.
func (a Adapter) llamaAlpha(pairs []Pair) (alpha float64, ok bool) {
	for i, p := range pairs {
		// Where nothing differs, the very number that was configured.
		mine := a.AlphaOf(p.Weight)
		if a.RSLoRA {
			mine *= math.Sqrt(float64(p.Rank()))
		}
		if i > 0 && mine != alpha {
			return 0, false
		}
		alpha = mine
	}
	return alpha, !a.DoRA
}

// ErrNotLlama is wrapped by the error about an adapter that llama.cpp's adapter files cannot hold.
var ErrNotLlama = fmt.Errorf("llama.cpp has no adapters of this kind")

// ForLlama returns the adapter as llama.cpp can compute it: itself or, where modules have scales that one alpha does not give,
// one whose B matrices are multiplied to make up for that. DoRA is refused with ErrNotLlama.
func (a Adapter) ForLlama() (Adapter, error) {
	if a.DoRA {
		return Adapter{}, fmt.Errorf("%w: DoRA scales the rows of the adapted weights, which no pair of matrices does; export a merged model (--format=merged) or a PEFT folder (--format=peft)", ErrNotLlama)
	}
	pairs, err := a.Pairs()
	if err != nil {
		return Adapter{}, err
	}
	if _, ok := a.llamaAlpha(pairs); ok {
		return a, nil
	}
	folded := a
	folded.RSLoRA, folded.Alphas, folded.Tensors = false, nil, nil
	for _, p := range pairs {
		factor := float32(a.ScaleOf(p) / folded.ScaleOf(p))
		b := p.B
		b.Data = slices.Clone(b.Data)
		for i := range b.Data {
			b.Data[i] *= factor
		}
		folded.Tensors = append(folded.Tensors, p.A, b)
	}
	return folded, nil
}
