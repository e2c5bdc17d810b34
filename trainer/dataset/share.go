package dataset

import (
	"fmt"
	"math"
	"slices"
)

// share says how many of a source's records an epoch has.
type share struct {
	first, records int
	whole          int // times that an epoch has all of them
	part           int // records beside these
}

// newShare takes sample, how many times an epoch has the source's records; 0 stands for 1.
func newShare(first, records int, sample float64) share {
	if sample == 0 {
		sample = 1
	}
	whole := math.Floor(sample)
	return share{first: first, records: records, whole: int(whole), part: int(math.Round((sample - whole) * float64(records)))}
}

func (s share) len() int { return s.whole*s.records + s.part }

// record returns the record at a place of an epoch's share. The part is taken from a fixed random order of the records,
// going on where the epoch before ended: with a sample of 0.5 two epochs have each record once.
func (s share) record(seed uint64, epoch, place int) int {
	if place < s.whole*s.records {
		return s.first + place%s.records
	}
	order := Order(seed^uint64(s.first)<<1, 0, s.records, true)
	return s.first + order((epoch*s.part+place-s.whole*s.records)%s.records)
}

// EpochLen returns the number of records of an epoch: that of all, unless sources have a sample.
func (s *Set) EpochLen() int {
	n := 0
	for _, share := range s.sources {
		n += share.len()
	}
	return n
}

// Order returns the order of an epoch as a function: place in the epoch -> record. It is the function Order over the
// epoch's records.
func (s *Set) Order(seed uint64, epoch int, shuffle bool) func(place int) int {
	n := s.EpochLen()
	place := Order(seed, epoch, n, shuffle)
	if n == s.len && !slices.ContainsFunc(s.sources, func(x share) bool { return x.whole != 1 || x.part != 0 }) {
		return place
	}
	var ends []int
	sum := 0
	for _, share := range s.sources {
		sum += share.len()
		ends = append(ends, sum)
	}
	return func(at int) int {
		if at < 0 || at >= n {
			panic(fmt.Sprintf("dataset: place %d in an epoch of %d records", at, n))
		}
		p := place(at)
		i, _ := slices.BinarySearch(ends, p+1)
		if i > 0 {
			p -= ends[i-1]
		}
		return s.sources[i].record(seed, epoch, p)
	}
}
