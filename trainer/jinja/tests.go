package jinja

type testFunc func(v any, a arguments) bool

// tests are Jinja's.
var tests map[string]testFunc

func init() {
	comparing := func(op string) testFunc {
		return func(v any, a arguments) bool { return compare(op, v, a.bind(op, 1, "other")[0]) }
	}
	kindOf := func(is func(v any) bool) testFunc {
		return func(v any, a arguments) bool {
			a.bind("a test", 0)
			return is(v)
		}
	}
	even := func(rest int) testFunc {
		return kindOf(func(v any) bool { return equal(binary("%", v, 2), rest) })
	}
	tests = map[string]testFunc{
		"defined":   kindOf(func(v any) bool { _, ok := v.(undefined); return !ok }),
		"undefined": kindOf(func(v any) bool { _, ok := v.(undefined); return ok }),
		"none":      kindOf(func(v any) bool { return v == nil }),
		"boolean":   kindOf(func(v any) bool { _, ok := v.(bool); return ok }),
		"true":      kindOf(func(v any) bool { return v == true }),
		"false":     kindOf(func(v any) bool { return v == false }),
		"integer":   kindOf(func(v any) bool { _, ok := v.(int); return ok }),
		"float":     kindOf(func(v any) bool { _, ok := v.(float64); return ok }),
		"number":    kindOf(func(v any) bool { _, _, ok := number(v); return ok }),
		"string":    kindOf(func(v any) bool { _, ok := text(v); return ok }),
		"mapping":   kindOf(func(v any) bool { _, ok := v.(*Dict); return ok }),
		"sequence": kindOf(func(v any) bool {
			switch v.(type) {
			case string, markup, *List, *Dict, undefined:
				return true
			}
			return false
		}),
		"iterable": kindOf(func(v any) bool {
			switch v.(type) {
			case string, markup, *List, *Dict, *sequence, undefined:
				return true
			}
			return false
		}),
		"callable": kindOf(func(v any) bool {
			switch v.(type) {
			case Func, *macro, method, *loop, undefined:
				return true
			}
			return false
		}),
		"lower":       kindOf(func(v any) bool { return isLower(str(v)) }),
		"upper":       kindOf(func(v any) bool { return isUpper(str(v)) }),
		"even":        even(0),
		"odd":         even(1),
		"divisibleby": func(v any, a arguments) bool { return equal(binary("%", v, a.bind("divisibleby", 1, "num")[0]), 0) },
		"in":          func(v any, a arguments) bool { return contains(a.bind("in", 1, "seq")[0], v) },
		"sameas": func(v any, a arguments) bool {
			other := a.bind("sameas", 1, "other")[0]
			switch other.(type) {
			case nil, bool:
				return v == other
			}
			failf("sameas of a %s is not supported", typeName(other))
			return false
		},
	}
	for op, names := range map[string][]string{
		"==": {"==", "eq", "equalto"}, "!=": {"!=", "ne"}, "<": {"<", "lt", "lessthan"}, "<=": {"<=", "le"},
		">": {">", "gt", "greaterthan"}, ">=": {">=", "ge"},
	} {
		for _, name := range names {
			tests[name] = comparing(op)
		}
	}
}
