package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"cftune/internal/regular"
)

// place is where a file's bytes are.
type place interface {
	// open reads from the start.
	open(ctx context.Context) (io.ReadCloser, error)
	// openAt reads anywhere; size is the file's.
	openAt(ctx context.Context) (r readerAt, size int64, err error)
	// stamp is as File.Stamp, empty where there is none.
	stamp(ctx context.Context) (string, error)
	size() int64  // as File.Bytes
	path() string // as File.Path
}

// readerAt is read at any place.
type readerAt interface {
	io.ReaderAt
	io.Closer
}

// localFile is a regular file of this machine.
type localFile struct {
	name  string
	bytes int64
}

func (l localFile) open(context.Context) (io.ReadCloser, error) { return regular.Open(l.name) }

func (l localFile) openAt(context.Context) (readerAt, int64, error) {
	f, err := regular.Open(l.name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func (l localFile) stamp(context.Context) (string, error) {
	info, err := os.Stat(l.name)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes of %d, changed %d", info.Size(), info.ModTime().UnixNano(), regular.Changed(info).UnixNano()), nil
}

func (l localFile) size() int64  { return l.bytes }
func (l localFile) path() string { return l.name }

// pipe is what can be read once, from its start: standard input, named pipes, devices.
type pipe struct {
	opener func() (io.ReadCloser, error)
	taken  atomic.Bool
}

// standardInput is one for the process: whoever reads it first has it.
var standardInput = &pipe{opener: func() (io.ReadCloser, error) { return io.NopCloser(os.Stdin), nil }}

func (p *pipe) open(ctx context.Context) (io.ReadCloser, error) {
	if p.taken.Swap(true) {
		return nil, errors.New("can be read only once, and was; save it to a file first")
	}
	in, err := Await(ctx, p.opener)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{Interruptible(ctx, in), in}, nil
}

func (p *pipe) openAt(context.Context) (readerAt, int64, error) {
	return nil, 0, errors.New("is Parquet, which must be read at any place, but comes through a pipe; save it to a file first")
}

func (p *pipe) stamp(context.Context) (string, error) { return "", nil }
func (p *pipe) size() int64                           { return -1 }
func (p *pipe) path() string                          { return "" }
