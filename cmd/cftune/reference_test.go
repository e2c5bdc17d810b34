package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cftune/bindings/engine"
	"cftune/internal/testfiles"
	"cftune/trainer/pack"
)

// reference is what PyTorch + PEFT made of a model, an adapter and some sequences (scripts/make-reference.py tells the
// files). Two exist: a tiny one in testdata, always there, and one over the real model beside the repository.
type reference struct {
	dir, model string
	threads    int
	alpha      float64
	rank       int

	sequences []referenceSequence
	loss      referenceLoss
	curve     []referencePoint
	gradients map[string]peftTensor
	adapter   map[string]peftTensor
	logits    map[string]peftTensor
}

type referenceSequence struct {
	Length  int     `json:"length"`
	NPrompt int     `json:"n_prompt"`
	Tokens  []int32 `json:"tokens"`
}

type referenceLoss struct {
	LR              float64   `json:"lr"` // of the curve
	BatchMean       float64   `json:"batch_mean_loss"`
	BatchSupervised int       `json:"batch_supervised"`
	BaseMeans       []float64 `json:"base_only_mean_loss"`
	Sequences       []struct {
		Mean     float64 `json:"mean_loss"`
		BaseMean float64 `json:"base_mean_loss"`
	} `json:"sequences"`
}

type referencePoint struct {
	Step     int     `json:"step"`
	Loss     float64 `json:"loss"` // before update Step+1
	GradNorm float64 `json:"grad_norm_before_clip"`
}

// sharedReference is where the reference over the real model lies in a development checkout.
var sharedReference = filepath.Join("..", "..", "..", "shared", "parity")

// references lists the references, and calls t.Run for each. A subtest skips where files are missing.
func forEachReference(t *testing.T, test func(t *testing.T, r *reference)) {
	t.Run("tiny", func(t *testing.T) {
		dir := filepath.Join("testdata", "reference")
		test(t, loadReference(t, dir, filepath.Join(dir, "model.gguf")))
	})
	t.Run("SmolLM2-135M", func(t *testing.T) {
		model := realModel(t)
		if _, err := os.Stat(sharedReference); errors.Is(err, fs.ErrNotExist) {
			t.Skipf("no %s: the reference over the real model is not in a fresh clone", sharedReference)
		}
		test(t, loadReference(t, sharedReference, model))
	})
}

// realModel returns the path of the real model; scripts/test sets it.
func realModel(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the real model takes too long for -short")
	}
	return testfiles.Model(t)
}

func loadReference(t *testing.T, dir, model string) *reference {
	t.Helper()
	r := &reference{dir: dir, model: model, threads: 2}
	readJSON(t, filepath.Join(dir, "tokens.json"), &r.sequences)
	readJSON(t, filepath.Join(dir, "loss.json"), &r.loss)
	readJSON(t, filepath.Join(dir, "curve.json"), &r.curve)
	if r.loss.LR == 0 {
		r.loss.LR = 1e-3 // the shared reference's, by its description
	}
	var config struct {
		Rank  int     `json:"r"`
		Alpha float64 `json:"lora_alpha"`
	}
	readJSON(t, filepath.Join(r.adapterDir(), "adapter_config.json"), &config)
	r.rank, r.alpha = config.Rank, config.Alpha
	r.gradients = readSafetensors(t, filepath.Join(dir, "grad_batch.safetensors"))
	r.adapter = readSafetensors(t, filepath.Join(r.adapterDir(), "adapter_model.safetensors"))
	r.logits = readSafetensors(t, filepath.Join(dir, "logits.safetensors"))
	return r
}

func (r *reference) adapterDir() string { return filepath.Join(r.dir, "adapter") }

// baseMean is a sequence's mean loss without an adapter; the two references keep it in different places.
func (r *reference) baseMean(i int) float64 {
	if len(r.loss.BaseMeans) > 0 {
		return r.loss.BaseMeans[i]
	}
	return r.loss.Sequences[i].BaseMean
}

func (s referenceSequence) labels() []int32 {
	labels := make([]int32, s.Length)
	for i := range labels {
		labels[i] = pack.IgnoreTarget
		if i >= s.NPrompt {
			labels[i] = s.Tokens[i]
		}
	}
	return labels
}

func (r *reference) example(i int) pack.Example {
	s := r.sequences[i]
	return pack.Example{ID: fmt.Sprintf("sequence %d", i), Tokens: s.Tokens, Labels: s.labels(), Weight: 1}
}

// batches packs sequences as training does, seqLen tokens to a pack.
func (r *reference) batches(t *testing.T, seqLen int, sequences ...int) []engine.Batch {
	t.Helper()
	var examples []pack.Example
	for _, i := range sequences {
		examples = append(examples, r.example(i))
	}
	packs, err := pack.Build(examples, seqLen)
	if err != nil {
		t.Fatal(err)
	}
	return asBatches(packs)
}

// referencePack holds all of a reference's sequences.
const referencePack = 512

func (r *reference) openModel(t *testing.T) *engine.Model {
	t.Helper()
	model, err := engine.Load(r.model, "cpu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Close)
	return model
}

// trainer makes a trainer with the reference's hyper-parameters; its adapter is still without effect.
func (r *reference) trainer(t *testing.T, model *engine.Model, keep engine.Keep) *engine.Trainer {
	t.Helper()
	trainer, err := engine.NewTrainer(model, engine.Params{
		Rank: r.rank, Alpha: r.alpha, Targets: engine.TargetAllLinear, Keep: keep, MaxTokens: referencePack, Threads: r.threads,
		Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(trainer.Close)
	return trainer
}

// adaptedTrainer has the reference's adapter, permuted here and not by the code under test.
func (r *reference) adaptedTrainer(t *testing.T, model *engine.Model, keep engine.Keep) *engine.Trainer {
	t.Helper()
	trainer := r.trainer(t, model, keep)
	info, err := model.Info()
	if err != nil {
		t.Fatal(err)
	}
	infos, err := trainer.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	values := ggufTensors(t, r.adapter, info)
	for i, tensor := range infos {
		value, ok := values[tensor.Name]
		if !ok {
			t.Fatalf("the reference has no %s", tensor.Name)
		}
		if err := trainer.WriteTensor(i, engine.SlotValue, value.data); err != nil {
			t.Fatal(err)
		}
	}
	if len(infos) != len(values) {
		t.Fatalf("the trainer has %d tensors, the reference %d", len(infos), len(values))
	}
	return trainer
}

// peftTensor is a tensor of a safetensors file, widened to float32.
type peftTensor struct {
	rows, cols int
	data       []float32
}

var peftName = regexp.MustCompile(`^base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)_proj\.lora_([AB])\.weight$`)

// ggufTensors renames PEFT's tensors to llama.cpp's, and brings the rows of B of q and k into llama.cpp's order: in each
// head, Hugging Face has the first half of all rotary pairs, then the second; llama.cpp has pair after pair.
func ggufTensors(t *testing.T, tensors map[string]peftTensor, m engine.ModelInfo) map[string]peftTensor {
	t.Helper()
	modules := map[string]string{
		"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
	}
	out := map[string]peftTensor{}
	for name, tensor := range tensors {
		parts := peftName.FindStringSubmatch(name)
		if parts == nil || modules[parts[2]] == "" {
			t.Fatalf("unexpected tensor %s", name)
		}
		heads := map[string]int{"q": m.Heads, "k": m.HeadsKV}[parts[2]]
		if parts[3] == "B" && heads > 0 {
			tensor = tensor.permuted(heads)
		}
		out[fmt.Sprintf("blk.%s.%s.weight.lora_%s", parts[1], modules[parts[2]], strings.ToLower(parts[3]))] = tensor
	}
	return out
}

func (p peftTensor) permuted(heads int) peftTensor {
	out := make([]float32, len(p.data))
	perHead := p.rows / heads
	for h := range heads {
		for pair := range perHead / 2 {
			for half := range 2 {
				from, to := h*perHead+half*perHead/2+pair, h*perHead+2*pair+half
				copy(out[to*p.cols:(to+1)*p.cols], p.data[from*p.cols:(from+1)*p.cols])
			}
		}
	}
	return peftTensor{p.rows, p.cols, out}
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// readSafetensors reads a whole file: eight bytes with the header's length, the header as JSON, the data.
func readSafetensors(t *testing.T, path string) map[string]peftTensor {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(data)
	var header map[string]json.RawMessage
	if err := json.Unmarshal(data[8:8+n], &header); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	delete(header, "__metadata__")
	body := data[8+n:]
	out := map[string]peftTensor{}
	for name, raw := range header {
		var entry struct {
			DType   string `json:"dtype"`
			Shape   []int  `json:"shape"`
			Offsets [2]int `json:"data_offsets"`
		}
		if err := json.Unmarshal(raw, &entry); err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		tensor := peftTensor{rows: 1, cols: 1, data: widen(t, name, entry.DType, body[entry.Offsets[0]:entry.Offsets[1]])}
		for i, size := range entry.Shape {
			if i == 0 && len(entry.Shape) > 1 {
				tensor.rows = size
			} else {
				tensor.cols *= size
			}
		}
		if tensor.rows*tensor.cols != len(tensor.data) {
			t.Fatalf("%s: %s: shape %v, %d elements", path, name, entry.Shape, len(tensor.data))
		}
		out[name] = tensor
	}
	return out
}

func widen(t *testing.T, name, dtype string, b []byte) []float32 {
	t.Helper()
	var out []float32
	switch dtype {
	case "F32":
		for ; len(b) > 0; b = b[4:] {
			out = append(out, math.Float32frombits(binary.LittleEndian.Uint32(b)))
		}
	case "F16":
		for ; len(b) > 0; b = b[2:] {
			out = append(out, halfValue(binary.LittleEndian.Uint16(b)))
		}
	case "I32": // token ids: exact as float32
		for ; len(b) > 0; b = b[4:] {
			out = append(out, float32(int32(binary.LittleEndian.Uint32(b))))
		}
	default:
		t.Fatalf("%s: type %s", name, dtype)
	}
	return out
}

func halfValue(bits uint16) float32 {
	exponent, mantissa := int(bits>>10&31), float64(bits&0x3ff)
	value := math.Ldexp(mantissa+1024, exponent-25)
	if exponent == 0 {
		value = math.Ldexp(mantissa, -24)
	}
	if bits&0x8000 != 0 {
		value = -value
	}
	return float32(value)
}
