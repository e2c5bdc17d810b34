package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// readLines emits the lines of JSONL. located says that offsets in the stream are offsets in the file.
func readLines(w *window, located bool, yield emit) error {
	for line := 1; ; line++ {
		raw, offset, err := w.line()
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, errFull):
			return rowErrorf(line, "the line is %w; JSONL has one object per line", err)
		case err != nil:
			return &rowError{line, err}
		}
		text := bytes.TrimLeft(raw, " \t\r")
		offset += int64(len(raw) - len(text))
		text = bytes.TrimRight(text, " \t\r")
		if len(text) == 0 {
			continue
		}
		if err := checkLine(text); err != nil {
			return &rowError{line, err}
		}
		if !located {
			offset = -1
		}
		if !yield(Row{Text: text, Line: line, Offset: offset}, nil) {
			return errStopped
		}
	}
}

// checkLine checks of a line what costs little: that it looks like an object, and that it is text.
func checkLine(text []byte) error {
	switch {
	case len(text) > MaxRowBytes:
		return fmt.Errorf("the line is %w", errFull)
	case text[0] == '[':
		return errors.New("the line is an array; JSONL has one object per line")
	case text[0] != '{':
		return fmt.Errorf("the line is no JSON object: it starts with %s", excerpt(text))
	case text[len(text)-1] != '}':
		return errors.New("the line is cut off or its object goes on in the next one; JSONL has one object per line (jq -c . makes it so)")
	}
	return checkUTF8(text)
}

// checkUTF8 names the first byte that is no UTF-8.
func checkUTF8(text []byte) error {
	if utf8.Valid(text) {
		return nil
	}
	for i := 0; ; {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size < 2 {
			return fmt.Errorf("the text is no UTF-8: byte %d is 0x%02x; convert the file (iconv -t UTF-8)", i+1, text[i])
		}
		i += size
	}
}
