package gguf

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"cftune/internal/regular"
)

// Importance says of a weight how much each of its columns counts: Sums has, for each matrix (several are experts), the sums of squares
// of what each column was multiplied by, and Counts how many rows of input these are.
type Importance struct {
	Sums, Counts []float32
}

// ImportanceMatrix has the importance of a model's weights, by their names, and where it comes from.
type ImportanceMatrix struct {
	Weights  map[string]Importance
	Datasets []string
	Chunks   int // pieces of text
	Chunk    int // tokens of each, at most
}

// The names of an importance matrix's file (llama.cpp's imatrix tool).
const (
	importanceType    = "imatrix"
	keyDatasets       = "imatrix.datasets"
	keyChunks         = "imatrix.chunk_count"
	keyChunk          = "imatrix.chunk_size"
	sumsSuffix        = ".in_sum2"
	countsSuffix      = ".counts"
	maxImportanceSize = 1 << 31 // bytes of all numbers
)

// WriteImportance writes an importance matrix as llama.cpp's tools read and write it.
func WriteImportance(w io.Writer, m ImportanceMatrix) error {
	e := &encoder{w: bufio.NewWriterSize(w, 1<<20)}
	e.write([]byte("GGUF"))
	e.u32(maxVersion)
	e.u64(uint64(2 * len(m.Weights)))
	entries := []entry{{keyType, importanceType}, {keyDatasets, m.Datasets}, {keyChunks, uint32(m.Chunks)}, {keyChunk, uint32(m.Chunk)}}
	e.u64(uint64(len(entries)))
	for _, one := range entries {
		e.key(one.key, one.value)
	}
	names := slices.Sorted(maps.Keys(m.Weights))
	offset := uint64(0)
	var tensors []Tensor
	for _, name := range names {
		one := m.Weights[name]
		matrices := len(one.Counts)
		if matrices == 0 || len(one.Sums)%matrices != 0 {
			return fmt.Errorf("write importance matrix: %s has %d sums and %d counts", name, len(one.Sums), matrices)
		}
		for _, t := range []Tensor{{name + sumsSuffix, matrices, len(one.Sums) / matrices, one.Sums}, {name + countsSuffix, matrices, 1, one.Counts}} {
			e.tensorInfo(TensorInfo{Name: t.Name, Shape: []uint64{uint64(t.Cols), uint64(t.Rows)}, Type: F32}, offset)
			offset += aligned(4 * uint64(len(t.Data)))
			tensors = append(tensors, t)
		}
	}
	e.pad()
	for _, t := range tensors {
		if err := e.tensor(t, F32); err != nil {
			return fmt.Errorf("write importance matrix: %w", err)
		}
	}
	if e.err == nil {
		e.err = e.w.Flush()
	}
	if e.err != nil {
		return fmt.Errorf("write importance matrix: %w", e.err)
	}
	return nil
}

// ReadImportance reads an importance matrix. Errors about its content wrap ErrFormat.
func ReadImportance(path string) (ImportanceMatrix, error) {
	fail := func(err error) (ImportanceMatrix, error) {
		return ImportanceMatrix{}, fmt.Errorf("read importance matrix %s: %w", path, err)
	}
	f, err := Open(path)
	if err != nil {
		return ImportanceMatrix{}, err
	}
	if kind, _ := f.String(keyType); kind != importanceType {
		return fail(bad("general.type is %q, want %q; files of the old format are converted by llama.cpp's imatrix tool", kind, importanceType))
	}
	if f.Size > maxImportanceSize {
		return fail(bad("it has %d bytes", f.Size))
	}
	in, err := regular.Open(path)
	if err != nil {
		return fail(err)
	}
	defer in.Close()
	m := ImportanceMatrix{Weights: map[string]Importance{}}
	m.Datasets, _ = f.Strings(keyDatasets)
	chunks, _ := f.Uint(keyChunks)
	chunk, _ := f.Uint(keyChunk)
	m.Chunks, m.Chunk = int(chunks), int(chunk)
	for _, t := range f.Tensors {
		name, isSums := strings.CutSuffix(t.Name, sumsSuffix)
		if !isSums {
			name = strings.TrimSuffix(t.Name, countsSuffix)
		}
		if name == t.Name || t.Type != F32 {
			return fail(bad("tensor %s of type %s has no place in one", t.Name, t.Type))
		}
		values, err := readElements(in, t.Offset, t.elements(), F32)
		if err != nil {
			return fail(err)
		}
		for _, x := range values {
			if !(x >= 0) || math.IsInf(float64(x), 0) {
				return fail(bad("tensor %s has the value %v", t.Name, x))
			}
		}
		one := m.Weights[name]
		if isSums {
			one.Sums = values
		} else {
			one.Counts = values
		}
		m.Weights[name] = one
	}
	for name, one := range m.Weights {
		if len(one.Counts) == 0 || len(one.Sums) == 0 || len(one.Sums)%len(one.Counts) != 0 {
			return fail(bad("%s has %d sums and %d counts", name, len(one.Sums), len(one.Counts)))
		}
	}
	return m, nil
}

// ColumnWeights returns what a quantizer weighs the columns of a model's weights by: mean squares; 1 for experts that no row went to.
// A weight that the model does not have, or of another width, is an error: the matrix is another model's.
func (m ImportanceMatrix) ColumnWeights(base *File) (map[string][]float32, error) {
	widths := make(map[string]uint64, len(base.Tensors))
	for _, t := range base.Tensors {
		matrices := uint64(1)
		for _, n := range t.Shape[min(2, len(t.Shape)):] {
			matrices *= n
		}
		widths[t.Name] = t.Cols() * matrices
	}
	all := make(map[string][]float32, len(m.Weights))
	for _, name := range slices.Sorted(maps.Keys(m.Weights)) {
		one := m.Weights[name]
		if want, ok := widths[name]; !ok || want != uint64(len(one.Sums)) {
			return nil, bad("the importance matrix is of another model: %s has %d columns here, %d there", name, want, len(one.Sums))
		}
		width := len(one.Sums) / len(one.Counts)
		values := make([]float32, len(one.Sums))
		for i, sum := range one.Sums {
			values[i] = 1
			if n := one.Counts[i/width]; n > 0 {
				values[i] = sum / n
			}
		}
		all[name] = values
	}
	return all, nil
}
