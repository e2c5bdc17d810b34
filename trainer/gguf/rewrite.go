package gguf

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"

	"cftune/internal/regular"
)

// Replacement is a tensor's new content.
type Replacement struct {
	Type  TensorType
	Write func(w io.Writer) error // all of the tensor's bytes
}

// Rewrite writes a copy of the file to w with other contents for some tensors (by name; the shapes stay) and with other or
// more metadata: values are string, bool, uint32, uint64, float32 or float64. Everything else is copied as it lies; memory does
// not grow with the file. A model in shards becomes one file.
func (f *File) Rewrite(w io.Writer, replace map[string]Replacement, metadata map[string]any) error {
	var in []io.ReaderAt
	for _, path := range f.Shards {
		file, err := regular.Open(path)
		if err != nil {
			return fmt.Errorf("rewrite gguf: %w", err)
		}
		defer file.Close()
		in = append(in, file)
	}
	if err := f.rewrite(w, in, replace, metadata); err != nil {
		return fmt.Errorf("rewrite gguf %s: %w", f.Path, err)
	}
	return nil
}

// NewTensor is a tensor of a file that is written anew.
type NewTensor struct {
	Name  string
	Shape []uint64 // the fastest dimension first
	Type  TensorType
	Write func(w io.Writer) error // all of the tensor's bytes
}

// WriteNew writes a file with this one's metadata, changed as by Rewrite, and with other tensors.
func (f *File) WriteNew(w io.Writer, tensors []NewTensor, metadata map[string]any) error {
	made := *f
	made.Tensors = nil
	replace := make(map[string]Replacement, len(tensors))
	for _, t := range tensors {
		made.Tensors = append(made.Tensors, TensorInfo{Name: t.Name, Shape: t.Shape, Type: t.Type})
		replace[t.Name] = Replacement{t.Type, t.Write}
	}
	return made.Rewrite(w, replace, metadata)
}

func (f *File) rewrite(w io.Writer, in []io.ReaderAt, replace map[string]Replacement, metadata map[string]any) error {
	e := &encoder{w: bufio.NewWriterSize(w, 1<<20)}
	e.write([]byte("GGUF"))
	e.u32(f.Version)
	e.u64(uint64(len(f.Tensors)))
	kept := slices.DeleteFunc(slices.Clone(f.spans), func(s span) bool {
		_, other := metadata[s.key]
		return other || aboutShards(s.key)
	})
	e.u64(uint64(len(kept) + len(metadata)))
	for _, s := range kept {
		e.copy(io.NewSectionReader(in[0], s.begin, s.end-s.begin))
	}
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		e.key(key, metadata[key])
	}
	align, err := f.alignment()
	if err != nil {
		return err
	}
	infos := make([]TensorInfo, len(f.Tensors))
	offset := uint64(0)
	for i, t := range f.Tensors {
		r, replaced := replace[t.Name]
		if replaced {
			t.Type = r.Type
		}
		if t.Bytes() == 0 {
			return bad("tensor %q is of %s, whose size is not known", t.Name, t.Type)
		}
		infos[i] = t
		e.tensorInfo(t, offset)
		offset += (t.Bytes() + align - 1) / align * align
	}
	e.padTo(align)
	for i, t := range infos {
		from := io.Reader(io.NewSectionReader(in[t.Shard], int64(f.Tensors[i].Offset), int64(t.Bytes())))
		before := e.at
		if r, replaced := replace[t.Name]; replaced {
			if err := r.Write(e); err != nil {
				return fmt.Errorf("tensor %s: %w", t.Name, err)
			}
		} else {
			e.copy(from)
		}
		if e.err == nil && e.at-before != t.Bytes() {
			return fmt.Errorf("tensor %s: %d bytes were written for %d", t.Name, e.at-before, t.Bytes())
		}
		e.padTo(align)
	}
	if e.err != nil {
		return e.err
	}
	return e.w.Flush()
}

// alignment is that of the tensors. place has made sure that it is sound.
func (f *File) alignment() (uint64, error) {
	align, ok := f.Uint(alignmentKey)
	if !ok {
		return defaultAlign, nil
	}
	if align == 0 {
		return 0, bad("%s is 0", alignmentKey)
	}
	return align, nil
}

// Write makes the encoder a writer for contents of tensors.
func (e *encoder) Write(b []byte) (int, error) {
	e.write(b)
	return len(b), e.err
}

func (e *encoder) copy(from io.Reader) {
	if e.err == nil {
		_, e.err = io.Copy(e, from)
	}
}

func (e *encoder) padTo(align uint64) {
	e.write(make([]byte, (e.at+align-1)/align*align-e.at))
}

func (e *encoder) tensorInfo(t TensorInfo, offset uint64) {
	e.str(t.Name)
	e.u32(uint32(len(t.Shape)))
	for _, n := range t.Shape {
		e.u64(n)
	}
	e.u32(uint32(t.Type))
	e.u64(offset)
}
