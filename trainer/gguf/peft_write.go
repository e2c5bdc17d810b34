package gguf

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
)

// PEFT is an adapter as Hugging Face's PEFT library stores it: the texts of its two files.
type PEFT struct {
	config  map[string]any
	tensors []Tensor // by name
}

// magnitudeVector is PEFT's name of a magnitude, which is stored as a vector.
const magnitudeVector = "lora_magnitude_vector"

// The names of the two files in a PEFT adapter's folder.
const (
	PEFTConfigName  = peftConfigName
	PEFTTensorsName = peftTensorsName
)

// ToPEFT gives an adapter PEFT's names and order of rows. base is the model that it is for; baseName is what that is
// called where it can be loaded ("owner/name"), which PEFT keeps in the configuration.
func ToPEFT(a Adapter, base *File, baseName string) (PEFT, error) {
	fail := func(err error) (PEFT, error) { return PEFT{}, fmt.Errorf("write PEFT adapter: %w", err) }
	if err := a.check(); err != nil {
		return fail(err)
	}
	pairs, err := a.Pairs()
	if err != nil {
		return fail(err)
	}
	var (
		p        PEFT
		ranks    = map[string]float64{} // by module's full name
		alphas   = map[string]float64{}
		modules  []string
		hfModule = map[string]string{}
	)
	for hf, name := range peftModules(base.Architecture()) {
		hfModule[name] = hf
	}
	for _, pair := range pairs {
		module, err := peftModuleOf(pair.Weight, hfModule)
		if err != nil {
			return fail(err)
		}
		modules = append(modules, module)
		ranks[module], alphas[module] = float64(pair.Rank()), a.AlphaOf(pair.Weight)
		for _, t := range []Tensor{pair.A, pair.B, pair.Magnitude} {
			if t.Name == "" {
				continue
			}
			if t, err = fromGGUF(t, pair.Weight, module, base); err != nil {
				return fail(err)
			}
			p.tensors = append(p.tensors, t)
		}
	}
	slices.SortFunc(p.tensors, func(x, y Tensor) int { return strings.Compare(x.Name, y.Name) })
	layers, _ := base.Uint(base.Architecture() + ".block_count")
	p.config = map[string]any{
		"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": a.Rank, "lora_alpha": a.Alpha, "use_rslora": a.RSLoRA, "use_dora": a.DoRA, "lora_dropout": 0.0,
		"bias": "none", "fan_in_fan_out": false, "init_lora_weights": true, "inference_mode": true, "modules_to_save": nil,
		"target_modules": peftTargets(modules, int(layers)), "base_model_name_or_path": baseName,
		"rank_pattern": patternOf(ranks, float64(a.Rank)), "alpha_pattern": patternOf(alphas, a.Alpha),
	}
	return p, nil
}

// peftModuleOf is Hugging Face's name of the module of a weight.
func peftModuleOf(weight string, modules map[string]string) (string, error) {
	for module, end := range peftEnds {
		if weight == end {
			return module, nil
		}
	}
	parts := strings.Split(weight, ".") // blk.0.attn_q.weight
	if len(parts) != 4 || parts[0] != "blk" || modules[parts[2]] == "" {
		return "", fmt.Errorf("tensor %s has no counterpart", weight)
	}
	return "model.layers." + parts[1] + "." + modules[parts[2]], nil
}

// fromGGUF names a tensor of a module and puts its values into Hugging Face's order.
func fromGGUF(t Tensor, weight, module string, base *File) (Tensor, error) {
	_, suffix, err := baseName(t.Name)
	if err != nil {
		return Tensor{}, err
	}
	gguf, kind := t.Name, map[string]string{suffixA: "lora_A.weight", suffixB: "lora_B.weight", suffixMagnitude: magnitudeVector}[suffix]
	if name, ok := rotary(weight); ok && suffix != suffixA {
		if t, err = unpermuteRows(t, name, base); err != nil {
			return Tensor{}, fmt.Errorf("tensor %s: %w", gguf, err)
		}
	}
	if weight == TokenEmbd {
		kind = "lora_embedding_" + strings.ToUpper(strings.TrimPrefix(suffix, ".lora_"))
		if suffix == suffixA {
			t = transposed(t)
		}
	}
	t.Name = "base_model.model." + module + "." + kind
	return t, nil
}

// leaf is the last part of a module's name.
func leaf(module string) string { return module[strings.LastIndexByte(module, '.')+1:] }

// peftTargets names the modules by their last parts where all layers have the same ones, and in full otherwise.
func peftTargets(modules []string, layers int) []string {
	counts := map[string]int{}
	for _, module := range modules {
		counts[leaf(module)]++
	}
	for name, n := range counts {
		if _, end := peftEnds[name]; n != layers && !end && name != "embed_tokens" {
			return slices.Sorted(slices.Values(modules))
		}
	}
	return slices.Sorted(maps.Keys(counts))
}

// patternOf says which modules have another value than most: by their last parts where those of all layers agree.
func patternOf(values map[string]float64, usual float64) map[string]float64 {
	alike, first := map[string]bool{}, map[string]float64{}
	for module, v := range values {
		name := leaf(module)
		if other, seen := first[name]; !seen {
			first[name], alike[name] = v, true
		} else if other != v {
			alike[name] = false
		}
	}
	patterns := map[string]float64{}
	for module, v := range values {
		switch name := leaf(module); {
		case v == usual:
		case alike[name]:
			patterns[name] = v
		default:
			patterns[regexp.QuoteMeta(module)] = v
		}
	}
	return patterns
}

// WriteConfig writes adapter_config.json.
func (p PEFT) WriteConfig(w io.Writer) error {
	text, err := json.MarshalIndent(p.config, "", "  ")
	if err == nil {
		_, err = w.Write(append(text, '\n'))
	}
	return err
}

// safetensorsAlign is what the head's end is padded to, as the format's own writer does.
const safetensorsAlign = 8

// WriteTensors writes adapter_model.safetensors, in F32.
func (p PEFT) WriteTensors(w io.Writer) error {
	head := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	at := uint64(0)
	for _, t := range p.tensors {
		n := 4 * uint64(len(t.Data))
		shape := []uint64{uint64(t.Rows), uint64(t.Cols)}
		if strings.HasSuffix(t.Name, magnitudeVector) {
			shape = shape[:1]
		}
		head[t.Name] = safetensor{DType: "F32", Shape: shape, Offsets: [2]uint64{at, at + n}}
		at += n
	}
	text, err := json.Marshal(head)
	if err != nil {
		return fmt.Errorf("write safetensors: %w", err)
	}
	for len(text)%safetensorsAlign != 0 {
		text = append(text, ' ')
	}
	b := bufio.NewWriterSize(w, 1<<20)
	b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(text)))) // the writer keeps its first error for Flush
	b.Write(text)
	for _, t := range p.tensors {
		raw := make([]byte, 0, 4*len(t.Data))
		for _, x := range t.Data {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
		}
		b.Write(raw)
	}
	return b.Flush()
}
