package critic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// rowNames are the fields that a row of the output has itself. Those of a record are in them, or are about a text that is
// not in the output: a record's own critique, a sampled question's old response.
var rowNames = func() map[string]bool {
	names := map[string]bool{}
	for field := range reflect.TypeFor[Row]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		names[name] = true
	}
	return names
}()

// take gives a row the fields of its record that it has no place for, and the record's own source.
func (r *Row) take(rest map[string]json.RawMessage) {
	if source := rest["source"]; string(source) != "null" {
		r.Source.Row = source
	}
	maps.DeleteFunc(rest, func(name string, _ json.RawMessage) bool { return rowNames[name] })
	r.others = rest
}

// line is a row as it is written: its own fields, then the record's others in the order of their names.
func (r Row) line() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, err
	}
	if len(r.others) > 0 {
		b.Truncate(b.Len() - len("}\n"))
		for _, name := range slices.Sorted(maps.Keys(r.others)) {
			key, err := json.Marshal(name)
			if err != nil {
				return nil, fmt.Errorf("field %q: %w", name, err)
			}
			b.WriteByte(',')
			b.Write(key)
			b.WriteByte(':')
			if err := json.Compact(&b, r.others[name]); err != nil {
				return nil, fmt.Errorf("field %q: %w", name, err)
			}
		}
		b.WriteString("}\n")
	}
	return b.Bytes(), nil
}
