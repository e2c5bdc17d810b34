package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Document reads a YAML file of another kind than Run by the same rules: keys are those of a struct (tags mapstructure),
// nothing is converted, and every problem is kept until all are known.
type Document struct {
	reader reader
	into   reflect.Value
}

// OpenDocument reads the file at path into the struct that into points to; what the file does not set keeps its value.
// The error is of reading; what is wrong with the content is among Problems.
func OpenDocument(path string, into any) (*Document, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes, which no such file is", path, maxFileBytes)
	}
	return ReadDocument(path, data, into), nil
}

// ReadDocument reads data as OpenDocument does; file names it in problems.
func ReadDocument(file string, data []byte, into any) *Document {
	d := &Document{into: reflect.ValueOf(into).Elem()}
	d.reader = reader{file: file, where: map[string]string{}, root: d.into.Type()}
	r := &d.reader
	r.source = func(n *yaml.Node) string { return fmt.Sprintf("%s:%d", file, n.Line) }
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return d
	case err != nil:
		r.unread = true
		r.problems = append(r.problems, Problem{Where: file, Message: err.Error()})
		return d
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		r.unread = true
		r.problems = append(r.problems, Problem{Where: file, Message: "it must be one YAML document, found more"})
		return d
	}
	m := r.readStruct(doc.Content[0], d.into.Type(), "")
	if m == nil {
		r.unread = true
		return d
	}
	assign(d.into, m)
	return d
}

// Set sets a key from outside the file ("train.seq_len=512"). An item of a list is named by its key name
// ("arms.cft.corrupt=0.2").
func (d *Document) Set(set string) {
	key, value, found := strings.Cut(set, "=")
	r := &d.reader
	if !found {
		r.problems = append(r.problems, Problem{Where: "--set", Message: fmt.Sprintf("%q is not key=value", set)})
		return
	}
	r.source = func(*yaml.Node) string { return "--set" }
	to, path := d.at(key)
	if !to.IsValid() {
		r.add(nil, key, "unknown key"+r.suggest("", key))
		return
	}
	node, ok := r.outside(key, path, value, to.Type())
	if !ok {
		return
	}
	if read, ok := r.read(node, to.Type(), path); ok {
		assign(to, read)
	}
}

// at finds the value of a dotted key, and the key as problems name it; the value is not valid if there is none.
func (d *Document) at(key string) (reflect.Value, string) {
	v, path := d.into, ""
	for name := range strings.SplitSeq(key, ".") {
		switch v.Kind() {
		case reflect.Struct:
			f, known := fieldOf(v.Type(), name)
			if !known {
				return reflect.Value{}, ""
			}
			v, path = v.FieldByIndex(f.Index), join(path, name)
		case reflect.Slice:
			i := named(v, name)
			if i < 0 {
				return reflect.Value{}, ""
			}
			v, path = v.Index(i), fmt.Sprintf("%s[%d]", path, i)
		default:
			return reflect.Value{}, ""
		}
	}
	return v, path
}

// named returns the place of the list's item whose key name has this value, -1 if there is none.
func named(list reflect.Value, name string) int {
	if list.Type().Elem().Kind() != reflect.Struct {
		return -1
	}
	f, known := fieldOf(list.Type().Elem(), "name")
	if !known {
		return -1
	}
	for i := range list.Len() {
		if list.Index(i).FieldByIndex(f.Index).String() == name {
			return i
		}
	}
	return -1
}

// Check reports a problem with a key unless ok. A key about which there is a problem already gets no second one.
func (d *Document) Check(ok bool, key, format string, args ...any) {
	d.reader.check(ok, key, format, args...)
}

// OneOf reports a problem unless the value is one of the choices.
func (d *Document) OneOf(value, key string, choices ...string) { d.reader.oneOf(value, key, choices) }

// CheckRun reports what is wrong with a run's configuration under the keys that it shares with the document.
func (d *Document) CheckRun(run Run) {
	var problems *Problems
	if err := run.Validate(); errors.As(err, &problems) {
		for _, p := range problems.List {
			d.reader.check(false, p.Key, "%s", p.Message)
		}
	}
}

// Err returns every problem as *Problems, nil if there is none.
func (d *Document) Err() error {
	if len(d.reader.problems) == 0 {
		return nil
	}
	return &Problems{List: d.reader.problems}
}
