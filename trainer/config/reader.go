package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// reader turns YAML into values of the fields' types and collects what is wrong.
type reader struct {
	file     string
	problems []Problem
	// where has the place that each key was last set at.
	where map[string]string
	// source names the place of a node in what is being read.
	source func(*yaml.Node) string
	// verbatim takes any scalar as text where a field is text: the environment and --set have no quotes.
	verbatim bool
	// unread: the file is no mapping of keys, so that nothing is known of what it was to set.
	unread bool
	// root is the type of the whole, nil for Run; proposals for unknown keys come from it.
	root reflect.Type
}

// suggest proposes a key of the reader's root for an unknown one.
func (r *reader) suggest(parent, name string) string {
	if r.root == nil {
		return suggestKey(reflect.TypeFor[Run](), allKeys, parent, name)
	}
	return suggestKey(r.root, listKeys(r.root, ""), parent, name)
}

func (r *reader) add(n *yaml.Node, key, message string) {
	r.problems = append(r.problems, Problem{Key: key, Where: r.source(n), Message: message})
}

// read returns the node's value as a t: structs as map[string]any, everything else as the very type.
func (r *reader) read(n *yaml.Node, t reflect.Type, key string) (any, bool) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	r.where[key] = r.source(n)
	switch t.Kind() {
	case reflect.Struct:
		m := r.readStruct(n, t, key)
		return m, m != nil
	case reflect.Slice:
		return r.readSlice(n, t, key)
	case reflect.Map:
		return r.readMap(n, t, key)
	}
	if n.Kind == yaml.SequenceNode && isTextList(key, t) {
		n = r.joined(n, key)
		if n == nil {
			return nil, false
		}
	}
	v := reflect.New(t).Elem()
	if message := r.readScalar(n, v); message != "" {
		r.add(n, key, message)
		return nil, false
	}
	return v.Interface(), true
}

// isTextList reports whether a text is a list written with commas, which may be written as a list, too.
func isTextList(key string, t reflect.Type) bool {
	return t.Kind() == reflect.String && (strings.HasSuffix(key, "adapter.targets") || strings.HasSuffix(key, "adapter.layers"))
}

// joined makes a list of plain values one text with commas, nil if it is no such list.
func (r *reader) joined(n *yaml.Node, key string) *yaml.Node {
	words := make([]string, len(n.Content))
	for i, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.ShortTag() == "!!null" {
			r.add(item, key, "its items must be words, got "+describe(item))
			return nil
		}
		words[i] = item.Value
	}
	one := *n
	one.Kind, one.Tag, one.Value, one.Content = yaml.ScalarNode, "!!str", strings.Join(words, ","), nil
	return &one
}

// readStruct reads a mapping whose keys are the struct's. An empty mapping ("chat:" with nothing below) sets nothing.
func (r *reader) readStruct(n *yaml.Node, t reflect.Type, key string) map[string]any {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	m := map[string]any{}
	if n.ShortTag() == "!!null" {
		return m
	}
	if n.Kind != yaml.MappingNode {
		what := "must be a mapping of keys"
		if key == "" {
			what = "a configuration must be a mapping of keys"
		}
		r.add(n, key, what+", got "+describe(n))
		return nil
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		full := join(key, k.Value)
		if line, twice := seen[k.Value]; twice {
			r.add(k, full, fmt.Sprintf("set twice, first on line %d", line))
			continue
		}
		seen[k.Value] = k.Line
		field, known := fieldOf(t, k.Value)
		if !known {
			r.add(k, full, "unknown key"+r.suggest(key, k.Value))
			continue
		}
		if value, ok := r.read(v, field.Type, full); ok {
			m[k.Value] = value
		}
	}
	if t == reflect.TypeFor[GlobalBatch]() {
		return oneChoice(m)
	}
	if t == reflect.TypeFor[Source]() {
		for _, key := range []string{"weight", "sample"} {
			if seen[key] == 0 {
				m[key] = 1.0
			}
		}
	}
	return m
}

// oneChoice makes a layer that sets one of global_batch's keys unset the others of the layers below.
func oneChoice(m map[string]any) map[string]any {
	if len(m) == 0 {
		return m
	}
	for _, key := range keysOf(reflect.TypeFor[GlobalBatch]()) {
		if _, set := m[key]; !set {
			m[key] = 0
		}
	}
	return m
}

func (r *reader) readSlice(n *yaml.Node, t reflect.Type, key string) (any, bool) {
	if n.Kind != yaml.SequenceNode {
		r.add(n, key, "must be a list, got "+describe(n))
		return nil, false
	}
	list := reflect.MakeSlice(t, len(n.Content), len(n.Content))
	allOK := true
	for i, item := range n.Content {
		value, ok := r.read(item, t.Elem(), fmt.Sprintf("%s[%d]", key, i))
		if !ok {
			allOK = false
			continue
		}
		assign(list.Index(i), value)
	}
	return list.Interface(), allOK
}

// readMap reads a mapping with free keys (objective weights).
func (r *reader) readMap(n *yaml.Node, t reflect.Type, key string) (any, bool) {
	if n.Kind != yaml.MappingNode {
		r.add(n, key, "must be a mapping, got "+describe(n))
		return nil, false
	}
	if len(n.Content) == 0 {
		return reflect.Zero(t).Interface(), true
	}
	m := reflect.MakeMap(t)
	allOK := true
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		name := reflect.ValueOf(k.Value)
		full := join(key, k.Value)
		if m.MapIndex(name).IsValid() {
			r.add(k, full, "set twice")
			allOK = false
			continue
		}
		value, ok := r.read(n.Content[i+1], t.Elem(), full)
		if !ok {
			allOK = false
			continue
		}
		m.SetMapIndex(name, reflect.ValueOf(value))
	}
	return m.Interface(), allOK
}

// assign puts what read returned into a struct field or list item.
func assign(to reflect.Value, value any) {
	m, isStruct := value.(map[string]any)
	if !isStruct {
		to.Set(reflect.ValueOf(value))
		return
	}
	for i := range to.NumField() {
		if v, set := m[to.Type().Field(i).Tag.Get("mapstructure")]; set {
			assign(to.Field(i), v)
		}
	}
}

// readScalar stores the node's value in v, or returns what is wrong with it. Nothing is converted but whole numbers to
// real ones.
func (r *reader) readScalar(n *yaml.Node, v reflect.Value) string {
	tag := n.ShortTag()
	if n.Kind != yaml.ScalarNode {
		return "must be " + wanted(v.Kind()) + ", got " + describe(n)
	}
	if tag == "!!null" {
		return "has no value"
	}
	wrong := "must be " + wanted(v.Kind()) + ", got " + describe(n)
	switch v.Kind() {
	case reflect.String:
		if tag != "!!str" && !r.verbatim {
			return wrong + "; put it in quotes if it is meant"
		}
		v.SetString(n.Value)
		return ""
	case reflect.Bool:
		if tag != "!!bool" {
			return wrong
		}
	case reflect.Int, reflect.Uint64:
		if tag != "!!int" {
			return wrong
		}
	case reflect.Float64:
		if tag != "!!int" && tag != "!!float" {
			return wrong
		}
	default:
		panic("config: a field of kind " + v.Kind().String())
	}
	if err := n.Decode(v.Addr().Interface()); err != nil {
		return fmt.Sprintf("must be %s, and %s is out of its range", wanted(v.Kind()), n.Value)
	}
	return ""
}

func wanted(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Uint64:
		return "a whole number of at least 0"
	}
	return "a number"
}

// describe names a node for people.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!str":
		return strconv.Quote(n.Value)
	}
	return n.Value
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// fieldOf finds a struct's field by its key.
func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if f := t.Field(i); f.Tag.Get("mapstructure") == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func keysOf(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		keys = append(keys, t.Field(i).Tag.Get("mapstructure"))
	}
	return keys
}

// typeOf returns the type of a dotted key that can be set, nil if there is no such key.
func typeOf(key string) reflect.Type {
	if strings.Contains(key, "[") {
		return nil // lists are set whole
	}
	return typeWithin(reflect.TypeFor[Run](), key)
}

// typeWithin returns the type of a key within a struct type; the key may go through items of lists.
func typeWithin(t reflect.Type, key string) reflect.Type {
	for name := range strings.SplitSeq(key, ".") {
		name, _, item := strings.Cut(name, "[") // "arms[0].stages"
		if t.Kind() != reflect.Struct {
			return nil
		}
		f, known := fieldOf(t, name)
		if !known {
			return nil
		}
		if t = f.Type; item {
			t = t.Elem()
		}
	}
	return t
}

// Keys returns every key that can be set from the environment or by --set, in the order of the struct.
func Keys() []string {
	return slices.Clone(allKeys)
}

var allKeys = listKeys(reflect.TypeFor[Run](), "")

func listKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		key := join(prefix, f.Tag.Get("mapstructure"))
		keys = append(keys, key)
		if f.Type.Kind() == reflect.Struct {
			keys = append(keys, listKeys(f.Type, key)...)
		}
	}
	return keys
}
