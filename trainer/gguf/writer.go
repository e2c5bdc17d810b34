package gguf

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
)

// WriteAdapter writes an adapter as llama.cpp reads it, its tensors as F32 or F16. The same adapter gives the same bytes.
//
// llama.cpp's scale is always adapter.lora.alpha / rank. Of an adapter with RSLoRA that alpha is therefore written times
// sqrt(rank), and two keys of cftune's tell what was configured. What no one alpha can say, and DoRA, is written as adapter.type
// cftune, which llama.cpp refuses; see ForLlama.
func WriteAdapter(w io.Writer, a Adapter, kind TensorType) error {
	if kind != F32 && kind != F16 {
		return fmt.Errorf("write adapter: tensors cannot be written as %s", kind)
	}
	if err := a.check(); err != nil {
		return fmt.Errorf("write adapter: %w", err)
	}
	e := &encoder{w: bufio.NewWriterSize(w, 1<<20)}
	pairs, err := a.Pairs()
	if err != nil {
		return fmt.Errorf("write adapter: %w", err)
	}
	e.head(a, pairs, kind)
	for _, t := range a.Tensors {
		if err := e.tensor(t, kind); err != nil {
			return fmt.Errorf("write adapter: %w", err)
		}
	}
	if e.err == nil {
		e.err = e.w.Flush()
	}
	if e.err != nil {
		return fmt.Errorf("write adapter: %w", e.err)
	}
	return nil
}

// encoder writes and keeps the first error.
type encoder struct {
	w   *bufio.Writer
	at  uint64
	err error
}

func (e *encoder) write(b []byte) {
	if e.err != nil {
		return
	}
	n, err := e.w.Write(b)
	e.at += uint64(n)
	e.err = err
}

func (e *encoder) u32(v uint32) { e.write(binary.LittleEndian.AppendUint32(nil, v)) }
func (e *encoder) u64(v uint64) { e.write(binary.LittleEndian.AppendUint64(nil, v)) }

func (e *encoder) str(s string) {
	e.u64(uint64(len(s)))
	e.write([]byte(s))
}

// key writes a metadata entry.
func (e *encoder) key(name string, v any) {
	e.str(name)
	switch v := v.(type) {
	case string:
		e.u32(uint32(String))
		e.str(v)
	case bool:
		e.u32(uint32(Bool))
		b := byte(0)
		if v {
			b = 1
		}
		e.write([]byte{b})
	case uint32:
		e.u32(uint32(Uint32))
		e.u32(v)
	case uint64:
		e.u32(uint32(Uint64))
		e.u64(v)
	case float32:
		e.u32(uint32(Float32))
		e.u32(math.Float32bits(v))
	case float64:
		e.u32(uint32(Float64))
		e.u64(math.Float64bits(v))
	case []string:
		e.u32(uint32(Array))
		e.u32(uint32(String))
		e.u64(uint64(len(v)))
		for _, s := range v {
			e.str(s)
		}
	default:
		panic(fmt.Sprintf("gguf: metadata of type %T", v))
	}
}

type entry struct {
	key   string
	value any
}

// metadata lists the entries of an adapter with these pairs.
func (a Adapter) metadata(pairs []Pair) []entry {
	alpha, kind := a.Alpha, typeCftune
	if llama, ok := a.llamaAlpha(pairs); ok {
		alpha, kind = llama, typeLoRA
	}
	entries := []entry{
		{keyType, "adapter"},
		{keyArchitecture, a.Architecture},
		{keyAdapterType, kind},
		{keyAlpha, float32(alpha)},
	}
	if a.RSLoRA {
		entries = append(entries, entry{keyRSLoRA, true})
	}
	if a.RSLoRA || kind == typeCftune {
		entries = append(entries, entry{keyRSAlpha, a.Alpha})
	}
	if a.DoRA {
		entries = append(entries, entry{keyDoRA, true})
	}
	if len(a.Alphas) > 0 {
		text, err := json.Marshal(a.Alphas)
		if err != nil {
			panic("gguf: alphas: " + err.Error()) // they are finite: check has seen them
		}
		entries = append(entries, entry{keyAlphas, string(text)})
	}
	if a.Name != "" {
		entries = append(entries, entry{keyName, a.Name})
	}
	if a.ModelDigest != "" {
		entries = append(entries, entry{keyModelDigest, a.ModelDigest})
	}
	if a.Step != 0 {
		entries = append(entries, entry{keyStep, a.Step})
	}
	return entries
}

func (e *encoder) head(a Adapter, pairs []Pair, kind TensorType) {
	e.write([]byte("GGUF"))
	e.u32(maxVersion)
	e.u64(uint64(len(a.Tensors)))
	entries := a.metadata(pairs)
	e.u64(uint64(len(entries)))
	for _, m := range entries {
		e.key(m.key, m.value)
	}
	offset := uint64(0)
	for _, t := range a.Tensors {
		e.str(t.Name)
		e.u32(2)
		e.u64(uint64(t.Cols)) // the fastest dimension first
		e.u64(uint64(t.Rows))
		e.u32(uint32(kind))
		e.u64(offset)
		offset += aligned(uint64(len(t.Data)) * uint64(kind.elementBytes()))
	}
	e.pad()
}

func aligned(n uint64) uint64 { return (n + defaultAlign - 1) / defaultAlign * defaultAlign }

func (e *encoder) pad() { e.write(make([]byte, aligned(e.at)-e.at)) }

func (e *encoder) tensor(t Tensor, kind TensorType) error {
	if len(t.Data) != t.Rows*t.Cols {
		return fmt.Errorf("tensor %s has %d values for its shape of %d x %d", t.Name, len(t.Data), t.Rows, t.Cols)
	}
	raw := make([]byte, 0, len(t.Data)*kind.elementBytes())
	for _, x := range t.Data {
		if kind == F32 {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
			continue
		}
		h := toF16(x)
		if h&0x7fff == 0x7c00 {
			return fmt.Errorf("tensor %s has the value %v, which is too large for F16", t.Name, x)
		}
		raw = binary.LittleEndian.AppendUint16(raw, h)
	}
	e.write(raw)
	e.pad()
	return e.err
}
