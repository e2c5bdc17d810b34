package gguf

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
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

var peftTensorName = regexp.MustCompile(`^(?:base_model\.model\.)?model\.layers\.(\d{1,5})\.([a-z_]+\.[a-z_]+)\.lora_([AB])(?:\.default)?\.weight$`)

// peftExtras are settings that make an adapter more than a pair of matrices for each module, beside those whose names
// begin with use_ or end in _config.
var peftExtras = []string{
	"modules_to_save", "bias", "lora_bias", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "trainable_token_indices",
	"target_parameters", "layer_replication", "alora_invocation_tokens",
}

// plainInits are the ways to make an adapter's first values that leave the base model's weights alone.
var plainInits = []string{"true", "false", `"gaussian"`, `"eva"`, `"orthogonal"`}

// permutedArchitectures have the rows of q and k in GGUF's order of rotary pairs, which is not Hugging Face's
// (LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py).
var permutedArchitectures = []string{"llama"}

// plainArchitectures keep Hugging Face's order.
var plainArchitectures = []string{"qwen2", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3"}

// readPEFT reads the folder of a PEFT LoRA adapter.
func readPEFT(dir string, base *File) (Adapter, error) {
	text, err := os.ReadFile(filepath.Join(dir, peftConfigName))
	if err != nil {
		return Adapter{}, err
	}
	a, err := parsePEFTConfig(text)
	if err != nil {
		return Adapter{}, fmt.Errorf("%s: %w", peftConfigName, err)
	}
	a.Architecture = base.Architecture()
	tensors, err := readSafetensors(filepath.Join(dir, peftTensorsName))
	if err != nil {
		return Adapter{}, fmt.Errorf("%s: %w", peftTensorsName, err)
	}
	for _, t := range tensors {
		converted, err := fromPEFT(t, base)
		if err != nil {
			return Adapter{}, fmt.Errorf("%s: tensor %s: %w", peftTensorsName, t.Name, err)
		}
		a.Tensors = append(a.Tensors, converted)
	}
	return a, nil
}

// parsePEFTConfig reads rank and alpha, and refuses every setting that makes the adapter more than B A x times a scale.
func parsePEFTConfig(text []byte) (Adapter, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return Adapter{}, bad("no JSON object: %v", err)
	}
	var c struct {
		Type   string  `json:"peft_type"`
		Rank   int     `json:"r"`
		Alpha  float64 `json:"lora_alpha"`
		RSLoRA bool    `json:"use_rslora"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return Adapter{}, bad("%v", err)
	}
	if c.Type != "LORA" {
		return Adapter{}, bad("peft_type is %q, not LORA", c.Type)
	}
	if c.Rank < 1 {
		return Adapter{}, bad("r is %d", c.Rank)
	}
	unset := []string{"null", "false", "[]", "{}", `"none"`, `""`, "0"}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		variant := strings.HasPrefix(key, "use_") && key != "use_rslora" || strings.HasSuffix(key, "_config") ||
			slices.Contains(peftExtras, key)
		if value := compact(fields[key]); variant && !slices.Contains(unset, value) {
			return Adapter{}, bad("%s is %s, which is not supported", key, value)
		}
	}
	if value, there := fields["init_lora_weights"]; there && !slices.Contains(plainInits, compact(value)) {
		return Adapter{}, bad("init_lora_weights is %s: such an adapter belongs to changed base weights", compact(value))
	}
	return Adapter{Rank: c.Rank, Alpha: c.Alpha, RSLoRA: c.RSLoRA}, nil
}

// compact returns a JSON value without white space.
func compact(value json.RawMessage) string {
	var v any
	if json.Unmarshal(value, &v) != nil {
		return string(value)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return string(value)
	}
	return string(text)
}

// fromPEFT gives a tensor GGUF's name and order of rows.
func fromPEFT(t Tensor, base *File) (Tensor, error) {
	parts := peftTensorName.FindStringSubmatch(t.Name)
	if parts == nil {
		return Tensor{}, bad("it is no LoRA matrix of a known module")
	}
	module, known := peftModules(base.Architecture())[parts[2]]
	if !known {
		return Tensor{}, bad("module %s is not one that gets an adapter", parts[2])
	}
	suffix := suffixA
	if parts[3] == "B" {
		suffix = suffixB
	}
	t.Name = fmt.Sprintf("blk.%s.%s.weight%s", parts[1], module, suffix)
	if suffix == suffixB && (module == "attn_q" || module == "attn_k") {
		return permuteRows(t, module, base)
	}
	return t, nil
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
