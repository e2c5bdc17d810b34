package source

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// readCSV emits the records after the header, each as an object of strings in the header's order.
func readCSV(w *window, comma rune, yield emit) error {
	in := &boundedReader{r: w}
	r := csv.NewReader(in)
	r.Comma = comma
	r.ReuseRecord = true
	in.allow(0)
	header, err := r.Read()
	if err != nil {
		return csvError(err, nil, 0)
	}
	line, _ := r.FieldPos(0)
	names, err := headerNames(header)
	if err != nil {
		return &rowError{line, err}
	}
	next := lineAfter(line, header)
	var text []byte
	for {
		in.allow(r.InputOffset())
		record, err := r.Read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return csvError(err, record, len(names))
		}
		line, _ := r.FieldPos(0)
		if len(names) == 1 && line != next {
			return rowErrorf(next, `the line is empty: it may be an empty value or nothing; write "" for an empty value`)
		}
		next = lineAfter(line, record)
		if text, err = appendRecord(text[:0], names, record); err != nil {
			return &rowError{line, err}
		}
		if !yield(Row{Text: text, Line: line, Offset: -1}, nil) {
			return errStopped
		}
	}
}

// headerNames returns the names as JSON spells them, each with the comma or brace before it and the colon after it.
func headerNames(header []string) ([]string, error) {
	names := make([]string, len(header))
	seen := map[string]bool{}
	for i, name := range header {
		switch {
		case strings.TrimSpace(name) == "":
			return nil, fmt.Errorf("header: column %d has no name", i+1)
		case seen[name]:
			return nil, fmt.Errorf("header: column %q is there twice", name)
		case !utf8.ValidString(name):
			return nil, fmt.Errorf("header: column %d: %w", i+1, checkUTF8([]byte(name)))
		}
		seen[name] = true
		before := byte(',')
		if i == 0 {
			before = '{'
		}
		names[i] = string(append(appendString([]byte{before}, name), ':'))
	}
	return names, nil
}

// lineAfter is the line after a record. encoding/csv makes one "\n" of each line break within a field.
func lineAfter(line int, record []string) int {
	for _, field := range record {
		line += strings.Count(field, "\n")
	}
	return line + 1
}

func appendRecord(text []byte, names, record []string) ([]byte, error) {
	for i, field := range record {
		if !utf8.ValidString(field) {
			return text, fmt.Errorf("field %d: %w", i+1, checkUTF8([]byte(field)))
		}
		text = append(text, names[i]...)
		text = appendString(text, field)
	}
	return append(text, '}'), nil
}

// csvError gives an error of encoding/csv its line and words. columns is the header's number.
func csvError(err error, record []string, columns int) error {
	var at *csv.ParseError
	if !errors.As(err, &at) {
		return err
	}
	switch {
	case errors.Is(err, csv.ErrFieldCount):
		return rowErrorf(at.StartLine, "the row has %d fields, the header %d", len(record), columns)
	case at.Line != at.StartLine:
		return rowErrorf(at.StartLine, "line %d, byte %d: %w", at.Line, at.Column, at.Err)
	}
	return rowErrorf(at.StartLine, "byte %d: %w", at.Column, at.Err)
}

// boundedReader bounds what one record takes: a quote that is never closed would put the rest of the file into it.
type boundedReader struct {
	r           io.Reader
	read, bound int64
}

// allow lets a record begin at offset.
func (b *boundedReader) allow(offset int64) { b.bound = offset + MaxRowBytes }

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.read >= b.bound {
		return 0, fmt.Errorf("a record is %w; is a quote not closed?", errFull)
	}
	n, err := b.r.Read(p)
	b.read += int64(n)
	return n, err
}

const hexDigits = "0123456789abcdef"

// appendString appends s, which is UTF-8, as JSON spells it.
func appendString[S []byte | string](text []byte, s S) []byte {
	text = append(text, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if ordinary[c] {
			continue
		}
		text = append(text, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			text = append(text, '\\', c)
		case '\n':
			text = append(text, '\\', 'n')
		case '\r':
			text = append(text, '\\', 'r')
		case '\t':
			text = append(text, '\\', 't')
		default:
			text = append(text, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
		}
	}
	return append(append(text, s[from:]...), '"')
}
