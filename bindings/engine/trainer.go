package engine

// #include "cft_infer.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"
)

// Trainer is an adapter in training over a model.
type Trainer struct {
	model *Model
	vocab int        // logits of a row
	mu    sync.Mutex // one native call at a time
	c     *C.cft_trainer

	// Cancel must not wait for the call that it ends, so it has a lock of its own; c changes under both.
	cancelMu sync.Mutex
}

// Batch is one pack in flat arrays of equal length.
type Batch struct {
	Tokens       []int32
	Targets      []int32 // already shifted; IgnoreTarget where there is none
	Positions    []int32 // rotary position of each token
	VisibleUntil []int32 // query i sees key j when j <= i and i < VisibleUntil[j]
	Weights      []float32
}

func (b Batch) check(op string) error {
	n := len(b.Tokens)
	if n == 0 {
		return invalid(op, "the batch has no tokens")
	}
	if len(b.Targets) != n || len(b.Positions) != n || len(b.VisibleUntil) != n || (b.Weights != nil && len(b.Weights) != n) {
		return invalid(op, fmt.Sprintf("%d tokens with %d targets, %d positions, %d visible_until and %d weights",
			n, len(b.Targets), len(b.Positions), len(b.VisibleUntil), len(b.Weights)))
	}
	return nil
}

// NewTrainer makes an adapter on the model: A random from the seed, B zero. The trainer keeps the model alive.
func NewTrainer(m *Model, p Params) (*Trainer, error) {
	cp, err := p.native()
	if err != nil {
		return nil, err
	}
	modules, err := p.modules()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	var (
		c    *C.cft_trainer
		info C.cft_model_info
		ce   C.cft_error
	)
	if err := check("model_get_info", C.cft_model_get_info(m.c, &info, &ce), &ce); err != nil {
		return nil, err
	}
	if err := check("trainer_new", C.cft_trainer_new(m.c, &cp, unsafe.SliceData(modules), C.size_t(len(modules)), &c, &ce), &ce); err != nil {
		return nil, err
	}
	m.trainers++
	return &Trainer{model: m, vocab: int(info.n_vocab), c: c}, nil
}

// Close frees the trainer.
func (t *Trainer) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancelMu.Lock()
	defer t.cancelMu.Unlock()
	if t.c == nil {
		return
	}
	C.cft_trainer_free(t.c)
	t.c = nil
	t.model.release()
}

// Cancel makes the running or the next Accumulate or Evaluate fail with ErrCancelled soon.
func (t *Trainer) Cancel() {
	t.cancelMu.Lock()
	defer t.cancelMu.Unlock()
	if t.c != nil {
		C.cft_trainer_cancel(t.c)
	}
}

// Accumulate runs forward and backward on one pack and adds the gradient of its summed, weighted target loss. It returns
// that sum and the number of targets. When ctx ends during the call, the error wraps both ctx.Err() and ErrCancelled.
// After any failure the accumulated gradient must be discarded.
func (t *Trainer) Accumulate(ctx context.Context, b Batch) (lossSum float64, targets int, err error) {
	return t.forward(ctx, "trainer_accumulate", b, true)
}

// Evaluate is the forward half of Accumulate, without dropout; gradients stay as they are.
func (t *Trainer) Evaluate(ctx context.Context, b Batch) (lossSum float64, targets int, err error) {
	return t.forward(ctx, "trainer_evaluate", b, false)
}

func (t *Trainer) forward(ctx context.Context, op string, b Batch, backward bool) (float64, int, error) {
	if err := b.check(op); err != nil {
		return 0, 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.c == nil {
		return 0, 0, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return 0, 0, fmt.Errorf("engine: %s: %w", op, err)
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		t.Cancel()
		close(cancelled)
	})
	loss, targets, err := t.call(op, b, backward)
	if !stop() {
		<-cancelled // no call of Cancel outlives this one
		if !errors.Is(err, ErrCancelled) {
			t.clearCancel(b)
		}
	}
	if errors.Is(err, ErrCancelled) && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", err, ctx.Err())
	}
	return loss, targets, err
}

// call is one native forward, with or without backward. The caller holds t.mu.
func (t *Trainer) call(op string, b Batch, backward bool) (float64, int, error) {
	var (
		loss C.double
		n    C.size_t
		ce   C.cft_error
		st   C.cft_status
	)
	if backward {
		st = C.cft_trainer_accumulate(t.c, int32s(b.Tokens), int32s(b.Targets), int32s(b.Positions),
			int32s(b.VisibleUntil), floats(b.Weights), C.size_t(len(b.Tokens)), &loss, &n, &ce)
	} else {
		st = C.cft_trainer_evaluate(t.c, int32s(b.Tokens), int32s(b.Targets), int32s(b.Positions),
			int32s(b.VisibleUntil), floats(b.Weights), C.size_t(len(b.Tokens)), &loss, &n, &ce)
	}
	runtime.KeepAlive(b)
	if err := check(op, st, &ce); err != nil {
		return 0, 0, err
	}
	return float64(loss), int(n), nil
}

// clearCancel uses up a cancellation that came too late for its own call and would otherwise end the next one: an
// evaluation of a single token takes it, and changes nothing.
func (t *Trainer) clearCancel(b Batch) {
	one := Batch{Tokens: b.Tokens[:1], Targets: b.Tokens[:1], Positions: []int32{0}, VisibleUntil: []int32{1}}
	// Its result is of no use, whether it was cancelled or the flag was gone already.
	_, _, _ = t.call("trainer_evaluate", one, false)
}

// Apply divides the accumulated gradient by normalizer, clips it to maxGradNorm (0 = no clipping), takes one AdamW step
// and clears the gradient. It returns the norm before clipping.
func (t *Trainer) Apply(lr, maxGradNorm, normalizer float64) (gradNorm float64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.c == nil {
		return 0, ErrClosed
	}
	var (
		norm C.double
		ce   C.cft_error
	)
	st := C.cft_trainer_apply(t.c, C.float(lr), C.float(maxGradNorm), C.double(normalizer), &norm, &ce)
	return float64(norm), check("trainer_apply", st, &ce)
}

// Discard clears the accumulated gradient.
func (t *Trainer) Discard() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.c != nil {
		C.cft_trainer_discard(t.c)
	}
}

// Memory returns what the trainer's buffers take.
func (t *Trainer) Memory() (MemoryEstimate, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.c == nil {
		return MemoryEstimate{}, ErrClosed
	}
	var (
		e  C.cft_memory_estimate
		ce C.cft_error
	)
	if err := check("trainer_get_memory", C.cft_trainer_get_memory(t.c, &e, &ce), &ce); err != nil {
		return MemoryEstimate{}, err
	}
	return goEstimate(e), nil
}

// Remark is what a user should know of how the trainer's device does its work, such as what makes it slower than it could be; often "".
func (t *Trainer) Remark() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.c == nil {
		return ""
	}
	var text [512]C.char
	C.cft_trainer_remark(t.c, &text[0], C.size_t(len(text)))
	return fromChars(text[:])
}

// Logits runs forward and returns the logits of the given rows, [len(rows)][vocab]. Targets and weights are not looked at.
func (t *Trainer) Logits(b Batch, rows []int32) ([]float32, error) {
	n := len(b.Tokens)
	if n == 0 || len(b.Positions) != n || len(b.VisibleUntil) != n {
		return nil, invalid("trainer_logits", fmt.Sprintf("%d tokens with %d positions and %d visible_until", n, len(b.Positions), len(b.VisibleUntil)))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.c == nil {
		return nil, ErrClosed
	}
	out := make([]float32, len(rows)*t.vocab)
	var ce C.cft_error
	st := C.cft_trainer_logits(t.c, int32s(b.Tokens), int32s(b.Positions), int32s(b.VisibleUntil), C.size_t(n),
		int32s(rows), C.size_t(len(rows)), floats(out), &ce)
	runtime.KeepAlive(b)
	runtime.KeepAlive(rows)
	if err := check("trainer_logits", st, &ce); err != nil {
		return nil, err
	}
	return out, nil
}
