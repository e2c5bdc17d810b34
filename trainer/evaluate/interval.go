package evaluate

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Interval is a range that a share lies in with 95 % confidence.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Share is a count of successes among n, as a share with its interval.
type Share struct {
	Count int `json:"count"`
	N     int `json:"n"`
	Interval
}

// Value is the share itself; 0 of 0 is 0.
func (s Share) Value() float64 {
	if s.N == 0 {
		return 0
	}
	return float64(s.Count) / float64(s.N)
}

// z95 is the normal distribution's 97.5 % quantile: two sides of 2.5 % stay outside.
const z95 = 1.959963984540054

// NewShare counts the successes and gives them their Wilson interval.
func NewShare(successes []bool) Share {
	s := Share{N: len(successes)}
	for _, ok := range successes {
		if ok {
			s.Count++
		}
	}
	s.Interval = Wilson(s.Count, s.N)
	return s
}

// Wilson returns the Wilson score interval of k successes in n trials (Wilson 1927). Unlike the textbook interval it
// stays within 0..1 and has a width at 0 and n. Without trials it is all of 0..1.
func Wilson(k, n int) Interval {
	if n == 0 {
		return Interval{0, 1}
	}
	p, m := float64(k)/float64(n), float64(n)
	center := p + z95*z95/(2*m)
	half := z95 * math.Sqrt(p*(1-p)/m+z95*z95/(4*m*m))
	scale := 1 + z95*z95/m
	return Interval{max(0, (center-half)/scale), min(1, (center+half)/scale)}
}

// Difference is a paired comparison of two systems on the same items.
type Difference struct {
	Value    float64 `json:"value"` // share of a minus share of b
	Interval         // of Value, by bootstrap over items
	OnlyA    int     `json:"only_a"` // items that a alone has right
	OnlyB    int     `json:"only_b"`
	P        float64 `json:"p"` // exact McNemar test, two-sided: how likely so uneven a split is if neither is better
}

// bootstrapRounds makes the ends of the interval good to about a tenth of a percentage point at 200 items.
const bootstrapRounds = 10_000

// Compare compares a with b, item by item. They must have the same length.
func Compare(a, b []bool, seed uint64) Difference {
	if len(a) != len(b) {
		panic("evaluate: compared systems have different items")
	}
	var d Difference
	steps := make([]int, len(a)) // a's success minus b's
	for i := range a {
		switch {
		case a[i] && !b[i]:
			steps[i] = 1
			d.OnlyA++
		case b[i] && !a[i]:
			steps[i] = -1
			d.OnlyB++
		}
	}
	d.P = McNemar(d.OnlyA, d.OnlyB)
	if len(a) == 0 {
		d.Interval = Interval{-1, 1}
		return d
	}
	d.Value = float64(d.OnlyA-d.OnlyB) / float64(len(a))
	d.Interval = bootstrap(steps, rand.New(rand.NewPCG(seed, 0x626f6f74)))
	return d
}

// bootstrap returns the percentile interval of the mean.
func bootstrap(values []int, rng *rand.Rand) Interval {
	sums := make([]int, bootstrapRounds)
	for r := range sums {
		for range values {
			sums[r] += values[rng.IntN(len(values))]
		}
	}
	slices.Sort(sums)
	at := func(q float64) float64 {
		return float64(sums[int(math.Round(q*float64(len(sums)-1)))]) / float64(len(values))
	}
	return Interval{at(0.025), at(0.975)}
}

// McNemar returns the two-sided p-value of the exact McNemar test: of b + c pairs that differ, b one way and c the other.
func McNemar(b, c int) float64 {
	n := b + c
	if n == 0 {
		return 1
	}
	p := 0.0
	for k := range min(b, c) + 1 {
		p += math.Exp(logChoose(n, k) - float64(n)*math.Ln2)
	}
	return min(1, 2*p)
}

func logChoose(n, k int) float64 {
	lgamma := func(x int) float64 {
		v, _ := math.Lgamma(float64(x))
		return v
	}
	return lgamma(n+1) - lgamma(k+1) - lgamma(n-k+1)
}
