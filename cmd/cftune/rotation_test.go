package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cftune/bindings/engine"
	"cftune/internal/testmodel"
)

// rotationReference is that of a model whose original context is 512 tokens, made by sequences of up to 40.
func rotationReference(t *testing.T) *familyReference {
	t.Helper()
	file := filepath.Join("testdata", "families", "phi3-short.json")
	r := &familyReference{path: filepath.Join(t.TempDir(), "model.gguf")}
	readJSON(t, file, r)
	r.tensors = readSafetensors(t, strings.TrimSuffix(file, ".json")+".safetensors")
	if err := r.Write(r.path); err != nil {
		t.Fatal(err)
	}
	return r
}

// The longest sequence decides how all are rotated, however long packs are: PEFT's loss and gradients are those of its rows.
func TestLongPacksOfShortSequencesAreRotatedAsTheseAre(t *testing.T) {
	r := rotationReference(t)
	model, err := engine.Load(r.path, "cpu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Close)
	short, err := shortContext(r.path)
	if err != nil {
		t.Fatal(err)
	}
	const packed, longest = 1024, 40
	if short != 512 {
		t.Fatalf("the model's contexts are short up to %d", short)
	}
	for _, tt := range []struct {
		maxSequence int
		like        bool
	}{{longest, true}, {512, true}, {513, false}, {0, false}} {
		trainer, err := engine.NewTrainer(model, engine.Params{
			Rank: r.Rank, Alpha: r.Alpha, Targets: engine.TargetAllLinear, MaxTokens: packed, MaxSequence: tt.maxSequence, Threads: 1,
			Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(trainer.Close)
		writeAdapter(t, trainer)
		got, loss := r.gradients(t, trainer, r.batches(t, packed, 0, 1))
		var worst comparison
		for name, tensor := range got {
			worst.add(name, tensor.data, r.tensors[name].data)
		}
		if like := relative(loss, r.Loss) <= maxLossError && worst.cosine >= minGradientCosine; like != tt.like {
			t.Errorf("max sequence %d: loss %.7f, PEFT's is %.7f; lowest cosine %.6f", tt.maxSequence, loss, r.Loss, worst.cosine)
		}
	}
}

// Sessions go by the longest sequence too: by itself llama.cpp goes by the context, which many sequences may share.
func TestSessionsRotateByTheLongestSequence(t *testing.T) {
	r := rotationReference(t)
	tokens := r.Sequences[1].Tokens
	logits := func(nCtx, maxSequence int) []float32 {
		session, err := engine.NewSession(r.path, "", engine.SessionParams{
			NCtx: nCtx, NBatch: len(tokens), NSequences: 2, NThreads: 1, AdapterScale: 1, F32KV: true, MaxSequence: maxSequence,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		positions := make([]int32, len(tokens))
		for i := range positions {
			positions[i] = int32(i)
		}
		if err := session.Decode(tokens, positions, make([]int32, len(tokens)), slices.Repeat([]bool{true}, len(tokens))); err != nil {
			t.Fatal(err)
		}
		last := make([]float32, familyVocab)
		if err := session.Logits(len(tokens)-1, last); err != nil {
			t.Fatal(err)
		}
		return last
	}
	short, long := logits(512, 0), logits(1024, 0)
	if largestDifference(short, long) < 100*maxLibllamaLogitError {
		t.Fatal("both sets of factors give the same logits")
	}
	for _, tt := range []struct {
		nCtx, maxSequence int
		want              []float32
	}{{1024, 512, short}, {4096, 40, short}, {1024, 513, long}, {512, 513, long}, {256, 100_000, long}} {
		if worst := largestDifference(logits(tt.nCtx, tt.maxSequence), tt.want); worst != 0 {
			t.Errorf("n_ctx %d, max sequence %d: a logit differs by %g", tt.nCtx, tt.maxSequence, worst)
		}
	}
	// Of a model that has one set nothing changes.
	path := tinyModel(t, testmodel.Options{Seed: 7})
	session, err := engine.NewSession(path, "", engine.SessionParams{NCtx: 64, NBatch: 8, NSequences: 1, NThreads: 1, AdapterScale: 1, MaxSequence: 8})
	if err != nil {
		t.Fatal(err)
	}
	session.Close()
}

func TestRotationFor(t *testing.T) {
	for _, tt := range []struct{ short, n, want int }{{0, 9, 0}, {8, 8, 8}, {8, 3, 8}, {8, 9, 9}, {8, 90, 9}} {
		if got := rotationFor(tt.short, tt.n); got != tt.want {
			t.Errorf("rotationFor(%d, %d) is %d, want %d", tt.short, tt.n, got, tt.want)
		}
	}
}
