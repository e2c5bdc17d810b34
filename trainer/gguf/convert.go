package gguf

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// readElements reads n elements at an offset and widens them to F32. The caller has checked that they are in the file.
func readElements(r io.ReaderAt, offset, n uint64, kind TensorType) ([]float32, error) {
	raw := make([]byte, n*uint64(kind.elementBytes()))
	if _, err := r.ReadAt(raw, int64(offset)); err != nil {
		return nil, fmt.Errorf("read %d bytes at %d: %w", len(raw), offset, err)
	}
	out := make([]float32, n)
	switch kind {
	case F32:
		for i := range out {
			out[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
	case F16:
		for i := range out {
			out[i] = fromF16(binary.LittleEndian.Uint16(raw[2*i:]))
		}
	case BF16:
		for i := range out {
			out[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(raw[2*i:])) << 16)
		}
	}
	return out, nil
}

// fromF16 widens an IEEE half, exactly.
func fromF16(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exponent := uint32(h>>10) & 0x1f
	mantissa := uint32(h & 0x3ff)
	switch {
	case exponent == 0x1f: // infinity, NaN
		return math.Float32frombits(sign | 0x7f800000 | mantissa<<13)
	case exponent != 0:
		return math.Float32frombits(sign | (exponent+112)<<23 | mantissa<<13)
	}
	// Subnormal: mantissa * 2^-24, a product that F32 holds exactly.
	return math.Float32frombits(sign | math.Float32bits(float32(mantissa)*(1.0/(1<<24))))
}

// toF16 rounds to the nearest half, ties to even. What is too large becomes infinity, as the format has it; the writer
// refuses that.
func toF16(x float32) uint16 {
	b := math.Float32bits(x)
	sign := uint16(b>>16) & 0x8000
	magnitude := b & 0x7fffffff
	switch {
	case magnitude > 0x7f800000:
		return sign | 0x7e00 // NaN
	case magnitude >= 0x477ff000: // 65520 and above round to infinity
		return sign | 0x7c00
	case magnitude < 0x38800000: // below 2^-14: a multiple of 2^-24
		// Adding 0.5 puts the multiple into the low bits of the sum, rounded to even by the addition itself.
		sum := math.Float32frombits(magnitude) + 0.5
		return sign | uint16(math.Float32bits(sum)-math.Float32bits(0.5))
	}
	rounded := magnitude + 0xfff + magnitude>>13&1
	return sign | uint16(rounded>>13-112<<10)
}
