package engine

// #include "cft_infer.h"
import "C"

import (
	"fmt"
	"math"
	"runtime"
	"unsafe"
)

// SetThreads sets the number of threads of the calls to come; 0 = all that the process may use.
func (s *Session) SetThreads(n int) error {
	const op = "session_threads"
	if n < 0 || n > math.MaxInt32 {
		return invalid(op, fmt.Sprintf("%d threads", n))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return ErrClosed
	}
	var ce C.cft_error
	return check(op, C.cft_session_threads(s.c, C.int32_t(n), &ce), &ce)
}

// Trim removes what a sequence has in the cache from position n on.
func (s *Session) Trim(seqID, n int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return ErrClosed
	}
	var ce C.cft_error
	return check("session_trim", C.cft_session_trim(s.c, C.int32_t(seqID), C.int32_t(n), &ce), &ce)
}

// Embedding returns the normed output of the last layer for the last Decode's token i, as wide as the model.
func (s *Session) Embedding(i int) ([]float32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return nil, ErrClosed
	}
	out := make([]float32, C.cft_session_width(s.c))
	var ce C.cft_error
	st := C.cft_session_embedding(s.c, C.size_t(i), floats(out), C.size_t(len(out)), &ce)
	return out, check("session_embedding", st, &ce)
}

// ReadState returns the cache of all sequences and the last logits, as bytes for WriteState.
func (s *Session) ReadState() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return nil, ErrClosed
	}
	var buf []byte
	for {
		var (
			n  C.size_t
			ce C.cft_error
		)
		st := C.cft_session_state_read(s.c, unsafe.Pointer(unsafe.SliceData(buf)), C.size_t(len(buf)), &n, &ce)
		if err := check("session_state_read", st, &ce); err != nil {
			return nil, err
		}
		if int(n) <= len(buf) {
			return buf[:n], nil
		}
		buf = make([]byte, n)
	}
}

// WriteState puts back what ReadState gave, in a session of the same model and parameters. After an error the session may
// be empty.
func (s *Session) WriteState(state []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return ErrClosed
	}
	if len(state) == 0 {
		return invalid("session_state_write", "no state")
	}
	var ce C.cft_error
	st := C.cft_session_state_write(s.c, unsafe.Pointer(unsafe.SliceData(state)), C.size_t(len(state)), &ce)
	runtime.KeepAlive(state)
	return check("session_state_write", st, &ce)
}
