package testmodel

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
)

// Described is a model of any architecture, as scripts/make-family-references.py writes it: all that a GGUF needs, with
// values that follow from the tensors' names.
type Described struct {
	Architecture string             `json:"architecture"`
	Number       map[string]uint32  `json:"number"` // metadata under the architecture's name
	Real         map[string]float32 `json:"real"`
	Text         map[string]string  `json:"text"`
	Tensors      []DescribedTensor  `json:"tensors"`
	Vocab        int                `json:"vocab"`
}

// DescribedTensor has the shape [rows, columns], [columns] or, of experts, [matrices, rows, columns].
type DescribedTensor struct {
	Name      string    `json:"name"`
	Shape     []int     `json:"shape"`
	Deviation float64   `json:"deviation"`
	Mean      float64   `json:"mean"`
	Values    []float32 `json:"values"` // in the place of those that the name gives
}

// Write writes the model with F32 weights to path.
func (d Described) Write(path string) error {
	f := newFile()
	f.str("general.architecture", d.Architecture)
	f.str("general.name", "test model")
	f.u32("general.quantization_version", 2)
	f.u32("general.file_type", 0)
	for _, key := range slices.Sorted(maps.Keys(d.Number)) {
		f.u32(d.Architecture+"."+key, d.Number[key])
	}
	for _, key := range slices.Sorted(maps.Keys(d.Real)) {
		f.f32(d.Architecture+"."+key, d.Real[key])
	}
	for _, key := range slices.Sorted(maps.Keys(d.Text)) {
		f.str(d.Architecture+"."+key, d.Text[key])
	}
	f.u32(d.Architecture+".vocab_size", uint32(d.Vocab))
	tokenizerMetadata(f, d.Vocab, "")
	for _, t := range d.Tensors {
		values := t.Values
		if values == nil {
			values = Values(t.Name, t.Size(), t.Deviation, t.Mean)
		}
		if len(values) != t.Size() {
			return fmt.Errorf("write test model: %s: %d values for shape %v", t.Name, len(values), t.Shape)
		}
		shape := slices.Clone(t.Shape)
		slices.Reverse(shape)
		f.tensor(t.Name, F32, shape, encodeF32(values))
	}
	if err := f.write(path); err != nil {
		return fmt.Errorf("write test model: %w", err)
	}
	return nil
}

// Size is the number of values.
func (t DescribedTensor) Size() int {
	n := 1
	for _, size := range t.Shape {
		n *= size
	}
	return n
}

// Values returns n uniform values that follow from a name: the upper 24 bits of splitmix64, started at the name's FNV-1a,
// which are exact in every language that has 64-bit integers and doubles.
func Values(name string, n int, deviation, mean float64) []float32 {
	hash := fnv.New64a()
	hash.Write([]byte(name)) // never fails
	state := hash.Sum64()
	x := make([]float32, n)
	for i := range x {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		unit := float64(z>>40)/(1<<23) - 1
		scaled := float64(unit * (deviation * math.Sqrt(3))) // the conversion forbids to fuse it with the sum
		x[i] = float32(scaled + mean)
	}
	return x
}
