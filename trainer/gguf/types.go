package gguf

import "fmt"

// TensorType is how a tensor's elements are stored, with ggml's numbers.
type TensorType uint32

// The types whose elements this package can decode.
const (
	F32  TensorType = 0
	F16  TensorType = 1
	BF16 TensorType = 30
)

// typeLayout says that so many elements of a row take so many bytes.
type typeLayout struct {
	name            string
	elements, bytes uint64
}

// typeLayouts are those of ggml's types (ggml.h, ggml-common.h).
var typeLayouts = map[TensorType]typeLayout{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2}, 28: {"F64", 1, 8},
	24: {"I8", 1, 1}, 25: {"I16", 1, 2}, 26: {"I32", 1, 4}, 27: {"I64", 1, 8},
	2: {"Q4_0", 32, 18}, 3: {"Q4_1", 32, 20}, 6: {"Q5_0", 32, 22}, 7: {"Q5_1", 32, 24}, 8: {"Q8_0", 32, 34}, 9: {"Q8_1", 32, 36},
	10: {"Q2_K", 256, 84}, 11: {"Q3_K", 256, 110}, 12: {"Q4_K", 256, 144}, 13: {"Q5_K", 256, 176}, 14: {"Q6_K", 256, 210}, 15: {"Q8_K", 256, 292},
	16: {"IQ2_XXS", 256, 66}, 17: {"IQ2_XS", 256, 74}, 18: {"IQ3_XXS", 256, 98}, 19: {"IQ1_S", 256, 50}, 20: {"IQ4_NL", 32, 18},
	21: {"IQ3_S", 256, 110}, 22: {"IQ2_S", 256, 82}, 23: {"IQ4_XS", 256, 136}, 29: {"IQ1_M", 256, 56},
	34: {"TQ1_0", 256, 54}, 35: {"TQ2_0", 256, 66}, 39: {"MXFP4", 32, 17},
}

func (t TensorType) layout() typeLayout { return typeLayouts[t] }

func (t TensorType) String() string {
	if l, known := typeLayouts[t]; known {
		return l.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// BlockElements is how many elements of a row are stored together, 1 where each is by itself and 0 where that is not known.
func (t TensorType) BlockElements() int { return int(t.layout().elements) }

// Quantized reports whether several elements share a scale.
func (t TensorType) Quantized() bool { return t.layout().elements > 1 }

// elementBytes is the size of an element of the types that can be decoded, 0 for others.
func (t TensorType) elementBytes() int {
	switch t {
	case F32, F16, BF16:
		return int(t.layout().bytes)
	}
	return 0
}
