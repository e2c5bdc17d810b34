package gguf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"time"

	"cftune/internal/regular"
)

// ErrFormat is wrapped by errors about what a file contains, as opposed to whether it can be read.
var ErrFormat = errors.New("damaged or of another kind")

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// ValueType is the type of a metadata value, with GGUF's numbers.
type ValueType uint32

// The types of metadata values.
const (
	Uint8 ValueType = iota
	Int8
	Uint16
	Int16
	Uint32
	Int32
	Float32
	Bool
	String
	Array
	Uint64
	Int64
	Float64
)

// size is the number of bytes of a scalar; 0 for strings and arrays, which vary.
func (t ValueType) size() (int, bool) {
	sizes := [...]int{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}
	if int(t) >= len(sizes) {
		return 0, false
	}
	return sizes[t], true
}

// TensorInfo describes a tensor of a file.
type TensorInfo struct {
	Name string
	// Shape has the fastest dimension first, as ggml does: a row-major [rows][cols] matrix is {cols, rows}.
	Shape  []uint64
	Type   TensorType
	Offset uint64 // from the start of the file
	// Shard is the number, from 0, of the file that it lies in; 0 unless the model is in shards.
	Shard int
}

// elements returns the number of elements. Open has made sure that it does not overflow.
func (t TensorInfo) elements() uint64 {
	n := uint64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// Bytes is what the tensor takes, 0 if its type is not known.
func (t TensorInfo) Bytes() uint64 {
	l := t.Type.layout()
	if l.elements == 0 {
		return 0
	}
	return t.elements() / l.elements * l.bytes
}

// Rows and Cols are those of a tensor as a row-major matrix; further dimensions count as rows.
func (t TensorInfo) Rows() uint64 { return t.elements() / t.Cols() }

// Cols is the length of a row.
func (t TensorInfo) Cols() uint64 {
	if len(t.Shape) == 0 {
		return 1
	}
	return t.Shape[0]
}

// File is what the head of a GGUF file says, or those of a model's shards.
type File struct {
	Path    string
	Shards  []string // the paths of all files, Path first; only itself unless the model is in shards
	Version uint32
	Size    int64 // of all files, in bytes
	Tensors []TensorInfo

	values map[string]value
	spans  []span        // of the metadata entries, in their order
	data   uint64        // offset of the tensor data
	opened []fs.FileInfo // the files as they were, in the order of Shards
}

// value is a metadata value: a bool, uint64, int64, float64 or string; for arrays a slice of one of these, or of slices.
type value struct {
	kind ValueType
	v    any
}

// span is where a metadata entry lies in the file, its key included.
type span struct {
	key        string
	begin, end int64
}

// Limits of what a head may claim; real files are far below.
const (
	maxKeys        = 1 << 16
	maxTensors     = 1 << 20
	maxDims        = 4
	maxStringBytes = 64 << 20 // a chat template or a merged vocabulary entry is kilobytes
	maxArrayItems  = 64 << 20
	maxArrayDepth  = 4
	maxKeyBytes    = 1 << 16
	minVersion     = 2
	maxVersion     = 3
	defaultAlign   = 32
	alignmentKey   = "general.alignment"
)

// Open reads the head of the file at path: metadata and tensor descriptions. Of a model in shards, path names the first
// one, and the others are read with it; the metadata is the first one's. Errors about their content wrap ErrFormat.
func Open(path string) (*File, error) {
	file, err := openOne(path)
	if err != nil {
		return nil, err
	}
	if err := file.openShards(); err != nil {
		return nil, fmt.Errorf("open gguf %s: %w", path, err)
	}
	return file, nil
}

// ErrChanged is wrapped by the error about a file that is not what it was when it was opened.
var ErrChanged = errors.New("changed while it was in use")

// Unchanged is an error that wraps ErrChanged if the files under the names of this one's shards have other sizes or times than when they were
// opened: who reads them at several times has perhaps read some of one model and some of another. It reads nothing, so that a touch is a change.
func (f *File) Unchanged() error {
	for i, path := range f.Shards {
		was := f.opened[i]
		is, err := os.Stat(path)
		switch {
		case err != nil:
			return fmt.Errorf("%s was %w: %w", path, ErrChanged, err)
		case is.Size() != was.Size():
			return fmt.Errorf("%s was %w: it had %d bytes, and has %d", path, ErrChanged, was.Size(), is.Size())
		case !is.ModTime().Equal(was.ModTime()) || !regular.Changed(is).Equal(regular.Changed(was)):
			return fmt.Errorf("%s was %w, at %s", path, ErrChanged, regular.Changed(is).Local().Format(time.DateTime))
		}
	}
	return nil
}

// openOne reads one file's head.
func openOne(path string) (*File, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open gguf: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open gguf: %w", err)
	}
	if info.IsDir() {
		return nil, fmt.Errorf("open gguf %s: %w", path, bad("it is a folder"))
	}
	file, err := parse(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("open gguf %s: %w", path, err)
	}
	file.Path, file.Shards, file.opened = path, []string{path}, []fs.FileInfo{info}
	return file, nil
}

// parse reads a head from a file of the given size.
func parse(f io.ReaderAt, size int64) (*File, error) {
	r := newReader(io.NewSectionReader(f, 0, size), size)
	if magic := r.bytes(4); string(magic) != "GGUF" {
		if r.err != nil {
			return nil, r.err
		}
		return nil, bad("it starts with %q, not with GGUF", magic)
	}
	file := &File{Version: r.u32(), Size: size, values: map[string]value{}}
	if r.err == nil && (file.Version < minVersion || file.Version > maxVersion) {
		if v := bits.ReverseBytes32(file.Version); v >= minVersion && v <= maxVersion {
			return nil, bad("it is big-endian")
		}
		return nil, bad("version %d is not one of %d to %d", file.Version, minVersion, maxVersion)
	}
	numTensors, numKeys := r.u64(), r.u64()
	if r.err == nil && (numTensors > maxTensors || numKeys > maxKeys) {
		return nil, bad("it claims %d tensors and %d metadata keys", numTensors, numKeys)
	}
	for range numKeys {
		begin := r.at
		key := r.str(maxKeyBytes)
		kind := ValueType(r.u32())
		v := r.value(kind, 0)
		if r.err != nil {
			return nil, fmt.Errorf("metadata key %q: %w", key, r.err)
		}
		if _, twice := file.values[key]; twice {
			return nil, bad("metadata key %q is there twice", key)
		}
		file.values[key] = value{kind, v}
		file.spans = append(file.spans, span{key, begin, r.at})
	}
	for range numTensors {
		t := r.tensorInfo()
		if r.err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, r.err)
		}
		file.Tensors = append(file.Tensors, t)
	}
	if r.err != nil {
		return nil, r.err
	}
	return file, file.place(uint64(r.at))
}

// place turns the tensors' offsets into offsets from the file's start and checks that known types lie within it.
func (f *File) place(headEnd uint64) error {
	align := uint64(defaultAlign)
	if v, ok := f.Uint(alignmentKey); ok {
		align = v
	}
	if align == 0 || align&(align-1) != 0 || align > 1<<20 {
		return bad("%s is %d", alignmentKey, align)
	}
	f.data = (headEnd + align - 1) / align * align
	names := make(map[string]bool, len(f.Tensors))
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if names[t.Name] {
			return bad("tensor %q is there twice", t.Name)
		}
		names[t.Name] = true
		if t.Offset%align != 0 || t.Offset > math.MaxInt64-f.data {
			return bad("tensor %q: offset %d", t.Name, t.Offset)
		}
		t.Offset += f.data
		if block := t.Type.layout().elements; block > 1 && t.Shape[0]%block != 0 {
			return bad("tensor %q: rows of %d are not made of blocks of %d (%s)", t.Name, t.Shape[0], block, t.Type)
		}
		need := t.Bytes() // 0 for types that are not known: their start is checked
		if end := t.Offset + need; end < t.Offset || end > uint64(f.Size) {
			return bad("tensor %q ends at byte %d, but the file has %d: it is cut off", t.Name, end, f.Size)
		}
	}
	return nil
}

// Uint returns an integer of the metadata, whatever its width. It reports false where the key is missing, of another
// type, or negative.
func (f *File) Uint(key string) (uint64, bool) {
	switch v := f.values[key].v.(type) {
	case uint64:
		return v, true
	case int64:
		return uint64(v), v >= 0
	}
	return 0, false
}

// Float returns a floating-point number of the metadata.
func (f *File) Float(key string) (float64, bool) {
	v, ok := f.values[key].v.(float64)
	return v, ok
}

// Bool returns a truth value of the metadata.
func (f *File) Bool(key string) (value, ok bool) {
	v, ok := f.values[key].v.(bool)
	return v, ok
}

// String returns a text of the metadata.
func (f *File) String(key string) (string, bool) {
	v, ok := f.values[key].v.(string)
	return v, ok
}

// Strings returns an array of texts of the metadata.
func (f *File) Strings(key string) ([]string, bool) {
	v, ok := f.values[key].v.([]string)
	return v, ok
}

// Uints returns an array of integers of the metadata, none of them negative.
func (f *File) Uints(key string) ([]uint64, bool) {
	switch v := f.values[key].v.(type) {
	case []uint64:
		return v, true
	case []int64:
		list := make([]uint64, len(v))
		for i, n := range v {
			if n < 0 {
				return nil, false
			}
			list[i] = uint64(n)
		}
		return list, true
	}
	return nil, false
}

// Architecture returns general.architecture, "" where it is missing.
func (f *File) Architecture() string {
	name, _ := f.String("general.architecture")
	return name
}

// ChatTemplate returns the model's chat template, "" where it has none.
func (f *File) ChatTemplate() string {
	template, _ := f.String("tokenizer.chat_template")
	return template
}
