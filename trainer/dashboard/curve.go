package dashboard

import "math"

// maxBuckets bounds what is kept of a curve.
const maxBuckets = 1024

// curve keeps columns of numbers over steps: the least, the greatest and the mean of each within buckets of as many steps
// as it takes for the whole to fit.
type curve struct {
	columns int
	width   int // samples in a full bucket
	buckets []bucket
}

// bucket is some samples in a row.
type bucket struct {
	first, last int // steps
	n           int
	tokens      int64   // trained up to the last step
	seconds     float64 // that the steps took up to it
	stats       []stat
	mix         [maxObjectives]int32 // examples
}

type stat struct{ low, high, sum float64 }

func (b *bucket) mean(column int) float64 { return b.stats[column].sum / float64(b.n) }

// sample is one step's numbers.
type sample struct {
	step    int
	tokens  int64
	seconds float64
	values  []float64
	mix     [maxObjectives]int32
}

func (c *curve) add(s sample) {
	if c.width == 0 {
		c.width, c.columns = 1, len(s.values)
	}
	if n := len(c.buckets); n > 0 && c.buckets[n-1].n < c.width {
		c.buckets[n-1].join(s.bucket())
		return
	}
	if len(c.buckets) == maxBuckets {
		c.halve()
	}
	c.buckets = append(c.buckets, s.bucket())
}

func (s sample) bucket() bucket {
	b := bucket{first: s.step, last: s.step, n: 1, tokens: s.tokens, seconds: s.seconds, mix: s.mix, stats: make([]stat, len(s.values))}
	for i, v := range s.values {
		b.stats[i] = stat{v, v, v}
	}
	return b
}

// join adds the next samples to a bucket.
func (b *bucket) join(next bucket) {
	b.last, b.tokens, b.seconds = next.last, next.tokens, next.seconds
	b.n += next.n
	for i, s := range next.stats {
		to := &b.stats[i]
		to.low, to.high, to.sum = min(to.low, s.low), max(to.high, s.high), to.sum+s.sum
	}
	for i, n := range next.mix {
		b.mix[i] += n
	}
}

// halve makes one bucket of each two.
func (c *curve) halve() {
	c.width *= 2
	half := len(c.buckets) / 2
	for i := range half {
		b := c.buckets[2*i]
		b.join(c.buckets[2*i+1])
		c.buckets[i] = b
	}
	clear(c.buckets[half:])
	c.buckets = c.buckets[:half]
}

// axis is what a curve is drawn over.
type axis struct {
	name string
	of   func(b *bucket) float64
}

var (
	overSteps  = axis{"step", func(b *bucket) float64 { return float64(b.last) }}
	overTokens = axis{"tokens", func(b *bucket) float64 { return float64(b.tokens) }}
	overTime   = axis{"time of training", func(b *bucket) float64 { return b.seconds }}
)

// thin returns at most about n buckets in equal parts of the axis: one for each column of pixels.
func (c *curve) thin(n int, over axis) []bucket {
	if len(c.buckets) <= n {
		return c.buckets
	}
	low, high := over.of(&c.buckets[0]), over.of(&c.buckets[len(c.buckets)-1])
	var thin []bucket
	at := -1
	for i := range c.buckets {
		b := c.buckets[i]
		column := 0
		if high > low {
			column = int((over.of(&b) - low) / (high - low) * float64(n-1))
		}
		if column == at {
			thin[len(thin)-1].join(b)
			continue
		}
		at = column
		b.stats = append([]stat(nil), b.stats...) // it is joined with others
		thin = append(thin, b)
	}
	return thin
}

// smooth returns an average of a column that weighs steps less the longer ago they were: to a third after about an
// eightieth of the run.
func smooth(buckets []bucket, column int) []float64 {
	total := 0
	for i := range buckets {
		total += buckets[i].n
	}
	decay := max(3, float64(total)/80)
	var sum, weight float64
	smoothed := make([]float64, len(buckets))
	for i := range buckets {
		keep := math.Exp(-float64(buckets[i].n) / decay)
		sum = sum*keep + (1-keep)*buckets[i].mean(column)
		weight = weight*keep + (1 - keep)
		smoothed[i] = sum / weight
	}
	return smoothed
}
