package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// version identifies the content that a store gave.
type version struct {
	tag   string // empty where the store has none
	bytes int64  // of the whole; -1 where unknown
}

// differs reports whether two versions are known to be different content.
func (v version) differs(w version) bool {
	return v.tag != w.tag || v.bytes != w.bytes && v.bytes >= 0 && w.bytes >= 0
}

func (v version) String() string { return fmt.Sprintf("%d bytes of %s", v.bytes, v.tag) }

// store gives parts of one object. Its errors say whether to try again: see temporary.
type store interface {
	// fetch reads n bytes from offset; to the end if n is -1. whole says that the body is the whole object instead,
	// from its start, since the store gives no parts.
	fetch(ctx context.Context, offset, n int64) (body io.ReadCloser, v version, whole bool, err error)
	// stat asks for the version. Its tag may be more exact than those of fetch.
	stat(ctx context.Context) (version, error)
}

// remoteFile is an object of a store.
type remoteFile struct {
	store    store
	bytes    int64
	patience patience
}

func (r *remoteFile) size() int64  { return r.bytes }
func (r *remoteFile) path() string { return "" }

func (r *remoteFile) stamp(ctx context.Context) (string, error) {
	v, err := r.stat(ctx)
	if err != nil || v.tag == "" {
		return "", err
	}
	return v.String(), nil
}

// stat is the store's, with patience.
func (r *remoteFile) stat(ctx context.Context) (v version, err error) {
	err = r.try(ctx, func() (err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, r.patience.stall, errStalled)
		defer cancel()
		if v, err = r.store.stat(ctx); err != nil && context.Cause(ctx) == errStalled {
			err = errStalled
		}
		return err
	})
	return v, err
}

// try repeats what fails temporarily.
func (r *remoteFile) try(ctx context.Context, do func() error) (err error) {
	for attempt := range r.patience.attempts {
		if failed := r.patience.Wait(ctx, attempt); failed != nil {
			return failed
		}
		if err = do(); !temporary(err) {
			return err
		}
	}
	return fmt.Errorf("after %d attempts: %w", r.patience.attempts, err)
}

func (r *remoteFile) open(ctx context.Context) (io.ReadCloser, error) {
	s := &stream{ctx: ctx, file: r}
	return s, r.try(ctx, s.connect)
}

// stream reads an object from its start. Where the connection breaks it goes on at the same byte, if the object is
// still the same.
type stream struct {
	ctx     context.Context
	file    *remoteFile
	body    *watched
	version version
	at      int64
	idle    int // attempts without progress
}

// connect asks for the rest of the object.
func (s *stream) connect() error {
	body, v, whole, err := fetchWatched(s.ctx, s.file, s.at, -1)
	if err != nil {
		return err
	}
	s.body = body
	if s.at == 0 {
		s.version = v
		return nil
	}
	if v.tag == "" || v.differs(s.version) {
		return errors.Join(s.changed(v), s.Close())
	}
	if whole {
		if _, err := io.CopyN(io.Discard, body, s.at); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	return nil
}

func (s *stream) changed(v version) error {
	if v.tag == "" || s.version.tag == "" {
		return fmt.Errorf("the connection broke after %d bytes, and the server does not tell whether the content is still the same (no ETag or time of change); download the file first", s.at)
	}
	return fmt.Errorf("it changed while it was read: %v became %v", s.version, v)
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.body == nil {
			if err := s.reconnect(); err != nil {
				return 0, err
			}
		}
		n, err := s.body.Read(p)
		if n > 0 {
			s.at += int64(n)
			s.idle = 0
		}
		switch {
		case err == nil:
			return n, nil
		case s.at == s.version.bytes, err == io.EOF && s.version.bytes < 0:
			return n, io.EOF
		case err == io.EOF && s.at > s.version.bytes:
			return n, fmt.Errorf("the server gave %d bytes of %d", s.at, s.version.bytes)
		case err == io.EOF:
			err = io.ErrUnexpectedEOF // tell a broken connection from the end
		case !temporary(err):
			return n, err
		}
		if closed := s.Close(); closed != nil && !temporary(closed) {
			return n, errors.Join(err, closed)
		}
		if s.idle++; s.idle >= s.file.patience.attempts {
			return n, fmt.Errorf("after %d bytes and %d attempts: %w", s.at, s.idle, err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (s *stream) reconnect() error {
	if err := s.file.patience.Wait(s.ctx, s.idle); err != nil {
		return err
	}
	return s.file.try(s.ctx, s.connect)
}

func (s *stream) Close() error {
	if s.body == nil {
		return nil
	}
	body := s.body
	s.body = nil
	return body.Close()
}

// watched is a body whose connection counts as lost when it gives nothing for long.
type watched struct {
	body   io.ReadCloser
	timer  *time.Timer
	cancel context.CancelCauseFunc
	ctx    context.Context
	stall  time.Duration
}

// fetchWatched is the store's fetch, which ends when nothing comes.
func fetchWatched(ctx context.Context, r *remoteFile, offset, n int64) (*watched, version, bool, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watched{ctx: ctx, cancel: cancel, stall: r.patience.stall}
	w.timer = time.AfterFunc(w.stall, func() { cancel(errStalled) })
	body, v, whole, err := r.store.fetch(ctx, offset, n)
	if err != nil {
		err = w.cause(err)
		w.timer.Stop()
		cancel(nil)
		return nil, v, false, err
	}
	w.body = body
	return w, v, whole, nil
}

// cause tells a stall from other reasons why the context ended.
func (w *watched) cause(err error) error {
	if errors.Is(context.Cause(w.ctx), errStalled) {
		return errStalled
	}
	return bareError(err)
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.stall)
	n, err := w.body.Read(p)
	w.timer.Stop() // the caller may take its time
	if err != nil && err != io.EOF {
		err = w.cause(err)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return bareError(w.body.Close())
}

func (r *remoteFile) openAt(ctx context.Context) (readerAt, int64, error) {
	v, err := r.stat(ctx)
	if err != nil {
		return nil, 0, err
	}
	if v.bytes < 0 {
		return nil, 0, errors.New("is Parquet, but the server does not tell its size; download the file first")
	}
	return &ranges{ctx: ctx, file: r, bytes: v.bytes, ahead: smallRange, keep: 2}, v.bytes, nil
}

const (
	smallRange = 64 << 10
	largeRange = 4 << 20
	// rangesBytes bounds the ranges that are kept of one file.
	rangesBytes = 32 << 20
)

// ranges reads an object at any place. It fetches more than asked for, as columns are read bit by bit, and keeps one
// range for each column that is read at the same time.
type ranges struct {
	ctx   context.Context
	file  *remoteFile
	bytes int64

	mu    sync.Mutex
	first *version // of the first range
	ahead int64    // what is fetched at least
	keep  int
	kept  []part // the last used first
}

// part is the bytes of an object from an offset.
type part struct {
	offset int64
	bytes  []byte
}

// readInStreams says that n places will be read from in turn.
func (r *ranges) readInStreams(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep = n + 1
	r.ahead = min(max(rangesBytes/int64(r.keep), smallRange), largeRange)
}

func (r *ranges) ReadAt(p []byte, offset int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(p) {
		at := offset + int64(n)
		if at >= r.bytes {
			return n, io.EOF
		}
		held, err := r.at(at, int64(len(p)-n))
		if err != nil {
			return n, err
		}
		n += copy(p[n:], held)
	}
	return n, nil
}

// at returns some bytes from offset on, of what is kept or fetched anew.
func (r *ranges) at(offset, want int64) ([]byte, error) {
	for i, held := range r.kept {
		if within := offset - held.offset; within >= 0 && within < int64(len(held.bytes)) {
			copy(r.kept[1:i+1], r.kept[:i])
			r.kept[0] = held
			return held.bytes[within:], nil
		}
	}
	n := min(max(want, r.ahead), r.bytes-offset)
	fetched := part{offset, nil}
	err := r.file.try(r.ctx, func() (err error) {
		fetched.bytes, err = r.fetch(offset, n)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bytes %d to %d: %w", offset, offset+n, err)
	}
	r.kept = append([]part{fetched}, r.kept[:min(len(r.kept), r.keep-1)]...)
	return fetched.bytes, nil
}

func (r *ranges) fetch(offset, n int64) (_ []byte, err error) {
	body, v, whole, err := fetchWatched(r.ctx, r.file, offset, n)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if whole && n != v.bytes {
		return nil, errors.New("is Parquet, which is read in parts, but the server gives the file only as a whole; download it first")
	}
	if r.first == nil {
		r.first = &v
	}
	// Where there is no tag, the size is all there is to compare.
	if v.bytes != r.bytes || v.differs(*r.first) {
		return nil, fmt.Errorf("it changed while it was read: %v became %v", *r.first, v)
	}
	bytes := make([]byte, n)
	_, err = io.ReadFull(body, bytes)
	return bytes, err
}

func (r *ranges) Close() error { return nil }
