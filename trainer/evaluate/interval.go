package evaluate

import "math"

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
	Interval         // of Value, Tango's
	OnlyA    int     `json:"only_a"` // items that a alone has right
	OnlyB    int     `json:"only_b"`
	P        float64 `json:"p"` // exact McNemar test, two-sided: how likely so uneven a split is if neither is better
}

// Compare compares a with b, item by item. They must have the same length.
func Compare(a, b []bool) Difference {
	if len(a) != len(b) {
		panic("evaluate: compared systems have different items")
	}
	var d Difference
	for i := range a {
		switch {
		case a[i] && !b[i]:
			d.OnlyA++
		case b[i] && !a[i]:
			d.OnlyB++
		}
	}
	d.P = McNemar(d.OnlyA, d.OnlyB)
	d.Interval = Tango(d.OnlyA, d.OnlyB, len(a))
	if len(a) > 0 {
		d.Value = float64(d.OnlyA-d.OnlyB) / float64(len(a))
	}
	return d
}

// Tango returns the score interval of a paired difference of shares (Tango 1998): of n pairs b differ one way and c the other. It has a width where
// none differ, and stays within -1..1. Without pairs it is all of that.
func Tango(b, c, n int) Interval {
	if n == 0 {
		return Interval{-1, 1}
	}
	value := float64(b-c) / float64(n)
	// The statistic falls as the difference grows, so each end is found by halving.
	end := func(low, high, statistic float64) float64 {
		for range 60 {
			if middle := low + (high-low)/2; tangoStatistic(b, c, n, middle) > statistic {
				low = middle
			} else {
				high = middle
			}
		}
		return low + (high-low)/2
	}
	return Interval{end(-1, value, z95), end(value, 1, -z95)}
}

// tangoStatistic is how many standard errors the observed difference lies above delta, if that is the true one: with the likeliest share of pairs
// that differ the other way, given delta.
func tangoStatistic(b, c, n int, delta float64) float64 {
	fb, fc, fn := float64(b), float64(c), float64(n)
	off := fb - fc - fn*delta
	if off == 0 {
		return 0
	}
	linear := (2*fn-fb+fc)*delta - fb - fc
	share := (math.Sqrt(max(0, linear*linear+8*fn*fc*delta*(1-delta))) - linear) / (4 * fn)
	return off / math.Sqrt(fn*max(0, 2*share+delta*(1-delta)))
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
