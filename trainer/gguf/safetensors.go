package gguf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"cftune/internal/regular"
)

// maxSafetensorsHead bounds the JSON head of a safetensors file, as the format's own reader does.
const maxSafetensorsHead = 100 << 20

// safetensor describes one tensor of a safetensors file; Offsets are from the end of the head.
type safetensor struct {
	DType   string    `json:"dtype"`
	Shape   []uint64  `json:"shape"`
	Offsets [2]uint64 `json:"data_offsets"`
}

var safetensorTypes = map[string]TensorType{"F32": F32, "F16": F16, "BF16": BF16}

// readSafetensors reads all tensors, which must be matrices or vectors (then of one column) of F32, F16 or BF16, in the order of
// their names.
func readSafetensors(path string) ([]Tensor, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return parseSafetensors(f, uint64(info.Size()))
}

func parseSafetensors(f io.ReaderAt, size uint64) ([]Tensor, error) {
	var prefix [8]byte
	if size < uint64(len(prefix)) {
		return nil, bad("%d bytes are no safetensors file", size)
	}
	if _, err := f.ReadAt(prefix[:], 0); err != nil {
		return nil, err
	}
	headLen := binary.LittleEndian.Uint64(prefix[:])
	if headLen > maxSafetensorsHead || headLen > size-8 {
		return nil, bad("it claims a head of %d bytes in a file of %d", headLen, size)
	}
	text := make([]byte, headLen)
	if _, err := f.ReadAt(text, 8); err != nil {
		return nil, err
	}
	head, err := parseSafetensorsHead(text)
	if err != nil {
		return nil, err
	}
	start := 8 + headLen
	var tensors []Tensor
	for _, name := range slices.Sorted(maps.Keys(head)) {
		s := head[name]
		kind, n, err := s.check(size - start)
		if err != nil {
			return nil, fmt.Errorf("tensor %s: %w", name, err)
		}
		data, err := readElements(f, start+s.Offsets[0], n, kind)
		if err != nil {
			return nil, fmt.Errorf("tensor %s: %w", name, err)
		}
		tensors = append(tensors, Tensor{Name: name, Rows: int(s.Shape[0]), Cols: int(n / s.Shape[0]), Data: data})
	}
	return tensors, nil
}

func parseSafetensorsHead(text []byte) (map[string]safetensor, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, bad("its head is no JSON object: %v", err)
	}
	delete(raw, "__metadata__")
	head := make(map[string]safetensor, len(raw))
	for name, entry := range raw {
		var s safetensor
		d := json.NewDecoder(bytes.NewReader(entry))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			return nil, bad("tensor %s: %v", name, err)
		}
		head[name] = s
	}
	return head, nil
}

// check returns type and number of elements of a matrix or vector that lies within dataBytes.
func (s safetensor) check(dataBytes uint64) (TensorType, uint64, error) {
	kind, ok := safetensorTypes[s.DType]
	if !ok {
		return 0, 0, bad("it is of type %q; adapters are read from F32, F16 and BF16", s.DType)
	}
	if len(s.Shape) != 1 && len(s.Shape) != 2 {
		return 0, 0, bad("it has %d dimensions, not 1 or 2", len(s.Shape))
	}
	rows, cols := s.Shape[0], uint64(1)
	if len(s.Shape) == 2 {
		cols = s.Shape[1]
	}
	if rows == 0 || cols == 0 || rows > math.MaxInt32 || cols > math.MaxInt32 {
		return 0, 0, bad("its shape is %d x %d", rows, cols)
	}
	n := rows * cols
	begin, end := s.Offsets[0], s.Offsets[1]
	if begin > end || end > dataBytes {
		return 0, 0, bad("it lies at bytes %d to %d of %d: the file is cut off", begin, end, dataBytes)
	}
	if n > dataBytes || end-begin != n*uint64(kind.elementBytes()) {
		return 0, 0, bad("it has %d bytes for %d x %d values of %s", end-begin, rows, cols, s.DType)
	}
	return kind, n, nil
}
