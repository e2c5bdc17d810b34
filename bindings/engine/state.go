package engine

// #include "cft_infer.h"
import "C"

import (
	"fmt"
	"runtime"
)

// Slot names one of the arrays of a trainable tensor.
type Slot int

// The arrays of a tensor. The gradient is the sum since the last Apply or Discard, not divided.
const (
	SlotValue    Slot = C.CFT_SLOT_VALUE
	SlotGradient Slot = C.CFT_SLOT_GRADIENT
	SlotMoment1  Slot = C.CFT_SLOT_MOMENT1
	SlotMoment2  Slot = C.CFT_SLOT_MOMENT2
)

// TensorInfo names a trainable matrix, row-major. A is [rank][in], B [out][rank], a magnitude [out][1]; A of token_embd is
// [vocabulary][rank], B [embedding][rank].
type TensorInfo struct {
	Name       string // "blk.0.attn_q.weight.lora_a", ".lora_b", ".lora_magnitude"
	Rows, Cols int
}

// Tensor is a trainable matrix with its moments; nil moments mean zero.
type Tensor struct {
	TensorInfo
	Value, Moment1, Moment2 []float32
}

// State is all that training changes.
type State struct {
	Tensors      []Tensor
	Steps        uint64 // optimizer steps taken
	MicroBatches uint64 // micro-batches accumulated: the counter of the dropout generator
}

// Tensors lists the trainable matrices; their order is fixed for a model and its Params.
func (t *Trainer) Tensors() ([]TensorInfo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tensors()
}

func (t *Trainer) tensors() ([]TensorInfo, error) {
	if t.c == nil {
		return nil, ErrClosed
	}
	infos := make([]TensorInfo, C.cft_trainer_tensor_count(t.c))
	for i := range infos {
		var (
			info C.cft_tensor_info
			ce   C.cft_error
		)
		if err := check("trainer_tensor_info", C.cft_trainer_tensor_info(t.c, C.size_t(i), &info, &ce), &ce); err != nil {
			return nil, err
		}
		infos[i] = TensorInfo{Name: fromChars(info.name[:]), Rows: int(info.rows), Cols: int(info.cols)}
	}
	return infos, nil
}

// ReadTensor copies one array of tensor i into dst, which has Rows*Cols elements.
func (t *Trainer) ReadTensor(i int, slot Slot, dst []float32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.read(i, slot, dst)
}

func (t *Trainer) read(i int, slot Slot, dst []float32) error {
	if t.c == nil {
		return ErrClosed
	}
	var ce C.cft_error
	st := C.cft_trainer_tensor_read(t.c, C.size_t(i), C.cft_slot(slot), floats(dst), C.size_t(len(dst)), &ce)
	runtime.KeepAlive(dst)
	return check("trainer_tensor_read", st, &ce)
}

// WriteTensor copies src, which has Rows*Cols elements, into one array of tensor i.
func (t *Trainer) WriteTensor(i int, slot Slot, src []float32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.write(i, slot, src)
}

func (t *Trainer) write(i int, slot Slot, src []float32) error {
	if t.c == nil {
		return ErrClosed
	}
	var ce C.cft_error
	st := C.cft_trainer_tensor_write(t.c, C.size_t(i), C.cft_slot(slot), floats(src), C.size_t(len(src)), &ce)
	runtime.KeepAlive(src)
	return check("trainer_tensor_write", st, &ce)
}

// State reads everything out that Restore needs.
func (t *Trainer) State() (State, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	infos, err := t.tensors()
	if err != nil {
		return State{}, err
	}
	var (
		s                   State
		steps, microBatches C.uint64_t
		ce                  C.cft_error
	)
	if err := check("trainer_get_counters", C.cft_trainer_get_counters(t.c, &steps, &microBatches, &ce), &ce); err != nil {
		return State{}, err
	}
	s.Steps, s.MicroBatches = uint64(steps), uint64(microBatches)
	for i, info := range infos {
		n := info.Rows * info.Cols
		tensor := Tensor{TensorInfo: info, Value: make([]float32, n), Moment1: make([]float32, n), Moment2: make([]float32, n)}
		for slot, dst := range map[Slot][]float32{SlotValue: tensor.Value, SlotMoment1: tensor.Moment1, SlotMoment2: tensor.Moment2} {
			if err := t.read(i, slot, dst); err != nil {
				return State{}, fmt.Errorf("tensor %s: %w", info.Name, err)
			}
		}
		s.Tensors = append(s.Tensors, tensor)
	}
	return s, nil
}

// Restore writes a state back and clears the accumulated gradient. Names and shapes must be the trainer's own, in any
// order; nothing is written where one differs.
func (t *Trainer) Restore(s State) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	infos, err := t.tensors()
	if err != nil {
		return err
	}
	order, err := matchTensors(infos, s.Tensors)
	if err != nil {
		return err
	}
	for i, tensor := range order {
		zero := make([]float32, len(tensor.Value))
		for slot, src := range map[Slot][]float32{SlotValue: tensor.Value, SlotMoment1: tensor.Moment1, SlotMoment2: tensor.Moment2} {
			if src == nil {
				src = zero
			}
			if err := t.write(i, slot, src); err != nil {
				return fmt.Errorf("tensor %s: %w", tensor.Name, err)
			}
		}
	}
	C.cft_trainer_discard(t.c)
	var ce C.cft_error
	st := C.cft_trainer_set_counters(t.c, C.uint64_t(s.Steps), C.uint64_t(s.MicroBatches), &ce)
	return check("trainer_set_counters", st, &ce)
}

// matchTensors puts a state's tensors into the trainer's order and refuses any difference.
func matchTensors(infos []TensorInfo, tensors []Tensor) ([]Tensor, error) {
	const op = "restore"
	byName := make(map[string]Tensor, len(tensors))
	for _, tensor := range tensors {
		if _, twice := byName[tensor.Name]; twice {
			return nil, invalid(op, "tensor "+tensor.Name+" is there twice")
		}
		byName[tensor.Name] = tensor
	}
	order := make([]Tensor, len(infos))
	for i, info := range infos {
		tensor, ok := byName[info.Name]
		if !ok {
			return nil, invalid(op, "tensor "+info.Name+" is missing")
		}
		if tensor.TensorInfo != info {
			return nil, invalid(op, fmt.Sprintf("tensor %s is %d x %d, the trainer's is %d x %d", info.Name, tensor.Rows, tensor.Cols, info.Rows, info.Cols))
		}
		for _, data := range [][]float32{tensor.Value, tensor.Moment1, tensor.Moment2} {
			if len(data) != info.Rows*info.Cols && data != nil {
				return nil, invalid(op, fmt.Sprintf("tensor %s has %d elements, its shape %d", info.Name, len(data), info.Rows*info.Cols))
			}
		}
		if tensor.Value == nil {
			return nil, invalid(op, "tensor "+info.Name+" has no values")
		}
		order[i] = tensor
		delete(byName, info.Name)
	}
	for name := range byName {
		return nil, invalid(op, "the trainer has no tensor "+name)
	}
	return order, nil
}

// Gradient is what was accumulated since the last Apply or Discard, all tensors one after the other. It is
// read into dst unless that is nil; then into a new slice.
func (t *Trainer) Gradient(dst []float32) ([]float32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.gradient(&dst, t.read)
	return dst, err
}

// SetGradient writes a gradient in the place of the accumulated one.
func (t *Trainer) SetGradient(src []float32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gradient(&src, t.write)
}

// gradient moves every tensor's gradient; all becomes as long as they need, which must be its length where it has one.
func (t *Trainer) gradient(all *[]float32, move func(int, Slot, []float32) error) error {
	infos, err := t.tensors()
	if err != nil {
		return err
	}
	n := 0
	for _, info := range infos {
		n += info.Rows * info.Cols
	}
	if *all == nil {
		*all = make([]float32, n)
	}
	if len(*all) != n {
		return invalid("gradient", fmt.Sprintf("%d values, the adapter has %d", len(*all), n))
	}
	at := 0
	for i, info := range infos {
		next := at + info.Rows*info.Cols
		if err := move(i, SlotGradient, (*all)[at:next]); err != nil {
			return fmt.Errorf("tensor %s: %w", info.Name, err)
		}
		at = next
	}
	return nil
}

// SetMicroBatches sets the counter of micro-batches: which masks dropout draws next.
func (t *Trainer) SetMicroBatches(n uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.c == nil {
		return ErrClosed
	}
	var (
		steps, now C.uint64_t
		ce         C.cft_error
	)
	if err := check("trainer_get_counters", C.cft_trainer_get_counters(t.c, &steps, &now, &ce), &ce); err != nil {
		return err
	}
	return check("trainer_set_counters", C.cft_trainer_set_counters(t.c, steps, C.uint64_t(n), &ce), &ce)
}
