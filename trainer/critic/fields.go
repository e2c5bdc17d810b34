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

// partNames are the fields that other formats put a query and its answers into; they are in the row's texts then.
var partNames = []string{"instruction", "input", "output", "prompt", "completion"}

// ownFields returns the fields of a record that a row has no place for, and its own source.
func ownFields(text []byte) (others map[string]json.RawMessage, source json.RawMessage, err error) {
	var came map[string]json.RawMessage
	if err := json.Unmarshal(text, &came); err != nil {
		return nil, nil, err
	}
	if source = came["source"]; string(source) == "null" {
		source = nil
	}
	if _, own := came["query"]; !own {
		for _, name := range partNames {
			delete(came, name)
		}
	}
	maps.DeleteFunc(came, func(name string, _ json.RawMessage) bool { return rowNames[name] })
	return came, source, nil
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
