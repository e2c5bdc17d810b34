package main

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/bindings/engine"
	"cftune/internal/testmodel"
	"cftune/trainer/gguf"
)

// The inputs of the first layer's query weights are the normed embeddings of the tokens: what is collected for it can be computed
// by hand. Keys and values have the same inputs, and every weight of every layer is seen once for each token.
func TestImportanceIsThatOfTheInputs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, testmodel.Write(path, testmodel.Options{Seed: 5}))
	pieces := [][]int32{{5, 9, 300, 7, 7, 21}, {40, 41, 42}}
	m, tokens, err := measureImportance(context.Background(), path, "", pieces, 1)
	require.NoError(t, err)
	require.Equal(t, 9, tokens)

	base, err := gguf.Open(path)
	require.NoError(t, err)
	embeddings, norm := floatsOf(t, base, "token_embd.weight"), floatsOf(t, base, "blk.0.attn_norm.weight")
	const width, eps = 64, 1e-5
	want := make([]float64, width)
	for _, piece := range pieces {
		for _, token := range piece {
			x := embeddings[int(token)*width : int(token+1)*width]
			squares := 0.0
			for _, v := range x {
				squares += float64(v) * float64(v)
			}
			scale := 1 / math.Sqrt(squares/width+eps)
			for i, v := range x {
				y := float64(v) * scale * float64(norm[i])
				want[i] += y * y
			}
		}
	}
	const rounding = 1e-4 // of ggml's float32
	for _, name := range []string{"attn_q", "attn_k", "attn_v"} {
		got := m.Weights["blk.0."+name+".weight"]
		require.Len(t, got.Sums, width)
		for i, w := range want {
			require.InEpsilon(t, w, got.Sums[i], rounding, name)
		}
	}
	require.Len(t, m.Weights, 2*7, "seven weights of two layers")
	for name, one := range m.Weights {
		assert.Equal(t, []float32{9}, one.Counts, name)
	}
	_, err = m.ColumnWeights(base)
	require.NoError(t, err)
}

// floatsOf reads an F32 tensor.
func floatsOf(t *testing.T, f *gguf.File, name string) []float32 {
	t.Helper()
	data, err := os.ReadFile(f.Path)
	require.NoError(t, err)
	for _, info := range f.Tensors {
		if info.Name == name {
			require.Equal(t, gguf.F32, info.Type)
			values := make([]float32, info.Bytes()/4)
			for i := range values {
				values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[info.Offset+4*uint64(i):]))
			}
			return values
		}
	}
	t.Fatalf("no tensor %s", name)
	return nil
}

// A text is cut as llama.cpp's tools cut it: BOS comes before it, and takes the place of a token in later windows only.
func TestWindowsBeginWithBOS(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, testmodel.Write(path, testmodel.Options{Seed: 5, SentencePiece: true, Vocab: testmodel.MinVocabSentencePiece()}))
	vocab, err := engine.OpenVocab(path)
	require.NoError(t, err)
	defer vocab.Close()
	require.True(t, vocab.AddBOS())
	const text = "1 + 2 is 3 and that is all"
	tokens, err := vocab.Tokenize(text, false)
	require.NoError(t, err)
	require.Greater(t, len(tokens), 8)
	windows, err := textWindows(vocab, text, 4)
	require.NoError(t, err)
	assert.Equal(t, []int32{vocab.BOS(), tokens[0], tokens[1], tokens[2]}, windows[0])
	assert.Equal(t, []int32{vocab.BOS(), tokens[4], tokens[5], tokens[6]}, windows[1])
	assert.Len(t, windows, (len(tokens)+1)/4)
}
