// Command merge writes a random F16 model of 1.1 billion parameters, as llama models of that size are shaped, and a random
// adapter for it: merge BASE ADAPTER.
package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"cftune/internal/testmodel"
	"cftune/trainer/gguf"
)

const (
	layers, embd, heads, kvHeads, ff = 22, 2048, 32, 4, 5632
	rank                             = 16
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: merge BASE ADAPTER")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "merge:", err)
		os.Exit(1)
	}
}

func run(base, adapter string) error {
	// A small file of the same kind has the vocabulary; its tensors are replaced by large ones as they are written.
	small := base + ".small"
	defer os.Remove(small)
	o := testmodel.Options{Seed: 1, Type: testmodel.F16, Layers: 1, Embd: 64, Heads: 2, KVHeads: 1, FF: 64, Vocab: 32000}
	if err := testmodel.Write(small, o); err != nil {
		return err
	}
	head, err := gguf.Open(small)
	if err != nil {
		return err
	}
	a := gguf.Adapter{Architecture: "llama", Rank: rank, Alpha: 32}
	add := func(name string, rows, cols uint64) {
		a.Tensors = append(a.Tensors, gguf.Tensor{Name: name + ".lora_a", Rows: rank, Cols: int(cols), Data: noise(rank * int(cols))},
			gguf.Tensor{Name: name + ".lora_b", Rows: int(rows), Cols: rank, Data: noise(int(rows) * rank)})
	}
	tensors := []gguf.NewTensor{matrix("token_embd.weight", 32000, embd), vector("output_norm.weight", embd), matrix("output.weight", 32000, embd)}
	for l := range layers {
		for _, m := range []struct {
			name       string
			rows, cols uint64
		}{
			{"attn_q", embd, embd}, {"attn_k", embd / heads * kvHeads, embd}, {"attn_v", embd / heads * kvHeads, embd}, {"attn_output", embd, embd},
			{"ffn_gate", ff, embd}, {"ffn_up", ff, embd}, {"ffn_down", embd, ff},
		} {
			name := fmt.Sprintf("blk.%d.%s.weight", l, m.name)
			tensors = append(tensors, matrix(name, m.rows, m.cols))
			add(name, m.rows, m.cols)
		}
		tensors = append(tensors, vector(fmt.Sprintf("blk.%d.attn_norm.weight", l), embd), vector(fmt.Sprintf("blk.%d.ffn_norm.weight", l), embd))
	}
	metadata := map[string]any{
		"llama.block_count": uint32(layers), "llama.embedding_length": uint32(embd), "llama.feed_forward_length": uint32(ff),
		"llama.attention.head_count": uint32(heads), "llama.attention.head_count_kv": uint32(kvHeads),
		"llama.attention.key_length": uint32(embd / heads), "llama.attention.value_length": uint32(embd / heads), "llama.rope.dimension_count": uint32(embd / heads),
	}
	if err := write(base, func(w io.Writer) error { return head.WriteNew(w, tensors, metadata) }); err != nil {
		return err
	}
	return write(adapter, func(w io.Writer) error { return gguf.WriteAdapter(w, a, gguf.F32) })
}

func write(path string, content func(io.Writer) error) error {
	f, err := os.Create(filepath.Clean(path))
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(f, 1<<20)
	if err := content(b); err != nil {
		return err
	}
	if err := b.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func noise(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rand.NormFloat64()) * 0.02
	}
	return x
}

// matrix is F16 noise of about the size that weights have: halves between 2^-7 and 2^-6, of either sign.
func matrix(name string, rows, cols uint64) gguf.NewTensor {
	return gguf.NewTensor{Name: name, Shape: []uint64{cols, rows}, Type: gguf.F16, Write: func(w io.Writer) error {
		rng := rand.NewPCG(uint64(len(name)), rows)
		row := make([]byte, 2*cols)
		for range rows {
			for i := 0; i < len(row); i += 8 {
				bits := rng.Uint64()&0x83ff83ff83ff83ff | 0x2000200020002000
				for k := range 8 {
					row[i+k] = byte(bits >> (8 * k))
				}
			}
			if _, err := w.Write(row); err != nil {
				return err
			}
		}
		return nil
	}}
}

// vector is a norm's ones.
func vector(name string, n uint64) gguf.NewTensor {
	return gguf.NewTensor{Name: name, Shape: []uint64{n}, Type: gguf.F32, Write: func(w io.Writer) error {
		for range n {
			if _, err := w.Write([]byte{0, 0, 0x80, 0x3f}); err != nil {
				return err
			}
		}
		return nil
	}}
}
