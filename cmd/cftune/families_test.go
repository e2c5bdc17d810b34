package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cftune/bindings/engine"
	"cftune/internal/testmodel"
	"cftune/trainer/gguf"
	"cftune/trainer/pack"
)

// Tolerances of the families' references, beside those of parity_test.go.
const (
	// ggml's GELU on the CPU is a table of half-precision values, up to 5e-4 (relative) away from the function. The references
	// have logits with such a table too. Those agree but for gates on the border of two half-precision numbers, which rounding
	// in F32 may put on either side.
	maxGeluTableLogitError = 1e-2
	maxSameTableLogitError = 2e-3
	familyVocab            = 320
)

// familyReference is what transformers and PEFT made of a small random model: scripts/make-family-references.py tells the
// files.
type familyReference struct {
	testmodel.Described
	Rank     int      `json:"rank"`
	Alpha    float64  `json:"alpha"`
	Targets  []string `json:"targets"`
	Loss     float64  `json:"loss"`
	SameRows int      `json:"same_rows"`
	// Of other kinds of adapters; a family's has one rank and alpha for all that all_linear means.
	RSLoRA    bool              `json:"rslora"`
	DoRA      bool              `json:"dora"`
	Modules   []referenceModule `json:"modules"`
	Sequences []struct {
		Tokens     []int32 `json:"tokens"`
		NPrompt    int     `json:"n_prompt"`
		LogitsFrom int     `json:"logits_from"`
	} `json:"sequences"`
	Greedy [][]int32 `json:"greedy"` // what each sequence goes on with, as far as that is clear

	// Of scripts/make-run-references.py.
	Rows      []referenceRow      `json:"rows"`
	Optimizer *referenceOptimizer `json:"optimizer"`
	Steps     []referenceStep     `json:"steps"`

	tensors map[string]peftTensor
	path    string // of the GGUF
}

type referenceModule struct {
	Weight string  `json:"weight"` // "blk.0.attn_q.weight"
	Rank   int     `json:"rank"`
	Alpha  float64 `json:"alpha"`
}

// forEachFamily runs a test for every family's reference.
func forEachFamily(t *testing.T, test func(t *testing.T, r *familyReference)) {
	t.Helper()
	forEachSmall(t, "families", 12, test)
}

// forEachSmall runs a test for every reference in a folder of testdata; one that is not there would go unnoticed, hence the
// number.
func forEachSmall(t *testing.T, folder string, numReferences int, test func(t *testing.T, r *familyReference)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", folder, "*.json"))
	if err != nil || len(files) != numReferences {
		t.Fatalf("%d references, want %d (%v)", len(files), numReferences, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			r := &familyReference{path: filepath.Join(t.TempDir(), "model.gguf")}
			readJSON(t, file, r)
			r.tensors = readSafetensors(t, strings.TrimSuffix(file, ".json")+".safetensors")
			if err := r.Write(r.path); err != nil {
				t.Fatal(err)
			}
			test(t, r)
		})
	}
}

func (r *familyReference) batches(t *testing.T, seqLen int, sequences ...int) []engine.Batch {
	t.Helper()
	var examples []pack.Example
	for _, i := range sequences {
		s := r.Sequences[i]
		labels := slices.Repeat([]int32{pack.IgnoreTarget}, len(s.Tokens))
		copy(labels[s.NPrompt:], s.Tokens[s.NPrompt:])
		examples = append(examples, pack.Example{ID: fmt.Sprint(i), Tokens: s.Tokens, Labels: labels, Weight: 1})
	}
	packs, err := pack.Build(examples, seqLen)
	if err != nil {
		t.Fatal(err)
	}
	return asBatches(packs)
}

func asBatches(packs []pack.Batch) []engine.Batch {
	var batches []engine.Batch
	for _, p := range packs {
		batches = append(batches, engine.Batch(p))
	}
	return batches
}

// trainer has the reference's adapter, whose values follow from its tensors' names.
func (r *familyReference) trainer(t *testing.T, keep engine.Keep) *engine.Trainer {
	t.Helper()
	model, err := engine.Load(r.path, "cpu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Close)
	params := engine.Params{
		Rank: r.Rank, Alpha: r.Alpha, Targets: engine.TargetAllLinear, Keep: keep, MaxTokens: r.numTokens(), Threads: 2,
		Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
	}
	if r.Modules != nil {
		if params, err = engineParams(r.run(t)); err != nil {
			t.Fatal(err)
		}
		params.Keep, params.MaxTokens = keep, r.numTokens()
	}
	trainer, err := engine.NewTrainer(model, params)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(trainer.Close)
	writeAdapter(t, trainer)
	return trainer
}

// writeAdapter gives a trainer's tensors their adapterValues.
func writeAdapter(t *testing.T, trainer *engine.Trainer) {
	t.Helper()
	infos, err := trainer.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	for i, tensor := range infos {
		write(t, trainer, i, adapterValues(tensor.Name, tensor.Rows*tensor.Cols))
	}
}

func adapterValues(name string, n int) []float32 {
	if strings.HasSuffix(name, ".lora_magnitude") {
		return testmodel.Values(name, n, 0.2, 1)
	}
	return testmodel.Values(name, n, 0.15, 0)
}

func (r *familyReference) numTokens() (n int) {
	for _, s := range r.Sequences {
		n += len(s.Tokens)
	}
	for _, row := range r.Rows {
		n += len(row.Tokens)
	}
	return n
}

// gradients are those of the mean loss, by tensor.
func (r *familyReference) gradients(t *testing.T, trainer *engine.Trainer, batches []engine.Batch) (map[string]peftTensor, float64) {
	t.Helper()
	loss, targets := accumulate(t, trainer, batches)
	infos, err := trainer.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]peftTensor{}
	for i, tensor := range infos {
		data := make([]float32, tensor.Rows*tensor.Cols)
		if err := trainer.ReadTensor(i, engine.SlotGradient, data); err != nil {
			t.Fatal(err)
		}
		for k := range data {
			data[k] /= float32(targets)
		}
		out[tensor.Name] = peftTensor{rows: tensor.Rows, cols: tensor.Cols, data: data}
	}
	return out, loss / float64(targets)
}

func TestFamilyGradientsMatchPEFT(t *testing.T) {
	forEachFamily(t, checkGradients)
}

// checkGradients compares a reference's loss and gradients with those of the engine.
func checkGradients(t *testing.T, r *familyReference) {
	for _, tt := range []struct {
		name   string
		keep   engine.Keep
		seqLen int
	}{
		{"one pack, activations kept", engine.KeepAll, r.numTokens()},
		{"one pack, layers recomputed", engine.KeepLayers, r.numTokens()},
		{"a pack for each sequence", engine.KeepAll, len(r.Sequences[1].Tokens)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, loss := r.gradients(t, r.trainer(t, tt.keep), r.batches(t, tt.seqLen, 0, 1))
			if !(relative(loss, r.Loss) <= maxLossError) {
				t.Errorf("loss %.7f, want %.7f", loss, r.Loss)
			}
			var worst comparison
			compared := 0
			for name, want := range r.tensors {
				if !strings.Contains(name, ".weight.lora_") {
					continue
				}
				tensor, ok := got[name]
				if !ok || tensor.rows != want.rows || tensor.cols != want.cols {
					t.Fatalf("the trainer's %s is %d x %d, want %d x %d", name, tensor.rows, tensor.cols, want.rows, want.cols)
				}
				worst.add(name, tensor.data, want.data)
				compared++
			}
			if compared != len(got) {
				t.Errorf("the trainer has %d tensors, the reference %d", len(got), compared)
			}
			t.Logf("%d tensors: lowest cosine 1 - %.1e (%s), largest norm error %.1e (%s)",
				len(got), 1-worst.cosine, worst.cosineWhere, worst.normError, worst.normErrWhere)
			if !(worst.cosine >= minGradientCosine) {
				t.Errorf("%s: gradient has cosine %.6f with PEFT's", worst.cosineWhere, worst.cosine)
			}
			if !(worst.normError <= maxNormRatioError) {
				t.Errorf("%s: gradient's norm is off by %.2e", worst.normErrWhere, worst.normError)
			}
		})
	}
}

// allLogits are those of every row of a sequence.
func (r *familyReference) allLogits(t *testing.T, trainer *engine.Trainer, sequence int) []float32 {
	t.Helper()
	tokens := r.Sequences[sequence].Tokens
	batch := engine.Batch{Tokens: tokens, VisibleUntil: slices.Repeat([]int32{int32(len(tokens))}, len(tokens))}
	rows := make([]int32, len(tokens))
	for i := range rows {
		rows[i] = int32(i)
	}
	batch.Positions = rows
	logits, err := trainer.Logits(batch, rows)
	if err != nil {
		t.Fatal(err)
	}
	return logits
}

func largestDifference(got, want []float32) (worst float64) {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	for i := range got {
		if diff := math.Abs(float64(got[i] - want[i])); !(diff <= worst) {
			worst = diff
		}
	}
	return worst
}

func TestFamilyLogitsMatchTransformers(t *testing.T) {
	forEachFamily(t, func(t *testing.T, r *familyReference) {
		trainer := r.trainer(t, engine.KeepAuto)
		for i, s := range r.Sequences {
			want := r.tensors[fmt.Sprintf("logits.%d", i)]
			got := r.allLogits(t, trainer, i)[s.LogitsFrom*familyVocab:]
			worst := largestDifference(got, want.data)
			t.Logf("%d tokens: %d rows, largest difference %.1e", len(s.Tokens), want.rows, worst)
			if !(worst <= maxLogitError) {
				t.Errorf("%d tokens: a logit differs by %g", len(s.Tokens), worst)
			}
		}
	})
}

// The same model and adapter, from the same files, in llama.cpp.
func TestFamilyLogitsMatchLibllama(t *testing.T) {
	forEachFamily(t, func(t *testing.T, r *familyReference) {
		trainer := r.trainer(t, engine.KeepAuto)
		adapter := r.writeAdapter(t, trainer)
		for i, s := range r.Sequences {
			n, tolerance := len(s.Tokens), maxLibllamaLogitError
			got, want := r.allLogits(t, trainer, i), libllamaLogits(t, r.path, adapter, s.Tokens, familyVocab)
			if table, ok := r.tensors[fmt.Sprintf("table.%d", i)]; ok {
				tolerance = maxGeluTableLogitError
				worst := largestDifference(want[s.LogitsFrom*familyVocab:], table.data)
				t.Logf("%d tokens: llama.cpp's largest difference from transformers with ggml's GELU %.1e", n, worst)
				if !(worst <= maxSameTableLogitError) {
					t.Errorf("%d tokens: with ggml's GELU a logit differs from llama.cpp's by %g", n, worst)
				}
			}
			same := n
			if r.SameRows > 0 {
				same = min(n, r.SameRows)
			}
			worst := largestDifference(got[:same*familyVocab], want[:same*familyVocab])
			t.Logf("%d tokens: largest difference of the first %d rows %.1e", n, same, worst)
			if !(worst <= tolerance) {
				t.Errorf("%d tokens: a logit differs from llama.cpp's by %g", n, worst)
			}
			// Where llama.cpp ignores a window, ours must be seen.
			if beyond := largestDifference(got[same*familyVocab:], want[same*familyVocab:]); same < n && !(beyond > 10*tolerance) {
				t.Errorf("%d tokens: logits beyond the window are those without one", n)
			}
		}
	})
}

// What is generated with a cache, one text after the other or together, is what transformers makes without a cache.
func TestFamilyGenerationMatchesTransformers(t *testing.T) {
	compared := 0
	forEachFamily(t, func(t *testing.T, r *familyReference) {
		adapter := r.writeAdapter(t, r.trainer(t, engine.KeepAuto))
		vocab, err := engine.OpenVocab(r.path)
		if err != nil {
			t.Fatal(err)
		}
		defer vocab.Close()
		// A text alone, all together, and all with prompts that are read in parts.
		for _, tt := range []struct{ sequences, batch int }{{1, 64}, {len(r.Greedy), 64}, {len(r.Greedy), 7}} {
			if len(r.Greedy) == 0 {
				break
			}
			var prompts [][]int32
			longest := 0
			for i, goesOn := range r.Greedy {
				prompts, longest = append(prompts, r.Sequences[i].Tokens), max(longest, len(r.Sequences[i].Tokens)+len(goesOn))
			}
			// One thread: several would wait for each other after each of these tiny products, for long where processors are busy.
			session, err := engine.NewSession(r.path, adapter, engine.SessionParams{
				NCtx: tt.sequences * (longest + 1), NBatch: tt.batch, NSequences: tt.sequences, NThreads: 1, AdapterScale: 1, F32KV: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			answers, err := engine.NewGenerator(session, vocab).Generate(t.Context(), prompts, engine.GenerateOptions{MaxTokens: longest})
			session.Close()
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range r.Greedy {
				got := answers[i].Tokens
				if !slices.Equal(got[:min(len(got), len(want))], want) {
					t.Errorf("%d texts at once, batches of %d: sequence %d goes on with %v, want %v", tt.sequences, tt.batch, i, got, want)
				}
				compared += len(want)
			}
		}
	})
	const least = 1000 // tokens
	if compared < least {
		t.Errorf("%d tokens were compared", compared)
	}
}

func (r *familyReference) writeAdapter(t *testing.T, trainer *engine.Trainer) string {
	t.Helper()
	infos, err := trainer.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	a := gguf.Adapter{Architecture: r.Architecture, Rank: r.Rank, Alpha: r.Alpha}
	for _, tensor := range infos {
		a.Tensors = append(a.Tensors, gguf.Tensor{
			Name: tensor.Name, Rows: tensor.Rows, Cols: tensor.Cols, Data: adapterValues(tensor.Name, tensor.Rows*tensor.Cols),
		})
	}
	path := filepath.Join(t.TempDir(), "adapter.gguf")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := gguf.WriteAdapter(f, a, gguf.F32); err != nil {
		t.Fatal(err)
	}
	return path
}

// libllamaLogits are llama.cpp's for every row, with an F32 cache and without flash attention.
func libllamaLogits(t *testing.T, model, adapter string, tokens []int32, vocab int) []float32 {
	t.Helper()
	n := len(tokens)
	session, err := engine.NewSession(model, adapter, engine.SessionParams{NCtx: n, NBatch: n, NSequences: 1, NThreads: 2, AdapterScale: 1, F32KV: true})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	positions := make([]int32, n)
	for i := range positions {
		positions[i] = int32(i)
	}
	if err := session.Decode(tokens, positions, make([]int32, n), slices.Repeat([]bool{true}, n)); err != nil {
		t.Fatal(err)
	}
	logits := make([]float32, n*vocab)
	for i := range n {
		if err := session.Logits(i, logits[i*vocab:(i+1)*vocab]); err != nil {
			t.Fatal(err)
		}
	}
	return logits
}
