package gguf

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"cftune/internal/regular"
)

// Entry is a metadata entry. Value is a bool, uint64, int64, float64 or string, or for arrays a slice of one of these or of
// slices.
type Entry struct {
	Key   string
	Type  ValueType
	Value any
}

var valueTypeNames = [...]string{"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array", "uint64", "int64", "float64"}

func (t ValueType) String() string {
	if int(t) < len(valueTypeNames) {
		return valueTypeNames[t]
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// Entries returns all metadata in the file's order.
func (f *File) Entries() []Entry {
	entries := make([]Entry, len(f.spans))
	for i, s := range f.spans {
		v := f.values[s.key]
		entries[i] = Entry{s.key, v.kind, v.v}
	}
	return entries
}

// SafetensorInfo describes a tensor of a safetensors file.
type SafetensorInfo struct {
	Name  string   `json:"name"`
	Type  string   `json:"type"`
	Shape []uint64 `json:"shape"` // the slowest dimension first
	Bytes uint64   `json:"bytes"`
	begin uint64
}

// OpenSafetensors reads the head of a safetensors file: its tensors, in the order in which they lie, and its metadata. All
// types are described; tensors must lie side by side within the file.
func OpenSafetensors(path string) (tensors []SafetensorInfo, metadata map[string]string, err error) {
	fail := func(err error) ([]SafetensorInfo, map[string]string, error) {
		return nil, nil, fmt.Errorf("open safetensors %s: %w", path, err)
	}
	f, err := regular.Open(path)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	size := uint64(info.Size())
	var prefix [8]byte
	if size < uint64(len(prefix)) {
		return fail(bad("%d bytes are no safetensors file", size))
	}
	if _, err := f.ReadAt(prefix[:], 0); err != nil {
		return fail(err)
	}
	headLen := binary.LittleEndian.Uint64(prefix[:])
	if headLen > maxSafetensorsHead || headLen > size-8 {
		return fail(bad("it claims a head of %d bytes in a file of %d", headLen, size))
	}
	text := make([]byte, headLen)
	if _, err := f.ReadAt(text, 8); err != nil {
		return fail(err)
	}
	head, err := parseSafetensorsHead(text)
	if err != nil {
		return fail(err)
	}
	for name, s := range head {
		if s.Offsets[0] > s.Offsets[1] || s.Offsets[1] > size-8-headLen {
			return fail(bad("tensor %s lies at bytes %d to %d of %d: the file is cut off", name, s.Offsets[0], s.Offsets[1], size-8-headLen))
		}
		tensors = append(tensors, SafetensorInfo{name, s.DType, s.Shape, s.Offsets[1] - s.Offsets[0], s.Offsets[0]})
	}
	slices.SortFunc(tensors, func(a, b SafetensorInfo) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), strings.Compare(a.Name, b.Name))
	})
	var raw struct {
		Metadata map[string]string `json:"__metadata__"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return fail(bad("its metadata: %v", err))
	}
	return tensors, raw.Metadata, nil
}
