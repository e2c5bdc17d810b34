package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// What a zstd stream may make us keep: what zstd itself allows unless told otherwise, but less for files so small that
// they cannot need it, because the memory is taken as soon as the stream says how much.
const (
	maxZstdWindow      = 128 << 20
	maxSmallZstdWindow = 32 << 20
	smallZstd          = 4 << 20
)

// zstdWindow is the largest window for a file of so many bytes; -1: unknown.
func zstdWindow(bytes int64) uint64 {
	if bytes >= 0 && bytes < smallZstd {
		return maxSmallZstdWindow
	}
	return maxZstdWindow
}

// compression names the compression that the first bytes show, empty if there is none that can be read.
func compression(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	// A frame to be skipped, as parallel compressors put at the front: 0x184D2A50 to 5F, little end first.
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return "zstd"
	}
	return ""
}

// decompress returns a decompressor of r, which starts with head and is of so many bytes (-1: unknown); nil if r is not
// compressed.
func decompress(head []byte, r io.Reader, bytes int64) (name string, unpacked io.ReadCloser, err error) {
	switch name = compression(head); name {
	case "gzip":
		gz, err := gzip.NewReader(r) // reads all members
		if err != nil {
			return name, nil, packedError(name, err)
		}
		return name, &packedReader{name, gz, gz.Close}, nil
	case "zstd":
		// One goroutine: files are many where speed matters, and none is left behind when reading stops.
		zs, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow(bytes)), zstd.WithDecoderLowmem(true))
		if err != nil {
			return name, nil, packedError(name, err)
		}
		return name, &packedReader{name, zs, func() error { zs.Close(); return nil }}, nil
	}
	return "", nil, nil
}

// packedReader names the compression in errors.
type packedReader struct {
	name  string
	r     io.Reader
	close func() error
}

func (p *packedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if err != nil && err != io.EOF {
		err = packedError(p.name, err)
	}
	return n, err
}

func (p *packedReader) Close() error { return p.close() }

func packedError(name string, err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("%s: %w of %d MiB, or %d in files below %d; compress it again without --ultra and --long", name, err, maxZstdWindow>>20, maxSmallZstdWindow>>20, smallZstd>>20)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the %s stream is cut off: %w", name, err)
	}
	return fmt.Errorf("%s: %w", name, err)
}
