package evaluate

import (
	"math"
	"math/rand/v2"
	"slices"
)

// PassAt is the unbiased estimate of the chance that at least one of k answers is right, where c of n drawn ones are
// (Chen et al. 2021): 1 - C(n-c, k) / C(n, k). It needs k <= n.
func PassAt(n, c, k int) float64 {
	if k > n || k < 1 || c < 0 || c > n {
		panic("evaluate: pass@k needs 1 <= k <= n and 0 <= c <= n")
	}
	if n-c < k {
		return 1
	}
	miss := 1.0
	for i := n - c + 1; i <= n; i++ {
		miss *= 1 - float64(k)/float64(i)
	}
	return 1 - miss
}

// Estimate is a figure with its interval.
type Estimate struct {
	Value float64 `json:"value"`
	Interval
}

// Mean returns the mean of the values, with a percentile interval by bootstrap over them.
func Mean(values []float64, seed uint64) Estimate {
	return Resampled(len(values), seed, func(pick []int) float64 {
		sum := 0.0
		for _, i := range pick {
			sum += values[i]
		}
		return sum / float64(len(pick))
	})
}

// resamples makes an interval's ends good to some tenths of a percent of the figure's spread.
const resamples = 2000

// Resampled returns a figure of n items with a percentile interval by bootstrap: of picks all items, then of items drawn with
// repetition. Without items all is 0.
func Resampled(n int, seed uint64, of func(pick []int) float64) Estimate {
	if n == 0 {
		return Estimate{}
	}
	pick := make([]int, n)
	for i := range pick {
		pick[i] = i
	}
	e := Estimate{Value: of(pick)}
	rng := rand.New(rand.NewPCG(seed, 0x72657361))
	values := make([]float64, resamples)
	for r := range values {
		for i := range pick {
			pick[i] = rng.IntN(n)
		}
		values[r] = of(pick)
	}
	slices.Sort(values)
	e.Interval = Interval{values[resamples*25/1000], values[resamples*975/1000]}
	return e
}

// Balanced is the mean of two shares: of right answers that were judged right, and of wrong ones judged wrong. A judge
// that always says the same has 0.5; one that gives no verdict is wrong. Where only one kind is there, it is that share.
//
// The interval comes from the shares' own by the square-and-add rule (Newcombe 1998, Zou and Donner 2008). A bootstrap has no width where each
// share is 0 or 1, as if a few rows were certainty.
func Balanced(verdicts []Verdict, right []bool) Estimate {
	var hits [2][]bool
	for i, v := range verdicts {
		kind := 0
		if right[i] {
			kind = 1
		}
		hits[kind] = append(hits[kind], v == Of(right[i]))
	}
	one, other := NewShare(hits[0]), NewShare(hits[1])
	switch {
	case one.N+other.N == 0:
		return Estimate{}
	case one.N == 0:
		return Estimate{other.Value(), other.Interval}
	case other.N == 0:
		return Estimate{one.Value(), one.Interval}
	}
	below := math.Hypot(one.Value()-one.Low, other.Value()-other.Low)
	above := math.Hypot(one.High-one.Value(), other.High-other.Value())
	mean := (one.Value() + other.Value()) / 2
	return Estimate{mean, Interval{mean - below/2, mean + above/2}}
}
