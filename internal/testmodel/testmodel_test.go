package testmodel

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, o Options) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := Write(path, o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestWriteIsAFunctionOfItsOptions(t *testing.T) {
	first := write(t, Options{Seed: 1})
	if !bytes.HasPrefix(first, []byte("GGUF\x03\x00\x00\x00")) {
		t.Errorf("file starts with % x", first[:8])
	}
	if !bytes.Equal(first, write(t, Options{Seed: 1})) {
		t.Error("the same options gave different bytes")
	}
	if bytes.Equal(first, write(t, Options{Seed: 2})) {
		t.Error("another seed gave the same bytes")
	}
}

func TestWriteCountsTensors(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		want uint64
	}{
		{"tied", Options{}, 2 + 2*9},
		{"untied", Options{Untied: true}, 3 + 2*9},
		{"rope factors", Options{Layers: 1, RopeFreqs: true}, 3 + 9},
		{"experts", Options{Layers: 1, Experts: 4}, 2 + 12},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := binary.LittleEndian.Uint64(write(t, tt.o)[8:]); got != tt.want {
				t.Errorf("%d tensors, want %d", got, tt.want)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	for want, o := range map[string]Options{
		"3 experts used of 2": {Experts: 2, ExpertsUsed: 3},
		"multiples of 32":     {Embd: 40, Heads: 4},
		"do not divide":       {Heads: 4, KVHeads: 3},
		"below the tokenize":  {Vocab: 100},
		"cannot be encoded":   {Type: 99},
	} {
		path := filepath.Join(t.TempDir(), "model.gguf")
		if err := Write(path, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%q: a file was left", want)
		}
	}
}

func TestVocabularyIsWhole(t *testing.T) {
	tokens, kinds, merges := vocabulary(words)
	if len(kinds) != len(tokens) || len(tokens) != 3+256+len(merges) {
		t.Fatalf("%d tokens, %d kinds, %d merges", len(tokens), len(kinds), len(merges))
	}
	ids := map[string]int{}
	for i, token := range tokens {
		if other, ok := ids[token]; ok {
			t.Errorf("tokens %d and %d are both %q", other, i, token)
		}
		ids[token] = i
	}
	if ids["<|im_start|>"] != ImStart || ids["<|im_end|>"] != ImEnd || ids["<|endoftext|>"] != EndOfText {
		t.Error("control tokens are not at their constants")
	}
	for _, merge := range merges {
		left, right, _ := strings.Cut(merge, " ")
		result, ok := ids[left+right]
		if !ok || ids[left] >= result || ids[right] >= result {
			t.Errorf("merge %q lacks a part or its result", merge)
		}
	}
	if r := byteRune(' '); r != 'Ġ' {
		t.Errorf("space is %q, want Ġ", r)
	}
	if r := byteRune('\n'); r != 'Ċ' {
		t.Errorf("newline is %q, want Ċ", r)
	}
}

// Each type's error is at most half a step, and the step follows from the block's range; the factors leave room for
// the rounding of the half-precision scales.
func TestEncodeIsWithinHalfAStep(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	x := normal(rng, 8*blockSize, 0.5, 0.1)
	for _, tt := range []struct {
		name   string
		t      Type
		decode func([]byte) []float32
		steps  float64 // per range of a block
	}{
		{"F16", F16, decodeF16, 2048},
		{"Q8_0", Q8_0, decodeQ8_0, 127},
		{"Q4_0", Q4_0, decodeQ4_0, 8},
		{"Q4_1", Q4_1, decodeQ4_1, 15},
	} {
		data, err := encode(tt.t, x)
		if err != nil {
			t.Fatal(err)
		}
		y := tt.decode(data)
		if len(y) != len(x) {
			t.Fatalf("%s: %d values, want %d", tt.name, len(y), len(x))
		}
		for start := 0; start < len(x); start += blockSize {
			low, high := 0.0, 0.0
			for _, v := range x[start : start+blockSize] {
				low, high = min(low, float64(v)), max(high, float64(v))
			}
			// Q4_0 has no level +8, so the opposite extreme may be a whole step off.
			bound := 1.02 * (high - low) / tt.steps
			for i := start; i < start+blockSize; i++ {
				if diff := math.Abs(float64(x[i] - y[i])); diff > bound {
					t.Fatalf("%s: value %d: %g became %g, more than %g away", tt.name, i, x[i], y[i], bound)
				}
			}
		}
	}
}

func TestHalfBits(t *testing.T) {
	for _, tt := range []struct {
		in   float32
		want uint16
	}{
		{0, 0}, {1, 0x3c00}, {-2, 0xc000}, {65504, 0x7bff}, {65520, 0x7c00}, {1e30, 0x7c00},
		{1 + 1.0/2048, 0x3c00}, {1 + 3.0/2048, 0x3c02}, // ties go to even
		{6.1035156e-05, 0x0400}, {5.9604645e-08, 0x0001}, {1e-9, 0},
		{float32(math.Inf(-1)), 0xfc00}, {float32(math.NaN()), 0x7e00},
	} {
		if got := halfBits(tt.in); got != tt.want {
			t.Errorf("halfBits(%g) = %#04x, want %#04x", tt.in, got, tt.want)
		}
	}
}

func half(data []byte) float32 {
	bits := binary.LittleEndian.Uint16(data)
	value := math.Ldexp(float64(bits&0x3ff)+1024, int(bits>>10&31)-25)
	if bits>>10&31 == 0 {
		value = math.Ldexp(float64(bits&0x3ff), -24)
	}
	if bits&0x8000 != 0 {
		value = -value
	}
	return float32(value)
}

func decodeF16(data []byte) (y []float32) {
	for ; len(data) > 0; data = data[2:] {
		y = append(y, half(data))
	}
	return y
}

func decodeQ8_0(data []byte) (y []float32) {
	for ; len(data) > 0; data = data[2+blockSize:] {
		for _, q := range data[2 : 2+blockSize] {
			y = append(y, half(data)*float32(int8(q)))
		}
	}
	return y
}

func decodeNibbles(data []byte, header int, value func(q float32) float32) (y []float32) {
	bytes := data[header : header+blockSize/2]
	for _, b := range bytes {
		y = append(y, value(float32(b&15)))
	}
	for _, b := range bytes {
		y = append(y, value(float32(b>>4)))
	}
	return y
}

func decodeQ4_0(data []byte) (y []float32) {
	for ; len(data) > 0; data = data[2+blockSize/2:] {
		y = append(y, decodeNibbles(data, 2, func(q float32) float32 { return half(data) * (q - 8) })...)
	}
	return y
}

func decodeQ4_1(data []byte) (y []float32) {
	for ; len(data) > 0; data = data[4+blockSize/2:] {
		y = append(y, decodeNibbles(data, 4, func(q float32) float32 { return half(data)*q + half(data[2:]) })...)
	}
	return y
}
