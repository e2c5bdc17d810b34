package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"cftune/bindings/engine"
	"cftune/internal/testmodel"
	"cftune/trainer/pack"
)

// What sharing prefixes may change: the order in which the terms of sums are added, in fp32.
const (
	minSharedCosine = 0.999999
	maxSharedLoss   = 1e-6 // relative
)

// critiques makes the rows of one query: a system prompt, the query, some answers and critiques of each, of random
// lengths up to longest. Critiques are supervised, and the rows' weights differ. The last row is there twice.
func critiques(answers, each, longest, vocab int) []pack.Example {
	rng := rand.New(rand.NewPCG(8, 9))
	text := func() []int32 {
		tokens := make([]int32, 1+rng.IntN(longest))
		for i := range tokens {
			tokens[i] = int32(rng.IntN(vocab))
		}
		return tokens
	}
	query := append(text(), text()...)
	var rows []pack.Example
	for a := range answers {
		prompt := append(query[:len(query):len(query)], text()...)
		for c := range each {
			e := pack.Example{ID: fmt.Sprintf("answer %d, critique %d", a+1, c+1), Weight: 0.5 + rng.Float32()}
			e.Tokens = append(prompt[:len(prompt):len(prompt)], text()...)
			for i, token := range e.Tokens {
				label := token
				if i < len(prompt) {
					label = pack.IgnoreTarget
				}
				e.Labels = append(e.Labels, label)
			}
			rows = append(rows, e)
		}
	}
	return append(rows, rows[len(rows)-1])
}

// buildBoth packs rows apart and as trees.
func buildBoth(t *testing.T, rows []pack.Example, seqLen int) (apart, shared []engine.Batch) {
	t.Helper()
	separate, err := pack.Build(rows, seqLen)
	require.NoError(t, err)
	trees, _, err := pack.BuildShared(rows, seqLen)
	require.NoError(t, err)
	positions := [2]int{}
	for _, b := range separate {
		apart = append(apart, engine.Batch(b))
		positions[0] += len(b.Tokens)
	}
	for _, b := range trees {
		shared = append(shared, engine.Batch(b))
		positions[1] += len(b.Tokens)
	}
	t.Logf("packs of %d: %d with %d positions apart, %d with %d shared", seqLen, len(apart), positions[0], len(shared), positions[1])
	require.Less(t, positions[1], positions[0], "nothing is shared")
	return apart, shared
}

// randomAdapter makes a trainer whose A and B are both random, so that neither hides the other's gradient.
func randomAdapter(t *testing.T, model *engine.Model, maxTokens int, dropout float64) *engine.Trainer {
	t.Helper()
	trainer, err := engine.NewTrainer(model, engine.Params{
		Rank: 4, Alpha: 8, Targets: engine.TargetAllLinear, Dropout: dropout, MaxTokens: maxTokens, Threads: 2,
		Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
	})
	require.NoError(t, err)
	t.Cleanup(func() { trainer.Close() })
	infos, err := trainer.Tensors()
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(3, 4))
	for i, info := range infos {
		values := make([]float32, info.Rows*info.Cols)
		for k := range values {
			values[k] = float32(0.02 * rng.NormFloat64())
		}
		write(t, trainer, i, values)
	}
	return trainer
}

// forEachModel runs a test over tiny models of several layouts, and over the real one where it is. longest is fit for
// the model's speed.
func forEachModel(t *testing.T, test func(t *testing.T, model *engine.Model, longest int)) {
	open := func(t *testing.T, path string) *engine.Model {
		model, err := engine.Load(path, "cpu")
		require.NoError(t, err)
		t.Cleanup(func() { model.Close() })
		return model
	}
	t.Run("tiny", func(t *testing.T) { test(t, open(t, tinyModel(t, testmodel.Options{Seed: 7})), 40) })
	t.Run("tiny, three layers, wide heads", func(t *testing.T) {
		test(t, open(t, tinyModel(t, testmodel.Options{Seed: 7, Layers: 3, HeadDim: 32, Type: testmodel.Q4_0})), 90)
	})
	t.Run("SmolLM2-135M", func(t *testing.T) { test(t, open(t, realModel(t)), 40) })
}

func TestSharedPrefixesDoNotChangeGradients(t *testing.T) {
	forEachModel(t, func(t *testing.T, model *engine.Model, longest int) {
		info, err := model.Info()
		require.NoError(t, err)
		rows := critiques(3, 4, longest, info.Vocab)
		for _, seqLen := range []int{5 * longest, 60 * longest} { // several packs, so that prefixes repeat, and one
			apart, shared := buildBoth(t, rows, seqLen)
			trainer := randomAdapter(t, model, seqLen, 0)
			wantLoss, wantTargets := accumulate(t, trainer, apart)
			want := tensorGradients(t, trainer)
			trainer.Discard()
			loss, targets := accumulate(t, trainer, shared)
			require.Equal(t, wantTargets, targets)
			var worst comparison
			for name, gradient := range tensorGradients(t, trainer) {
				worst.add(name, gradient, want[name])
			}
			t.Logf("lowest cosine 1 - %.1e (%s), largest norm error %.1e; loss error %.1e",
				1-worst.cosine, worst.cosineWhere, worst.normError, relative(loss, wantLoss))
			if !(worst.cosine >= minSharedCosine) {
				t.Errorf("%s: the gradient of shared prefixes has cosine %.9f with that of separate rows", worst.cosineWhere, worst.cosine)
			}
			if !(worst.normError <= maxPackedError) {
				t.Errorf("%s: the norm is off by %.2e", worst.normErrWhere, worst.normError)
			}
			if !(relative(loss, wantLoss) <= maxSharedLoss) {
				t.Errorf("loss %.9f, want %.9f", loss, wantLoss)
			}
		}
	})
}

func tensorGradients(t *testing.T, trainer *engine.Trainer) map[string][]float32 {
	t.Helper()
	infos, err := trainer.Tensors()
	require.NoError(t, err)
	all := map[string][]float32{}
	for i, info := range infos {
		all[info.Name] = make([]float32, info.Rows*info.Cols)
		require.NoError(t, trainer.ReadTensor(i, engine.SlotGradient, all[info.Name]))
	}
	return all
}

// Dropout masks are drawn for each position computed. So they are others when positions are shared, while an evaluation,
// which has none, is as without sharing.
func TestDropoutOfSharedPrefixes(t *testing.T) {
	model, err := engine.Load(tinyModel(t, testmodel.Options{Seed: 7}), "cpu")
	require.NoError(t, err)
	defer model.Close()
	apart, shared := buildBoth(t, critiques(2, 3, 30, testmodel.MinVocab()), 2000)

	trainer := randomAdapter(t, model, 2000, 0.3)
	evaluate := func(batches []engine.Batch) (sum float64) {
		for _, b := range batches {
			loss, _, err := trainer.Evaluate(context.Background(), b)
			require.NoError(t, err)
			sum += loss
		}
		return sum
	}
	without := evaluate(apart)
	if e := relative(evaluate(shared), without); !(e <= maxSharedLoss) {
		t.Errorf("without dropout the loss differs by %.1e", e)
	}

	first := func(batches []engine.Batch) float64 {
		loss, _ := accumulate(t, randomAdapter(t, model, 2000, 0.3), batches)
		return loss
	}
	with := first(shared)
	require.NotEqual(t, without, with, "nothing is dropped")
	require.Equal(t, with, first(shared), "the same pack has other masks")
	require.NotEqual(t, with, first(apart))
}
