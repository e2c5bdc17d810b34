package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"cftune/internal/regular"
	"cftune/trainer/dataset/source"
	"cftune/trainer/internal/durable"
)

// Options say where rows are kept.
type Options struct {
	// Cache is a folder for indexes and blocks; empty: a temporary one, so that nothing is found again.
	Cache string
	// Progress, if not nil, is called now and then while a file is read for the first time.
	Progress func(file string, rows int64)
}

// Open gives access to a file's rows, reading it once if the cache does not have it. A fault of its content is a
// *source.Error.
func Open(ctx context.Context, f source.File, o Options) (*Table, error) {
	stamp, stamped, err := f.Stamp(ctx)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(o.Cache, "data")
	var discard []string
	if o.Cache == "" {
		if folder, err = os.MkdirTemp("", "cftune-data-"); err != nil {
			return nil, fmt.Errorf("index %s: %w", f.Name, err)
		}
		discard = []string{folder}
	}
	key := keyOf(f, stamp)
	if stamped && o.Cache != "" {
		if t, err := openCached(folder, key, f, stamp); t != nil || err != nil {
			return t, err
		}
	}
	if !stamped {
		key += "-" + rand.Text() // nobody can know it again
	}
	t, err := build(ctx, f, o, folder, key, stamp)
	if err != nil {
		for _, path := range discard {
			_ = os.Remove(path) // empty; the error tells more
		}
		return nil, err
	}
	if !stamped || o.Cache == "" {
		if err = os.Remove(filepath.Join(folder, key+indexEnding)); errors.Is(err, os.ErrNotExist) {
			err = nil // of a small plain file
		}
		if !t.header.Plain {
			t.remove = append([]string{t.path}, discard...)
		} else {
			t.remove = discard
		}
	}
	return t, err
}

const (
	indexEnding = ".index"
	rowsEnding  = ".rows"
)

// keyOf names a file's index.
func keyOf(f source.File, stamp string) string {
	name := f.Name
	if path := f.Path(); path != "" {
		if absolute, err := filepath.Abs(path); err == nil {
			name = absolute
		}
	}
	sum := sha256.Sum256([]byte(indexMagic + "\x00" + name + "\x00" + stamp))
	return hex.EncodeToString(sum[:16])
}

// openCached opens what the cache has; nil if it has nothing that is whole.
func openCached(folder, key string, f source.File, stamp string) (*Table, error) {
	h, entries, err := readIndex(filepath.Join(folder, key+indexEnding))
	if err != nil || h.Stamp != stamp {
		return nil, nil // it is made again, whatever it is
	}
	path := filepath.Join(folder, key+rowsEnding)
	if h.Plain {
		path = f.Path()
	}
	t, err := open(path, h, entries)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errBadIndex) {
		return nil, nil
	}
	return t, err
}

// open opens a file of rows whose index is known.
func open(path string, h header, entries []entry) (*Table, error) {
	file, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Size() != h.Bytes {
		err = fmt.Errorf("%s has %d bytes, not %d: %w", path, info.Size(), h.Bytes, errBadIndex)
	}
	t := &Table{header: h, entries: entries, f: file, path: path}
	if err == nil && !h.Plain {
		t.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxBlock))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return t, nil
}

// maxBlock bounds what a block may unpack to: a row of the largest size, and what else is in its block.
const maxBlock = source.MaxRowBytes + 2*blockBytes

// keptPlainBytes is from which size on the index of a plain file is kept: below, it is made in a moment.
var keptPlainBytes int64 = 8 << 20

// build reads a file once and commits its index, and its rows unless it is plain.
func build(ctx context.Context, f source.File, o Options, folder, key, stamp string) (*Table, error) {
	if err := durable.MkdirAll(durable.OS, folder); err != nil {
		return nil, fmt.Errorf("index %s: %w", f.Name, err)
	}
	b := builder{file: f, options: o, sum: sha256.New()}
	b.header = header{Name: f.Name, Stamp: stamp, Plain: f.Plain()}
	path := filepath.Join(folder, key+rowsEnding)
	var err error
	if b.header.Plain {
		path = f.Path()
		err = b.indexPlain(ctx)
	} else {
		err = b.pack(ctx, path)
	}
	if err != nil {
		return nil, err
	}
	b.header.Digest = hex.EncodeToString(b.sum.Sum(nil))
	if b.header.Plain && b.header.Bytes < keptPlainBytes {
		return open(path, b.header, b.entries)
	}
	text, err := encodeIndex(b.header, b.entries)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", f.Name, err)
	}
	err = commit(filepath.Join(folder, key+indexEnding), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", f.Name, err)
	}
	t, err := open(path, b.header, b.entries)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", f.Name, err)
	}
	return t, nil
}

// commit writes a file under a name of its own and renames it: others may write the same at the same time.
func commit(path string, write func(io.Writer) error) error {
	own := path + "." + rand.Text()
	if _, err := durable.ReplaceFile(durable.OS, own, write); err != nil {
		return err
	}
	if err := os.Rename(own, path); err != nil {
		return errors.Join(err, os.Remove(own))
	}
	return durable.OS.SyncDir(filepath.Dir(path))
}

// builder makes an index.
type builder struct {
	file    source.File
	options Options
	header  header
	entries []entry
	sum     hash.Hash
}

// progressRows is after how many rows Progress is called.
const progressRows = 100_000

func (b *builder) progress() {
	if b.options.Progress != nil && b.header.Rows%progressRows == 0 {
		b.options.Progress(b.file.Name, b.header.Rows)
	}
}

// An entry of a plain file's index is for this much text.
const (
	sampleBytes = 16 << 10
	sampleRows  = 64
)

// indexPlain takes a sample of the rows' offsets, and the digest of the file's bytes. Lines that are no objects are rows
// too: who decodes them finds all of them, and not only the first.
func (b *builder) indexPlain(ctx context.Context) error {
	file, err := regular.Open(b.file.Path())
	if err != nil {
		return fmt.Errorf("index %s: %w", b.file.Name, err)
	}
	defer file.Close()
	lines := bufio.NewReaderSize(io.TeeReader(file, b.sum), 1<<20)
	if head, err := lines.Peek(len(byteOrderMark)); err == nil && string(head) == byteOrderMark {
		b.header.Bytes = int64(len(byteOrderMark))
		if _, err := lines.Discard(len(byteOrderMark)); err != nil {
			return fmt.Errorf("index %s: %w", b.file.Name, err)
		}
	}
	for line := int64(1); ; line++ {
		before := uint32(0)
		if n := len(b.entries); n > 0 {
			before = b.entries[n-1].sum
		}
		length, blank, own, sum, err := skipLine(lines, before)
		if err != nil && !errors.Is(err, io.EOF) {
			return &source.Error{File: b.file.Name, Line: int(line), Err: err}
		}
		if length == 0 {
			return nil
		}
		if !blank {
			if b.sample(line) {
				sum = own
			}
			b.header.Rows++
			b.progress()
		}
		if n := len(b.entries); n > 0 {
			b.entries[n-1].sum = sum
		}
		b.header.Bytes += length
		if line%progressRows == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

const byteOrderMark = "\xef\xbb\xbf"

// sample begins a block with a line, unless the one before is too small yet.
func (b *builder) sample(line int64) bool {
	if n := len(b.entries); n > 0 && b.header.Rows-b.entries[n-1].row < sampleRows && b.header.Bytes-b.entries[n-1].offset < sampleBytes {
		return false
	}
	b.entries = append(b.entries, entry{row: b.header.Rows, offset: b.header.Bytes, line: line})
	return true
}

// skipLine reads one line with its newline; blank: it is white space only. length 0: the end. own is the line's CRC-32, sum that of what lies
// before it, whose CRC-32 is given, and the line.
func skipLine(r *bufio.Reader, before uint32) (length int64, blank bool, own, sum uint32, err error) {
	blank, sum = true, before
	for {
		part, err := r.ReadSlice('\n')
		length += int64(len(part))
		own, sum = crc32.Update(own, crc32.IEEETable, part), crc32.Update(sum, crc32.IEEETable, part)
		blank = blank && len(bytes.TrimSpace(part)) == 0
		if length > source.MaxRowBytes {
			return length, blank, own, sum, fmt.Errorf("the line is longer than %d MiB", source.MaxRowBytes>>20)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return length, blank, own, sum, err
		}
	}
}

// pack writes the rows as blocks, aside, and renames the file.
func (b *builder) pack(ctx context.Context, path string) error {
	fail := func(err error) error { return fmt.Errorf("keep the rows of %s: %w", b.file.Name, err) }
	if size := b.file.Bytes(); size > 0 {
		if err := durable.CheckSpace(durable.OS, filepath.Dir(path), size); err != nil {
			return fail(err)
		}
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(true), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return fail(err)
	}
	defer encoder.Close()
	var broken error // of the source, which speaks for itself
	err = commit(path, func(w io.Writer) error {
		out := bufio.NewWriterSize(w, 1<<20)
		p := packer{out: out, encoder: encoder, header: b.header}
		for row, err := range b.file.Rows(ctx) {
			if err != nil {
				broken = err
				return err
			}
			b.sum.Write(row.Text)
			b.sum.Write([]byte{'\n'})
			if err := p.add(row.Text, int64(row.Line)); err != nil {
				return err
			}
			b.header.Rows = p.header.Rows
			b.progress()
		}
		err := errors.Join(p.flush(), out.Flush())
		b.header, b.entries = p.header, p.entries
		return err
	})
	if broken != nil {
		return broken
	}
	if err != nil {
		return fail(err)
	}
	return nil
}
