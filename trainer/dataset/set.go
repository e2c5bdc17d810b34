package dataset

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"cftune/trainer/config"
	"cftune/trainer/dataset/source"
	"cftune/trainer/dataset/store"
)

// MaxLineBytes bounds a row.
const MaxLineBytes = source.MaxRowBytes

// maxCheckErrors is how many faults Check spells out.
const maxCheckErrors = 20

// ErrMissing is among the causes where a row lacks a field that its format needs.
var ErrMissing = errors.New("a field is missing")

// missingError is such a cause, in the words that it came with.
type missingError struct{ error }

func (missingError) Is(target error) bool { return target == ErrMissing }

// Error is a fault of the data: which file and line, and what is wrong.
type Error = source.Error

// Options say where what was found out about sources is kept, and who is told how far reading is.
type Options = store.Options

// Set is a sequence of records: the sources' in their order. Its methods but Close are safe for concurrent use.
type Set struct {
	files   []*file
	first   []int // index of each file's first record
	len     int
	sources []share
	digest  string
}

// file is one file's rows.
type file struct {
	name   string
	format format
	reads  map[string]bool // names of the row's fields that are in its record
	weight float64
	rows   *store.Table
}

// Open opens the sources, reading each file that the cache does not know once. A source's path may be a file, a folder, a
// pattern ("data/*.jsonl"), "-" for standard input, or a URL; its files are taken in the order of their names. Open
// checks rows, not records: see Check. A fault of a file's content is an *Error.
func Open(ctx context.Context, sources []config.Source, o Options) (*Set, error) {
	s := &Set{}
	sum := sha256.New()
	for _, source := range sources {
		if err := s.openSource(ctx, source, o, sum); err != nil {
			s.Close()
			return nil, err
		}
	}
	s.digest = hex.EncodeToString(sum.Sum(nil))
	return s, nil
}

func (s *Set) openSource(ctx context.Context, from config.Source, o Options, sum hash.Hash) error {
	if _, known := formats[from.Format]; !known && from.Format != "" {
		return fmt.Errorf("open data %s: unknown format %q", from.Path, from.Format)
	}
	files, err := source.Expand(ctx, from.Path)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil {
			err = inner // the path is named anyway
		}
		return &Error{File: from.Path, Err: err}
	}
	first := s.len
	for _, each := range files {
		rows, err := store.Open(ctx, each, o)
		if err != nil {
			var fault *Error
			if errors.As(err, &fault) {
				return err
			}
			return fmt.Errorf("open data: %w", err)
		}
		f := &file{name: each.Name, weight: from.Weight, rows: rows}
		s.files = append(s.files, f)
		s.first = append(s.first, s.len)
		s.len += rows.Len()
		if from.Format == "" {
			return f.unnamed()
		}
		if f.format, err = mapped(from.Format, from.Fields); err != nil {
			return fmt.Errorf("open data %s: %w", from.Path, err)
		}
		f.reads = readNames(from.Format, from.Fields)
		// The digest is over the files' digests, so that moving a line from one file's end to the next one's start shows.
		digest, err := hex.DecodeString(rows.Digest())
		if err != nil {
			return fmt.Errorf("open data %s: digest: %w", each.Name, err)
		}
		sum.Write(digest)
	}
	s.sources = append(s.sources, newShare(first, s.len-first, from.Sample))
	return nil
}

// unnamed is the error of a source without a format: what its first row looks like, and which formats would take it.
func (f *file) unnamed() error {
	fail := func(line int, format string, args ...any) error {
		return &Error{File: f.name, Line: line, Err: fmt.Errorf("the source's format is not named: "+format, args...)}
	}
	if f.rows.Len() == 0 {
		return fail(0, "and it has no row to tell it from; it must be one of %s", strings.Join(Formats(), ", "))
	}
	text, line, err := f.rows.Row(0)
	if err != nil {
		return &Error{File: f.name, Err: err}
	}
	fields, err := parseRow(text)
	if err != nil {
		return fail(line, "%v", err)
	}
	var fit []string
	for _, name := range Formats() {
		if _, err := formats[name](fields.again()); err == nil {
			fit = append(fit, name)
		}
	}
	advice := "no format takes it as it is; data.sources[].fields says which field is which"
	if len(fit) > 0 {
		advice = "it could be " + strings.Join(fit, " or ")
	}
	return fail(line, "the row has {%s}; %s", fields.looks(), advice)
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// Len returns the number of records.
func (s *Set) Len() int { return s.len }

// Digest returns the SHA-256 of the files' content, as hex, for resume checks.
func (s *Set) Digest() string { return s.digest }

// Files returns the files' names and their numbers of records.
func (s *Set) Files() (names []string, records []int) {
	for _, f := range s.files {
		names, records = append(names, f.name), append(records, f.rows.Len())
	}
	return names, records
}

// Close closes the files.
func (s *Set) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.rows.Close())
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

// Text returns row i as it came: a JSON object.
func (s *Set) Text(i int) ([]byte, error) {
	if i < 0 || i >= s.len {
		panic(fmt.Sprintf("dataset: row %d of %d", i, s.len))
	}
	n, _ := slices.BinarySearch(s.first, i+1)
	n--
	text, line, err := s.files[n].rows.Row(i - s.first[n])
	if err != nil {
		return nil, &Error{File: s.files[n].name, Line: line, Err: err}
	}
	return bytes.TrimPrefix(text, byteOrderMark), nil
}

// Rest returns the fields of row i that its record does not have, as they came.
func (s *Set) Rest(i int) (map[string]json.RawMessage, error) {
	text, err := s.Text(i)
	if err != nil {
		return nil, err
	}
	n, _ := slices.BinarySearch(s.first, i+1)
	f := s.files[n-1]
	var rest map[string]json.RawMessage
	if err := json.Unmarshal(text, &rest); err != nil {
		return nil, &Error{File: f.name, Err: err}
	}
	maps.DeleteFunc(rest, func(name string, _ json.RawMessage) bool { return f.reads[name] })
	return rest, nil
}

func (f *file) record(i int) (Record, error) {
	text, line, err := f.rows.Row(i)
	if err != nil {
		return Record{}, &Error{File: f.name, Line: line, Err: err}
	}
	fail := func(err error) (Record, error) {
		return Record{}, &Error{File: f.name, Line: line, Err: err}
	}
	text = bytes.TrimPrefix(text, byteOrderMark)
	if !utf8.Valid(text) {
		return fail(fmt.Errorf("byte %d of the line is no UTF-8", invalidUTF8(text)))
	}
	fields, err := parseRow(text)
	if err != nil {
		return fail(err)
	}
	r, err := f.format(fields)
	if err != nil {
		return fail(err)
	}
	r.ID = fmt.Sprintf("%s:%d", f.name, line)
	if r.RowID != "" {
		r.ID += " (" + r.RowID + ")"
	}
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
