package dataset

import (
	"errors"
	"fmt"

	"cftune/trainer/config"
)

// Error is a fault of the data: which file and line, and what is wrong. cmd exits with 3 for it.
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

// Set is an indexed sequence of records on disk. Its methods are safe for concurrent use.
type Set struct{}

// Cursor is a place in the run's order of records: the next one to read.
type Cursor struct {
	Epoch int `json:"epoch"` // from 0
	Index int `json:"index"` // within the epoch's order, from 0
}

var errUnfinished = errors.New("dataset: being written")

// Open indexes the sources' files.
func Open(sources []config.Source) (*Set, error) { return nil, errUnfinished }

// Len returns the number of records.
func (s *Set) Len() int { return 0 }

// Record reads and decodes record i, in the order of the files. Errors are *Error.
func (s *Set) Record(i int) (Record, error) { return Record{}, errUnfinished }

// Check decodes every record and returns the first few errors joined, with the number of the rest.
func (s *Set) Check() error { return errUnfinished }

// Digest returns the SHA-256 of the files' content, as hex, for resume checks.
func (s *Set) Digest() string { return "" }

// Close closes the files.
func (s *Set) Close() error { return nil }

// Order returns the order of an epoch's records as a function: place in the epoch -> record.
func Order(seed uint64, epoch, n int, shuffle bool) func(index int) int {
	return func(i int) int { return i }
}
