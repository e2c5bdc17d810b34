package verify

import (
	"hash/maphash"
	"strings"
)

// Leakage says when a query counts as one of a test set's.
type Leakage struct {
	Words int     `json:"words"` // of the runs that are compared
	Share float64 `json:"share"` // of a query's runs that must be in one test set's query
}

// DefaultLeakage takes runs of 8 words: word problems are some 45 words long, and share no more by chance.
func DefaultLeakage() Leakage { return Leakage{Words: 8, Share: 0.5} }

// testIndex knows the queries of one test set by hashes.
type testIndex struct {
	name  string
	seed  maphash.Seed
	whole map[uint64]bool
	runs  map[uint64][]int32 // to the queries that have it
	n     int
}

func newTestIndex(name string) *testIndex {
	return &testIndex{name: name, seed: maphash.MakeSeed(), whole: map[uint64]bool{}, runs: map[uint64][]int32{}}
}

// runsOf returns the hashes of a normalized text's runs of words, each once.
func (t *testIndex) runsOf(text string, words int) map[uint64]bool {
	fields := strings.Fields(text)
	runs := map[uint64]bool{}
	for i := 0; i+words <= len(fields); i++ {
		runs[maphash.String(t.seed, strings.Join(fields[i:i+words], " "))] = true
	}
	return runs
}

func (t *testIndex) add(query string, l Leakage) {
	text := normalize(query)
	t.whole[maphash.String(t.seed, text)] = true
	for run := range t.runsOf(text, l.Words) {
		t.runs[run] = append(t.runs[run], int32(t.n))
	}
	t.n++
}

// has reports whether the test set asks exactly this query, or one that shares so many of its runs.
func (t *testIndex) has(query string, l Leakage) (exact, overlaps bool) {
	text := normalize(query)
	if t.whole[maphash.String(t.seed, text)] {
		return true, true
	}
	runs := t.runsOf(text, l.Words)
	shared := map[int32]int{}
	most := 0
	for run := range runs {
		for _, q := range t.runs[run] {
			shared[q]++
			most = max(most, shared[q])
		}
	}
	return false, len(runs) > 0 && float64(most) >= l.Share*float64(len(runs))
}
