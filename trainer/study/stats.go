package study

import (
	"math"
	"math/rand/v2"
	"slices"

	"cftune/trainer/evaluate"
)

// cell is one judgement: whether it hits, and which of two classes the thing judged belongs to.
type cell struct{ class, hit bool }

// grid has a row for each seed and a column for each item. The base model has one row, which stands for every seed.
type grid [][]cell

func (g grid) at(seed, item int) cell { return g[seed%len(g)][item] }

// count is what a statistic is made of.
type count struct{ n, hits [2]int }

func (c *count) add(x cell) {
	class := 0
	if x.class {
		class = 1
	}
	c.n[class]++
	if x.hit {
		c.hits[class]++
	}
}

// share is the share of hits; balanced, the mean of the two classes' shares, so that saying the same of everything is
// worth one half whatever the classes' sizes. It is not a number where a share has no items.
func (c count) share(balanced bool) float64 {
	if balanced {
		return (float64(c.hits[0])/float64(c.n[0]) + float64(c.hits[1])/float64(c.n[1])) / 2
	}
	return float64(c.hits[0]+c.hits[1]) / float64(c.n[0]+c.n[1])
}

// Estimate is a share with its interval.
type Estimate struct {
	Value float64 `json:"value"`
	evaluate.Interval
	Items int `json:"items"`
	Seeds int `json:"seeds"`
}

// Effect is a paired difference of two shares.
type Effect struct {
	Estimate
	P float64 `json:"p"`
	// BySeed are the differences that the seeds give one by one, each with McNemar's exact test over items.
	BySeed []SeedEffect `json:"by_seed,omitempty"`
}

// SeedEffect is what one seed gives.
type SeedEffect struct {
	Value float64 `json:"value"`
	OnlyA int     `json:"only_first"`
	OnlyB int     `json:"only_second"`
	P     float64 `json:"p"`
}

const (
	rounds    = 10_000
	level     = 0.95
	statsSeed = 0x73747564 // "stud": a report is the same each time it is made
)

// estimate gives a share with the interval of a hierarchical bootstrap. ok is false where it cannot be measured.
func estimate(g grid, balanced bool, level float64) (e Estimate, ok bool) {
	c := compare{a: g, balanced: balanced}
	return c.estimate(level)
}

// difference compares a with b, item by item and seed by seed.
func difference(a, b grid, balanced bool, level float64) (e Effect, ok bool) {
	c := compare{a: a, b: b, balanced: balanced}
	if e.Estimate, ok = c.estimate(level); !ok {
		return e, false
	}
	e.P = c.permute()
	if !balanced {
		e.BySeed = c.bySeed()
	}
	return e, true
}

// compare is one comparison; without b, the share of a.
type compare struct {
	a, b     grid
	balanced bool
}

func (c compare) seeds() int { return max(len(c.a), len(c.b)) }

func (c compare) items() int {
	if len(c.a) == 0 {
		return 0
	}
	return len(c.a[0])
}

// added are rows of nobody, one cell for each side, that are drawn with the others: draws of a few rows that all agree would all agree, and
// an interval without width claim to know of rare rows. A share gets two hits and two misses (Agresti and Coull 1998), a paired difference a row that
// only a has right and one that only b has (Bonett and Price 2012), and where classes count half each, each class one hit and one miss of each side
// (Agresti and Caffo 2000).
func (c compare) added() [][2]cell {
	rows := [][2]cell{{{hit: true}, {}}, {{}, {hit: true}}}
	switch {
	case c.balanced:
		for _, r := range rows {
			r[0].class, r[1].class = true, true
			rows = append(rows, r)
		}
	case c.b == nil:
		rows = append(rows, rows...)
	}
	return rows
}

// value is the statistic over seeds and items; swap tells where a and b change places.
func (c compare) value(seeds, items []int, swap []bool) float64 {
	return c.share(c.tally(seeds, items, swap))
}

// tally counts drawn seeds and items for each side.
func (c compare) tally(seeds, items []int, swap []bool) (of [2]count) {
	for _, i := range items {
		first, second := 0, 1
		if swap != nil && swap[i] {
			first, second = 1, 0
		}
		for _, s := range seeds {
			of[first].add(c.a.at(s, i))
			if c.b != nil {
				of[second].add(c.b.at(s, i))
			}
		}
	}
	return of
}

func (c compare) share(of [2]count) float64 {
	v := of[0].share(c.balanced)
	if c.b != nil {
		v -= of[1].share(c.balanced)
	}
	return v
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// estimate draws seeds and then items, both with replacement and the same for a and b, and takes the percentiles; some items are added to
// those that are drawn from, not to the value. Draws without an item of a class are drawn again.
func (c compare) estimate(level float64) (Estimate, bool) {
	e := Estimate{Items: c.items(), Seeds: c.seeds()}
	if e.Items == 0 || e.Seeds == 0 {
		return e, false
	}
	if e.Value = c.value(upTo(e.Seeds), upTo(e.Items), nil); math.IsNaN(e.Value) {
		return e, false
	}
	rng := rand.New(rand.NewPCG(statsSeed, 1))
	values := make([]float64, 0, rounds)
	added := c.added()
	all := e.Items + len(added)
	seeds, items, extra := make([]int, e.Seeds), make([]int, 0, all), make([][2]cell, 0, all)
	for tries := 0; len(values) < rounds && tries < 10*rounds; tries++ {
		for i := range seeds {
			seeds[i] = rng.IntN(e.Seeds)
		}
		items, extra = items[:0], extra[:0]
		for range all {
			if i := rng.IntN(all); i < e.Items {
				items = append(items, i)
			} else {
				extra = append(extra, added[i-e.Items])
			}
		}
		of := c.tally(seeds, items, nil)
		if math.IsNaN(c.share(of)) {
			continue
		}
		for _, row := range extra {
			for range seeds {
				of[0].add(row[0])
				of[1].add(row[1])
			}
		}
		values = append(values, c.share(of))
	}
	if len(values) < rounds {
		return e, false // a class is so rare that most draws have none of it
	}
	slices.Sort(values)
	tail := (1 - level) / 2
	at := func(q float64) float64 { return values[int(math.Round(q*float64(len(values)-1)))] }
	e.Low, e.High = min(at(tail), e.Value), max(at(1-tail), e.Value) // which the added items draw to the middle
	return e, true
}

// permute is the two-sided p-value of a permutation test: if a and b are alike, it does not matter which is which at an
// item. An item changes places for all its seeds together.
func (c compare) permute() float64 {
	rng := rand.New(rand.NewPCG(statsSeed, 2))
	seeds, items := upTo(c.seeds()), upTo(c.items())
	observed := math.Abs(c.value(seeds, items, nil))
	const slack = 1e-12 // of rounding: equal splits count as equal
	asFar := 0
	swap := make([]bool, len(items))
	for range rounds {
		for i := range swap {
			swap[i] = rng.Uint64()&1 == 1
		}
		if v := math.Abs(c.value(seeds, items, swap)); !(v < observed-slack) {
			asFar++
		}
	}
	return float64(asFar+1) / (rounds + 1)
}

func (c compare) bySeed() []SeedEffect {
	var effects []SeedEffect
	for s := range c.seeds() {
		var e SeedEffect
		for i := range c.items() {
			switch a, b := c.a.at(s, i).hit, c.b.at(s, i).hit; {
			case a && !b:
				e.OnlyA++
			case b && !a:
				e.OnlyB++
			}
		}
		e.Value = float64(e.OnlyA-e.OnlyB) / float64(c.items())
		e.P = evaluate.McNemar(e.OnlyA, e.OnlyB)
		effects = append(effects, e)
	}
	return effects
}

// holm adjusts p-values for their number (Holm 1979).
func holm(p []float64) []float64 {
	order := upTo(len(p))
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case p[a] < p[b]:
			return -1
		case p[a] > p[b]:
			return 1
		}
		return a - b
	})
	adjusted := make([]float64, len(p))
	largest := 0.0
	for k, i := range order {
		largest = max(largest, min(1, p[i]*float64(len(p)-k)))
		adjusted[i] = largest
	}
	return adjusted
}
