package jinja

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type filterFunc func(s *state, v any, a arguments) any

// filters are Jinja's, but for those that no chat template was found to use.
var filters map[string]filterFunc

func init() {
	filters = map[string]filterFunc{
		"abs":        filterAbs,
		"attr":       filterAttr,
		"capitalize": textFilter("capitalize", capitalize),
		"center": func(_ *state, v any, a arguments) any {
			return padded("center", soft(v), wholeOr("center", a.bind("center", 0, "width")[0], 80), " ")
		},
		"count":      filterLength,
		"d":          filterDefault,
		"default":    filterDefault,
		"dictsort":   filterDictSort,
		"e":          filterEscape,
		"escape":     filterEscape,
		"first":      filterFirst,
		"float":      filterFloat,
		"format":     filterFormat,
		"indent":     filterIndent,
		"int":        filterInt,
		"items":      filterItems,
		"join":       filterJoin,
		"last":       filterLast,
		"length":     filterLength,
		"list":       filterList,
		"lower":      textFilter("lower", lower),
		"map":        filterMap,
		"max":        extreme("max", func(a, b any) bool { return less(b, a) }),
		"min":        extreme("min", less),
		"reject":     selecting("reject", false, false),
		"rejectattr": selecting("rejectattr", true, false),
		"replace":    filterReplace,
		"reverse":    filterReverse,
		"round":      filterRound,
		"safe": func(_ *state, v any, a arguments) any {
			a.bind("safe", 0)
			return markup(str(v))
		},
		"select":     selecting("select", false, true),
		"selectattr": selecting("selectattr", true, true),
		"sort":       filterSort,
		"string":     textFilter("string", func(s string) string { return s }),
		"sum":        filterSum,
		"title":      textFilter("title", titleWords),
		"tojson":     filterToJSON,
		"trim": func(_ *state, v any, a arguments) any {
			chars := a.bind("trim", 0, "chars")[0]
			if chars == nil {
				chars = absent{}
			}
			return strip(soft(v), chars, true, true)
		},
		"unique":    filterUnique,
		"upper":     textFilter("upper", upper),
		"wordcount": filterWordCount,
	}
}

// soft is what filters of text take any value for. They do not keep escaped text escaped here.
func soft(v any) string {
	if m, ok := v.(markup); ok {
		failf("filters of escaped text are not supported: %q", string(m))
	}
	return str(v)
}

func textFilter(name string, f func(string) string) filterFunc {
	return func(_ *state, v any, a arguments) any {
		a.bind(name, 0)
		if m, ok := v.(markup); ok && name == "string" {
			return m
		}
		return f(soft(v))
	}
}

func filterAbs(_ *state, v any, a arguments) any {
	a.bind("abs", 0)
	if i, ok := whole(v); ok {
		return max(i, -i)
	}
	if f, ok := v.(float64); ok {
		return math.Abs(f)
	}
	refuseUndefined(v)
	failf("abs takes a number, not a %s", typeName(v))
	return nil
}

// filterAttr gets an attribute and never an item.
func filterAttr(_ *state, v any, a arguments) any {
	name := textOr("attr", a.bind("attr", 1, "name")[0], "")
	if _, ok := v.(*Dict); ok && !slices.Contains(dictMethods, name) {
		return missing(v, name)
	}
	return attribute(v, name)
}

func filterLength(_ *state, v any, a arguments) any {
	a.bind("length", 0)
	return length(v)
}

func filterDefault(_ *state, v any, a arguments) any {
	given := a.bind("default", 0, "default_value", "boolean")
	_, undef := v.(undefined)
	if !undef && (!truthOr(given[1], false) || truth(v)) {
		return v
	}
	if isAbsent(given[0]) {
		return ""
	}
	return given[0]
}

// folded is the key of a comparison that ignores case.
func folded(v any, caseSensitive bool) any {
	if s, ok := text(v); ok && !caseSensitive {
		return lower(s)
	}
	return v
}

// ordered sorts items by their keys, equal ones in their order.
func ordered(items, keys []any, reverse bool) []any {
	at := make([]int, len(items))
	for i := range at {
		at[i] = i
	}
	slices.SortStableFunc(at, func(i, j int) int {
		sign := 1
		if reverse {
			sign = -1
		}
		switch {
		case less(keys[i], keys[j]):
			return -sign
		case less(keys[j], keys[i]):
			return sign
		}
		return 0
	})
	sorted := make([]any, len(items))
	for i, k := range at {
		sorted[i] = items[k]
	}
	return sorted
}

func filterDictSort(_ *state, v any, a arguments) any {
	given := a.bind("dictsort", 0, "case_sensitive", "by", "reverse")
	d, ok := v.(*Dict)
	if !ok {
		refuseUndefined(v)
		failf("dictsort takes a dict, not a %s", typeName(v))
	}
	of := d.keys
	switch by := textOr("dictsort", given[1], "key"); by {
	case "key":
	case "value":
		of = d.values
	default:
		failf("dictsort sorts by key or value, not %q", by)
	}
	keys := make([]any, len(of))
	for i, k := range of {
		keys[i] = folded(k, truthOr(given[0], false))
	}
	return NewList(ordered(d.items().Items, keys, truthOr(given[2], false))...)
}

var htmlEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&#39;", `"`, "&#34;")

func escape(s string) string { return htmlEscapes.Replace(s) }

func filterEscape(_ *state, v any, a arguments) any {
	a.bind("escape", 0)
	if m, ok := v.(markup); ok {
		return m
	}
	return markup(escape(str(v)))
}

func filterFirst(_ *state, v any, a arguments) any {
	a.bind("first", 0)
	if items := iterate(v); len(items) > 0 {
		return items[0]
	}
	return undefined{"there is no first item"}
}

func filterLast(_ *state, v any, a arguments) any {
	a.bind("last", 0)
	if g, ok := v.(*sequence); ok && g.once {
		failf("a generator has no last item")
	}
	if items := iterate(v); len(items) > 0 {
		return items[len(items)-1]
	}
	return undefined{"there is no last item"}
}

func filterFloat(_ *state, v any, a arguments) any {
	otherwise := a.bind("float", 0, "default")[0]
	if isAbsent(otherwise) {
		otherwise = 0.0
	}
	if f, _, ok := number(v); ok {
		return f
	}
	if s, ok := text(v); ok {
		if f, ok := parseFloat(s); ok {
			return f
		}
	}
	refuseUndefined(v)
	return otherwise
}

var pythonFloat = regexp.MustCompile(`^[+-]?(?:[0-9](?:_?[0-9])*\.?(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)(?:[eE][+-]?[0-9](?:_?[0-9])*)?$`)

func parseFloat(s string) (float64, bool) {
	s = strings.TrimFunc(s, isSpace)
	if !pythonFloat.MatchString(s) {
		return 0, false
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	return f, err == nil
}

var pythonInt = regexp.MustCompile(`^[+-]?[0-9](?:_?[0-9])*$`)

func filterInt(_ *state, v any, a arguments) any {
	given := a.bind("int", 0, "default", "base")
	otherwise := given[0]
	if isAbsent(otherwise) {
		otherwise = 0
	}
	if wholeOr("int", given[1], 10) != 10 {
		failf("int to another base than 10 is not supported")
	}
	if i, ok := whole(v); ok {
		return i
	}
	f, ok := v.(float64)
	if s, isText := text(v); isText {
		s = strings.TrimFunc(s, isSpace)
		if pythonInt.MatchString(s) {
			i, err := strconv.Atoi(strings.ReplaceAll(s, "_", ""))
			if err != nil {
				failf("int: %s is too large", s)
			}
			return i
		}
		f, ok = parseFloat(s)
	}
	refuseUndefined(v)
	if !ok || math.IsNaN(f) || math.IsInf(f, 0) {
		return otherwise
	}
	if math.Abs(f) > 1<<62 {
		failf("int: %s is too large", reprFloat(f))
	}
	return int(f)
}

func filterFormat(_ *state, v any, a arguments) any {
	if len(a.named) > 0 {
		failf("format with named arguments is not supported")
	}
	return percent(soft(v), newTuple(a.list...))
}

func filterIndent(_ *state, v any, a arguments) any {
	given := a.bind("indent", 0, "width", "first", "blank")
	indent := ""
	if s, ok := text(given[0]); ok {
		indent = s
	} else {
		indent = pad(" ", wholeOr("indent", given[0], 4))
	}
	lines := splitLines(soft(v)+"\n", false)
	var out builder
	for i, line := range lines {
		if i > 0 {
			out.add("\n")
		}
		switch {
		case i == 0 && !truthOr(given[1], false):
		case i > 0 && line == "" && !truthOr(given[2], false):
		default:
			out.add(indent)
		}
		out.add(line)
	}
	return out.String()
}

func filterItems(_ *state, v any, a arguments) any {
	a.bind("items", 0)
	switch v := v.(type) {
	case undefined:
		return yielded(nil)
	case *Dict:
		return yielded(v.items().Items)
	}
	failf("items takes a dict, not a %s", typeName(v))
	return nil
}

func filterJoin(_ *state, v any, a arguments) any {
	given := a.bind("join", 0, "d", "attribute")
	get := getter("join", given[1])
	var parts []string
	for _, x := range iterate(v) {
		parts = append(parts, soft(get(x)))
	}
	sep := ""
	if !isAbsent(given[0]) {
		sep = soft(given[0])
	}
	return joined(parts, sep)
}

func filterList(_ *state, v any, a arguments) any {
	a.bind("list", 0)
	return NewList(slices.Clone(iterate(v))...)
}

// getter gets an attribute by its path, or the value itself where none is given.
func getter(of string, path any) func(any) any {
	if isAbsent(path) || path == nil {
		return func(v any) any { return v }
	}
	var parts []any
	if i, ok := whole(path); ok {
		parts = append(parts, i)
	} else {
		for _, part := range strings.Split(textOr(of, path, ""), ".") {
			if i, err := strconv.Atoi(part); err == nil && i >= 0 {
				parts = append(parts, i)
			} else {
				parts = append(parts, part)
			}
		}
	}
	return func(v any) any {
		for _, part := range parts {
			v = item(v, part)
		}
		return v
	}
}

func filterMap(s *state, v any, a arguments) any {
	if !truth(v) { // None too, as Jinja has it
		return yielded(nil)
	}
	items := iterate(v)
	result := make([]any, len(items))
	if len(a.list) == 0 {
		given := a.bind("map", 1, "attribute", "default")
		get := getter("map", given[0])
		for i, x := range items {
			result[i] = get(x)
			if _, undef := result[i].(undefined); undef && !isAbsent(given[1]) {
				result[i] = given[1]
			}
		}
		return yielded(result)
	}
	name := textOr("map", a.list[0], "")
	f, known := filters[name]
	if !known {
		failf("map: the filter %s is not known or not supported", name)
	}
	for i, x := range items {
		result[i] = f(s, x, arguments{a.list[1:], a.named})
	}
	return yielded(result)
}

// selecting keeps the items that a test holds for, or, if not keep, the others.
func selecting(name string, byAttribute, keep bool) filterFunc {
	return func(_ *state, v any, a arguments) any {
		if !truth(v) { // None too, as Jinja has it
			return yielded(nil)
		}
		get := getter(name, absent{})
		if byAttribute {
			if len(a.list) == 0 {
				failf("%s needs an attribute", name)
			}
			get, a.list = getter(name, a.list[0]), a.list[1:]
		}
		test := func(v any, _ arguments) bool { return truth(v) }
		if len(a.list) > 0 {
			testName := textOr(name, a.list[0], "")
			known := false
			if test, known = tests[testName]; !known {
				failf("%s: the test %s is not known or not supported", name, testName)
			}
			a.list = a.list[1:]
		}
		kept := []any{}
		for _, x := range iterate(v) {
			if test(get(x), a) == keep {
				kept = append(kept, x)
			}
		}
		return yielded(kept)
	}
}

func extreme(name string, before func(a, b any) bool) filterFunc {
	return func(_ *state, v any, a arguments) any {
		given := a.bind(name, 0, "case_sensitive", "attribute")
		get := getter(name, given[1])
		items := iterate(v)
		if len(items) == 0 {
			return undefined{"there is no item in an empty sequence"}
		}
		key := func(x any) any { return folded(get(x), truthOr(given[0], false)) }
		best := items[0]
		for _, x := range items[1:] {
			if before(key(x), key(best)) {
				best = x
			}
		}
		return best
	}
}

func filterReplace(_ *state, v any, a arguments) any {
	given := a.bind("replace", 2, "old", "new", "count")
	if given[2] == nil {
		given[2] = absent{}
	}
	return replaced(soft(v), soft(given[0]), soft(given[1]), wholeOr("replace", given[2], -1))
}

func filterReverse(_ *state, v any, a arguments) any {
	a.bind("reverse", 0)
	items := slices.Clone(iterate(v))
	slices.Reverse(items)
	if _, ok := text(v); ok {
		var out strings.Builder
		for _, x := range items {
			out.WriteString(soft(x))
		}
		return out.String()
	}
	return yielded(items)
}

func filterRound(_ *state, v any, a arguments) any {
	given := a.bind("round", 0, "precision", "method")
	precision, how := wholeOr("round", given[0], 0), textOr("round", given[1], "common")
	f, integer, ok := number(v)
	if !ok {
		refuseUndefined(v)
		failf("round takes a number, not a %s", typeName(v))
	}
	if integer && how == "common" && precision >= 0 {
		i, _ := whole(v)
		return i
	}
	if precision < 0 || precision > 15 {
		failf("round to %d digits is not supported", precision)
	}
	scale := math.Pow(10, float64(precision))
	switch how {
	case "common":
		rounded, err := strconv.ParseFloat(strconv.FormatFloat(f, 'f', precision, 64), 64)
		if err != nil {
			failf("round: %v", err)
		}
		return rounded
	case "ceil":
		return math.Ceil(f*scale) / scale
	case "floor":
		return math.Floor(f*scale) / scale
	}
	failf("round has the methods common, ceil and floor, not %q", how)
	return nil
}

func filterSort(_ *state, v any, a arguments) any {
	given := a.bind("sort", 0, "reverse", "case_sensitive", "attribute")
	get := getter("sort", given[2])
	items := iterate(v)
	keys := make([]any, len(items))
	for i, x := range items {
		keys[i] = folded(get(x), truthOr(given[1], false))
	}
	return NewList(ordered(items, keys, truthOr(given[0], false))...)
}

func filterSum(_ *state, v any, a arguments) any {
	given := a.bind("sum", 0, "attribute", "start")
	get := getter("sum", given[0])
	sum := given[1]
	if isAbsent(sum) {
		sum = 0
	}
	for _, x := range iterate(v) {
		sum = binary("+", sum, get(x))
	}
	return sum
}

// titleWords is the filter title: words begin after white space, hyphens and opening brackets.
func titleWords(s string) string {
	var out strings.Builder
	for s != "" {
		isBreak := func(r rune) bool { return isSpace(r) || strings.ContainsRune("-({[<", r) }
		start, first := utf8.DecodeRuneInString(s)
		n := strings.IndexFunc(s, func(r rune) bool { return isBreak(r) != isBreak(start) })
		if n < 0 {
			n = len(s)
		}
		out.WriteString(upper(s[:first]) + lower(s[first:n]))
		s = s[n:]
	}
	return out.String()
}

func filterUnique(_ *state, v any, a arguments) any {
	given := a.bind("unique", 0, "case_sensitive", "attribute")
	get := getter("unique", given[1])
	seen := map[any]bool{}
	kept := []any{}
	for _, x := range iterate(v) {
		key := hashKey(folded(get(x), truthOr(given[0], false)))
		if !seen[key] {
			seen[key] = true
			kept = append(kept, x)
		}
	}
	return yielded(kept)
}

func filterWordCount(_ *state, v any, a arguments) any {
	a.bind("wordcount", 0)
	isWord := func(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) }
	return len(strings.FieldsFunc(soft(v), func(r rune) bool { return !isWord(r) }))
}
