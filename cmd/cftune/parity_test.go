package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cftune/bindings/engine"
	"cftune/internal/testmodel"
)

// Tolerances of the comparison with PyTorch, which computes in fp32 too, in another order. In fp64 the same reference has
// gradients up to 9e-4 (relative, the worst tensor) and logits up to 5e-5 away from its fp32 figures.
const (
	minGradientCosine   = 0.9999
	maxNormRatioError   = 1e-3
	maxLossError        = 1e-4 // relative
	maxLogitError       = 1e-3 // absolute; four times what 30 layers of fp32 rounding were seen to make
	maxCurveError       = 1e-3 // relative, while the loss is above fallenLoss
	maxFallenCurveError = 2e-2 // relative, below: what is left of the loss is small against its own rounding
	fallenLoss          = 0.1

	// llama.cpp's own logits, from an F32 file, with an F32 cache and without flash attention.
	maxLibllamaLogitError = 1e-3
)

func relative(got, want float64) float64 { return math.Abs(got-want) / math.Abs(want) }

func accumulate(t *testing.T, trainer *engine.Trainer, batches []engine.Batch) (loss float64, targets int) {
	t.Helper()
	for _, b := range batches {
		sum, n, err := trainer.Accumulate(context.Background(), b)
		if err != nil {
			t.Fatal(err)
		}
		loss, targets = loss+sum, targets+n
	}
	return loss, targets
}

// comparison collects the worst of many tensors.
type comparison struct {
	cosine, normError         float64
	cosineWhere, normErrWhere string
}

func (c *comparison) add(name string, got, want []float32) {
	var dot, gg, ww float64
	for i := range got {
		g, w := float64(got[i]), float64(want[i])
		dot, gg, ww = dot+g*w, gg+g*g, ww+w*w
	}
	cosine, normError := dot/math.Sqrt(gg*ww), math.Abs(math.Sqrt(gg/ww)-1)
	// Not-a-number compares as worse than anything.
	if c.cosineWhere == "" || !(cosine >= c.cosine) {
		c.cosine, c.cosineWhere = cosine, name
	}
	if c.normErrWhere == "" || !(normError <= c.normError) {
		c.normError, c.normErrWhere = normError, name
	}
}

func TestGradientsMatchPEFT(t *testing.T) {
	forEachReference(t, func(t *testing.T, r *reference) {
		model := r.openModel(t)
		info, err := model.Info()
		if err != nil {
			t.Fatal(err)
		}
		want := ggufTensors(t, r.gradients, info)
		for _, tt := range []struct {
			name   string
			keep   engine.Keep
			seqLen int // the longest sequence alone, or all in one pack
		}{
			{"one pack, activations kept", engine.KeepAll, referencePack},
			{"one pack, layers recomputed", engine.KeepLayers, referencePack},
			{"several packs", engine.KeepAll, r.sequences[len(r.sequences)-1].Length},
		} {
			t.Run(tt.name, func(t *testing.T) {
				trainer := r.adaptedTrainer(t, model, tt.keep)
				loss, targets := accumulate(t, trainer, r.batches(t, tt.seqLen, 0, 1, 2))
				if targets != r.loss.BatchSupervised {
					t.Errorf("%d targets, want %d", targets, r.loss.BatchSupervised)
				}
				lossError := relative(loss/float64(targets), r.loss.BatchMean)
				if !(lossError <= maxLossError) {
					t.Errorf("loss %.7f, want %.7f", loss/float64(targets), r.loss.BatchMean)
				}
				var worst comparison
				infos, err := trainer.Tensors()
				if err != nil {
					t.Fatal(err)
				}
				for i, tensor := range infos {
					got := make([]float32, tensor.Rows*tensor.Cols)
					if err := trainer.ReadTensor(i, engine.SlotGradient, got); err != nil {
						t.Fatal(err)
					}
					for k := range got {
						got[k] /= float32(targets)
					}
					worst.add(tensor.Name, got, want[tensor.Name].data)
				}
				t.Logf("%d tensors: lowest cosine 1 - %.1e (%s), largest norm error %.1e (%s); loss error %.1e",
					len(infos), 1-worst.cosine, worst.cosineWhere, worst.normError, worst.normErrWhere, lossError)
				if !(worst.cosine >= minGradientCosine) {
					t.Errorf("%s: gradient has cosine %.6f with PEFT's", worst.cosineWhere, worst.cosine)
				}
				if !(worst.normError <= maxNormRatioError) {
					t.Errorf("%s: gradient's norm is off by %.2e", worst.normErrWhere, worst.normError)
				}
			})
		}
	})
}

func TestLossesMatchPEFT(t *testing.T) {
	forEachReference(t, func(t *testing.T, r *reference) {
		model := r.openModel(t)
		base, adapted := r.trainer(t, model, engine.KeepAuto), r.adaptedTrainer(t, model, engine.KeepAuto)
		for i, s := range r.sequences {
			for _, tt := range []struct {
				name    string
				trainer *engine.Trainer
				want    float64
			}{{"base", base, r.baseMean(i)}, {"adapted", adapted, r.loss.Sequences[i].Mean}} {
				sum, n, err := tt.trainer.Evaluate(context.Background(), r.batches(t, referencePack, i)[0])
				if err != nil {
					t.Fatal(err)
				}
				got := sum / float64(n)
				t.Logf("%d tokens, %s: loss %.6f, relative error %.1e", s.Length, tt.name, got, relative(got, tt.want))
				if !(relative(got, tt.want) <= maxLossError) {
					t.Errorf("%d tokens, %s: loss %.7f, want %.7f", s.Length, tt.name, got, tt.want)
				}
			}
		}
	})
}

func TestLogitsMatchPEFT(t *testing.T) {
	forEachReference(t, func(t *testing.T, r *reference) {
		model := r.openModel(t)
		trainer := r.adaptedTrainer(t, model, engine.KeepAuto)
		for i, s := range r.sequences {
			batch := r.batches(t, referencePack, i)[0]
			var rows []int32 // those that predict a supervised token
			for row := s.NPrompt - 1; row < s.Length-1; row++ {
				rows = append(rows, int32(row))
			}
			logits, err := trainer.Logits(batch, rows)
			if err != nil {
				t.Fatal(err)
			}
			checked, worst := r.compareLogits(s, logits, len(logits)/len(rows))
			t.Logf("%d tokens: %d values compared, largest difference %.1e", s.Length, checked, worst)
			if checked == 0 {
				t.Error("the reference has no logits of this sequence")
			}
			if !(worst <= maxLogitError) {
				t.Errorf("%d tokens: a logit differs by %g", s.Length, worst)
			}
		}
	})
}

// compareLogits compares what the reference has: whole rows, or first and last rows whole and the rest's most likely
// tokens, log-sum-exp and target.
func (r *reference) compareLogits(s referenceSequence, logits []float32, vocab int) (checked int, worst float64) {
	numRows := len(logits) / vocab
	compare := func(got, want float64) {
		checked++
		if diff := math.Abs(got - want); !(diff <= worst) {
			worst = diff
		}
	}
	whole := func(name string, firstRow func(rows int) int) {
		p, ok := r.logits[fmt.Sprintf("seq%d.%s", s.Length, name)]
		if !ok {
			return
		}
		for k, want := range p.data {
			compare(float64(logits[firstRow(p.rows)*vocab+k]), float64(want))
		}
	}
	whole("full", func(int) int { return 0 })
	whole("full_first2", func(int) int { return 0 })
	whole("full_last1", func(rows int) int { return numRows - rows })
	values, ok := r.logits[fmt.Sprintf("seq%d.top16_values", s.Length)]
	if !ok {
		return checked, worst
	}
	ids := r.logits[fmt.Sprintf("seq%d.top16_ids", s.Length)]
	sums := r.logits[fmt.Sprintf("seq%d.logsumexp", s.Length)]
	targets := r.logits[fmt.Sprintf("seq%d.target_logit", s.Length)]
	for row := range numRows {
		x := logits[row*vocab : (row+1)*vocab]
		for k := range values.cols {
			compare(float64(x[int(ids.data[row*values.cols+k])]), float64(values.data[row*values.cols+k]))
		}
		high := float64(slices.Max(x))
		sum := 0.0
		for _, v := range x {
			sum += math.Exp(float64(v) - high)
		}
		compare(high+math.Log(sum), float64(sums.data[row]))
		compare(float64(x[s.Tokens[s.NPrompt+row]]), float64(targets.data[row]))
	}
	return checked, worst
}

// checkCurve compares losses, the k-th before update k+1, with the reference's, and returns the largest relative errors.
func (r *reference) checkCurve(t *testing.T, losses []float64) {
	t.Helper()
	var worst, worstFallen float64
	for k, got := range losses {
		want := r.curve[k].Loss
		tolerance, largest := maxCurveError, &worst
		if want <= fallenLoss {
			tolerance, largest = maxFallenCurveError, &worstFallen
		}
		err := relative(got, want)
		*largest = max(*largest, err)
		if !(err <= tolerance) {
			t.Errorf("step %d: loss %.6f, want %.6f (relative error %.1e)", k+1, got, want, err)
		}
	}
	t.Logf("%d steps, loss %.4f to %.4f: relative error at most %.1e above a loss of %g, %.1e below",
		len(losses), losses[0], losses[len(losses)-1], worst, fallenLoss, worstFallen)
}

func TestCurveMatchesPEFT(t *testing.T) {
	forEachReference(t, func(t *testing.T, r *reference) {
		model := r.openModel(t)
		trainer := r.adaptedTrainer(t, model, engine.KeepAuto)
		batches := r.batches(t, referencePack, 0, 1, 2)
		var losses []float64
		for k, want := range r.curve {
			sum, targets := accumulate(t, trainer, batches)
			losses = append(losses, sum/float64(targets))
			norm, err := trainer.Apply(r.loss.LR, 1, float64(targets))
			if err != nil {
				t.Fatal(err)
			}
			if want.Loss > fallenLoss && !(relative(norm, want.GradNorm) <= 10*maxCurveError) {
				t.Errorf("step %d: gradient norm %.6f, want %.6f", k+1, norm, want.GradNorm)
			}
		}
		r.checkCurve(t, losses)
	})
}

// The engine's forward pass against llama.cpp's own, token for token, over all layouts that an F32 file can have.
func TestLogitsMatchLibllama(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    testmodel.Options
	}{
		{"tied output", testmodel.Options{Layers: 3}},
		{"untied output, larger vocabulary", testmodel.Options{Untied: true, Vocab: 512}},
		{"rope factors", testmodel.Options{RopeFreqs: true}},
		{"wide heads", testmodel.Options{HeadDim: 32}},
		{"no grouped heads", testmodel.Options{KVHeads: 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "model.gguf")
			if err := testmodel.Write(path, tt.o); err != nil {
				t.Fatal(err)
			}
			compareWithLibllama(t, path, someTokens(100, 256))
		})
	}
	t.Run("reference model", func(t *testing.T) {
		compareWithLibllama(t, filepath.Join("testdata", "reference", "model.gguf"), someTokens(100, 256))
	})
	// Of quantized weights libllama's products round activations to 8 bits; an F32 copy has the same weights without that.
	// It reads text: on sequences unlike any text this model has rows that magnify rounding, libllama's to 3e-3.
	t.Run("real model in F32", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "model.gguf")
		if err := engine.Requantize(realModel(t), path, engine.FileTypeF32, nil, 2); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join("..", "..", "LICENSE"))
		if err != nil {
			t.Fatal(err)
		}
		vocab, err := engine.OpenVocab(path)
		if err != nil {
			t.Fatal(err)
		}
		defer vocab.Close()
		tokens, err := vocab.Tokenize(string(text), false)
		if err != nil {
			t.Fatal(err)
		}
		compareWithLibllama(t, path, tokens[:200])
	})
}

// someTokens are unlike any text.
func someTokens(n, vocab int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32((i*i*7 + i*3) % vocab)
	}
	return tokens
}

func compareWithLibllama(t *testing.T, path string, tokens []int32) {
	t.Helper()
	n := len(tokens)
	model, err := engine.Load(path, "cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	info, err := model.Info()
	if err != nil {
		t.Fatal(err)
	}
	batch := engine.Batch{Tokens: tokens}
	var rows []int32
	for i := range n {
		batch.Positions = append(batch.Positions, int32(i))
		batch.VisibleUntil = append(batch.VisibleUntil, int32(n))
		rows = append(rows, int32(i))
	}
	trainer, err := engine.NewTrainer(model, engine.Params{
		Rank: 2, Alpha: 4, Targets: engine.TargetAllLinear, MaxTokens: n, Threads: 2, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer trainer.Close()
	got, err := trainer.Logits(batch, rows)
	if err != nil {
		t.Fatal(err)
	}

	session, err := engine.NewSession(path, "", engine.SessionParams{NCtx: n, NBatch: n, NSequences: 1, NThreads: 2, AdapterScale: 1, F32KV: true})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if err := session.Decode(batch.Tokens, batch.Positions, make([]int32, n), slices.Repeat([]bool{true}, n)); err != nil {
		t.Fatal(err)
	}
	worst, spread := 0.0, 0.0
	want := make([]float32, info.Vocab)
	for i := range n {
		if err := session.Logits(i, want); err != nil {
			t.Fatal(err)
		}
		for k, w := range want {
			if diff := math.Abs(float64(got[i*info.Vocab+k] - w)); !(diff <= worst) {
				worst = diff
			}
		}
		spread = max(spread, float64(slices.Max(want)-slices.Min(want)))
	}
	t.Logf("%d rows: largest difference %.1e, logits spread over %.1f", n, worst, spread)
	if spread < 1 {
		t.Errorf("logits spread over %g only: nothing was compared", spread)
	}
	if !(worst <= maxLibllamaLogitError) {
		t.Errorf("a logit differs from llama.cpp's by %g", worst)
	}
}
