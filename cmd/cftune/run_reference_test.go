package main

import (
	"fmt"
	"testing"

	"cftune/bindings/engine"
	"cftune/trainer/pack"
	"cftune/trainer/schedule"
)

// What packs and steps may differ from PyTorch's by, which computes row by row and, where it can, in double precision.
const (
	maxRowsLossError     = 1e-5 // relative
	maxRowsGradientError = 1e-4 // norm of a tensor's difference over its norm
	maxCourseError       = 1e-4 // the same of values after some steps, and relative of losses and norms
)

// referenceRow is a row as scripts/make-run-references.py has it.
type referenceRow struct {
	Tokens []int32 `json:"tokens"`
	Labels []int32 `json:"labels"`
	Weight float32 `json:"weight"`
}

type referenceOptimizer struct {
	LR          float64   `json:"lr"`
	Betas       []float64 `json:"betas"`
	Eps         float64   `json:"eps"`
	WeightDecay float64   `json:"weight_decay"`
	MaxGradNorm float64   `json:"max_grad_norm"`
	Ratio       float64   `json:"ratio"` // LoRA+
	Warmup      int       `json:"warmup"`
	MinRatio    float64   `json:"min_ratio"`
}

// referenceStep is made of the rows First to End-1.
type referenceStep struct {
	First, End     int
	Loss, Norm, LR float64
}

// packsOf packs rows as training does.
func packsOf(t *testing.T, rows []referenceRow, seqLen int, shared bool) []engine.Batch {
	t.Helper()
	var examples []pack.Example
	for i, row := range rows {
		examples = append(examples, pack.Example{ID: fmt.Sprint(i), Tokens: row.Tokens, Labels: row.Labels, Weight: row.Weight})
	}
	packs, err := pack.Build(examples, seqLen)
	if shared {
		packs, _, err = pack.BuildShared(examples, seqLen)
	}
	if err != nil {
		t.Fatal(err)
	}
	return asBatches(packs)
}

// sameTensors compares a slot of a trainer's tensors with the reference's.
func (r *familyReference) sameTensors(t *testing.T, trainer *engine.Trainer, slot engine.Slot, tolerance float64) {
	t.Helper()
	infos, err := trainer.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != len(r.tensors) {
		t.Errorf("the trainer has %d tensors, the reference %d", len(infos), len(r.tensors))
	}
	worst, where := 0.0, ""
	for i, tensor := range infos {
		got, want := make([]float32, tensor.Rows*tensor.Cols), r.tensors[tensor.Name].data
		if len(want) != len(got) {
			t.Fatalf("the reference has no %s of %d x %d", tensor.Name, tensor.Rows, tensor.Cols)
		}
		if err := trainer.ReadTensor(i, slot, got); err != nil {
			t.Fatal(err)
		}
		if e := distance(got, want) / norm(want); !(e <= worst) {
			worst, where = e, tensor.Name
		}
	}
	t.Logf("%d tensors: largest difference %.1e (%s)", len(infos), worst, where)
	if !(worst <= tolerance) {
		t.Errorf("%s differs by %.2e", where, worst)
	}
}

// Whatever company rows have in a pack, their loss and gradient are those of each row alone in PyTorch.
func TestOddPacksMatchPEFT(t *testing.T) {
	forEachSmall(t, "packs", 3, func(t *testing.T, r *familyReference) {
		longest, total := 0, 0
		for _, row := range r.Rows {
			longest, total = max(longest, len(row.Tokens)), total+len(row.Tokens)
		}
		for _, tt := range []struct {
			name   string
			keep   engine.Keep
			seqLen int
			shared bool
		}{
			{"apart", engine.KeepAll, longest, false},
			{"one pack", engine.KeepLayers, total, false},
			{"one tree", engine.KeepAll, total, true},
			{"several trees", engine.KeepLayers, longest + 7, true},
		} {
			t.Run(tt.name, func(t *testing.T) {
				trainer := r.trainer(t, tt.keep)
				loss, _ := accumulate(t, trainer, packsOf(t, r.Rows, tt.seqLen, tt.shared))
				if !(relative(loss, r.Loss) <= maxRowsLossError) {
					t.Errorf("loss %.6f, want %.6f", loss, r.Loss)
				}
				r.sameTensors(t, trainer, engine.SlotGradient, maxRowsGradientError)
			})
		}
	})
}

// Steps of different numbers of rows and targets: weight decay, clipping, LoRA+, other betas, the schedule, as torch's AdamW has them.
func TestCoursesMatchPEFT(t *testing.T) {
	forEachSmall(t, "courses", 3, func(t *testing.T, r *familyReference) {
		trainer, run := r.trainer(t, engine.KeepAuto), r.run(t)
		o := run.Optimizer
		rates, err := schedule.New(o.Schedule, o.LR, o.WarmupSteps, len(r.Steps), o.MinLRRatio)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range r.Steps {
			loss, targets := accumulate(t, trainer, packsOf(t, r.Rows[want.First:want.End], r.numTokens(), true))
			lr := rates.LR(i + 1)
			gradNorm, err := trainer.Apply(lr, o.MaxGradNorm, float64(targets))
			if err != nil {
				t.Fatal(err)
			}
			loss /= float64(targets)
			if !(relative(loss, want.Loss) <= maxCourseError && relative(gradNorm, want.Norm) <= maxCourseError && relative(lr, want.LR) <= 1e-9) {
				t.Errorf("step %d: loss %.6f, norm %.6f, rate %g; want %.6f, %.6f, %g", i+1, loss, gradNorm, lr, want.Loss, want.Norm, want.LR)
			}
		}
		r.sameTensors(t, trainer, engine.SlotValue, maxCourseError)
	})
}
