package trainer

import (
	"context"

	"cftune/trainer/pack"
)

// Engine is what the loop needs of the native engine. Implementations are used by one goroutine at a time.
type Engine interface {
	// Accumulate adds the gradient of the batch's summed, weighted target loss. It returns that sum and the number
	// of targets. When ctx ends during the call it returns an error that wraps ctx.Err(); when the loss is not finite,
	// one that wraps ErrNonFinite.
	Accumulate(ctx context.Context, b pack.Batch) (lossSum float64, targets int, err error)
	// Apply divides the accumulated gradient by normalizer, clips it, takes one optimizer step and returns the
	// gradient norm before clipping. On failure nothing has changed but that the gradient is still accumulated; a
	// gradient that is not finite gives an error that wraps ErrNonFinite.
	Apply(lr, maxGradNorm, normalizer float64) (gradNorm float64, err error)
	// Discard clears the accumulated gradient.
	Discard()
	// Evaluate is the forward half of Accumulate, without dropout.
	Evaluate(ctx context.Context, b pack.Batch) (lossSum float64, targets int, err error)
	// State reads the trainable state out; Restore writes it back.
	State() (State, error)
	Restore(s State) error
	// MemoryBytes is what the engine's buffers take now, mapped weights included.
	MemoryBytes() uint64
}

// GroupEngine is an engine that runs packs side by side.
type GroupEngine interface {
	Engine
	// AccumulateGroup is Accumulate of each batch; the first is micro-batch `first` of the run. There is an outcome for every
	// batch, also of those that were not computed because another failed: after any failure the caller discards.
	AccumulateGroup(ctx context.Context, first uint64, batches []pack.Batch) []Outcome
	// EvaluateGroup is Evaluate of each batch.
	EvaluateGroup(ctx context.Context, batches []pack.Batch) []Outcome
}

// Outcome is what became of one batch.
type Outcome struct {
	LossSum float64
	Targets int
	Err     error
}

// State is what a checkpoint holds of the engine.
type State struct {
	Tensors      []Tensor
	Steps        uint64 // optimizer steps taken
	MicroBatches uint64 // micro-batches accumulated: the counter of the dropout generator
}

// Tensor is one A or B matrix or a magnitude, with its moments, row-major. Name is llama.cpp's ("blk.0.attn_q.weight.lora_a").
type Tensor struct {
	Name             string
	Rows, Cols       int // A is [rank][in], B [out][rank], a magnitude [out][1]; see gguf.TokenEmbd for the embedding's
	Value            []float32
	Moment1, Moment2 []float32 // nil where only values are known (a warm start)
}
