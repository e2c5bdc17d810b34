package gguf

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
)

// PEFT is an adapter as Hugging Face's PEFT library stores it: the texts of its two files.
type PEFT struct {
	config  map[string]any
	tensors []Tensor // by name
}

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
	modules := map[string]string{}
	for hf, name := range peftModules(base.Architecture()) {
		modules[name] = hf
	}
	targets := map[string]bool{}
	p := PEFT{}
	for _, t := range a.Tensors {
		parts := strings.Split(t.Name, ".") // blk.0.attn_q.weight.lora_a
		if len(parts) != 5 || parts[0] != "blk" || modules[parts[2]] == "" {
			return fail(fmt.Errorf("tensor %s has no counterpart", t.Name))
		}
		hf, letter := modules[parts[2]], strings.ToUpper(strings.TrimPrefix(parts[4], "lora_"))
		if letter == "B" && (parts[2] == "attn_q" || parts[2] == "attn_k") {
			var err error
			if t, err = unpermuteRows(t, parts[2], base); err != nil {
				return fail(fmt.Errorf("tensor %s: %w", t.Name, err))
			}
		}
		t.Name = fmt.Sprintf("base_model.model.model.layers.%s.%s.lora_%s.weight", parts[1], hf, letter)
		p.tensors = append(p.tensors, t)
		targets[hf[strings.LastIndexByte(hf, '.')+1:]] = true
	}
	slices.SortFunc(p.tensors, func(x, y Tensor) int { return strings.Compare(x.Name, y.Name) })
	p.config = map[string]any{
		"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": a.Rank, "lora_alpha": a.Alpha, "use_rslora": a.RSLoRA, "lora_dropout": 0.0,
		"bias": "none", "fan_in_fan_out": false, "init_lora_weights": true, "inference_mode": true, "modules_to_save": nil,
		"target_modules": slices.Sorted(maps.Keys(targets)), "base_model_name_or_path": baseName,
	}
	return p, nil
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
		head[t.Name] = safetensor{DType: "F32", Shape: []uint64{uint64(t.Rows), uint64(t.Cols)}, Offsets: [2]uint64{at, at + n}}
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
