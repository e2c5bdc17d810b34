package testmodel

import (
	"encoding/binary"
	"fmt"
	"math"
)

// blockSize is the number of values that share a scale in the quantized types here.
const blockSize = 32

// encode stores x as t, the way ggml's reference functions do. len(x) must be a multiple of blockSize.
func encode(t Type, x []float32) ([]byte, error) {
	switch t {
	case F32:
		return encodeF32(x), nil
	case F16:
		data := make([]byte, 0, 2*len(x))
		for _, v := range x {
			data = binary.LittleEndian.AppendUint16(data, halfBits(v))
		}
		return data, nil
	case Q8_0, Q4_0, Q4_1:
		if len(x)%blockSize != 0 {
			return nil, fmt.Errorf("%d values are no multiple of %d", len(x), blockSize)
		}
		block := map[Type]func([]byte, []float32) []byte{Q8_0: appendQ8_0, Q4_0: appendQ4_0, Q4_1: appendQ4_1}[t]
		var data []byte
		for ; len(x) > 0; x = x[blockSize:] {
			data = block(data, x[:blockSize])
		}
		return data, nil
	}
	return nil, fmt.Errorf("type %d cannot be encoded here", t)
}

func encodeF32(x []float32) []byte {
	data := make([]byte, 0, 4*len(x))
	for _, v := range x {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return data
}

// appendQ8_0: one half scale d, then 32 signed bytes q; the value is d*q.
func appendQ8_0(data []byte, x []float32) []byte {
	var amax float32
	for _, v := range x {
		amax = max(amax, float32(math.Abs(float64(v))))
	}
	d := amax / 127
	data = binary.LittleEndian.AppendUint16(data, halfBits(d))
	for _, v := range x {
		data = append(data, byte(int8(math.Round(ratio(v, d)))))
	}
	return data
}

// appendQ4_0: one half scale d, then 16 bytes, byte i holding values i (low) and i+16 (high); the value is d*(q-8).
func appendQ4_0(data []byte, x []float32) []byte {
	var extreme float32 // the value that is largest in magnitude, with its sign: it becomes -8 exactly
	for _, v := range x {
		if math.Abs(float64(v)) > math.Abs(float64(extreme)) {
			extreme = v
		}
	}
	d := extreme / -8
	data = binary.LittleEndian.AppendUint16(data, halfBits(d))
	return appendNibbles(data, x, func(v float32) float64 { return ratio(v, d) + 8.5 })
}

// appendQ4_1: half scale d, half minimum m, then nibbles as in Q4_0; the value is d*q+m.
func appendQ4_1(data []byte, x []float32) []byte {
	low, high := x[0], x[0]
	for _, v := range x {
		low, high = min(low, v), max(high, v)
	}
	d := (high - low) / 15
	data = binary.LittleEndian.AppendUint16(data, halfBits(d))
	data = binary.LittleEndian.AppendUint16(data, halfBits(low))
	return appendNibbles(data, x, func(v float32) float64 { return ratio(v-low, d) + 0.5 })
}

func appendNibbles(data []byte, x []float32, level func(float32) float64) []byte {
	for i := range blockSize / 2 {
		low := uint8(min(max(level(x[i]), 0), 15))
		high := uint8(min(max(level(x[i+blockSize/2]), 0), 15))
		data = append(data, low|high<<4)
	}
	return data
}

func ratio(v, d float32) float64 {
	if d == 0 {
		return 0
	}
	return float64(v) / float64(d)
}

// halfBits rounds to the nearest IEEE half, ties to even; what is too large becomes infinite, NaN stays NaN.
func halfBits(v float32) uint16 {
	bits := math.Float32bits(v)
	sign := uint16(bits>>16) & 0x8000
	exponent := int(bits>>23&0xff) - 127 + 15
	mantissa := bits & 0x7fffff
	switch {
	case exponent == 0xff-127+15 && mantissa != 0:
		return sign | 0x7e00
	case exponent >= 31:
		return sign | 0x7c00
	case exponent < -10:
		return sign
	case exponent <= 0: // subnormal: the hidden bit becomes part of the mantissa
		return sign | uint16(roundShift(mantissa|0x800000, uint(14-exponent)))
	}
	// A carry out of the mantissa raises the exponent, which is the right result, up to infinity.
	return sign | uint16(uint32(exponent)<<10+roundShift(mantissa, 13))
}

// roundShift is x >> n, rounded to nearest, ties to even.
func roundShift(x uint32, n uint) uint32 {
	half := uint32(1) << (n - 1)
	return (x + half - 1 + x>>n&1) >> n
}
