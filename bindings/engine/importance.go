package engine

// #include "cft_infer.h"
import "C"

// Importance is what a session's decodes multiplied a weight's columns by.
type Importance struct {
	// Sums are sums of squares, for each matrix one for each column; Counts are the rows of input that went into them. More
	// than one matrix are experts.
	Sums, Counts []float32
}

// Importance returns what was collected since the session was made, by the weights' names. SessionParams.Importance must have
// been set.
func (s *Session) Importance() (map[string]Importance, error) {
	const op = "session_importance"
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return nil, ErrClosed
	}
	if !s.params.Importance {
		return nil, invalid(op, "the session does not collect it")
	}
	all := map[string]Importance{}
	for i := range C.cft_session_importance_count(s.c) {
		var (
			info C.cft_importance
			ce   C.cft_error
		)
		if err := check(op, C.cft_session_importance_get(s.c, i, &info, nil, 0, nil, 0, &ce), &ce); err != nil {
			return nil, err
		}
		one := Importance{make([]float32, info.n_columns*info.n_matrices), make([]float32, info.n_matrices)}
		status := C.cft_session_importance_get(s.c, i, &info, floats(one.Sums), C.size_t(len(one.Sums)), floats(one.Counts), C.size_t(len(one.Counts)), &ce)
		if err := check(op, status, &ce); err != nil {
			return nil, err
		}
		all[fromChars(info.name[:])] = one
	}
	return all, nil
}
