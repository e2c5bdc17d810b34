package gguf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

func smallAdapter() Adapter {
	return Adapter{
		Architecture: "llama", Rank: 2, Alpha: 4, Name: "small", ModelDigest: "abc", Step: 7,
		Tensors: []Tensor{
			{Name: "blk.0.attn_q.weight.lora_a", Rows: 2, Cols: 3, Data: []float32{1, 2, 3, 4, 5, 6}},
			{Name: "blk.0.attn_q.weight.lora_b", Rows: 4, Cols: 2, Data: []float32{1, -1, 0.5, 0, 0.25, 1024, 3, -3}},
		},
	}
}

func magnitude(rows int) Tensor {
	return Tensor{Name: "blk.0.attn_q.weight.lora_magnitude", Rows: rows, Cols: 1, Data: make([]float32, rows)}
}

func save(t *testing.T, a Adapter, kind TensorType) string {
	t.Helper()
	var file bytes.Buffer
	require.NoError(t, WriteAdapter(&file, a, kind))
	path := filepath.Join(t.TempDir(), "adapter.gguf")
	require.NoError(t, os.WriteFile(path, file.Bytes(), 0o600))
	return path
}

func TestAdapterRoundTrip(t *testing.T) {
	base := openModel(t, testmodel.Options{})
	for _, kind := range []TensorType{F32, F16} {
		for _, rslora := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s rslora=%v", kind, rslora), func(t *testing.T) {
				want := smallAdapter()
				want.RSLoRA = rslora
				got, err := ReadAdapter(save(t, want, kind), base)
				require.NoError(t, err)
				assert.Equal(t, want, got)
				assert.Equal(t, []string{"attn_q"}, got.Modules())
			})
		}
	}
}

// llama.cpp knows only alpha / rank.
func TestRSLoRAIsWrittenAsTheAlphaOfTheSameScale(t *testing.T) {
	a := smallAdapter()
	a.RSLoRA = true
	head, err := Open(save(t, a, F32))
	require.NoError(t, err)
	alpha, ok := head.Float("adapter.lora.alpha")
	require.True(t, ok)
	pairs, err := a.Pairs()
	require.NoError(t, err)
	assert.InEpsilon(t, a.ScaleOf(pairs[0]), alpha/float64(a.Rank), 1e-6, "the key is a 32-bit number")
	assert.InEpsilon(t, 4/math.Sqrt2, a.ScaleOf(pairs[0]), 1e-12)
}

func TestTheSameAdapterGivesTheSameBytes(t *testing.T) {
	var first, second bytes.Buffer
	a := smallAdapter()
	require.NoError(t, WriteAdapter(&first, a, F32))
	slices.Reverse(a.Tensors)
	require.NoError(t, WriteAdapter(&second, a, F32))
	assert.Equal(t, first.Bytes(), second.Bytes())
}

func TestAdaptersThatAreRefused(t *testing.T) {
	base := openModel(t, testmodel.Options{})
	change := func(f func(a *Adapter)) Adapter {
		a := smallAdapter()
		f(&a)
		return a
	}
	for _, tt := range []struct {
		name string
		a    Adapter
		want string
	}{
		{"no tensors", change(func(a *Adapter) { a.Tensors = nil }), "no tensors"},
		{"A without B", change(func(a *Adapter) { a.Tensors = a.Tensors[:1] }), "lora_b is not"},
		{"B without A", change(func(a *Adapter) { a.Tensors = a.Tensors[1:] }), "lora_a is not"},
		{"alpha 0", change(func(a *Adapter) { a.Alpha = 0 }), "alpha is 0"},
		{"A and B of other ranks", change(func(a *Adapter) { a.Tensors[0].Rows, a.Tensors[0].Cols = 3, 2 }), "lora_a has rank 3, blk.0.attn_q.weight.lora_b has rank 2"},
		{"a magnitude without DoRA", change(func(a *Adapter) { a.Tensors = append(a.Tensors, magnitude(4)) }), "not one of DoRA"},
		{"DoRA without a magnitude", change(func(a *Adapter) { a.DoRA = true }), "lora_magnitude is not there"},
		{"DoRA with a magnitude of other rows", change(func(a *Adapter) { a.DoRA, a.Tensors = true, append(a.Tensors, magnitude(5)) }), "is 5 x 1, the weight has 4 rows"},
		{"an alpha of nothing", change(func(a *Adapter) { a.Alphas = map[string]float64{"blk.3.attn_q.weight": 2} }), "an alpha for blk.3.attn_q.weight"},
		{"an alpha of 0", change(func(a *Adapter) { a.Alphas = map[string]float64{"blk.0.attn_q.weight": 0} }), "alpha of blk.0.attn_q.weight is 0"},
		{"not a number", change(func(a *Adapter) { a.Tensors[1].Data[3] = float32(math.NaN()) }), "not finite"},
		{"neither A nor B", change(func(a *Adapter) {
			a.Tensors = append(a.Tensors, Tensor{Name: "output.weight", Rows: 1, Cols: 1, Data: []float32{1}})
		}), "neither"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			assert.ErrorContains(t, WriteAdapter(&bytes.Buffer{}, tt.a, F32), tt.want)
		})
	}
	large := smallAdapter()
	large.Tensors[0].Data[0] = 70000
	assert.ErrorContains(t, WriteAdapter(&bytes.Buffer{}, large, F16), "too large for F16")

	other := change(func(a *Adapter) { a.Architecture = "qwen2" })
	_, err := ReadAdapter(save(t, other, F32), base)
	assert.ErrorContains(t, err, `architecture "qwen2"`)
	_, err = ReadAdapter(base.Path, base)
	assert.ErrorContains(t, err, "no adapter")
	_, err = ReadAdapter(t.TempDir(), base)
	assert.ErrorContains(t, err, "no PEFT adapter")
}

// safetensorsFile encodes matrices as F32.
func safetensorsFile(t testing.TB, tensors map[string]Tensor) []byte {
	t.Helper()
	head := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	var data []byte
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		start := len(data)
		for _, x := range tensors[name].Data {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
		}
		head[name] = safetensor{"F32", []uint64{uint64(tensors[name].Rows), uint64(tensors[name].Cols)}, [2]uint64{uint64(start), uint64(len(data))}}
	}
	text, err := json.Marshal(head)
	require.NoError(t, err)
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	return append(append(file, text...), data...)
}

const peftConfigText = `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": true, "bias": "none", "modules_to_save": null,
	"rank_pattern": {}, "init_lora_weights": true, "loftq_config": {}, "use_dora": false}`

func peftFolder(t *testing.T, config string, tensors map[string]Tensor) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, peftConfigName), []byte(config), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, peftTensorsName), safetensorsFile(t, tensors), 0o600))
	return dir
}

func randomMatrix(rng *rand.Rand, rows, cols int) Tensor {
	m := Tensor{Rows: rows, Cols: cols, Data: make([]float32, rows*cols)}
	for i := range m.Data {
		m.Data[i] = float32(rng.NormFloat64())
	}
	return m
}

const peftPrefix = "base_model.model.model.layers.1."

// A rotary pair is rows i and i + half of a head in Hugging Face's order, rows 2i and 2i + 1 in GGUF's.
func TestPEFTRowsOfQAndKAreReordered(t *testing.T) {
	base := openModel(t, testmodel.Options{Heads: 4, KVHeads: 2, HeadDim: 8})
	rng := rand.New(rand.NewPCG(1, 2))
	const rank, in = 2, 64
	tensors := map[string]Tensor{}
	for module, out := range map[string]int{"q": 32, "k": 16, "v": 16} {
		tensors[peftPrefix+"self_attn."+module+"_proj.lora_A.weight"] = randomMatrix(rng, rank, in)
		tensors[peftPrefix+"self_attn."+module+"_proj.lora_B.weight"] = randomMatrix(rng, out, rank)
	}
	a, err := ReadAdapter(peftFolder(t, peftConfigText, tensors), base)
	require.NoError(t, err)
	assert.Equal(t, 2, a.Rank)
	assert.EqualValues(t, 4, a.Alpha)
	assert.True(t, a.RSLoRA)
	require.Len(t, a.Tensors, 6)
	for _, got := range a.Tensors {
		module, suffix := got.Name[len("blk.1.attn_"):len("blk.1.attn_")+1], got.Name[len(got.Name)-1:]
		want := tensors[peftPrefix+"self_attn."+module+"_proj.lora_"+map[string]string{"a": "A", "b": "B"}[suffix]+".weight"]
		if suffix == "a" || module == "v" {
			assert.Equal(t, want.Data, got.Data, got.Name)
			continue
		}
		const headDim, half = 8, 4
		for head := range got.Rows / headDim {
			for i := range half {
				for part := range 2 {
					from, to := head*headDim+part*half+i, head*headDim+2*i+part
					assert.Equal(t, want.Data[from*rank:from*rank+rank], got.Data[to*rank:to*rank+rank], "%s head %d pair %d", got.Name, head, i)
				}
			}
		}
	}
}

// Phi-3 has q, k and v in one tensor, and gate and up; nothing is reordered, and the way there and back changes nothing.
func TestPEFTOfFusedTensors(t *testing.T) {
	base := openModel(t, testmodel.Options{Architecture: "phi3"})
	rng := rand.New(rand.NewPCG(1, 3))
	const rank, in = 2, 64
	tensors, names := map[string]Tensor{}, map[string]string{"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
	for module, out := range map[string]int{"self_attn.qkv_proj": 128, "mlp.gate_up_proj": 256} {
		tensors[peftPrefix+module+".lora_A.weight"] = randomMatrix(rng, rank, in)
		tensors[peftPrefix+module+".lora_B.weight"] = randomMatrix(rng, out, rank)
	}
	a, err := ReadAdapter(peftFolder(t, peftConfigText, tensors), base)
	require.NoError(t, err)
	assert.Equal(t, []string{"attn_qkv", "ffn_up"}, a.Modules())
	for module, name := range names {
		for _, got := range a.Tensors {
			if letter, ok := strings.CutPrefix(got.Name, "blk.1."+name+".weight.lora_"); ok {
				assert.Equal(t, tensors[peftPrefix+module+".lora_"+strings.ToUpper(letter)+".weight"].Data, got.Data, got.Name)
			}
		}
	}
	p, err := ToPEFT(a, base, "owner/name")
	require.NoError(t, err)
	assert.Equal(t, []string{"model.layers.1.mlp.gate_up_proj", "model.layers.1.self_attn.qkv_proj"}, p.config["target_modules"],
		"layer 0 has none of them: by their last parts alone, PEFT would adapt that as well")
	require.Len(t, p.tensors, len(tensors))
	for _, got := range p.tensors {
		assert.Equal(t, tensors[got.Name].Data, got.Data, got.Name)
	}
	_, err = ReadAdapter(peftFolder(t, peftConfigText, map[string]Tensor{
		peftPrefix + "self_attn.q_proj.lora_A.weight": randomMatrix(rng, rank, in), peftPrefix + "self_attn.q_proj.lora_B.weight": randomMatrix(rng, 64, rank),
	}), base)
	assert.ErrorContains(t, err, "self_attn.q_proj is not one that gets an adapter")
}

// PEFT keeps the settings of EVA's first values with every adapter that began so.
func TestPEFTOfInitsThatLeaveTheBaseAlone(t *testing.T) {
	base := openModel(t, testmodel.Options{})
	rng := rand.New(rand.NewPCG(1, 4))
	for _, init := range []string{`false`, `"gaussian"`, `"orthogonal"`, `"eva", "eva_config": {"rho": 2.0, "tau": 0.99, "whiten": false}`} {
		config := `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "init_lora_weights": ` + init + `}`
		a, err := ReadAdapter(peftFolder(t, config, map[string]Tensor{
			peftPrefix + "self_attn.v_proj.lora_A.weight": randomMatrix(rng, 2, 64), peftPrefix + "self_attn.v_proj.lora_B.weight": randomMatrix(rng, 64, 2),
		}), base)
		if assert.NoError(t, err, init) {
			assert.Len(t, a.Tensors, 2)
		}
	}
}

func TestPEFTFoldersThatAreRefused(t *testing.T) {
	base := openModel(t, testmodel.Options{})
	pair := func(module string) map[string]Tensor {
		return map[string]Tensor{
			peftPrefix + module + ".lora_A.weight": {Rows: 2, Cols: 64, Data: make([]float32, 128)},
			peftPrefix + module + ".lora_B.weight": {Rows: 64, Cols: 2, Data: make([]float32, 128)},
		}
	}
	good := pair("self_attn.v_proj")
	for _, tt := range []struct {
		name, config string
		tensors      map[string]Tensor
		want         string
	}{
		{"another kind of adapter", `{"peft_type": "IA3"}`, good, `peft_type is "IA3"`},
		{"rank 0", `{"peft_type": "LORA", "r": 0}`, good, "r is 0"},
		{"DoRA without magnitudes", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": true}`, good, "lora_magnitude is not there"},
		{"QALoRA", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_qalora": true}`, good, "use_qalora is true"},
		{"saved modules", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["lm_head"]}`, good, `modules_to_save is ["lm_head"]`},
		{"another rank by pattern", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"v_proj": 3}}`, good, "has rank 2, r or rank_pattern says 3"},
		{"a pattern that is none", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"(?<=x)": 3}}`, good, "is not understood"},
		{"patterns that are no object", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": [3]}`, good, "is no object"},
		{"another layer", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "layers_to_transform": [0]}`, good, "layers_to_transform does not have"},
		{"bias", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "all"}`, good, `bias is "all"`},
		{"changed base weights", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "init_lora_weights": "pissa"}`, good, "changed base weights"},
		{"a variant that is not known", `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "velora_config": {"x": 1}}`, good, "velora_config"},
		{"no JSON", `{"peft_type"`, good, "no JSON"},
		{"a module without adapters", peftConfigText, pair("self_attn.rotary_emb"), "rotary_emb"},
		{"an embedding's own weights", peftConfigText, map[string]Tensor{"base_model.model.model.embed_tokens.base_layer.weight": {Rows: 1, Cols: 1, Data: []float32{1}}}, "save_embedding_layers=False"},
		{"an embedding like a linear map", peftConfigText, map[string]Tensor{"base_model.model.model.embed_tokens.lora_A.weight": {Rows: 2, Cols: 1, Data: []float32{1, 2}}}, "embed_tokens has no lora_A"},
		{"magnitudes without DoRA", peftConfigText, map[string]Tensor{peftPrefix + "self_attn.v_proj.lora_magnitude_vector": {Rows: 1, Cols: 1, Data: []float32{1}}}, "use_dora is not set"},
		{"rank of the tensors", `{"peft_type": "LORA", "r": 3, "lora_alpha": 4}`, good, "has rank 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ReadAdapter(peftFolder(t, tt.config, tt.tensors), base)
			require.ErrorIs(t, err, ErrFormat)
			assert.ErrorContains(t, err, tt.want)
		})
	}
}

func TestSafetensorsThatAreRefused(t *testing.T) {
	good := safetensorsFile(t, map[string]Tensor{"x": {Rows: 2, Cols: 3, Data: make([]float32, 6)}})
	raw := func(head string, data int) []byte {
		return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head...), make([]byte, data)...)
	}
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "0 bytes"},
		{"cut off", good[:len(good)-1], "cut off"},
		{"head longer than the file", append([]byte{255, 255, 0, 0, 0, 0, 0, 0}, '{'), "claims a head"},
		{"no JSON", raw("[1]", 0), "no JSON object"},
		{"unknown type", raw(`{"x":{"dtype":"I64","shape":[1,1],"data_offsets":[0,8]}}`, 8), `type "I64"`},
		{"three dimensions", raw(`{"x":{"dtype":"F32","shape":[1,1,1],"data_offsets":[0,4]}}`, 4), "3 dimensions"},
		{"no dimension", raw(`{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, 4), "0 dimensions"},
		{"too few bytes", raw(`{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,4]}}`, 4), "4 bytes for 2 x 2"},
		{"backwards", raw(`{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[4,0]}}`, 4), "bytes 4 to 0"},
		{"overflow", raw(`{"x":{"dtype":"F32","shape":[2147483647,2147483647],"data_offsets":[0,4]}}`, 4), "4 bytes for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseSafetensors(bytes.NewReader(tt.data), uint64(len(tt.data)))
			require.ErrorIs(t, err, ErrFormat)
			assert.ErrorContains(t, err, tt.want)
		})
	}
}

// The reference adapter of the real model, where there is one.
func TestReadsPEFTsOwnAdapter(t *testing.T) {
	dir := filepath.Join("..", "..", "cmd", "cftune", "testdata", "reference")
	base, err := Open(filepath.Join(dir, "model.gguf"))
	require.NoError(t, err)
	a, err := ReadAdapter(filepath.Join(dir, "adapter"), base)
	require.NoError(t, err)
	layers, _ := base.Uint("llama.block_count")
	assert.Len(t, a.Tensors, int(layers)*7*2)
	assert.Equal(t, []string{"attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"}, a.Modules())
}
