package main

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"cftune/bindings/engine"
	"cftune/internal/testmodel"
	"cftune/trainer/pack"
)

// What must not change a gradient: the way examples are packed (up to the order of summation), which activations are
// kept, and doing it again.
const (
	// Sums over the same terms in another order, in fp32; the norm of the difference over the norm.
	maxPackedError = 1e-5
	// Central differences of a loss near 6 over some 60 targets, in fp32, along a direction of random signs: rounding of
	// the loss and the third derivative are both about a thousandth of the slope at this step.
	differenceStep     = 2e-3
	maxDifferenceError = 5e-3
)

// gradients reads all gradients, tensor after tensor.
func gradients(t *testing.T, trainer *engine.Trainer) []float32 {
	t.Helper()
	infos, err := trainer.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	var all []float32
	for i, info := range infos {
		g := make([]float32, info.Rows*info.Cols)
		if err := trainer.ReadTensor(i, engine.SlotGradient, g); err != nil {
			t.Fatal(err)
		}
		all = append(all, g...)
	}
	return all
}

func norm(x []float32) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}

func distance(a, b []float32) float64 {
	diff := make([]float32, len(a))
	for i := range a {
		diff[i] = a[i] - b[i]
	}
	return norm(diff)
}

func TestPackingDoesNotChangeGradients(t *testing.T) {
	forEachReference(t, func(t *testing.T, r *reference) {
		trainer := r.adaptedTrainer(t, r.openModel(t), engine.KeepAll)
		packed, _ := accumulate(t, trainer, r.batches(t, referencePack, 0, 1, 2))
		inOnePack := gradients(t, trainer)
		trainer.Discard()
		var alone float64
		for i := range r.sequences {
			loss, _ := accumulate(t, trainer, r.batches(t, referencePack, i))
			alone += loss
		}
		inThree := gradients(t, trainer)
		gradientError, lossError := distance(inOnePack, inThree)/norm(inThree), relative(packed, alone)
		t.Logf("packed against alone: gradient %.1e, loss %.1e", gradientError, lossError)
		if !(gradientError <= maxPackedError) || !(lossError <= maxPackedError) {
			t.Errorf("packing changes the gradient by %.2e, the loss by %.2e", gradientError, lossError)
		}
	})
}

func TestRecomputingAndRepeatingGiveTheSameBits(t *testing.T) {
	forEachReference(t, func(t *testing.T, r *reference) {
		model := r.openModel(t)
		batches := r.batches(t, referencePack, 0, 1, 2)
		var want []float32
		for _, keep := range []engine.Keep{engine.KeepAll, engine.KeepLayers, engine.KeepAll} {
			trainer := r.adaptedTrainer(t, model, keep)
			accumulate(t, trainer, batches)
			got := gradients(t, trainer)
			if want == nil {
				want = got
			}
			if !slices.Equal(got, want) {
				t.Errorf("keep %s: gradients differ by %.1e", keep, distance(got, want)/norm(want))
			}
			trainer.Close()
		}
	})
}

// The whole model's gradient against the slope of its loss, in every type of weight and layout that the test models have.
func TestGradientsMatchFiniteDifferences(t *testing.T) {
	for name, o := range map[string]testmodel.Options{
		"F32":                {},
		"F16, untied":        {Type: testmodel.F16, Untied: true},
		"Q8_0, rope factors": {Type: testmodel.Q8_0, RopeFreqs: true},
		"Q4_0, wide heads":   {Type: testmodel.Q4_0, HeadDim: 32},
		"Q4_1, three layers": {Type: testmodel.Q4_1, Layers: 3, KVHeads: 4},
	} {
		t.Run(name, func(t *testing.T) {
			o.Seed = 7
			model, err := engine.Load(tinyModel(t, o), "cpu")
			if err != nil {
				t.Fatal(err)
			}
			defer model.Close()
			trainer, err := engine.NewTrainer(model, engine.Params{
				Rank: 4, Alpha: 8, Targets: engine.TargetAllLinear, MaxTokens: 128, Threads: 2, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer trainer.Close()
			packs, err := pack.Build(randomRows([]int{40, 25}, 0.6, testmodel.MinVocab()), 128)
			if err != nil {
				t.Fatal(err)
			}
			checkSlopes(t, trainer, engine.Batch(packs[0]))
		})
	}
}

// checkSlopes moves one tensor at a time, A and B random so that neither hides the other's gradient.
func checkSlopes(t *testing.T, trainer *engine.Trainer, b engine.Batch) {
	t.Helper()
	infos, err := trainer.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	values := make([][]float32, len(infos))
	for i, info := range infos {
		for range info.Rows * info.Cols {
			values[i] = append(values[i], float32(0.1*rng.NormFloat64()))
		}
		write(t, trainer, i, values[i])
	}
	if _, _, err := trainer.Accumulate(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	worst, where := 0.0, ""
	for i, info := range infos {
		g := make([]float32, len(values[i]))
		if err := trainer.ReadTensor(i, engine.SlotGradient, g); err != nil {
			t.Fatal(err)
		}
		// Along the gradient's signs, with some turned over: the slope is large, and every entry counts.
		direction := make([]float32, len(g))
		slope := 0.0
		for k := range g {
			direction[k] = float32(math.Copysign(1, float64(g[k])))
			if rng.IntN(4) == 0 {
				direction[k] = -direction[k]
			}
			slope += float64(direction[k]) * float64(g[k])
		}
		at := func(step float32) float64 {
			moved := make([]float32, len(direction))
			for k := range moved {
				moved[k] = values[i][k] + step*direction[k]
			}
			write(t, trainer, i, moved)
			loss, _, err := trainer.Evaluate(context.Background(), b)
			if err != nil {
				t.Fatal(err)
			}
			return loss
		}
		measured := (at(differenceStep) - at(-differenceStep)) / (2 * differenceStep)
		write(t, trainer, i, values[i])
		if e := relative(measured, slope); !(e <= worst) {
			worst, where = e, info.Name
		}
	}
	t.Logf("%d tensors: worst slope off by %.1e (%s)", len(infos), worst, where)
	if !(worst <= maxDifferenceError) {
		t.Errorf("%s: the gradient differs from the loss's slope by %.2e", where, worst)
	}
}

func write(t *testing.T, trainer *engine.Trainer, i int, data []float32) {
	t.Helper()
	if err := trainer.WriteTensor(i, engine.SlotValue, data); err != nil {
		t.Fatal(err)
	}
}
