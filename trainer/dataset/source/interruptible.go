package source

import (
	"context"
	"io"
)

// Await returns what f does, or ctx's error if ctx ends first: to open a named pipe takes until somebody writes to it. Then f goes on by itself,
// and what it comes to is lost.
func Await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// Interruptible reads from in until ctx ends, also while nothing comes: a read of a terminal or of a pipe ends by itself only
// with what is written next.
func Interruptible(ctx context.Context, in io.Reader) io.Reader {
	return &interruptible{ctx: ctx, in: in, done: make(chan readResult, 1)}
}

type interruptible struct {
	ctx  context.Context
	in   io.Reader
	own  []byte // the caller's bytes are its own again once Read returns
	done chan readResult
}

type readResult struct {
	n   int
	err error
}

func (r *interruptible) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err // a read that was given up may still write to own
	}
	if len(r.own) < len(p) {
		r.own = make([]byte, len(p))
	}
	own := r.own[:len(p)]
	go func() {
		n, err := r.in.Read(own)
		r.done <- readResult{n, err}
	}()
	select {
	case got := <-r.done:
		return copy(p, own[:got.n]), got.err
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}
