package engine

// #include "cft_infer.h"
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"
)

// LowRank is what an adapter adds to a weight: Scale * B A.
type LowRank struct {
	B     []float32 // [rows][rank], of the rows at hand
	A     []float32 // [rank][cols]
	Rank  int
	Scale float64
}

// MergeRows widens rows of a weight, as they lie in a GGUF file in ggml's type of that number, to F32 and adds what an
// adapter adds (nil: nothing). out has rows * cols elements.
func MergeRows(kind uint32, raw []byte, rows, cols int, add *LowRank, threads int, out []float32) error {
	const op = "merge_rows"
	if rows <= 0 || cols <= 0 || len(out) != rows*cols || len(raw) == 0 || threads < 0 {
		return invalid(op, fmt.Sprintf("%d rows of %d columns in %d bytes, %d floats for them", rows, cols, len(raw), len(out)))
	}
	var (
		ce   C.cft_error
		a, b *C.float
		rank int
		by   float64
	)
	if add != nil {
		if add.Rank <= 0 || len(add.B) != rows*add.Rank || len(add.A) != add.Rank*cols {
			return invalid(op, fmt.Sprintf("an adapter of rank %d with %d and %d values for %d x %d", add.Rank, len(add.B), len(add.A), rows, cols))
		}
		a, b = floats(add.A), floats(add.B)
		rank, by = add.Rank, add.Scale
	}
	status := C.cft_merge_rows(C.int32_t(kind), unsafe.Pointer(unsafe.SliceData(raw)), C.size_t(len(raw)), C.size_t(rows), C.size_t(cols), b, a,
		C.size_t(rank), C.float(by), C.int32_t(threads), floats(out), &ce)
	runtime.KeepAlive(add)
	return check(op, status, &ce)
}
