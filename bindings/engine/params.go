package engine

// #include "cft_infer.h"
import "C"

import (
	"fmt"
	"math"
)

// Targets is a set of target modules.
type Targets uint32

// The modules that can get an adapter. Models with fused tensors have TargetAttnQKV, and gate and up in TargetFFNUp; mixtures
// of experts have those of attention only. TargetAllLinear is all that a model has.
const (
	TargetAttnQ      Targets = C.CFT_TARGET_ATTN_Q
	TargetAttnK      Targets = C.CFT_TARGET_ATTN_K
	TargetAttnV      Targets = C.CFT_TARGET_ATTN_V
	TargetAttnOutput Targets = C.CFT_TARGET_ATTN_OUTPUT
	TargetFFNGate    Targets = C.CFT_TARGET_FFN_GATE
	TargetFFNUp      Targets = C.CFT_TARGET_FFN_UP
	TargetFFNDown    Targets = C.CFT_TARGET_FFN_DOWN
	TargetAttnQKV    Targets = C.CFT_TARGET_ATTN_QKV
	TargetAllLinear  Targets = C.CFT_TARGET_ALL_LINEAR
)

// TargetTokenEmbd and TargetOutput are the embedding and the head, of models that have two tensors for them. They are no part of
// TargetAllLinear.
const (
	TargetTokenEmbd Targets = C.CFT_TARGET_TOKEN_EMBD
	TargetOutput    Targets = C.CFT_TARGET_OUTPUT
)

// Keep says which activations are kept for the backward pass.
type Keep int32

// KeepAuto keeps all if that fits the memory limit, else layer inputs only; the rest is then computed again.
const (
	KeepAuto   Keep = C.CFT_KEEP_AUTO
	KeepAll    Keep = C.CFT_KEEP_ALL
	KeepLayers Keep = C.CFT_KEEP_LAYERS
)

func (k Keep) String() string {
	switch k {
	case KeepAuto:
		return "auto"
	case KeepAll:
		return "all"
	case KeepLayers:
		return "layers"
	}
	return fmt.Sprintf("Keep(%d)", int32(k))
}

// IgnoreTarget marks a position without a target.
const IgnoreTarget = C.CFT_IGNORE_TARGET

// Params decide the adapter, the optimizer and the memory of a trainer.
type Params struct {
	Rank        int
	Alpha       float64 // the scale is Alpha/Rank, or Alpha/sqrt(Rank) with RSLoRA
	RSLoRA      bool
	Dropout     float64 // in [0, 1), on the adapter's input
	Targets     Targets
	Seed        uint64
	Keep        Keep
	MemoryLimit uint64 // bytes for all buffers of the trainer; 0 = what the machine has free
	MaxTokens   int    // of the longest pack
	MaxTargets  int    // most targets of a pack; 0 = MaxTokens
	// MaxSequence is the number of tokens of the longest sequence in a pack; 0 = MaxTokens. Of models with rotary factors for short
	// and for long contexts it decides which ones all sequences get.
	MaxSequence int
	Threads     int // 0 = all that the process may use

	Beta1, Beta2, Eps, WeightDecay float64

	// DoRA trains the lengths of the adapted weights' rows beside their directions. Not with Dropout, TargetTokenEmbd or
	// TargetOutput.
	DoRA bool
	// LoRAPlusRatio is the learning rate of B over that of A; 0 is 1.
	LoRAPlusRatio float64
	// Modules have another rank and alpha than Rank and Alpha.
	Modules []Module
}

// Module sets one module of one layer apart.
type Module struct {
	Layer  int     // -1 for TargetTokenEmbd and TargetOutput
	Target Targets // one, of those of the parameters
	Rank   int     // 0: it gets no adapter
	Alpha  float64
}

// native refuses what 32 bits cannot hold; all other rules are the native side's.
func (p Params) native() (C.cft_trainer_params, error) {
	for _, v := range []struct {
		name  string
		value int
	}{{"rank", p.Rank}, {"max tokens", p.MaxTokens}, {"max targets", p.MaxTargets}, {"max sequence", p.MaxSequence}, {"threads", p.Threads}} {
		if v.value < 0 || v.value > math.MaxInt32 {
			return C.cft_trainer_params{}, invalid("trainer_params", fmt.Sprintf("%s is %d", v.name, v.value))
		}
	}
	return C.cft_trainer_params{
		rank:             C.int32_t(p.Rank),
		alpha:            C.float(p.Alpha),
		rslora:           flag(p.RSLoRA),
		dropout:          C.float(p.Dropout),
		targets:          C.uint32_t(p.Targets),
		seed:             C.uint64_t(p.Seed),
		keep_activations: C.int32_t(p.Keep),
		memory_limit:     C.uint64_t(p.MemoryLimit),
		max_tokens:       C.int32_t(p.MaxTokens),
		max_targets:      C.int32_t(p.MaxTargets),
		max_sequence:     C.int32_t(p.MaxSequence),
		n_threads:        C.int32_t(p.Threads),
		beta1:            C.float(p.Beta1),
		beta2:            C.float(p.Beta2),
		eps:              C.float(p.Eps),
		weight_decay:     C.float(p.WeightDecay),
		dora:             flag(p.DoRA),
		lora_plus_ratio:  C.float(p.LoRAPlusRatio),
	}, nil
}

// modules are those set apart, as the native side takes them.
func (p Params) modules() ([]C.cft_module, error) {
	var list []C.cft_module
	for _, m := range p.Modules {
		if m.Layer < -1 || m.Layer > math.MaxInt32 || m.Rank < 0 || m.Rank > math.MaxInt32 {
			return nil, invalid("trainer_params", fmt.Sprintf("a module of layer %d has rank %d", m.Layer, m.Rank))
		}
		list = append(list, C.cft_module{layer: C.int32_t(m.Layer), target: C.uint32_t(m.Target), rank: C.int32_t(m.Rank), alpha: C.float(m.Alpha)})
	}
	return list, nil
}

// MemoryEstimate has the parts of a trainer's memory in bytes.
type MemoryEstimate struct {
	Weights     uint64 `json:"weights"` // mapped from the file
	Adapter     uint64 `json:"adapter"`
	Gradients   uint64 `json:"gradients"`
	Moments     uint64 `json:"moments"`
	Activations uint64 `json:"activations"` // kept between forward and backward
	Workspace   uint64 `json:"workspace"`   // one layer's forward and backward
	Loss        uint64 `json:"loss"`        // the logits chunk
	Total       uint64 `json:"total"`
	Streamed    uint64 `json:"streamed"`  // of weights that stay in the host's memory and come to the device for each use
	Offloaded   uint64 `json:"offloaded"` // of activations that wait in the host's memory between forward and backward
	Keep        Keep   `json:"-"`         // what KeepAuto chose
	// ComputedAgain is, on a CUDA device, how much of the products of the forward pass the backward pass computes again: 1 is all of them. DoRA
	// has a part in it that nothing saves; with Keep all, it is the whole.
	ComputedAgain float64 `json:"computed_again"`
}

func goEstimate(e C.cft_memory_estimate) MemoryEstimate {
	return MemoryEstimate{
		Weights:     uint64(e.weights),
		Adapter:     uint64(e.adapter),
		Gradients:   uint64(e.gradients),
		Moments:     uint64(e.moments),
		Activations: uint64(e.activations),
		Workspace:   uint64(e.workspace),
		Loss:        uint64(e.loss),
		Total:       uint64(e.total),
		Streamed:    uint64(e.streamed),
		Offloaded:   uint64(e.offloaded),
		Keep:        Keep(e.keep_activations),

		ComputedAgain: float64(e.computed_again),
	}
}
