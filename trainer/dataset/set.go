package dataset

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"cftune/trainer/config"
)

// MaxLineBytes bounds a line.
const MaxLineBytes = 64 << 20

// maxCheckErrors is how many faults Check spells out.
const maxCheckErrors = 20

// Error is a fault of the data: which file and line, and what is wrong.
type Error struct {
	File string
	Line int // 1-based; 0 where the fault is the whole file's
	Err  error
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Set is an indexed sequence of records on disk: the sources' in their order. Its methods but Close are safe for
// concurrent use.
type Set struct {
	files  []*file
	first  []int // index of each file's first record
	len    int
	digest string
}

// file is one indexed JSONL file.
type file struct {
	path   string
	format format
	weight float64
	f      *os.File
	size   int64
	starts []int64 // offset of each record's line
	// blanks[k] is the number of records before the k-th blank line; few files have any.
	blanks []int
}

// Open indexes the sources' files and digests their content, reading each once. A source's path may be a glob pattern
// ("data/*.jsonl"); its files are taken in the order of their names. Open checks lines, not records: see Check.
// A fault of a file's content is an *Error.
func Open(sources []config.Source) (*Set, error) {
	s := &Set{}
	sum := sha256.New()
	for _, source := range sources {
		if err := s.openSource(source, sum); err != nil {
			s.Close()
			return nil, err
		}
	}
	s.digest = hex.EncodeToString(sum.Sum(nil))
	return s, nil
}

func (s *Set) openSource(source config.Source, sum hash.Hash) error {
	format, known := formats[source.Format]
	if !known {
		return fmt.Errorf("open data %s: unknown format %q", source.Path, source.Format)
	}
	paths, err := expand(source.Path)
	if err != nil {
		return fmt.Errorf("open data: %w", err)
	}
	for _, path := range paths {
		f := &file{path: path, format: format, weight: source.Weight}
		s.files = append(s.files, f)
		s.first = append(s.first, s.len)
		if f.f, err = os.Open(path); err != nil {
			return fmt.Errorf("open data: %w", err)
		}
		own := sha256.New()
		if err := f.index(io.TeeReader(f.f, own)); err != nil {
			return err
		}
		// The digest is over the files' digests, so that moving a line from one file's end to the next one's start shows.
		sum.Write(own.Sum(nil))
		s.len += len(f.starts)
	}
	return nil
}

// expand returns the files that a source's path names.
func expand(path string) ([]string, error) {
	if _, err := os.Stat(path); err == nil || !strings.ContainsAny(path, "*?[") {
		return []string{path}, nil
	}
	paths, err := filepath.Glob(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%s: no file matches: %w", path, os.ErrNotExist)
	}
	slices.Sort(paths)
	return paths, nil
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// index records where lines begin.
func (f *file) index(r io.Reader) error {
	lines := bufio.NewReaderSize(r, 1<<20)
	offset := int64(0)
	if head, err := lines.Peek(len(byteOrderMark)); err == nil && bytes.Equal(head, byteOrderMark) {
		lines.Discard(len(byteOrderMark))
		offset = int64(len(byteOrderMark))
	}
	for number := 1; ; number++ {
		length, blank, err := skipLine(lines)
		if err != nil && !errors.Is(err, io.EOF) {
			return &Error{File: f.path, Line: number, Err: err}
		}
		switch {
		case length == 0:
			f.size = offset
			return nil
		case blank:
			f.blanks = append(f.blanks, len(f.starts))
		default:
			f.starts = append(f.starts, offset)
		}
		offset += length
	}
}

// skipLine reads one line with its newline; blank: it is white space only. length 0: the end.
func skipLine(r *bufio.Reader) (length int64, blank bool, err error) {
	blank = true
	for {
		part, err := r.ReadSlice('\n')
		length += int64(len(part))
		blank = blank && len(bytes.TrimSpace(part)) == 0
		if length > MaxLineBytes {
			return length, blank, fmt.Errorf("the line is longer than %d MiB", MaxLineBytes>>20)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return length, blank, err
		}
	}
}

// Len returns the number of records.
func (s *Set) Len() int { return s.len }

// Digest returns the SHA-256 of the files' content, as hex, for resume checks.
func (s *Set) Digest() string { return s.digest }

// Close closes the files.
func (s *Set) Close() error {
	var errs []error
	for _, f := range s.files {
		if f.f != nil {
			errs = append(errs, f.f.Close())
		}
	}
	return errors.Join(errs...)
}

// Record reads and decodes record i, in the order of the files. A fault of the data is an *Error.
func (s *Set) Record(i int) (Record, error) {
	if i < 0 || i >= s.len {
		panic(fmt.Sprintf("dataset: record %d of %d", i, s.len))
	}
	n, _ := slices.BinarySearch(s.first, i+1) // the last file that begins at or before i; empty ones come earlier
	n--
	return s.files[n].record(i - s.first[n])
}

// line returns the line number of a record.
func (f *file) line(i int) int {
	blanksBefore, _ := slices.BinarySearch(f.blanks, i+1)
	return i + 1 + blanksBefore
}

func (f *file) record(i int) (Record, error) {
	end := f.size
	if i+1 < len(f.starts) {
		end = f.starts[i+1]
	}
	fail := func(err error) (Record, error) {
		return Record{}, &Error{File: f.path, Line: f.line(i), Err: err}
	}
	text := make([]byte, end-f.starts[i])
	if _, err := f.f.ReadAt(text, f.starts[i]); err != nil {
		return fail(err)
	}
	text = bytes.TrimSpace(text) // the newline, and blank lines up to the next record
	if !utf8.Valid(text) {
		return fail(fmt.Errorf("byte %d of the line is no UTF-8", invalidUTF8(text)))
	}
	r, err := f.format(text)
	if err != nil {
		return fail(err)
	}
	id := fmt.Sprintf("%s:%d", f.path, f.line(i))
	if r.ID != "" {
		id += " (" + r.ID + ")"
	}
	r.ID = id
	r.Weight *= float32(f.weight)
	return r, nil
}

// invalidUTF8 returns the place, from 1, of the first byte that is no UTF-8.
func invalidUTF8(text []byte) int {
	at := 0
	for {
		r, size := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && size < 2 {
			return at + 1
		}
		at += size
	}
}

// Check decodes every record. Its error joins the first faults (each an *Error) and the number of the others.
func (s *Set) Check() error {
	var errs []error
	faults := 0
	for i := range s.len {
		if _, err := s.Record(i); err != nil {
			if faults++; faults <= maxCheckErrors {
				errs = append(errs, err)
			}
		}
	}
	if more := faults - maxCheckErrors; more > 0 {
		errs = append(errs, fmt.Errorf("and %d more of %d records", more, s.len))
	}
	return errors.Join(errs...)
}
