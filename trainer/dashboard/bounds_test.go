package dashboard

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
)

// longRun is as many steps as a large run has. Nothing is timed; what is asserted is what the time depends on.
const longRun = 100_000

func TestLongRunsStaySmall(t *testing.T) {
	folder := t.TempDir()
	f := begin(t, filepath.Join(folder, "long"), longRun, nil).steps(1, 99_000)
	s := open(t, folder)
	path := "/run/" + s.id("long")
	page := s.page(path)
	r := s.index.run(s.id("long"))
	assert.LessOrEqual(t, len(r.series.steps.buckets), maxBuckets)
	assert.Less(t, len(page), 200_000, "bytes of the page")
	for _, d := range regexp.MustCompile(` d="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		assert.LessOrEqual(t, strings.Count(d[1], "L")+strings.Count(d[1], "V"), 2*wideColumns+2, "points of a curve")
	}
	total := 0
	for _, b := range r.series.steps.buckets {
		total += b.n
	}
	assert.Equal(t, 99_000, total)

	read := r.follower.Offset()
	f.steps(99_001, longRun)
	assert.Contains(t, s.page(path), "of 100000")
	assert.Equal(t, longRun, r.series.last.Step)
	assert.Equal(t, int64(longRun*500), r.series.tokens)
	assert.Greater(t, r.follower.Offset(), read)
}

func TestExtremesSurviveThinning(t *testing.T) {
	var c curve
	for n := 1; n <= 50_000; n++ {
		v := 1.0
		switch n {
		case 31_234:
			v = 77
		case 44_444:
			v = 0.01
		}
		c.add(sample{step: n, values: []float64{v}})
	}
	low, high, steps := 9.0, 0.0, 0
	for _, b := range c.thin(100, overSteps) {
		low, high, steps = min(low, b.stats[0].low), max(high, b.stats[0].high), steps+b.n
	}
	assert.Equal(t, []float64{0.01, 77}, []float64{low, high}, "a column has its least and greatest value")
	assert.Equal(t, 50_000, steps)
	before, sum := len(c.buckets), c.buckets[0].stats[0].sum
	c.thin(10, overSteps)
	assert.Len(t, c.buckets, before)
	assert.Equal(t, sum, c.buckets[0].stats[0].sum, "thinning does not change the curve")
}

func TestSmoothing(t *testing.T) {
	var c curve
	for n := 1; n <= 400; n++ {
		c.add(sample{step: n, values: []float64{2 + float64(n%2)}})
	}
	smoothed := smooth(c.buckets, 0)
	assert.InDelta(t, 2.5, smoothed[len(smoothed)-1], 0.06, "what alternates is levelled")
	assert.Equal(t, 3.0, smoothed[0], "the first is not drawn to zero")
}

// Whatever numbers a file has: the page is made, in bounded time, and has none that is no number.
func TestNumbersWithoutMeasure(t *testing.T) {
	numbers := []string{"0", "-1", "1e308", "-1e308", "5e-324", "1e100", "-1e-300", "9e15", "1.0000000000000002", "1", "123456789012345680"}
	whole := []string{"0", "-5", "9223372036854775807", "-9223372036854775808", "7"}
	for i, a := range numbers {
		for j, b := range numbers {
			folder := t.TempDir()
			f := begin(t, filepath.Join(folder, "run"), 10, nil)
			at := 1
			for k, x := range []string{a, b, a, a, b} {
				if k == 4 {
					at = 9223372036854775807 // far from the others
				}
				n := whole[(i+j+k)%len(whole)]
				f.add(fmt.Sprintf(`{"step":%d,"loss":%s,"targets":%s,"tokens":%s,"lr":%s,"grad_norm":%s,"tokens_per_s":%s,"target_tokens_per_s":%s,"seconds":%s,"stage":%s,"epoch":%s,"time":"2026-11-01T12:00:0%dZ","objective":{"cft":%s}}`+"\n",
					at, x, n, n, x, x, x, x, x, n, x, k, n))
				f.add(fmt.Sprintf(`{"step":%d,"validation_loss":%s,"validation_targets":1}`+"\n", at, x))
				at++
			}
			s := open(t, folder)
			for _, text := range []string{s.page("/"), s.page("/run/" + s.id("run")), s.page("/compare?run=" + s.id("run"))} {
				for _, d := range regexp.MustCompile(`<(?:path|circle|text)[^>]*>`).FindAllString(text, -1) {
					assert.NotContains(t, d, "NaN", "%s and %s", a, b)
					assert.NotContains(t, d, "Inf", "%s and %s", a, b)
				}
			}
		}
	}
}

// Whatever is in the files of a run, its pages are made.
func FuzzRunFiles(f *testing.F) {
	f.Add(`{"step":1,"loss":2,"objective":{"cft":1}}`+"\n"+`{"step":2,"loss":2}`+"\n", "", "{}")
	f.Add("{", "\n\n", `{"format":1}`)
	f.Fuzz(func(t *testing.T, recorded, journal, configuration string) {
		folder := t.TempDir()
		x := begin(t, filepath.Join(folder, "run"), 3, nil)
		x.add(recorded)
		x.write(checkpoint.JournalName, journal)
		if configuration != "" {
			x.write(checkpoint.ConfigName, configuration)
		}
		index, err := NewIndex(folder)
		require.NoError(t, err)
		var b bytes.Buffer
		require.NoError(t, index.WriteStatic(&b))
		assert.Contains(t, b.String(), "</html>")
	})
}
