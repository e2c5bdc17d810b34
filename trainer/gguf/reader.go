package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/bits"
)

// reader reads a head and keeps the first error; after it, reads return zeros. at never exceeds size.
type reader struct {
	r    *bufio.Reader
	at   int64
	size int64
	err  error
}

func newReader(r io.Reader, size int64) *reader {
	return &reader{r: bufio.NewReaderSize(r, 1<<16), size: size}
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = bad(format, args...)
	}
}

// need reports whether n more bytes are in the file: the check before any memory is taken for them.
func (r *reader) need(n uint64) bool {
	if r.err != nil {
		return false
	}
	if left := uint64(r.size - r.at); n > left {
		r.fail("it is cut off: at byte %d, %d more bytes are claimed and %d are there", r.at, n, left)
		return false
	}
	return true
}

func (r *reader) bytes(n uint64) []byte {
	if !r.need(n) {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			r.fail("it became shorter while it was read")
		} else {
			r.err = err
		}
		return nil
	}
	r.at += int64(n)
	return b
}

func (r *reader) fixed(n int) uint64 {
	var b [8]byte
	copy(b[:], r.bytes(uint64(n)))
	return binary.LittleEndian.Uint64(b[:])
}

func (r *reader) u32() uint32 { return uint32(r.fixed(4)) }
func (r *reader) u64() uint64 { return r.fixed(8) }

func (r *reader) str(limit uint64) string {
	n := r.u64()
	if r.err == nil && n > limit {
		r.fail("a text of %d bytes", n)
		return ""
	}
	return string(r.bytes(n))
}

// value reads a value of the given type.
func (r *reader) value(kind ValueType, depth int) any {
	switch kind {
	case Uint8, Uint16, Uint32, Uint64:
		return r.unsigned(kind)
	case Int8, Int16, Int32, Int64:
		return r.signed(kind)
	case Float32, Float64:
		return r.float(kind)
	case Bool:
		return r.boolean()
	case String:
		return r.str(maxStringBytes)
	case Array:
		return r.array(depth)
	}
	r.fail("value type %d does not exist", kind)
	return nil
}

func (r *reader) unsigned(kind ValueType) uint64 {
	n, _ := kind.size()
	return r.fixed(n)
}

func (r *reader) signed(kind ValueType) int64 {
	n, _ := kind.size()
	shift := 64 - 8*n
	return int64(r.fixed(n)<<shift) >> shift
}

func (r *reader) float(kind ValueType) float64 {
	if kind == Float32 {
		return float64(math.Float32frombits(r.u32()))
	}
	return math.Float64frombits(r.u64())
}

func (r *reader) boolean() bool {
	b := r.fixed(1)
	if r.err == nil && b > 1 {
		r.fail("a truth value is %d", b)
	}
	return b == 1
}

// array reads an array's type, length and items.
func (r *reader) array(depth int) any {
	kind := ValueType(r.u32())
	n := r.u64()
	if r.err != nil {
		return nil
	}
	itemBytes, known := kind.size()
	switch {
	case !known:
		r.fail("an array of value type %d, which does not exist", kind)
		return nil
	case depth >= maxArrayDepth:
		r.fail("arrays lie %d deep in each other", depth+1)
		return nil
	case n > maxArrayItems:
		r.fail("an array of %d items", n)
		return nil
	}
	switch kind { // a text or an array is at least its length
	case String:
		itemBytes = 8
	case Array:
		itemBytes = 12
	}
	if !r.need(n * uint64(itemBytes)) {
		return nil
	}
	switch kind {
	case Uint8, Uint16, Uint32, Uint64:
		return items(r, n, func() uint64 { return r.unsigned(kind) })
	case Int8, Int16, Int32, Int64:
		return items(r, n, func() int64 { return r.signed(kind) })
	case Float32, Float64:
		return items(r, n, func() float64 { return r.float(kind) })
	case Bool:
		return items(r, n, r.boolean)
	case String:
		return items(r, n, func() string { return r.str(maxStringBytes) })
	}
	return items(r, n, func() any { return r.array(depth + 1) })
}

func items[T any](r *reader, n uint64, next func() T) []T {
	list := make([]T, 0, min(n, 1<<16)) // grows with what is really there
	for range n {
		list = append(list, next())
		if r.err != nil {
			return nil
		}
	}
	return list
}

func (r *reader) tensorInfo() TensorInfo {
	t := TensorInfo{Name: r.str(maxKeyBytes)}
	dims := r.u32()
	if r.err == nil && (dims == 0 || dims > maxDims) {
		r.fail("it has %d dimensions", dims)
		return t
	}
	count := uint64(1)
	for range dims {
		if r.err != nil {
			return t
		}
		d := r.u64()
		hi, product := bits.Mul64(count, d)
		if r.err == nil && (d == 0 || hi != 0 || product > math.MaxInt64/8) {
			r.fail("its shape %v x %d is impossible", t.Shape, d)
		}
		count = product
		t.Shape = append(t.Shape, d)
	}
	t.Type = TensorType(r.u32())
	t.Offset = r.u64()
	return t
}
