package dataset

import (
	"fmt"
	"math/bits"
)

// Cursor is a place in the run's order of records: the next one to read.
type Cursor struct {
	Epoch int `json:"epoch"` // from 0
	Index int `json:"index"` // within the epoch's order, from 0
}

// feistelRounds: four rounds with a pseudo-random function give a pseudo-random permutation (Luby and Rackoff 1988);
// the doubling is for small n, where a half has few bits.
const feistelRounds = 8

// Order returns the order of an epoch's n records as a function: place in the epoch -> record. Without shuffle it is
// the identity.
//
// The function is a permutation of 0..n-1 keyed by (seed, epoch): a balanced Feistel network over the least even number
// of bits that holds n, applied again while its value is outside (cycle walking: fewer than four times on average). So
// any place can be asked for in constant time and nothing is stored.
func Order(seed uint64, epoch, n int, shuffle bool) func(index int) int {
	if n < 0 || epoch < 0 {
		panic(fmt.Sprintf("dataset: order of epoch %d of %d records", epoch, n))
	}
	half := max(1, (bits.Len64(uint64(max(1, n)-1))+1)/2)
	mask := uint64(1)<<half - 1
	var keys [feistelRounds]uint64
	for i := range keys {
		keys[i] = mix64(mix64(mix64(seed)^uint64(epoch)) ^ uint64(i))
	}
	return func(index int) int {
		if index < 0 || index >= n {
			panic(fmt.Sprintf("dataset: place %d in an epoch of %d records", index, n))
		}
		if !shuffle {
			return index
		}
		x := uint64(index)
		for {
			left, right := x>>half, x&mask
			for _, key := range keys {
				left, right = right, left^(mix64(right^key)&mask)
			}
			if x = left<<half | right; x < uint64(n) {
				return int(x)
			}
		}
	}
}

// mix64 is SplitMix64's step (Steele, Lea, Flood 2014): increment, then finalizer.
func mix64(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
