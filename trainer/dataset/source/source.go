package source

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// MaxRowBytes bounds the text of a row, so that a file without line breaks does not fill the memory.
const MaxRowBytes = 64 << 20

// Row is one row of a file.
type Row struct {
	// Text is a JSON object, without space around it. It is valid until the next row. It may have line breaks
	// between its members where the file has them (JSON, not JSONL).
	Text []byte
	// Line is what messages name: the row's first line in JSONL and CSV, its number in JSON and Parquet. 1-based.
	Line int
	// Offset is where Text begins in the file, in bytes, if the file is Plain; else -1.
	Offset int64
}

// File is one file of a source. The zero File is of no use; files come from Expand.
type File struct {
	// Name is the file's path, or its URL less query and password. Messages name it.
	Name string

	place place
}

// Error is a fault of a file or its content.
type Error struct {
	File string
	Line int // as in Row; 0 where the fault is the whole file's
	Err  error
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Bytes is the file's size as stored when Expand found it, -1 where unknown.
func (f File) Bytes() int64 { return f.place.size() }

// Path is the file's path on this machine, empty where it has none that can be opened again.
func (f File) Path() string { return f.place.path() }

// Stamp identifies the file's content: size and time of change, or what the server gives as its tag. Two equal stamps
// mean that the file need not be read again. ok is false where there is no such thing: pipes, some web servers.
func (f File) Stamp(ctx context.Context) (stamp string, ok bool, err error) {
	stamp, err = f.place.stamp(ctx)
	if err != nil {
		return "", false, &Error{File: f.Name, Err: fmt.Errorf("stamp: %w", err)}
	}
	return stamp, stamp != "", nil
}

// Plain reports whether the file is uncompressed JSONL on this machine, whose rows can be read again at Row.Offset.
// It is false for files that cannot be read at all; Rows tells why.
func (f File) Plain() bool {
	if f.place.path() == "" {
		return false
	}
	opened, err := f.open(context.Background())
	if err != nil {
		return false
	}
	defer opened.close()
	return opened.container == jsonl && !opened.packed
}

// Rows reads the file from its start. An error ends the sequence; it is an *Error. Where ctx ends first, that is the
// error.
//
// Parquet's values become JSON so: integers, floats and decimals are numbers with all their digits; strings and enums must
// be UTF-8 and are strings; so are binary values, or {"base64": "..."} where they are no UTF-8; JSON values stand for
// themselves; dates are "2006-01-02", times of day "15:04:05.999999999", timestamps RFC 3339 with "Z" if they are adjusted to
// UTC and without a zone if they are not; structs and maps are objects, lists are arrays, null is null; infinities and NaN
// are {"float": "NaN"}, which is no number to whoever reads it. Types not named here are errors.
func (f File) Rows(ctx context.Context) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		opened, err := f.open(ctx)
		if err != nil {
			yield(Row{}, f.fault(0, err))
			return
		}
		defer opened.close()
		err = opened.rows(ctx, yield)
		var at *rowError
		switch {
		case err == nil, errors.Is(err, errStopped):
		case errors.As(err, &at):
			yield(Row{}, f.fault(at.line, at.err))
		default:
			yield(Row{}, f.fault(0, err))
		}
	}
}

func (f File) fault(line int, err error) error { return &Error{File: f.Name, Line: line, Err: err} }

// errStopped is returned by readers of rows when the caller wants no more of them.
var errStopped = errors.New("stopped")

// rowError is an error of a row.
type rowError struct {
	line int
	err  error
}

func (e *rowError) Error() string { return fmt.Sprintf("row %d: %v", e.line, e.err) }
func (e *rowError) Unwrap() error { return e.err }

func rowErrorf(line int, format string, args ...any) error {
	return &rowError{line, fmt.Errorf(format, args...)}
}

// emit takes a row and reports whether more are wanted.
type emit = func(Row, error) bool
