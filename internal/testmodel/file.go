package testmodel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strings"
)

// GGUF's numbers for the value types used here.
const (
	typeUint16  = 2
	typeUint32  = 4
	typeInt32   = 5
	typeFloat32 = 6
	typeBool    = 7
	typeString  = 8
	typeArray   = 9

	version          = 3
	defaultAlignment = 32
)

// file collects a GGUF (version 3, little-endian) in memory; the models of this package are small.
type file struct {
	keys, tensors uint64
	meta, infos   bytes.Buffer
	data          bytes.Buffer
	added         []func(*file) // the tensors once more, for writing them to several files
	alignment     int
}

func newFile() *file { return &file{alignment: defaultAlignment} }

// align sets where tensors may begin. It comes before the first one.
func (f *file) align(n int) {
	f.alignment = n
	f.u32("general.alignment", uint32(n))
}

func put(b *bytes.Buffer, v any) {
	// Fixed-size values into a buffer: neither can fail.
	_ = binary.Write(b, binary.LittleEndian, v)
}

func putString(b *bytes.Buffer, s string) {
	put(b, uint64(len(s)))
	b.WriteString(s)
}

func (f *file) key(name string, valueType uint32) {
	f.keys++
	putString(&f.meta, name)
	put(&f.meta, valueType)
}

func (f *file) str(name, v string) {
	f.key(name, typeString)
	putString(&f.meta, v)
}

func (f *file) u16(name string, v uint16) {
	f.key(name, typeUint16)
	put(&f.meta, v)
}

func (f *file) u32(name string, v uint32) {
	f.key(name, typeUint32)
	put(&f.meta, v)
}

func (f *file) f32(name string, v float32) {
	f.key(name, typeFloat32)
	put(&f.meta, math.Float32bits(v))
}

func (f *file) boolean(name string, v bool) {
	f.key(name, typeBool)
	put(&f.meta, v)
}

func (f *file) strings(name string, v []string) {
	f.array(name, typeString, len(v))
	for _, s := range v {
		putString(&f.meta, s)
	}
}

func (f *file) int32s(name string, v []int32) {
	f.array(name, typeInt32, len(v))
	put(&f.meta, v)
}

func (f *file) float32s(name string, v []float32) {
	f.array(name, typeFloat32, len(v))
	put(&f.meta, v)
}

func (f *file) array(name string, elementType uint32, n int) {
	f.key(name, typeArray)
	put(&f.meta, elementType)
	put(&f.meta, uint64(n))
}

// tensor adds a tensor; shape is in GGUF's order, the contiguous dimension first.
func (f *file) tensor(name string, t Type, shape []int, data []byte) {
	f.added = append(f.added, func(to *file) { to.tensor(name, t, shape, data) })
	f.tensors++
	putString(&f.infos, name)
	put(&f.infos, uint32(len(shape)))
	for _, n := range shape {
		put(&f.infos, uint64(n))
	}
	put(&f.infos, uint32(t))
	put(&f.infos, uint64(f.data.Len()))
	f.data.Write(data)
	f.pad(&f.data)
}

// writeShards writes the model to n files, as llama.cpp's gguf-split does: path is the first one's and must be named so.
func (f *file) writeShards(path string, n int) error {
	prefix, ok := strings.CutSuffix(path, shardSuffix(0, n))
	if !ok || n > len(f.added) {
		return fmt.Errorf("%s: want a name that ends in %s, and no more shards than tensors", path, shardSuffix(0, n))
	}
	for i := range n {
		part := newFile()
		if i == 0 {
			part.keys = f.keys
			part.meta.Write(f.meta.Bytes())
		}
		part.u16("split.no", uint16(i))
		part.u16("split.count", uint16(n))
		part.key("split.tensors.count", typeInt32)
		put(&part.meta, int32(len(f.added)))
		for _, add := range f.added[len(f.added)*i/n : len(f.added)*(i+1)/n] {
			add(part)
		}
		if err := part.write(prefix + shardSuffix(i, n)); err != nil {
			return err
		}
	}
	return nil
}

func shardSuffix(i, n int) string { return fmt.Sprintf("-%05d-of-%05d.gguf", i+1, n) }

func (f *file) pad(b *bytes.Buffer) {
	for b.Len()%f.alignment != 0 {
		b.WriteByte(0)
	}
}

func (f *file) write(path string) error {
	var out bytes.Buffer
	out.WriteString("GGUF")
	put(&out, uint32(version))
	put(&out, f.tensors)
	put(&out, f.keys)
	out.Write(f.meta.Bytes())
	out.Write(f.infos.Bytes())
	f.pad(&out)
	out.Write(f.data.Bytes())
	return os.WriteFile(path, out.Bytes(), 0o644)
}
