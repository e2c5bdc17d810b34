package dataset

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"cftune/trainer/config"
)

// formatFields are the fields that each format reads, beside id and weight.
var formatFields = map[string][]string{
	"cft":               {"query", "response", "critique", "solution", "label", "gold"},
	"alpaca":            {"instruction", "input", "output"},
	"webinstruct-cft":   {"instruction", "input", "output"},
	"messages":          {"messages"},
	"sharegpt":          {"conversations", "system"},
	"prompt-completion": {"prompt", "completion"},
	FormatQuery:         {"query", "gold"},
	"tokenized":         {"input_ids", "labels", "attention_mask"},
}

// inBraces is a field's name within a text that is put together.
var inBraces = regexp.MustCompile(`\{([^{}]+)\}`)

// mapped is a format whose fields come from others of the row: {query: problem} takes problem for query, {query: a.b} the
// field b of the object a, {query: "{body} {question}"} puts texts together, and a list's items by line breaks. What is not named comes as it is, but never
// under a name that the map gives to another. {tools: ""} leaves a field out, also one that the format would lose.
func mapped(name string, fields config.Fields) (format, error) {
	read := formats[name]
	if len(fields) == 0 {
		return read, nil
	}
	takes := append([]string{"id", "weight"}, formatFields[name]...)
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(takes, field) && !(fields[field] == "" && slices.Contains(lostFields[name], field)) {
			return nil, fmt.Errorf("fields: format %s has no field %q; it has %s", name, field, strings.Join(takes, ", "))
		}
	}
	return func(r *row) (Record, error) {
		to := &row{fields: maps.Clone(r.fields), came: r.fields}
		for _, field := range slices.Sorted(maps.Keys(fields)) {
			delete(to.fields, field)
		}
		for _, field := range slices.Sorted(maps.Keys(fields)) {
			if fields[field] == "" {
				continue
			}
			value, err := r.compose(fields[field])
			if err != nil {
				to.complain("fields.%s: %v", field, err)
			} else if value != nil {
				to.fields[field] = value
			}
		}
		if len(to.problems) > 0 {
			return Record{}, to.err(name)
		}
		return read(to)
	}, nil
}

// readNames are the names of a row's fields that a format reads under a map, whole: of "meta.answer" meta is left over.
func readNames(name string, fields config.Fields) map[string]bool {
	reads := map[string]bool{}
	for _, field := range append([]string{"id", "weight"}, formatFields[name]...) {
		pattern, mapped := fields[field]
		switch {
		case !mapped:
			reads[field] = true
		case inBraces.MatchString(pattern):
			for _, m := range inBraces.FindAllStringSubmatch(pattern, -1) {
				reads[m[1]] = true
			}
		case pattern != "":
			reads[pattern] = true
		}
	}
	return reads
}

// compose returns what a map's right side stands for; nil where the one field that it names is null.
func (r *row) compose(pattern string) (json.RawMessage, error) {
	if !inBraces.MatchString(pattern) {
		return r.at(pattern)
	}
	var problem error
	text := inBraces.ReplaceAllStringFunc(pattern, func(name string) string {
		value, err := r.at(name[1 : len(name)-1])
		if err == nil && value == nil {
			err = fmt.Errorf("%s is null", name)
		}
		var part string
		if err == nil {
			part, err = textOf(name, value)
		}
		if problem == nil {
			problem = err
		}
		return part
	})
	if problem != nil {
		return nil, problem
	}
	return json.Marshal(text)
}

// textOf is a value as text: a list's items are joined by line breaks.
func textOf(name string, value json.RawMessage) (string, error) {
	switch value[0] {
	case '"':
		return unquote(value)
	case '[':
		var items []json.RawMessage
		if err := json.Unmarshal(value, &items); err != nil {
			return "", err
		}
		parts := make([]string, len(items))
		for i, item := range items {
			part, err := textOf(fmt.Sprintf("%s[%d]", name, i), item)
			if err != nil {
				return "", err
			}
			parts[i] = part
		}
		return strings.Join(parts, "\n"), nil
	case '{', 'n':
		return "", fmt.Errorf("%s must be text, a number or a list of them, is %s", name, looksLike(value))
	}
	return string(value), nil
}

// at returns the field at a path of names; a whole name with dots comes first.
func (r *row) at(path string) (json.RawMessage, error) {
	if value, ok := r.fields[path]; ok {
		if string(value) == "null" {
			return nil, nil
		}
		return value, nil
	}
	head, rest, dotted := strings.Cut(path, ".")
	if !dotted {
		return nil, fmt.Errorf("the row has no field %q", path)
	}
	value, ok := r.fields[head]
	if !ok {
		return nil, fmt.Errorf("the row has no field %q", head)
	}
	inner, err := parseRow(value)
	if err != nil {
		return nil, fmt.Errorf("%s is no object but %s", head, looksLike(value))
	}
	found, err := inner.at(rest)
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", head, err)
	}
	return found, nil
}
