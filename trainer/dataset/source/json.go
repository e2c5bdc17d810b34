package source

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// readArray emits the objects of an array that is the whole file.
func readArray(w *window, yield emit) error {
	if _, err := w.token(); err != nil {
		return err
	}
	w.skip(1) // '[', as detected
	rows := 0
	if err := readObjects(w, &rows, yield); err != nil {
		return err
	}
	switch c, err := w.token(); {
	case err == io.EOF:
		return nil
	case err != nil:
		return err
	case c == '[':
		return errors.New("another array follows the first; put the rows into one array, or one object per line (jq -c '.[]' makes it so)")
	}
	return fmt.Errorf("after the array comes %s", excerpt(w.unread()))
}

// readObjects emits the objects of an array whose '[' has been read, and consumes its ']'. It counts them in rows.
func readObjects(w *window, rows *int, yield emit) error {
	c, err := w.token()
	if err == nil && c == ']' {
		w.skip(1)
		return nil
	}
	for {
		*rows++
		if c, err = w.token(); err != nil {
			return cutOff(*rows, err)
		}
		if c != '{' {
			return rowErrorf(*rows, "rows must be objects; this one starts with %s", excerpt(w.unread()))
		}
		text, err := w.value()
		if err != nil {
			return cutOff(*rows, err)
		}
		if err := checkUTF8(text); err != nil {
			return &rowError{*rows, err}
		}
		if !yield(Row{Text: text, Line: *rows, Offset: -1}, nil) {
			return errStopped
		}
		if c, err = w.token(); err != nil {
			return cutOff(*rows, err)
		}
		if c != ',' && c != ']' {
			return rowErrorf(*rows, "after the object comes %s, not a comma or the array's end", excerpt(w.unread()))
		}
		w.skip(1)
		if c == ']' {
			return nil
		}
	}
}

// cutOff tells the end of the file within a row from other errors.
func cutOff(row int, err error) error {
	if err == io.EOF {
		return rowErrorf(row, "the file ends within its array: it is cut off")
	}
	return &rowError{row, err}
}

// value consumes a value that begins with a bracket or a quote. The text is valid until more is read.
func (w *window) value() ([]byte, error) {
	var s scanner
	for seen := 0; ; {
		n, done, err := s.advance(w.unread()[seen:])
		if err != nil {
			return nil, err
		}
		seen += n
		if done || seen > MaxRowBytes {
			if seen > MaxRowBytes {
				return nil, fmt.Errorf("the value is %w", errFull)
			}
			text := w.unread()[:seen]
			w.skip(seen)
			return text, nil
		}
		if err := w.more(); err != nil {
			return nil, err
		}
	}
}

// skipValue consumes any value, however long.
func (w *window) skipValue() error {
	c, err := w.token()
	if err != nil {
		return err
	}
	if c == '{' || c == '[' || c == '"' {
		var s scanner
		for {
			n, done, err := s.advance(w.unread())
			if err != nil {
				return err
			}
			w.skip(n)
			if done {
				return nil
			}
			if err := w.more(); err != nil {
				return err
			}
		}
	}
	for {
		for i, c := range w.unread() {
			if isSpace(c) || c == ',' || c == '}' || c == ']' {
				w.skip(i)
				return nil
			}
		}
		w.start = w.end
		if err := w.more(); err != nil {
			return err
		}
	}
}

// member is a member of the object around the rows, as messages tell it.
type member struct{ name, kind string }

const kindRows = "a list of objects"

// maxMembers bounds the members of the object around the rows. More than that are rows by another name.
const maxMembers = 1000

// readObject emits the rows of an object that is the whole file and holds them in exactly one of its members. That
// there is no second one is known at the end only, after the rows of the first.
func readObject(w *window, yield emit) error {
	if _, err := w.token(); err != nil {
		return err
	}
	w.skip(1) // '{', as detected
	members, rows, err := readMembers(w, yield)
	if err == io.EOF {
		err = errors.New("the file ends within its object: it is cut off")
	}
	if err != nil {
		return err
	}
	switch c, err := w.token(); {
	case err == nil && c == '{':
		return errors.New("several objects, of several lines each; JSONL has one object per line (jq -c . makes it so)")
	case err == nil:
		return fmt.Errorf("after the object comes %s", excerpt(w.unread()))
	case err != io.EOF:
		return err
	}
	if rows == 1 {
		return nil
	}
	told := make([]string, len(members))
	for i, m := range members {
		told[i] = fmt.Sprintf("%q is %s", m.name, m.kind)
	}
	const wayOut = "name the file .jsonl if the object is a row itself and fills one line, else make an array or lines of the rows"
	return fmt.Errorf("the file is one object, which must hold exactly one list of objects but holds %d (%s); %s",
		rows, strings.Join(told, ", "), wayOut)
}

// readMembers reads an object whose '{' has been read, and emits the rows of the first list of objects. rows is the
// number of such lists. io.EOF means that the file ends within the object.
func readMembers(w *window, yield emit) (members []member, rows int, err error) {
	c, err := w.token()
	if err == nil && c == '}' {
		w.skip(1)
		return nil, 0, nil
	}
	for {
		name, err := readName(w)
		if err != nil {
			return nil, 0, err
		}
		var emitRows emit
		if rows == 0 {
			emitRows = yield
		}
		kind, err := readMember(w, emitRows)
		if err != nil {
			return nil, 0, err
		}
		if kind == kindRows {
			rows++
		}
		if members = append(members, member{name, kind}); len(members) > maxMembers {
			return nil, 0, fmt.Errorf("the file is one object with more than %d members; rows must be in an array or one per line", maxMembers)
		}
		if c, err = w.token(); err != nil {
			return nil, 0, err
		}
		if c != ',' && c != '}' {
			return nil, 0, fmt.Errorf("after the value of %q comes %s, not a comma or the object's end", name, excerpt(w.unread()))
		}
		w.skip(1)
		if c == '}' {
			return members, rows, nil
		}
	}
}

// readName consumes a member's name and its colon.
func readName(w *window) (string, error) {
	c, err := w.token()
	if err != nil {
		return "", err
	}
	if c != '"' {
		return "", fmt.Errorf("the file is no JSON: in place of a name comes %s", excerpt(w.unread()))
	}
	text, err := w.value()
	if err != nil {
		return "", err
	}
	name := string(text[1 : len(text)-1]) // as spelled, for messages
	if c, err = w.token(); err != nil {
		return "", err
	}
	if c != ':' {
		return "", fmt.Errorf("the file is no JSON: after the name %q comes %s", name, excerpt(w.unread()))
	}
	w.skip(1)
	return name, nil
}

// readMember consumes a member's value and names its kind. It emits the rows of a list of objects if yield is not nil.
func readMember(w *window, yield emit) (kind string, err error) {
	c, err := w.token()
	if err != nil {
		return "", err
	}
	switch c {
	case '{':
		return "an object", w.skipValue()
	case '"':
		return "text", w.skipValue()
	case '[':
	default:
		return "a number, true, false or null", w.skipValue()
	}
	i, err := w.find(1)
	switch {
	case err != nil:
		return "", err
	case i < 0:
		return "", io.EOF
	case w.unread()[i] == ']':
		return "an empty list", w.skipValue()
	case w.unread()[i] != '{':
		return "a list of other things", w.skipValue()
	case yield == nil:
		return kindRows, w.skipValue()
	}
	w.skip(1)
	rows := 0
	return kindRows, readObjects(w, &rows, yield)
}
