package engine

// #include "cft_infer.h"
import "C"

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"unsafe"
)

// SessionParams decide a session. Names are llama.cpp's.
type SessionParams struct {
	NCtx         int     // tokens of the cache, shared by all sequences
	NBatch       int     // most tokens of one Decode
	NSequences   int     // most sequences at a time
	NThreads     int     // 0 = all that the process may use
	NGPULayers   int     // 0 = CPU
	AdapterScale float64 // of the adapter, usually 1
	F32KV        bool    // F32 cache and no flash attention, for exact comparisons
	Embeddings   bool    // Decode keeps the last layer's output too, for Embedding
	NoMMap       bool    // weights are read into memory instead of mapped
	MLock        bool    // weights are kept from being swapped out
	// MaxSequence is how many tokens one sequence may come to; 0 = NCtx. Of models with rotary factors for short and for long
	// contexts it decides which ones are used.
	MaxSequence int
	Importance  bool // Decode collects how much each column of a weight counts, for Importance; CPU only

	RopeFreqBase, RopeFreqScale float64 // 0 = the model's
}

// Session is a model loaded for generation.
type Session struct {
	mu     sync.Mutex
	c      *C.cft_session
	params SessionParams
}

// NewSession loads the GGUF at model, with the LoRA adapter at adapter unless that is empty.
func NewSession(model, adapter string, p SessionParams) (*Session, error) {
	const op = "session_new"
	for _, v := range []struct {
		name  string
		value int
	}{{"n_ctx", p.NCtx}, {"n_batch", p.NBatch}, {"n_sequences", p.NSequences}, {"n_threads", p.NThreads}, {"n_gpu_layers", p.NGPULayers}, {"max_sequence", p.MaxSequence}} {
		if v.value < 0 || v.value > math.MaxInt32 {
			return nil, invalid(op, fmt.Sprintf("%s is %d", v.name, v.value))
		}
	}
	if p.NSequences < 1 {
		return nil, invalid(op, fmt.Sprintf("n_sequences is %d, must be at least 1", p.NSequences))
	}
	if err := Init(""); err != nil {
		return nil, err
	}
	cp := C.cft_session_params{
		n_ctx:         C.int32_t(p.NCtx),
		n_batch:       C.int32_t(p.NBatch),
		n_sequences:   C.int32_t(p.NSequences) + 1, // one to spare
		n_threads:     C.int32_t(p.NThreads),
		n_gpu_layers:  C.int32_t(p.NGPULayers),
		adapter_scale: C.float(p.AdapterScale),
		f32_kv:        flag(p.F32KV),
		embeddings:    flag(p.Embeddings),
		no_mmap:       flag(p.NoMMap),
		mlock:         flag(p.MLock),
		importance:    flag(p.Importance),
		max_sequence:  C.int32_t(p.MaxSequence),

		rope_freq_base:  C.float(p.RopeFreqBase),
		rope_freq_scale: C.float(p.RopeFreqScale),
	}
	var (
		c  *C.cft_session
		ce C.cft_error
	)
	m, mn := chars(model)
	a, an := chars(adapter)
	status := C.cft_session_new(m, mn, a, an, &cp, &c, &ce)
	runtime.KeepAlive(model)
	runtime.KeepAlive(adapter)
	if err := check(op, status, &ce); err != nil {
		return nil, err
	}
	p.NBatch = min(p.NBatch, p.NCtx)
	return &Session{c: c, params: p}, nil
}

// spare is a sequence beside the NSequences, in which Generator keeps what prompts have in common.
func (s *Session) spare() int32 { return int32(s.params.NSequences) }

// Params returns what the session was made with; NBatch is at most NCtx.
func (s *Session) Params() SessionParams { return s.params }

// Close frees the session.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	C.cft_session_free(s.c)
	s.c = nil
}

// Decode runs tokens; token i belongs to sequence seqIDs[i] at positions[i], which goes on where that sequence's cache
// ends. want[i] keeps its logits for Logits and Sample with that i, until the next Decode.
func (s *Session) Decode(tokens, positions, seqIDs []int32, want []bool) error {
	const op = "session_decode"
	n := len(tokens)
	if len(positions) != n || len(seqIDs) != n || len(want) != n {
		return invalid(op, fmt.Sprintf("%d tokens with %d positions, %d sequence ids and %d wants", n, len(positions), len(seqIDs), len(want)))
	}
	wanted := make([]int8, n)
	for i, w := range want {
		if w {
			wanted[i] = 1
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return ErrClosed
	}
	var ce C.cft_error
	st := C.cft_session_decode(s.c, int32s(tokens), int32s(positions), int32s(seqIDs),
		(*C.int8_t)(unsafe.Pointer(unsafe.SliceData(wanted))), C.size_t(n), &ce)
	runtime.KeepAlive(tokens)
	runtime.KeepAlive(positions)
	runtime.KeepAlive(seqIDs)
	runtime.KeepAlive(wanted)
	return check(op, st, &ce)
}

// Logits copies the logits of the last Decode's token i into dst, which has one element per token of the vocabulary.
func (s *Session) Logits(i int, dst []float32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return ErrClosed
	}
	var ce C.cft_error
	st := C.cft_session_logits(s.c, C.size_t(i), floats(dst), C.size_t(len(dst)), &ce)
	runtime.KeepAlive(dst)
	return check("session_logits", st, &ce)
}

// Sampling says how a token is drawn. The zero value, but for TopP which must be 1 then too, is greedy: see Greedy.
// Filters run in llama.cpp's order: top-k, top-p, min-p, then the temperature.
type Sampling struct {
	Temperature float64 // 0 = the most likely token
	TopK        int     // 0 = all
	TopP        float64 // 1 = all
	MinP        float64 // 0 = all
	Seed        uint64
}

// Greedy takes the most likely token.
func Greedy() Sampling { return Sampling{TopP: 1} }

// Sample draws the next token from the logits of the last Decode's token i. The same seed, counter and logits give the
// same token.
func (s *Session) Sample(i int, sampling Sampling, counter uint64) (int32, error) {
	const op = "session_sample"
	if sampling.TopK < 0 || sampling.TopK > math.MaxInt32 {
		return 0, invalid(op, fmt.Sprintf("top_k is %d", sampling.TopK))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return 0, ErrClosed
	}
	cs := C.cft_sampling{
		temperature: C.float(sampling.Temperature),
		top_k:       C.int32_t(sampling.TopK),
		top_p:       C.float(sampling.TopP),
		min_p:       C.float(sampling.MinP),
		seed:        C.uint64_t(sampling.Seed),
		counter:     C.uint64_t(counter),
	}
	var (
		token C.int32_t
		ce    C.cft_error
	)
	st := C.cft_session_sample(s.c, C.size_t(i), &cs, &token, &ce)
	return int32(token), check(op, st, &ce)
}

// Forget removes a sequence's cache; -1 removes all.
func (s *Session) Forget(seqID int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return ErrClosed
	}
	var ce C.cft_error
	return check("session_forget", C.cft_session_forget(s.c, C.int32_t(seqID), &ce), &ce)
}

// Share lets the empty sequence to see the first n tokens that sequence from has in the cache.
func (s *Session) Share(from, to, n int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return ErrClosed
	}
	var ce C.cft_error
	return check("session_share", C.cft_session_share(s.c, C.int32_t(from), C.int32_t(to), C.int32_t(n), &ce), &ce)
}
