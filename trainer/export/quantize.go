package export

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cftune/trainer/gguf"
	"cftune/trainer/internal/durable"
)

// FileType is what the weights of a model file are mostly stored as; llama.cpp decides tensor by tensor.
type FileType struct {
	name string
	id   int // llama.h's LLAMA_FTYPE
	// block is how many elements of a row its main type stores together. Tensors with other rows get another type.
	block uint64
	bits  float64 // of a weight, about; for the check of free space
}

// fileTypes are those that can be asked for, largest first.
var fileTypes = []FileType{
	{"F32", 0, 1, 32}, {"F16", 1, 1, 16}, {"BF16", 32, 1, 16}, {"Q8_0", 7, 32, 8.5}, {"Q6_K", 18, 256, 6.6}, {"Q5_K_M", 17, 256, 5.7},
	{"Q5_K_S", 16, 256, 5.6}, {"Q5_1", 9, 32, 6}, {"Q5_0", 8, 32, 5.5}, {"Q4_K_M", 15, 256, 4.9}, {"Q4_K_S", 14, 256, 4.6}, {"Q4_1", 3, 32, 5},
	{"Q4_0", 2, 32, 4.6}, {"IQ4_NL", 25, 32, 4.6}, {"IQ4_XS", 30, 256, 4.4}, {"Q3_K_L", 13, 256, 4.3}, {"Q3_K_M", 12, 256, 3.9},
	{"Q3_K_S", 11, 256, 3.5}, {"Q2_K", 10, 256, 3.2},
}

// ParseFileType finds a file type by its name, in any case.
func ParseFileType(name string) (FileType, error) {
	for _, t := range fileTypes {
		if strings.EqualFold(t.name, name) {
			return t, nil
		}
	}
	return FileType{}, fmt.Errorf("type %q: must be one of %s", name, strings.Join(FileTypeNames(), ", "))
}

// FileTypeNames lists the names that ParseFileType knows, largest first.
func FileTypeNames() []string {
	var names []string
	for _, t := range fileTypes {
		names = append(names, t.name)
	}
	return names
}

func (t FileType) String() string { return t.name }

// Weighed reports whether quantizing to the type heeds how much columns count.
func (t FileType) Weighed() bool { return t.block > 1 && t.name != "Q8_0" }

// WeighedNames lists the types that do.
func WeighedNames() string {
	var names []string
	for _, t := range fileTypes {
		if t.Weighed() {
			names = append(names, t.name)
		}
	}
	return strings.Join(names, ", ")
}

// ID is llama.cpp's number of the type.
func (t FileType) ID() int { return t.id }

// Quantize writes a copy of a model with its weights stored as a type. What rounding took from them before stays lost.
// It fails with gguf.ErrChanged, and leaves nothing, if the model is written to meanwhile.
func Quantize(engine Engine, source *gguf.File, to string, t FileType, importance map[string][]float32, o Options) (Merged, error) {
	fail := func(err error) (Merged, error) { return Merged{}, fmt.Errorf("quantize: %w", err) }
	if o.fs == nil {
		o.fs = durable.OS
	}
	if err := checkOutput(to, o.Force); err != nil {
		return fail(err)
	}
	weights := uint64(0)
	rounded := map[string]int{}
	for _, info := range source.Tensors {
		weights += info.Rows() * info.Cols()
		if info.Type.Quantized() {
			rounded[info.Type.String()]++
		}
	}
	if err := durable.CheckSpace(o.fs, filepath.Dir(to), int64(float64(weights)*t.bits/8)); err != nil {
		return fail(err)
	}
	result, err := quantize(engine, source, to, t, importance, o.fs)
	if err != nil {
		return fail(err)
	}
	if len(rounded) > 0 {
		result.Notes = append(result.Notes, fmt.Sprintf("%d tensors were stored as %s before: what rounding took from them stays lost", total(rounded), strings.Join(sortedKeys(rounded), ", ")))
	}
	return result, nil
}

// quantize writes to under a temporary name and tells what is in it.
func quantize(engine Engine, source *gguf.File, to string, t FileType, importance map[string][]float32, fs durable.FS) (result Merged, err error) {
	temp := to + durable.TempSuffix
	// The library opens the file by its name: without the lock, a file that another process writes there could be taken for this one's.
	own, err := durable.Acquire(temp)
	if _, held := errors.AsType[*durable.HeldError](err); held {
		return Merged{}, fmt.Errorf("write %s: another process writes it, too", temp)
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) { // there are file systems without locks
		return Merged{}, err
	}
	defer own.Release()
	defer func() {
		if err != nil {
			result, err = Merged{}, errors.Join(err, fs.RemoveAll(temp))
		}
	}()
	if err := engine.Quantize(source.Path, temp, t, importance); err != nil {
		if cause := diskError(fs, temp); cause != nil {
			err = cause
		}
		return Merged{}, err
	}
	if err := source.Unchanged(); err != nil {
		return Merged{}, err
	}
	f, err := fs.Append(temp)
	if err != nil {
		return Merged{}, err
	}
	err = f.Sync()
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return Merged{}, err
	}
	made, err := gguf.Open(temp)
	if err != nil {
		return Merged{}, err
	}
	result = Merged{Path: to, Type: t.name, Bytes: made.Size, Tensors: map[string]int{}}
	for _, info := range made.Tensors {
		result.Tensors[info.Type.String()]++
		if len(info.Shape) > 1 && info.Cols()%t.block != 0 {
			result.Fallback = append(result.Fallback, Fallback{info.Name, info.Cols(), info.Type.String()})
		}
	}
	result.Notes = append(result.Notes, t.fallbackNotes(result.Fallback)...)
	if err := fs.Rename(temp, to); err != nil {
		return Merged{}, err
	}
	return result, fs.SyncDir(filepath.Dir(to))
}

// diskError is why an unfinished file cannot be written to, if it cannot. The library that writes it says of a full disk and of a failing one
// only that it could not write.
func diskError(fs durable.FS, temp string) error {
	f, err := fs.Append(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 1<<16))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// fallbackNotes tells which widths did not fit and what their tensors were stored as, a line for each.
func (t FileType) fallbackNotes(tensors []Fallback) []string {
	counts := map[Fallback]int{}
	for _, f := range tensors {
		f.Tensor = ""
		counts[f]++
	}
	var notes []string
	for f, n := range counts {
		notes = append(notes, fmt.Sprintf("%d tensors have rows of %d, not made of the blocks of %d of %s: they are stored as %s", n, f.Width, t.block, t.name, f.Type))
	}
	slices.Sort(notes)
	return notes
}

// writeFloats writes numbers as they lie in a GGUF file.
func writeFloats(w io.Writer, x []float32) error {
	const chunk = 1 << 16
	raw := make([]byte, 0, 4*min(len(x), chunk))
	for len(x) > 0 {
		n := min(len(x), chunk)
		raw = raw[:0]
		for _, v := range x[:n] {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
		if _, err := w.Write(raw); err != nil {
			return err
		}
		x = x[n:]
	}
	return nil
}

// Digest is the SHA-256 of a file, hex; of several, the shards of a model, as if they were one.
func Digest(paths ...string) (string, error) {
	written, err := durable.Digest(paths...)
	if err != nil {
		return "", fmt.Errorf("digest: %w", err)
	}
	return written.SHA256, nil
}

// open is what Peft and others read a base model by.
func open(path string) (*gguf.File, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("base model: %w; --model names it where it lies elsewhere now", err)
	}
	return gguf.Open(path)
}
