package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

const (
	windowBytes = 256 << 10
	// maxWindowBytes is the longest row with the space around it that readers look past.
	maxWindowBytes = MaxRowBytes + 64<<10
)

// errFull says that what a reader looks for does not end within maxWindowBytes.
var errFull = fmt.Errorf("longer than %d MiB", MaxRowBytes>>20)

// window is the part of a stream that is looked at. It grows when asked for more than it holds.
type window struct {
	ctx        context.Context
	r          io.Reader
	buf        []byte
	start, end int   // the unread part
	base       int64 // offset of buf[0] in the stream
	err        error // of r; io.EOF at its end
}

func newWindow(ctx context.Context, r io.Reader) *window {
	return &window{ctx: ctx, r: r, buf: make([]byte, windowBytes)}
}

// unread is what has been fetched and not consumed. It is valid until the next call of more.
func (w *window) unread() []byte { return w.buf[w.start:w.end] }

func (w *window) skip(n int) { w.start += n }

// offset is where the unread part begins in the stream.
func (w *window) offset() int64 { return w.base + int64(w.start) }

// more adds to the unread part: at least a byte, or an error, io.EOF at the end of the stream.
func (w *window) more() error {
	if w.err != nil {
		return w.err
	}
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if w.end == len(w.buf) {
		if err := w.makeRoom(); err != nil {
			return err
		}
	}
	const maxEmptyReads = 100 // as bufio has it
	for range maxEmptyReads {
		n, err := w.r.Read(w.buf[w.end:])
		w.end += n
		w.err = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	w.err = io.ErrNoProgress
	return w.err
}

// makeRoom moves the unread part to the front, into a larger buffer if it fills half of this one.
func (w *window) makeRoom() error {
	buf, held := w.buf, w.end-w.start
	if held > len(buf)/2 {
		if len(buf) >= maxWindowBytes {
			if w.start == 0 {
				return errFull
			}
		} else {
			buf = make([]byte, min(2*len(buf), maxWindowBytes))
		}
	}
	copy(buf, w.unread())
	w.base += int64(w.start)
	w.buf, w.start, w.end = buf, 0, held
	return nil
}

// peek returns the next n bytes, or what there is before the stream ends. n must be at most windowBytes.
func (w *window) peek(n int) ([]byte, error) {
	for len(w.unread()) < n {
		if err := w.more(); err == io.EOF {
			return w.unread(), nil
		} else if err != nil {
			return nil, err
		}
	}
	return w.buf[w.start : w.start+n], nil
}

// line consumes a line and returns it without "\n", with its offset in the stream; io.EOF if there is none.
func (w *window) line() ([]byte, int64, error) {
	seen := 0
	for {
		unread := w.unread()
		if i := bytes.IndexByte(unread[seen:], '\n'); i >= 0 {
			offset := w.offset()
			w.skip(seen + i + 1)
			return unread[:seen+i], offset, nil
		}
		seen = len(unread)
		if err := w.more(); err == io.EOF && seen > 0 {
			offset := w.offset()
			w.skip(seen)
			return unread, offset, nil
		} else if err != nil {
			return nil, 0, err
		}
	}
}

// token passes over white space and returns the byte after it, unconsumed; io.EOF if there is none.
func (w *window) token() (byte, error) {
	for {
		for i, c := range w.unread() {
			if !isSpace(c) {
				w.skip(i)
				return c, nil
			}
		}
		w.start = w.end
		if err := w.more(); err != nil {
			return 0, err
		}
	}
}

// find returns the index in unread, from i on, of the first byte that is no white space; -1 if the stream ends before.
func (w *window) find(i int) (int, error) {
	for {
		for ; i < len(w.unread()); i++ {
			if !isSpace(w.unread()[i]) {
				return i, nil
			}
		}
		if err := w.more(); err == io.EOF {
			return -1, nil
		} else if err != nil {
			return -1, err
		}
	}
}

// Read reads the unread part, then the stream.
func (w *window) Read(p []byte) (int, error) {
	if w.start < w.end {
		n := copy(p, w.unread())
		w.skip(n)
		return n, nil
	}
	if w.err != nil {
		return 0, w.err
	}
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	n, err := w.r.Read(p)
	w.base += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}

// isSpace is JSON's white space.
func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }
