package gguf

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cftune/internal/regular"
)

const (
	peftConfigName  = "adapter_config.json"
	peftTensorsName = "adapter_model.safetensors"
)

// plainModules maps Hugging Face's modules to those of GGUF in all architectures but those of fusedModules.
var plainModules = map[string]string{
	"self_attn.q_proj": "attn_q",
	"self_attn.k_proj": "attn_k",
	"self_attn.v_proj": "attn_v",
	"self_attn.o_proj": "attn_output",
	"mlp.gate_proj":    "ffn_gate",
	"mlp.up_proj":      "ffn_up",
	"mlp.down_proj":    "ffn_down",
}

// fusedModules are those of architectures whose q, k and v, and gate and up, are one tensor each, in both worlds with rows in
// this order.
var fusedModules = map[string]string{
	"self_attn.qkv_proj": "attn_qkv",
	"self_attn.o_proj":   "attn_output",
	"mlp.gate_up_proj":   "ffn_up",
	"mlp.down_proj":      "ffn_down",
}

func peftModules(architecture string) map[string]string {
	if architecture == "phi3" {
		return fusedModules
	}
	return plainModules
}

// peftEnds are the embedding and the head.
var peftEnds = map[string]string{"model.embed_tokens": TokenEmbd, "lm_head": Output}

// The names of tensors: of a layer, of the embedding, of the head. Some versions add the adapter's name, or ".weight".
var peftTensorName = regexp.MustCompile(`^(?:base_model\.model\.)?(model\.layers\.(\d{1,5})\.([a-z_]+\.[a-z_]+)|model\.embed_tokens|lm_head)\.` +
	`(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?$`)

// permutedArchitectures have the rows of q and k in GGUF's order of rotary pairs, which is not Hugging Face's
// (LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py).
var permutedArchitectures = []string{"llama"}

// plainArchitectures keep Hugging Face's order.
var plainArchitectures = []string{"qwen2", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3"}

// readPEFT reads the folder of a PEFT LoRA adapter.
func readPEFT(dir string, base *File) (Adapter, error) {
	text, err := regular.ReadFile(filepath.Join(dir, peftConfigName))
	if err != nil {
		return Adapter{}, err
	}
	c, err := parsePEFTConfig(text)
	if err != nil {
		return Adapter{}, fmt.Errorf("%s: %w", peftConfigName, err)
	}
	a := Adapter{Architecture: base.Architecture(), Alpha: c.Alpha, RSLoRA: c.RSLoRA, DoRA: c.DoRA}
	tensors, err := readSafetensors(filepath.Join(dir, peftTensorsName))
	if err != nil {
		return Adapter{}, fmt.Errorf("%s: %w", peftTensorsName, err)
	}
	for _, t := range tensors {
		converted, err := c.convert(t, base, &a)
		if err != nil {
			return Adapter{}, fmt.Errorf("%s: tensor %s: %w", peftTensorsName, t.Name, err)
		}
		a.Tensors = append(a.Tensors, converted)
	}
	return a, nil
}

// convert gives a tensor GGUF's name and order of rows, and notes an alpha of its own in a.
func (c peftConfig) convert(t Tensor, base *File, a *Adapter) (Tensor, error) {
	if strings.HasSuffix(t.Name, ".base_layer.weight") || strings.HasSuffix(t.Name, "embed_tokens.weight") || strings.HasSuffix(t.Name, "lm_head.weight") {
		return Tensor{}, bad("it is a copy of base weights, which PEFT adds where the embedding is adapted; save the adapter with save_embedding_layers=False")
	}
	parts := peftTensorName.FindStringSubmatch(t.Name)
	if parts == nil {
		return Tensor{}, bad("it is no LoRA matrix of a known module")
	}
	module, kind := parts[1], parts[4]
	weight, end := peftEnds[module]
	if !end {
		name, known := peftModules(base.Architecture())[parts[3]]
		if !known {
			return Tensor{}, bad("module %s is not one that gets an adapter", parts[3])
		}
		weight = fmt.Sprintf("blk.%s.%s.weight", parts[2], name)
		if layer, _ := strconv.Atoi(parts[2]); !c.LayersAllowed.allows(layer) {
			return Tensor{}, bad("it is of a layer that layers_to_transform does not have")
		}
	}
	if (weight == TokenEmbd) != strings.HasPrefix(kind, "lora_embedding") {
		return Tensor{}, bad("%s has no %s", module, kind)
	}
	if kind == magnitudeVector && !c.DoRA {
		return Tensor{}, bad("it is a magnitude, but use_dora is not set")
	}
	if alpha := c.AlphaPattern.of(module, c.Alpha); alpha != c.Alpha {
		if a.Alphas == nil {
			a.Alphas = map[string]float64{}
		}
		a.Alphas[weight] = alpha
	}
	rank := t.Cols
	if strings.HasSuffix(kind, "_A") {
		rank = t.Rows
	}
	if want := c.RankPattern.of(module, float64(c.Rank)); kind != magnitudeVector && float64(rank) != want {
		return Tensor{}, bad("it has rank %d, r or rank_pattern says %g", rank, want)
	}
	return toGGUF(t, weight, kind, base)
}

// toGGUF names a tensor of PEFT's, by the weight that it is for and its kind, and puts its values into GGUF's order.
func toGGUF(t Tensor, weight, kind string, base *File) (Tensor, error) {
	switch {
	case kind == "lora_embedding_A":
		t = transposed(t)
		fallthrough
	case kind == "lora_A":
		t.Name = weight + suffixA
		return t, nil
	case kind == magnitudeVector:
		t.Name = weight + suffixMagnitude
	default:
		t.Name = weight + suffixB
	}
	if module, ok := rotary(weight); ok {
		return permuteRows(t, module, base)
	}
	return t, nil
}

// rotary returns the module of a weight whose rows are rotary pairs.
func rotary(weight string) (string, bool) {
	for _, module := range []string{"attn_q", "attn_k"} {
		if strings.HasSuffix(weight, "."+module+".weight") {
			return module, true
		}
	}
	return "", false
}

func transposed(t Tensor) Tensor {
	out := Tensor{Name: t.Name, Rows: t.Cols, Cols: t.Rows, Data: make([]float32, len(t.Data))}
	for i := range t.Rows {
		for j := range t.Cols {
			out.Data[j*t.Rows+i] = t.Data[i*t.Cols+j]
		}
	}
	return out
}

// permuteRows turns Hugging Face's order of a head's rows (first halves of all rotary pairs, then second halves) into
// that of GGUF's llama layout (pair by pair).
func permuteRows(t Tensor, module string, base *File) (Tensor, error) {
	return reorderRows(t, module, base, func(within, half int) (from int) { return within%2*half + within/2 })
}

// unpermuteRows does the reverse.
func unpermuteRows(t Tensor, module string, base *File) (Tensor, error) {
	return reorderRows(t, module, base, func(within, half int) (from int) { return within%half*2 + within/half })
}

// reorderRows gives each head's rows the order in which from names them, in architectures whose layouts differ.
func reorderRows(t Tensor, module string, base *File, from func(within, half int) int) (Tensor, error) {
	arch := base.Architecture()
	if slices.Contains(plainArchitectures, arch) {
		return t, nil
	}
	if !slices.Contains(permutedArchitectures, arch) {
		return Tensor{}, bad("the order of its rows in architecture %q is not known", arch)
	}
	heads, ok := base.Uint(arch + ".attention.head_count")
	if !ok {
		return Tensor{}, bad("the base model lacks %s.attention.head_count", arch)
	}
	if module == "attn_k" {
		if kv, ok := base.Uint(arch + ".attention.head_count_kv"); ok {
			heads = kv
		}
	}
	if heads == 0 || heads > uint64(t.Rows) || t.Rows%(2*int(heads)) != 0 {
		return Tensor{}, bad("its %d rows do not divide into %d heads of pairs", t.Rows, heads)
	}
	headDim := t.Rows / int(heads)
	out := make([]float32, len(t.Data))
	for row := range t.Rows {
		source := row/headDim*headDim + from(row%headDim, headDim/2)
		copy(out[row*t.Cols:(row+1)*t.Cols], t.Data[source*t.Cols:(source+1)*t.Cols])
	}
	t.Data = out
	return t, nil
}
