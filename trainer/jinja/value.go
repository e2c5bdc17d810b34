package jinja

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Values are nil (None), bool, int, float64, string, *List, *Dict, Func and what only this package makes.

// List is Python's list or tuple. It never changes.
type List struct {
	Items []any
	Tuple bool
}

// NewList returns a list of the items.
func NewList(items ...any) *List { return &List{Items: items} }

func newTuple(items ...any) *List { return &List{Items: items, Tuple: true} }

// Dict is Python's dict: its keys, strings or numbers, keep the order in which they came.
type Dict struct {
	keys   []any
	values []any
	index  map[any]int
}

// NewDict returns an empty dictionary.
func NewDict() *Dict { return &Dict{index: map[any]int{}} }

// Set puts a value under a key, a string, in its place if it has one.
func (d *Dict) Set(key string, value any) *Dict {
	d.set(key, value)
	return d
}

func (d *Dict) set(key, value any) {
	h := hashKey(key)
	if i, known := d.index[h]; known {
		d.values[i] = value
		return
	}
	d.index[h] = len(d.keys)
	d.keys, d.values = append(d.keys, key), append(d.values, value)
}

func (d *Dict) get(key any) (any, bool) {
	if i, known := d.index[hashKey(key)]; known {
		return d.values[i], true
	}
	return nil, false
}

func (d *Dict) items() *List {
	list := NewList()
	for i, key := range d.keys {
		list.Items = append(list.Items, newTuple(key, d.values[i]))
	}
	return list
}

// hashKey makes keys that Python takes for equal the same: 1, 1.0 and True.
func hashKey(key any) any {
	switch k := key.(type) {
	case bool:
		if k {
			return 1
		}
		return 0
	case float64:
		if k == math.Trunc(k) && math.Abs(k) < 1<<53 {
			return int(k)
		}
		return k
	case markup:
		return string(k)
	case nil, int, string:
		return k
	case *List:
		if k.Tuple {
			return repr(k)
		}
	}
	failf("a %s cannot be a key", typeName(key))
	return nil
}

// Func is what a template can call. An error ends the rendering.
type Func func(args []any, kwargs map[string]any) (any, error)

// undefined is what a template uses and nobody gave: it can be printed (as nothing), tested and gone through (it is
// empty), and no more.
type undefined struct{ hint string }

func (u undefined) fail() { failf("%s", u.hint) }

// markup is text that was escaped, or said to be safe: what is added to it is escaped.
type markup string

// sequence is what can only be gone through: a view of a dict or, once, what a filter yields.
type sequence struct {
	items       []any
	once, spent bool
}

func view(items []any) *sequence { return &sequence{items: items} }

func yielded(items []any) *sequence { return &sequence{items: items, once: true} }

type namespace struct{ values map[string]any }

// method is a method of a value that was not called yet.
type method struct {
	self any
	name string
}

func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case undefined:
		return "undefined value"
	case bool:
		return "bool"
	case int:
		return "int"
	case float64:
		return "float"
	case string, markup:
		return "str"
	case *List:
		if v.Tuple {
			return "tuple"
		}
		return "list"
	case *Dict:
		return "dict"
	case *sequence:
		if v.once {
			return "generator"
		}
		return "view of a dict"
	case *namespace:
		return "namespace"
	case *loop:
		return "loop"
	default:
		return "function"
	}
}

// text returns a string's text.
func text(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case markup:
		return string(v), true
	}
	return "", false
}

// truth is bool(v).
func truth(v any) bool {
	switch v := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return v
	case int:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case markup:
		return v != ""
	case *List:
		return len(v.Items) > 0
	case *Dict:
		return len(v.keys) > 0
	case *sequence:
		return v.once || len(v.items) > 0
	}
	return true
}

// str is str(v).
func str(v any) string {
	switch v := v.(type) {
	case undefined:
		return ""
	case string:
		return v
	case markup:
		return string(v)
	}
	return repr(v)
}

// repr is repr(v).
func repr(v any) string {
	var out builder
	writeRepr(&out, v)
	return out.String()
}

func writeRepr(out *builder, v any) {
	switch v := v.(type) {
	case nil:
		out.add("None")
	case undefined:
		out.add("Undefined")
	case bool:
		if v {
			out.add("True")
		} else {
			out.add("False")
		}
	case int:
		out.add(strconv.Itoa(v))
	case float64:
		out.add(reprFloat(v))
	case string:
		quote(out, v)
	case markup:
		out.add("Markup(")
		quote(out, string(v))
		out.add(")")
	case *List:
		brackets := "[]"
		if v.Tuple {
			brackets = "()"
		}
		out.add(brackets[:1])
		for i, item := range v.Items {
			if i > 0 {
				out.add(", ")
			}
			writeRepr(out, item)
		}
		if v.Tuple && len(v.Items) == 1 {
			out.add(",")
		}
		out.add(brackets[1:])
	case *Dict:
		out.add("{")
		for i, key := range v.keys {
			if i > 0 {
				out.add(", ")
			}
			writeRepr(out, key)
			out.add(": ")
			writeRepr(out, v.values[i])
		}
		out.add("}")
	default:
		failf("a %s cannot be shown", typeName(v))
	}
}

func reprFloat(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "inf"
	case math.IsInf(v, -1):
		return "-inf"
	case math.IsNaN(v):
		return "nan"
	}
	if a := math.Abs(v); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(v, 'e', -1, 64)
	}
	s := strconv.FormatFloat(v, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// quote is repr of a str: single quotes unless there are only single quotes in it.
func quote(out *builder, s string) {
	q := '\''
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		q = '"'
	}
	out.add(string(q))
	for _, r := range s {
		switch {
		case r == q || r == '\\':
			out.add(`\`, string(r))
		case r == '\n':
			out.add(`\n`)
		case r == '\r':
			out.add(`\r`)
		case r == '\t':
			out.add(`\t`)
		case r < ' ' || r == 0x7f:
			out.add(fmt.Sprintf(`\x%02x`, r))
		case r == ' ' || unicode.IsPrint(r):
			out.add(string(r))
		case r < 0x100:
			out.add(fmt.Sprintf(`\x%02x`, r))
		case r < 0x10000:
			out.add(fmt.Sprintf(`\u%04x`, r))
		default:
			out.add(fmt.Sprintf(`\U%08x`, r))
		}
	}
	out.add(string(q))
}

// number returns a number as a float64, and whether it is an integer.
func number(v any) (value float64, integer, ok bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true, true
		}
		return 0, true, true
	case int:
		return float64(v), true, true
	case float64:
		return v, false, true
	}
	return 0, false, false
}

// whole returns an integer, as Python takes it (True is 1).
func whole(v any) (int, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int:
		return v, true
	}
	return 0, false
}

// equal is a == b.
func equal(a, b any) bool {
	if x, xi, ok := number(a); ok {
		y, yi, ok := number(b)
		if xi && yi {
			i, _ := whole(a)
			j, _ := whole(b)
			return i == j
		}
		return ok && x == y
	}
	if x, ok := text(a); ok {
		y, ok := text(b)
		return ok && x == y
	}
	switch x := a.(type) {
	case nil:
		return b == nil
	case undefined:
		_, ok := b.(undefined)
		return ok
	case *List:
		y, ok := b.(*List)
		if !ok || x.Tuple != y.Tuple || len(x.Items) != len(y.Items) {
			return false
		}
		for i := range x.Items {
			if !equal(x.Items[i], y.Items[i]) {
				return false
			}
		}
		return true
	case *Dict:
		y, ok := b.(*Dict)
		if !ok || len(x.keys) != len(y.keys) {
			return false
		}
		for i, key := range x.keys {
			if other, known := y.get(key); !known || !equal(x.values[i], other) {
				return false
			}
		}
		return true
	case *namespace, *loop, *macro, *sequence:
		return a == b
	}
	failf("a %s cannot be compared", typeName(a))
	return false
}

// less is a < b.
func less(a, b any) bool {
	if x, _, ok := number(a); ok {
		if y, _, ok := number(b); ok {
			i, iok := whole(a)
			j, jok := whole(b)
			if iok && jok {
				return i < j
			}
			return x < y
		}
	}
	if x, ok := text(a); ok {
		if y, ok := text(b); ok {
			// Bytes of UTF-8 are in the order of the characters.
			return x < y
		}
	}
	x, ok := a.(*List)
	y, ok2 := b.(*List)
	if ok && ok2 && x.Tuple == y.Tuple {
		for i := range min(len(x.Items), len(y.Items)) {
			if !equal(x.Items[i], y.Items[i]) {
				return less(x.Items[i], y.Items[i])
			}
		}
		return len(x.Items) < len(y.Items)
	}
	refuseUndefined(a, b)
	failf("%s and %s have no order", typeName(a), typeName(b))
	return false
}

func refuseUndefined(values ...any) {
	for _, v := range values {
		if u, ok := v.(undefined); ok {
			u.fail()
		}
	}
}

// iterate returns what a loop over v goes through.
func iterate(v any) []any {
	switch v := v.(type) {
	case undefined:
		return nil
	case *List:
		return v.Items
	case *Dict:
		return v.keys
	case *sequence:
		if v.spent {
			return nil
		}
		v.spent = v.once
		return v.items
	}
	if s, ok := text(v); ok {
		bounded("a text gone through by characters", utf8.RuneCountInString(s))
		items := make([]any, 0, len(s))
		for len(s) > 0 {
			_, n := utf8.DecodeRuneInString(s)
			items = append(items, s[:n])
			s = s[n:]
		}
		return items
	}
	failf("a %s cannot be gone through", typeName(v))
	return nil
}

// length is len(v).
func length(v any) int {
	switch v := v.(type) {
	case undefined:
		return 0
	case *List:
		return len(v.Items)
	case *Dict:
		return len(v.keys)
	case *sequence:
		if !v.once {
			return len(v.items)
		}
	}
	if s, ok := text(v); ok {
		return utf8.RuneCountInString(s)
	}
	failf("a %s has no length", typeName(v))
	return 0
}

// contains is item in v.
func contains(v, item any) bool {
	if s, ok := text(v); ok {
		part, ok := text(item)
		if !ok {
			refuseUndefined(item)
			failf("'in <str>' requires text, not a %s", typeName(item))
		}
		return strings.Contains(s, part)
	}
	if d, ok := v.(*Dict); ok {
		_, known := d.get(item)
		return known
	}
	for _, x := range iterate(v) {
		if equal(x, item) {
			return true
		}
	}
	return false
}
