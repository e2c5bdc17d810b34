// Package testlimit bounds, in tests, what reading a small file may cost.
package testlimit

import (
	"runtime"
	"testing"
)

// SmallFile is the size of file up to which readers must stay within Allocated, in bytes.
const SmallFile = 1 << 20

// Allocated is what reading a small file may allocate in all, freed or not, in bytes: no length that the file claims is
// believed before as many bytes are seen.
const Allocated = 64 << 20

// Bound fails the test if read allocates more than Allocated. Nothing else may allocate meanwhile.
func Bound(tb testing.TB, read func()) {
	tb.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > Allocated {
		tb.Errorf("%d MiB were allocated, at most %d are allowed", n>>20, Allocated>>20)
	}
}
