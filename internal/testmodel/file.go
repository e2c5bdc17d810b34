package testmodel

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
)

// GGUF's numbers for the value types used here.
const (
	typeUint32  = 4
	typeInt32   = 5
	typeFloat32 = 6
	typeBool    = 7
	typeString  = 8
	typeArray   = 9

	version   = 3
	alignment = 32
)

// file collects a GGUF (version 3, little-endian) in memory; the models of this package are small.
type file struct {
	keys, tensors uint64
	meta, infos   bytes.Buffer
	data          bytes.Buffer
}

func newFile() *file { return &file{} }

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
	f.tensors++
	putString(&f.infos, name)
	put(&f.infos, uint32(len(shape)))
	for _, n := range shape {
		put(&f.infos, uint64(n))
	}
	put(&f.infos, uint32(t))
	put(&f.infos, uint64(f.data.Len()))
	f.data.Write(data)
	pad(&f.data)
}

func pad(b *bytes.Buffer) {
	for b.Len()%alignment != 0 {
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
	pad(&out)
	out.Write(f.data.Bytes())
	return os.WriteFile(path, out.Bytes(), 0o644)
}
