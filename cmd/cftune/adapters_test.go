package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cftune/bindings/engine"
	"cftune/trainer/config"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
	"cftune/trainer/schedule"
)

// forEachAdapter runs a test for every reference of an adapter that is more than one rank and scale.
func forEachAdapter(t *testing.T, test func(t *testing.T, r *familyReference)) {
	t.Helper()
	forEachSmall(t, "adapters", 5, test)
}

func TestAdapterGradientsMatchPEFT(t *testing.T) { forEachAdapter(t, checkGradients) }

// run is a configuration of the reference's adapter.
func (r *familyReference) run(t *testing.T) config.Run {
	t.Helper()
	run := config.Defaults()
	run.Model, run.Threads = r.path, 2
	run.Adapter = config.Adapter{
		Rank: r.Rank, Alpha: r.Alpha, RSLoRA: r.RSLoRA, DoRA: r.DoRA, Targets: strings.Join(r.Targets, ","),
		RankPattern: map[string]int{}, AlphaPattern: map[string]float64{},
	}
	if o := r.Optimizer; o != nil {
		run.Optimizer = config.Optimizer{
			LR: o.LR, Betas: o.Betas, Eps: o.Eps, WeightDecay: o.WeightDecay, MaxGradNorm: o.MaxGradNorm, Schedule: schedule.Cosine,
			WarmupSteps: o.Warmup, MinLRRatio: o.MinRatio,
		}
		run.Adapter.LoRAPlusRatio = o.Ratio
	}
	layers := map[string]bool{}
	for _, m := range r.Modules {
		key := strings.TrimSuffix(m.Weight, ".weight")
		if m.Rank != r.Rank {
			run.Adapter.RankPattern[key] = m.Rank
		}
		if m.Alpha != r.Alpha {
			run.Adapter.AlphaPattern[key] = m.Alpha
		}
		if parts := strings.Split(key, "."); parts[0] == "blk" {
			layers[parts[1]] = true
		}
	}
	if len(layers) == 1 { // of two
		for layer := range layers {
			run.Adapter.Layers = layer
		}
	}
	return run
}

// adapter is the reference's, as gguf has it.
func (r *familyReference) adapter(t *testing.T) gguf.Adapter {
	t.Helper()
	infos, err := r.trainer(t, engine.KeepAuto).Tensors()
	if err != nil {
		t.Fatal(err)
	}
	a := gguf.Adapter{Architecture: r.Architecture, Alpha: r.Alpha, RSLoRA: r.RSLoRA, DoRA: r.DoRA}
	for _, tensor := range infos {
		a.Tensors = append(a.Tensors, gguf.Tensor{
			Name: tensor.Name, Rows: tensor.Rows, Cols: tensor.Cols, Data: adapterValues(tensor.Name, tensor.Rows*tensor.Cols),
		})
	}
	for _, m := range r.Modules {
		if m.Alpha != r.Alpha {
			if a.Alphas == nil {
				a.Alphas = map[string]float64{}
			}
			a.Alphas[m.Weight] = m.Alpha
		}
	}
	return a
}

// What PEFT saved is read as the adapter that it was, and written as PEFT saves it: names, shapes and values of the tensors, and
// every setting that decides what is computed.
func TestPEFTsOwnFoldersAreReadAndWritten(t *testing.T) {
	forEachAdapter(t, func(t *testing.T, r *familyReference) {
		folder := filepath.Join("testdata", "adapters", filepath.Base(t.Name()))
		base, err := gguf.Open(r.path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := gguf.ReadAdapter(folder, base)
		if err != nil {
			t.Fatal(err)
		}
		want := r.adapter(t)
		if len(got.Tensors) != len(want.Tensors) || got.RSLoRA != want.RSLoRA || got.DoRA != want.DoRA {
			t.Fatalf("%d tensors, rslora %v, dora %v", len(got.Tensors), got.RSLoRA, got.DoRA)
		}
		for _, tensor := range want.Tensors {
			i := slices.IndexFunc(got.Tensors, func(o gguf.Tensor) bool { return o.Name == tensor.Name })
			if i < 0 || got.Tensors[i].Rows != tensor.Rows || got.Tensors[i].Cols != tensor.Cols || !slices.Equal(got.Tensors[i].Data, tensor.Data) {
				t.Errorf("%s was not read as it is", tensor.Name)
			}
		}
		for _, m := range r.Modules {
			if alpha := got.AlphaOf(m.Weight); alpha != m.Alpha {
				t.Errorf("alpha of %s is %g, want %g", m.Weight, alpha, m.Alpha)
			}
		}
		written, err := gguf.ToPEFT(got, base, "owner/name")
		if err != nil {
			t.Fatal(err)
		}
		again := t.TempDir()
		writeFile(t, filepath.Join(again, gguf.PEFTTensorsName), func(f *os.File) error { return written.WriteTensors(f) })
		writeFile(t, filepath.Join(again, gguf.PEFTConfigName), func(f *os.File) error { return written.WriteConfig(f) })
		samePEFTTensors(t, filepath.Join(again, gguf.PEFTTensorsName), filepath.Join(folder, gguf.PEFTTensorsName))
		reread, err := gguf.ReadAdapter(again, base)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range r.Modules {
			if alpha := reread.AlphaOf(m.Weight); alpha != m.Alpha {
				t.Errorf("written, alpha of %s is %g, want %g", m.Weight, alpha, m.Alpha)
			}
		}
		var ours, theirs map[string]any
		readJSON(t, filepath.Join(again, gguf.PEFTConfigName), &ours)
		readJSON(t, filepath.Join(folder, gguf.PEFTConfigName), &theirs)
		for _, key := range []string{"use_dora", "use_rslora", "peft_type", "bias", "fan_in_fan_out"} {
			if ours[key] != theirs[key] {
				t.Errorf("%s is %v, PEFT's is %v", key, ours[key], theirs[key])
			}
		}
	})
}

func writeFile(t *testing.T, path string, write func(*os.File) error) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := write(f); err != nil {
		t.Fatal(err)
	}
}

// samePEFTTensors compares two safetensors files: names, shapes as they are written, values.
func samePEFTTensors(t *testing.T, got, want string) {
	t.Helper()
	ours, theirs := readSafetensors(t, got), readSafetensors(t, want)
	if len(ours) != len(theirs) {
		t.Errorf("%d tensors, PEFT has %d", len(ours), len(theirs))
	}
	shapes := func(path string) map[string][]int {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var head map[string]struct {
			Shape []int `json:"shape"`
		}
		if err := json.NewDecoder(strings.NewReader(string(data[8:]))).Decode(&head); err != nil {
			t.Fatal(err)
		}
		of := map[string][]int{}
		for name, entry := range head {
			of[name] = entry.Shape
		}
		return of
	}
	ourShapes, theirShapes := shapes(got), shapes(want)
	for name, tensor := range theirs {
		if !slices.Equal(ours[name].data, tensor.data) || !slices.Equal(ourShapes[name], theirShapes[name]) {
			t.Errorf("%s is %v, PEFT's is %v, or their values differ", name, ourShapes[name], theirShapes[name])
		}
	}
}

// llama.cpp computes what was trained: with the adapter, its scales folded into B where they differ, or, of DoRA, merged.
func TestAdapterLogitsMatchLibllama(t *testing.T) {
	forEachAdapter(t, func(t *testing.T, r *familyReference) {
		trainer, a := r.trainer(t, engine.KeepAuto), r.adapter(t)
		base, err := gguf.Open(r.path)
		if err != nil {
			t.Fatal(err)
		}
		file, err := export.ParseFileType("F32")
		if err != nil {
			t.Fatal(err)
		}
		merged := filepath.Join(t.TempDir(), "merged.gguf")
		if _, err := export.Merge(context.Background(), exportEngine{2}, base, a, merged, export.MergeOptions{Type: file}); err != nil {
			t.Fatal(err)
		}
		served := map[string]servedAs{"merged": {model: merged}}
		if folded, err := a.ForLlama(); r.DoRA {
			if err == nil {
				t.Fatal("DoRA has become an adapter of llama.cpp's")
			}
		} else if err != nil {
			t.Fatal(err)
		} else {
			path := filepath.Join(t.TempDir(), "adapter.gguf")
			writeFile(t, path, func(f *os.File) error { return gguf.WriteAdapter(f, folded, gguf.F32) })
			served["adapter"] = servedAs{model: r.path, adapter: path}
		}
		for how, s := range served {
			for i, sequence := range r.Sequences {
				n := len(sequence.Tokens)
				if r.SameRows > 0 {
					n = min(n, r.SameRows)
				}
				got := libllamaLogits(t, s.model, s.adapter, sequence.Tokens, familyVocab)[:n*familyVocab]
				worst := largestDifference(got, r.allLogits(t, trainer, i)[:n*familyVocab])
				t.Logf("%s, %d tokens: largest difference %.1e", how, n, worst)
				if !(worst <= maxLibllamaLogitError) {
					t.Errorf("%s, %d tokens: a logit differs from llama.cpp's by %g", how, n, worst)
				}
			}
		}
	})
}

// As it stands, an adapter that llama.cpp would compute wrongly is refused by it.
func TestLibllamaRefusesWhatItWouldMisread(t *testing.T) {
	forEachAdapter(t, func(t *testing.T, r *familyReference) {
		path := filepath.Join(t.TempDir(), "adapter.gguf")
		a := r.adapter(t)
		writeFile(t, path, func(f *os.File) error { return gguf.WriteAdapter(f, a, gguf.F32) })
		again, err := gguf.ReadAdapter(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if again.DoRA != a.DoRA || again.RSLoRA != a.RSLoRA || again.Alpha != a.Alpha || len(again.Alphas) != len(a.Alphas) || len(again.Tensors) != len(a.Tensors) {
			t.Errorf("read back as %+v", again.Alphas)
		}
		session, err := engine.NewSession(r.path, path, engine.SessionParams{NCtx: 8, NBatch: 8, NSequences: 1, NThreads: 1, AdapterScale: 1})
		if err == nil {
			session.Close()
			t.Error("llama.cpp has taken it")
		} else if !strings.Contains(err.Error(), "adapter.type is 'cftune'") {
			t.Errorf("refused for another reason: %v", err)
		}
	})
}
