package engine

// #include "cft_infer.h"
import "C"

import (
	"runtime"
	"sync"
	"unsafe"
)

// Model is a base model mapped for training.
type Model struct {
	mu       sync.Mutex
	c        *C.cft_model
	trainers int  // that need c
	closed   bool // by its owner
}

// ModelInfo is what a GGUF says about its model.
type ModelInfo struct {
	Architecture     string  `json:"architecture"`
	Layers           int     `json:"layers"`
	Embedding        int     `json:"embedding"`
	FF               int     `json:"ff"`
	Heads            int     `json:"heads"`
	HeadsKV          int     `json:"heads_kv"`
	HeadDim          int     `json:"head_dim"`
	Vocab            int     `json:"vocab"`
	ContextTrain     int     `json:"context_train"`
	TiedOutput       bool    `json:"tied_output"` // the output head is the token embedding
	RopeFreqBase     float32 `json:"rope_freq_base"`
	RMSEps           float32 `json:"rms_eps"`
	WeightBytes      uint64  `json:"weight_bytes"` // as stored
	NumberParameters uint64  `json:"parameters"`
	Experts          int     `json:"experts,omitempty"` // FF is the width of one
	ExpertsUsed      int     `json:"experts_used,omitempty"`
	Window           int     `json:"window,omitempty"`          // positions that some or all layers look back over; 0: all
	WindowUnserved   bool    `json:"window_unserved,omitempty"` // llama.cpp computes this architecture without its window
}

// Load maps the GGUF at path and checks every tensor that training needs. device is auto, cpu or a name from Devices.
func Load(path, device string) (*Model, error) {
	if err := Init(""); err != nil {
		return nil, err
	}
	var (
		c  *C.cft_model
		ce C.cft_error
	)
	p, n := chars(path)
	d, dn := chars(device)
	status := C.cft_model_load(p, n, d, dn, &c, &ce)
	runtime.KeepAlive(path)
	runtime.KeepAlive(device)
	if err := check("model_load", status, &ce); err != nil {
		return nil, err
	}
	return &Model{c: c}, nil
}

// Close frees the model, or leaves that to the last of its trainers.
func (m *Model) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.freeIfUnused()
}

func (m *Model) freeIfUnused() {
	if m.closed && m.trainers == 0 && m.c != nil {
		C.cft_model_free(m.c)
		m.c = nil
	}
}

// release is called by a trainer that no longer needs the model.
func (m *Model) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trainers--
	m.freeIfUnused()
}

// Info returns the model's shape.
func (m *Model) Info() (ModelInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ModelInfo{}, ErrClosed
	}
	var (
		i  C.cft_model_info
		ce C.cft_error
	)
	if err := check("model_get_info", C.cft_model_get_info(m.c, &i, &ce), &ce); err != nil {
		return ModelInfo{}, err
	}
	return ModelInfo{
		Architecture: fromChars(i.architecture[:]),
		Layers:       int(i.n_layer), Embedding: int(i.n_embd), FF: int(i.n_ff),
		Heads: int(i.n_head), HeadsKV: int(i.n_head_kv), HeadDim: int(i.head_dim),
		Vocab: int(i.n_vocab), ContextTrain: int(i.n_ctx_train),
		TiedOutput:   i.tied_output == 1,
		RopeFreqBase: float32(i.rope_freq_base), RMSEps: float32(i.rms_eps),
		WeightBytes: uint64(i.weight_bytes), NumberParameters: uint64(i.n_params),
		Experts: int(i.n_expert), ExpertsUsed: int(i.n_expert_used),
		Window: int(i.window), WindowUnserved: i.window_unserved == 1,
	}, nil
}

// EstimateMemory tells what a trainer with these parameters would take, without making it.
func (m *Model) EstimateMemory(p Params) (MemoryEstimate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return MemoryEstimate{}, ErrClosed
	}
	cp, err := p.native()
	if err != nil {
		return MemoryEstimate{}, err
	}
	modules, err := p.modules()
	if err != nil {
		return MemoryEstimate{}, err
	}
	var (
		e  C.cft_memory_estimate
		ce C.cft_error
	)
	if err := check("memory_estimate_get", C.cft_memory_estimate_get(m.c, &cp, unsafe.SliceData(modules), C.size_t(len(modules)), &e, &ce), &ce); err != nil {
		return MemoryEstimate{}, err
	}
	return goEstimate(e), nil
}
