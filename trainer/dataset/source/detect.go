package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// container is what rows lie in.
type container int

const (
	jsonl container = iota
	jsonArray
	jsonObject
	csvFile
	tsvFile
	parquetFile
)

// opened is a file whose container is known, about to be read.
type opened struct {
	file      File
	container container
	packed    bool // compressed
	in        *window
	closers   []func() error
}

func (o *opened) close() {
	for _, c := range slices.Backward(o.closers) {
		_ = c() // the file was only read
	}
}

// rows emits the rows from the start.
func (o *opened) rows(ctx context.Context, yield emit) error {
	switch o.container {
	case jsonArray:
		return readArray(o.in, yield)
	case jsonObject:
		return readObject(o.in, yield)
	case csvFile:
		return readCSV(o.in, ',', yield)
	case tsvFile:
		return readCSV(o.in, '\t', yield)
	case parquetFile:
		return readParquet(ctx, o.file.place, yield)
	}
	return readLines(o.in, !o.packed && o.file.Path() != "", yield)
}

// open finds the container by the first bytes.
func (f File) open(ctx context.Context) (o *opened, err error) {
	o = &opened{file: f}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	stored, err := f.place.open(ctx)
	if err != nil {
		return o, err
	}
	o.closers = append(o.closers, stored.Close)
	o.in = newWindow(ctx, stored)
	if err := o.unpack(ctx); err != nil {
		return o, err
	}
	if o.container == parquetFile {
		o.close() // it is read by ranges
		o.closers = nil
		return o, nil
	}
	o.container, err = detectText(o.in, plainName(f.Name))
	return o, err
}

// unpack puts a decompressor before a compressed stream, and tells what is binary.
func (o *opened) unpack(ctx context.Context) error {
	head, err := o.in.peek(headBytes)
	if err != nil {
		return err
	}
	if bytes.HasPrefix(head, []byte("PAR1")) {
		o.container = parquetFile
		return nil
	}
	name, unpacked, err := decompress(head, o.in, o.file.Bytes())
	if err != nil || unpacked == nil {
		return err
	}
	o.packed = true
	o.closers = append(o.closers, unpacked.Close)
	o.in = newWindow(ctx, unpacked)
	if head, err = o.in.peek(headBytes); err != nil {
		return err
	}
	if bytes.HasPrefix(head, []byte("PAR1")) {
		return fmt.Errorf("is Parquet within %s, which must be read at any place; unpack it first (Parquet has its own compression)", name)
	}
	if inner := compression(head); inner != "" {
		return fmt.Errorf("is %s within %s; unpack one of them first", inner, name)
	}
	return nil
}

// headBytes is how much of a file is looked at to tell what it is, save for JSON.
const headBytes = 512

// detectText tells the containers of text apart. name is the file's without the endings of compression.
func detectText(w *window, name string) (container, error) {
	head, err := w.peek(headBytes)
	if err != nil {
		return 0, err
	}
	if len(head) == 0 {
		return 0, errors.New("is empty")
	}
	if what := foreign(head); what != "" {
		return 0, fmt.Errorf("looks like %s; %s", what, readable)
	}
	if bytes.HasPrefix(head, []byte("\ufeff")) {
		w.skip(len("\ufeff"))
	}
	ending := strings.ToLower(path.Ext(name))
	first, err := w.find(0)
	switch {
	case err != nil:
		return 0, fmt.Errorf("white space at the start: %w", err)
	case first < 0:
		return 0, errors.New("holds white space only")
	}
	switch c := w.unread()[first]; {
	case c == '[':
		return jsonArray, nil
	case c == '{':
		return detectObject(w, first, ending)
	case linesByName(ending):
		return jsonl, nil // whose reader names the line
	case ending == ".csv":
		return csvFile, nil
	case ending == ".tsv" || ending == ".tab":
		return tsvFile, nil
	}
	return 0, fmt.Errorf("starts with %s, and the name does not say what that is; %s", excerpt(w.unread()[first:]), readable)
}

const readable = "what can be read is JSONL, JSON, CSV (named .csv), TSV (named .tsv) and Parquet, the text also as .gz or .zst"

func linesByName(ending string) bool { return ending == ".jsonl" || ending == ".ndjson" }

// detectObject tells what a file is that starts, at unread[first], with an object: JSONL if the name says so or the
// object ends with its line and it is not the only thing in a .json file, else one JSON object around the rows.
func detectObject(w *window, first int, ending string) (container, error) {
	if linesByName(ending) {
		return jsonl, nil
	}
	var s scanner
	for at := first; ; {
		line := w.unread()[at:]
		cut := bytes.IndexByte(line, '\n')
		if cut >= 0 {
			line = line[:cut]
		}
		n, done, err := s.advance(line)
		at += n
		if err != nil {
			return jsonl, nil // whose reader names the line
		}
		if done {
			next, err := w.find(at)
			if err != nil && !errors.Is(err, errFull) {
				return 0, err
			}
			if next < 0 && ending == ".json" {
				return jsonObject, nil
			}
			return jsonl, nil
		}
		if cut >= 0 {
			return jsonObject, nil // it goes on after its line
		}
		switch err := w.more(); {
		case err == io.EOF:
			return jsonl, nil // cut off, as its reader tells
		case errors.Is(err, errFull):
			return jsonObject, nil // too long for a row
		case err != nil:
			return 0, err
		}
	}
}

// plainName is a name without the endings of compression.
func plainName(name string) string {
	switch ending := strings.ToLower(path.Ext(name)); ending {
	case ".gz", ".gzip", ".zst", ".zstd":
		return name[:len(name)-len(ending)]
	}
	return name
}

// foreign names what cannot be read, by its first bytes; empty if it is none of these.
func foreign(head []byte) string {
	for _, kind := range []struct{ magic, name string }{
		{"PARE", "encrypted Parquet"},
		{"PK\x03\x04", "a zip archive"},
		{"BZh", "bzip2"},
		{"\xfd7zXZ\x00", "xz"},
		{"\x04\x22\x4d\x18", "lz4"},
		{"7z\xbc\xaf\x27\x1c", "a 7z archive"},
		{"ARROW1", "an Arrow file"},
		{"\xff\xff\xff\xff", "an Arrow stream"},
		{"ORC", "ORC"},
		{"Obj\x01", "Avro"},
		{"SQLite format 3", "an SQLite database"},
		{"version https://git-lfs", "a pointer of git-lfs in place of the file (git lfs pull gets it)"},
		{"\xff\xfe", "UTF-16 (iconv -f UTF-16 -t UTF-8 converts it)"},
		{"\xfe\xff", "UTF-16 (iconv -f UTF-16 -t UTF-8 converts it)"},
	} {
		if bytes.HasPrefix(head, []byte(kind.magic)) {
			return kind.name
		}
	}
	lower := bytes.ToLower(bytes.TrimSpace(head))
	if bytes.HasPrefix(lower, []byte("<!doctype")) || bytes.HasPrefix(lower, []byte("<html")) {
		return "a web page"
	}
	if bytes.IndexByte(head, 0) >= 0 {
		return "binary data that starts with " + excerpt(head)
	}
	return ""
}

// excerptBytes is how much of a text messages show.
const excerptBytes = 40

func excerpt(text []byte) string {
	if len(text) <= excerptBytes {
		return strconv.Quote(string(text))
	}
	cut := excerptBytes
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return strconv.Quote(string(text[:cut])) + "..."
}
