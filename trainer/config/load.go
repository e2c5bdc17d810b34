package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// maxFileBytes bounds a configuration file; a larger one is a data file given by mistake.
const maxFileBytes = 1 << 20

// Load reads the configuration file at path; see Parse.
func Load(path string, sets []string, environ []string) (Run, error) {
	f, err := os.Open(path)
	if err != nil {
		return Run{}, fmt.Errorf("read config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return Run{}, fmt.Errorf("read config: %w", err)
	}
	if len(data) > maxFileBytes {
		return Run{}, fmt.Errorf("read config: %s: larger than %d bytes, which no configuration is", path, maxFileBytes)
	}
	return parse(path, data, sets, environ)
}

// Parse reads a configuration: Defaults, then data (YAML), then environ ("CFTUNE_TRAIN__SEQ_LEN=512", as of os.Environ),
// then sets ("train.seq_len=512"), each overriding what came before. Values of environ and sets are YAML too, so that
// lists and mappings can be given in flow style; where text is wanted they are taken as they stand.
//
// Mappings merge key by key; lists are replaced whole. train.global_batch is one choice: setting one of its keys
// replaces whichever was set before. Relative paths are relative to the working directory.
//
// Errors are *Problems and hold every problem found.
func Parse(data []byte, sets []string, environ []string) (Run, error) {
	return parse("", data, sets, environ)
}

func parse(file string, data []byte, sets []string, environ []string) (Run, error) {
	r := &reader{file: file, where: map[string]string{}}
	layers := []map[string]any{toMap(reflect.ValueOf(Defaults()))}
	layers = append(layers, r.readFile(data))
	layers = append(layers, r.readEnviron(environ)...)
	layers = append(layers, r.readSets(sets)...)
	run, err := merge(layers)
	if err != nil {
		return Run{}, err
	}
	// A value that could not be read is missing or at its default here: only what is certain is worth saying about it.
	r.validate(run)
	if len(r.problems) > 0 {
		return Run{}, &Problems{List: r.problems}
	}
	return run, nil
}

// merge lays the layers over each other. The reader has given every value the type of its field, so nothing is
// converted, and viper, which skips values whose type differs from that of the layer below, skips none.
func merge(layers []map[string]any) (Run, error) {
	v := viper.New()
	for _, layer := range layers {
		if err := v.MergeConfigMap(layer); err != nil {
			return Run{}, fmt.Errorf("merge config: %w", err)
		}
	}
	var run Run
	exact := func(c *mapstructure.DecoderConfig) { c.WeaklyTypedInput = false; c.ErrorUnused = true }
	if err := v.Unmarshal(&run, exact); err != nil {
		return Run{}, fmt.Errorf("merge config: %w", err)
	}
	return run, nil
}

// toMap turns a struct into nested maps by its keys; lists and maps within stay as they are.
func toMap(v reflect.Value) map[string]any {
	m := map[string]any{}
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("mapstructure")
		if field := v.Field(i); field.Kind() == reflect.Struct {
			m[key] = toMap(field)
		} else {
			m[key] = field.Interface()
		}
	}
	return m
}

// readFile reads the YAML document; it may be empty.
func (r *reader) readFile(data []byte) map[string]any {
	r.source = func(n *yaml.Node) string {
		if r.file == "" {
			return fmt.Sprintf("line %d", n.Line)
		}
		return fmt.Sprintf("%s:%d", r.file, n.Line)
	}
	r.verbatim = false
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		r.unread = true
		r.problems = append(r.problems, Problem{Where: r.file, Message: err.Error()})
		return nil
	}
	var second yaml.Node
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		r.unread = true
		r.problems = append(r.problems, Problem{Where: r.file, Message: "a configuration is one YAML document, found more"})
		return nil
	}
	read := r.readStruct(doc.Content[0], reflect.TypeFor[Run](), "")
	r.unread = read == nil
	return read
}

// readSets reads "key=value" arguments.
func (r *reader) readSets(sets []string) []map[string]any {
	var layers []map[string]any
	for _, set := range sets {
		key, value, found := strings.Cut(set, "=")
		if !found {
			r.problems = append(r.problems, Problem{Where: "--set", Message: fmt.Sprintf("%q is not key=value", set)})
			continue
		}
		r.source = func(*yaml.Node) string { return "--set" }
		t := typeOf(key)
		if t == nil {
			r.add(nil, key, "unknown key"+r.suggest("", key))
			continue
		}
		if layer, ok := r.readValue(key, value, t); ok {
			layers = append(layers, layer)
		}
	}
	return layers
}

// outside makes a node of a value that is given outside the file: text as it stands, all else (and a text that may be written as
// a list, where it is) as YAML. name is the key as problems name it, path the one of the file.
func (r *reader) outside(name, path, value string, t reflect.Type) (*yaml.Node, bool) {
	r.verbatim = true
	if t.Kind() == reflect.String && !(isTextList(path, t) && strings.HasPrefix(value, "[")) {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value}, true
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(value), &doc); err != nil {
		r.add(nil, name, err.Error())
		return nil, false
	}
	if len(doc.Content) == 0 {
		r.add(nil, name, "has no value")
		return nil, false
	}
	return doc.Content[0], true
}

// readValue reads the value of one key, given outside the file, into a layer of its own.
func (r *reader) readValue(key, value string, t reflect.Type) (map[string]any, bool) {
	node, ok := r.outside(key, key, value, t)
	if !ok {
		return nil, false
	}
	read, ok := r.read(node, t, key)
	if !ok {
		return nil, false
	}
	path := strings.Split(key, ".")
	layer := read
	for i := len(path) - 1; i >= 0; i-- {
		m := map[string]any{path[i]: layer}
		if i == 1 && path[0] == "train" && path[1] == "global_batch" {
			m[path[i]] = oneChoice(layer.(map[string]any))
		}
		layer = m
	}
	return layer.(map[string]any), true
}
