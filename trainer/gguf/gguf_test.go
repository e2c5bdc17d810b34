package gguf

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testlimit"
	"cftune/internal/testmodel"
)

func writeModel(t testing.TB, o testmodel.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, testmodel.Write(path, o))
	return path
}

func openModel(t testing.TB, o testmodel.Options) *File {
	t.Helper()
	f, err := Open(writeModel(t, o))
	require.NoError(t, err)
	return f
}

func TestOpenReadsAModelsMetadata(t *testing.T) {
	f := openModel(t, testmodel.Options{Layers: 3, Type: testmodel.Q4_1})
	assert.Equal(t, "llama", f.Architecture())
	layers, ok := f.Uint("llama.block_count")
	assert.True(t, ok)
	assert.EqualValues(t, 3, layers)
	eps, ok := f.Float("llama.attention.layer_norm_rms_epsilon")
	assert.True(t, ok)
	assert.InDelta(t, 1e-5, eps, 1e-12)
	assert.Contains(t, f.ChatTemplate(), "<|im_start|>")
	tokens, ok := f.Strings("tokenizer.ggml.tokens")
	assert.True(t, ok)
	assert.Equal(t, "<|endoftext|>", tokens[0])
	kinds, ok := f.Uints("tokenizer.ggml.token_type")
	assert.True(t, ok)
	assert.Len(t, kinds, len(tokens))
	assert.Len(t, f.Tensors, 1+3*9+1)
	_, ok = f.Uint("llama.no_such_key")
	assert.False(t, ok)
	_, ok = f.String("llama.block_count")
	assert.False(t, ok, "a number was taken for a text")
}

func TestOpenRefuses(t *testing.T) {
	model, err := os.ReadFile(writeModel(t, testmodel.Options{}))
	require.NoError(t, err)
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(model)) }
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "cut off"},
		{"text", []byte("not a model at all"), "not with GGUF"},
		{"only a magic", model[:4], "cut off"},
		{"version of the future", change(func(b []byte) []byte { b[4] = 9; return b }), "version 9"},
		{"big-endian", change(func(b []byte) []byte { copy(b[4:], []byte{0, 0, 0, 3}); return b }), "big-endian"},
		{"impossible number of tensors", change(func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[8:], math.MaxUint64)
			return b
		}), "claims"},
		{"impossible length of a key", change(func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[24:], math.MaxUint64)
			return b
		}), "text of"},
		{"cut off in the metadata", model[:2000], "cut off"},
		{"cut off in the tensor data", model[:len(model)-1000], "cut off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse(bytes.NewReader(tt.data), int64(len(tt.data)))
			require.ErrorIs(t, err, ErrFormat)
			assert.ErrorContains(t, err, tt.want)
		})
	}
	_, err = Open(filepath.Join(t.TempDir(), "none.gguf"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = Open(t.TempDir())
	assert.ErrorContains(t, err, "folder")
}

// Every cut must be refused: a file that is read though its end is missing would be trained on.
func TestEveryCutOfTheHeadIsRefused(t *testing.T) {
	var file bytes.Buffer
	require.NoError(t, WriteAdapter(&file, smallAdapter(), F32))
	for n := range file.Len() {
		_, err := parse(bytes.NewReader(file.Bytes()[:n]), int64(n))
		require.ErrorIs(t, err, ErrFormat, "cut to %d bytes", n)
	}
	_, err := parse(bytes.NewReader(file.Bytes()), int64(file.Len()))
	assert.NoError(t, err)
}

func TestHalvesConvertExactly(t *testing.T) {
	for h := range 1 << 16 {
		x := fromF16(uint16(h))
		if math.IsNaN(float64(x)) {
			require.Equal(t, 0x7c00, h&0x7c00)
			require.True(t, math.IsNaN(float64(fromF16(toF16(x)))))
			continue
		}
		require.Equal(t, uint16(h), toF16(x), "%v", x)
		// Between two halves: nearest, and the even one at the middle.
		if magnitude := h & 0x7fff; magnitude < 0x7bff {
			next := fromF16(uint16(h + 1))
			middle := (x + next) / 2
			even := uint16(h + h&1)
			require.Equal(t, even, toF16(middle), "middle of %v and %v", x, next)
			require.Equal(t, uint16(h), toF16(math.Nextafter32(middle, x)))
			require.Equal(t, uint16(h+1), toF16(math.Nextafter32(middle, next)))
		}
	}
	assert.Equal(t, uint16(0x7c00), toF16(65520))
	assert.Equal(t, uint16(0x7bff), toF16(65519))
}

func FuzzParse(f *testing.F) {
	var adapter bytes.Buffer
	require.NoError(f, WriteAdapter(&adapter, smallAdapter(), F16))
	f.Add(adapter.Bytes())
	model, err := os.ReadFile(writeModel(f, testmodel.Options{Layers: 1, Embd: 32, FF: 32, Heads: 2, KVHeads: 1}))
	require.NoError(f, err)
	f.Add(model[:8192])
	f.Add([]byte("GGUF\x03\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var file *File
		var err error
		testlimit.Bound(t, func() { file, err = parse(bytes.NewReader(data), int64(len(data))) })
		if err != nil {
			return
		}
		for _, tensor := range file.Tensors {
			if n := tensor.Type.elementBytes(); n > 0 && tensor.Offset+tensor.elements()*uint64(n) > uint64(len(data)) {
				t.Fatalf("tensor %q lies outside the file", tensor.Name)
			}
		}
		if _, err := file.adapter(); err == nil && file.Architecture() == "\x00" {
			t.Fatal("an adapter without an architecture")
		}
	})
}

func FuzzSafetensors(f *testing.F) {
	f.Add(safetensorsFile(f, map[string]Tensor{"x": {Rows: 2, Cols: 3, Data: make([]float32, 6)}}))
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		var tensors []Tensor
		var err error
		testlimit.Bound(t, func() { tensors, err = parseSafetensors(bytes.NewReader(data), uint64(len(data))) })
		if err != nil {
			return
		}
		for _, tensor := range tensors {
			if len(tensor.Data) != tensor.Rows*tensor.Cols {
				t.Fatalf("tensor %q has %d values for %d x %d", tensor.Name, len(tensor.Data), tensor.Rows, tensor.Cols)
			}
		}
	})
}

func FuzzPEFT(f *testing.F) {
	base := &File{}
	f.Add([]byte(`{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": false}`), safetensorsFile(f, map[string]Tensor{
		"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {Rows: 2, Cols: 3, Data: make([]float32, 6)},
	}))
	f.Add([]byte(`{"peft_type": "LORA", "r": 1000000000}`), []byte{})
	f.Fuzz(func(t *testing.T, config, tensors []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, peftConfigName), config, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, peftTensorsName), tensors, 0o600))
		testlimit.Bound(t, func() {
			if a, err := ReadAdapter(dir, base); err == nil {
				require.NoError(t, a.check())
			} else {
				require.ErrorIs(t, err, ErrFormat)
			}
		})
	})
}
