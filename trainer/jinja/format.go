package jinja

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var percentPattern = regexp.MustCompile(`^%([-0 +]*)([0-9]*)(?:\.([0-9]{1,2}))?([sdirf])`)

// percent is format % args, for the conversions s, d, i, r and f.
func percent(format string, args any) string {
	items := []any{args}
	if list, ok := args.(*List); ok && list.Tuple {
		items = list.Items
	}
	var out builder
	used := 0
	for {
		at := strings.IndexByte(format, '%')
		if at < 0 {
			out.add(format)
			break
		}
		out.add(format[:at])
		rest := format[at:]
		if strings.HasPrefix(rest, "%%") {
			out.add("%")
			format = rest[2:]
			continue
		}
		m := percentPattern.FindStringSubmatch(rest)
		if m == nil || m[1] != "" || m[2] != "" {
			failf("the format %.20q is not supported", rest)
		}
		format = rest[len(m[0]):]
		if used == len(items) {
			failf("a format has more conversions than arguments")
		}
		v := items[used]
		used++
		out.add(converted(v, m[4], m[3]))
	}
	if used < len(items) {
		if _, isDict := args.(*Dict); !isDict {
			failf("a format has fewer conversions than arguments")
		}
	}
	return out.String()
}

func converted(v any, conversion, precision string) string {
	if precision != "" && conversion != "f" {
		failf("a precision of %%%s is not supported", conversion)
	}
	switch conversion {
	case "s":
		return str(v)
	case "r":
		return repr(v)
	}
	f, integer, ok := number(v)
	if !ok {
		refuseUndefined(v)
		failf("%%%s takes a number, not a %s", conversion, typeName(v))
	}
	if conversion == "f" {
		digits := 6
		if precision != "" {
			digits, _ = strconv.Atoi(precision)
		}
		return strconv.FormatFloat(f, 'f', digits, 64)
	}
	if integer {
		i, _ := whole(v)
		return strconv.Itoa(i)
	}
	return strconv.FormatFloat(float64(int64(f)), 'f', 0, 64)
}

// formatText is str.format with fields that are empty, numbers or names.
func formatText(format string, a arguments) string {
	var out builder
	next := 0
	for {
		at := strings.IndexAny(format, "{}")
		if at < 0 {
			out.add(format)
			return out.String()
		}
		out.add(format[:at])
		if strings.HasPrefix(format[at+1:], format[at:at+1]) {
			out.add(format[at : at+1])
			format = format[at+2:]
			continue
		}
		field, rest, found := strings.Cut(format[at+1:], "}")
		if format[at] == '}' || !found {
			failf("a format has a single brace")
		}
		format = rest
		index, err := strconv.Atoi(field)
		switch {
		case field == "":
			index, err = next, nil
			next++
		case err != nil:
			v, known := a.named[field]
			if !known {
				failf("the format field {%s} is not known or not supported", field)
			}
			out.add(str(v))
			continue
		}
		if index < 0 || index >= len(a.list) {
			failf("a format has no argument %d", index)
		}
		out.add(str(a.list[index]))
	}
}

func sortedNames(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// filterToJSON is transformers' filter, json.dumps(value, ensure_ascii=False, indent=indent): keys keep their order, and
// characters of HTML are not escaped.
func filterToJSON(_ *state, v any, a arguments) any {
	given := a.bind("tojson", 0, "ensure_ascii", "indent", "separators", "sort_keys")
	if truthOr(given[0], false) || !isAbsent(given[2]) && given[2] != nil || truthOr(given[3], false) {
		failf("tojson takes indent only")
	}
	w := jsonWriter{indent: -1}
	if given[1] != nil {
		w.indent = wholeOr("tojson", given[1], -1)
	}
	w.value(v, 0)
	return w.out.String()
}

type jsonWriter struct {
	out    builder
	indent int // negative: all in one line
}

func (w *jsonWriter) value(v any, depth int) {
	if depth > maxNesting {
		failf("JSON nests deeper than %d", maxNesting)
	}
	switch v := v.(type) {
	case nil:
		w.out.add("null")
	case bool:
		w.out.add(strconv.FormatBool(v))
	case int, float64:
		w.out.add(repr(v))
	case string:
		w.text(v)
	case markup:
		w.text(string(v))
	case *List:
		w.sequence("[]", len(v.Items), depth, func(i int) { w.value(v.Items[i], depth+1) })
	case *Dict:
		w.sequence("{}", len(v.keys), depth, func(i int) {
			w.text(textOr("a key of JSON", v.keys[i], ""))
			w.out.add(": ")
			w.value(v.values[i], depth+1)
		})
	default:
		refuseUndefined(v)
		failf("a %s cannot be shown as JSON", typeName(v))
	}
}

func (w *jsonWriter) sequence(brackets string, n, depth int, item func(i int)) {
	w.out.add(brackets[:1])
	for i := range n {
		switch {
		case i > 0 && w.indent >= 0:
			w.out.add(",")
		case i > 0:
			w.out.add(", ")
		}
		w.line(depth + 1)
		item(i)
	}
	if n > 0 {
		w.line(depth)
	}
	w.out.add(brackets[1:])
}

func (w *jsonWriter) line(depth int) {
	if w.indent >= 0 {
		w.out.add("\n" + pad(" ", w.indent*depth))
	}
}

// text writes a string as Python does; Go's encoder escapes U+2028 and U+2029 too, and DEL not at all, as Python.
func (w *jsonWriter) text(s string) {
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s); err != nil {
		failf("JSON: %v", err)
	}
	w.out.add(strings.NewReplacer(`\\`, `\\`, `\u2028`, "\u2028", `\u2029`, "\u2029").Replace(strings.TrimSuffix(out.String(), "\n")))
}
