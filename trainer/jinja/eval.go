package jinja

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

type expression interface {
	eval(s *state, c *scope) any
}

type (
	constant       struct{ value any }
	nameExpression struct{ name string }
	listExpression struct {
		items []expression
		tuple bool
	}
	dictExpression      struct{ keys, values []expression }
	attributeExpression struct {
		of   expression
		name string
	}
	itemExpression  struct{ of, index expression }
	sliceExpression struct {
		of    expression
		parts [3]expression
	}
	// callExpression has no callee where it holds the arguments of a filter or test.
	callExpression struct {
		callee expression
		args   []expression
		names  []string
		values []expression
	}
	filterExpression struct {
		name string
		of   expression
		call *callExpression
	}
	testExpression struct {
		name string
		of   expression
		call *callExpression
	}
	signExpression struct {
		negative bool
		of       expression
	}
	notExpression    struct{ of expression }
	binaryExpression struct {
		operator    string
		left, right expression
	}
	concatExpression struct{ parts []expression }
	logicExpression  struct {
		left, right expression
		or          bool
	}
	compareExpression struct {
		operands  []expression
		operators []string
	}
	conditionExpression struct{ value, condition, otherwise expression }
)

func (e *constant) eval(*state, *scope) any { return e.value }

func (e *nameExpression) eval(s *state, c *scope) any {
	s.step()
	return s.lookup(c, e.name)
}

func evalAll(s *state, c *scope, list []expression) []any {
	values := make([]any, len(list))
	for i, e := range list {
		values[i] = e.eval(s, c)
	}
	return values
}

func (e *listExpression) eval(s *state, c *scope) any {
	s.step()
	return &List{Items: evalAll(s, c, e.items), Tuple: e.tuple}
}

func (e *dictExpression) eval(s *state, c *scope) any {
	s.step()
	d := NewDict()
	for i, key := range e.keys {
		k := key.eval(s, c)
		d.set(k, e.values[i].eval(s, c))
	}
	return d
}

func (e *attributeExpression) eval(s *state, c *scope) any {
	s.step()
	return attribute(e.of.eval(s, c), e.name)
}

// attribute is v.name: an attribute of v or, if there is none, the item of that name.
func attribute(v any, name string) any {
	refuseUndefined(v)
	if strings.HasPrefix(name, "_") {
		failf("the attribute %s is private", name)
	}
	switch v := v.(type) {
	case *namespace:
		if value, known := v.values[name]; known {
			return value
		}
	case *loop:
		return v.attribute(name)
	case *macro:
		failf("attributes of macros are not supported")
	}
	if hasMethod(v, name) {
		return method{v, name}
	}
	if d, ok := v.(*Dict); ok {
		if value, known := d.get(name); known {
			return value
		}
	}
	return missing(v, name)
}

func missing(v any, key any) undefined {
	return undefined{fmt.Sprintf("a %s has no %s", typeName(v), repr(key))}
}

func (e *itemExpression) eval(s *state, c *scope) any {
	s.step()
	v := e.of.eval(s, c)
	if t, ok := text(v); ok {
		s.charge(runeBytes * len(t))
	}
	return item(v, e.index.eval(s, c))
}

// item is v[key]: the item or, if there is none and the key is a string, the attribute.
func item(v, key any) any {
	refuseUndefined(v)
	if i, ok := whole(key); ok {
		switch v := v.(type) {
		case *List:
			if i < 0 {
				i += len(v.Items)
			}
			if i >= 0 && i < len(v.Items) {
				return v.Items[i]
			}
			return missing(v, key)
		case string, markup:
			runes := []rune(str(v))
			if i < 0 {
				i += len(runes)
			}
			if i >= 0 && i < len(runes) {
				return string(runes[i])
			}
			return missing(v, key)
		}
	}
	if d, ok := v.(*Dict); ok {
		if _, undef := key.(undefined); !undef {
			if value, known := d.get(key); known {
				return value
			}
		}
	}
	if name, ok := text(key); ok {
		return attribute(v, name)
	}
	refuseUndefined(key)
	return missing(v, key)
}

func (e *sliceExpression) eval(s *state, c *scope) any {
	s.step()
	v := e.of.eval(s, c)
	refuseUndefined(v)
	var bounds [3]any
	for i, part := range e.parts {
		if part != nil {
			bounds[i] = part.eval(s, c)
		}
	}
	switch v := v.(type) {
	case *List:
		return s.made(&List{Items: slice(v.Items, bounds), Tuple: v.Tuple})
	case string, markup:
		s.charge(runeBytes * len(str(v)))
		return string(slice([]rune(str(v)), bounds))
	}
	failf("a %s cannot be sliced", typeName(v))
	return nil
}

// slice is items[bounds[0]:bounds[1]:bounds[2]].
func slice[T any](items []T, bounds [3]any) []T {
	var given [3]*int
	for i, b := range bounds {
		if b == nil {
			continue
		}
		n, ok := whole(b)
		if !ok {
			refuseUndefined(b)
			failf("a slice takes integers, not a %s", typeName(b))
		}
		given[i] = &n
	}
	step, n := 1, len(items)
	if given[2] != nil {
		step = *given[2]
	}
	if step == 0 {
		failf("a slice's step must not be 0")
	}
	low, high := 0, n
	if step < 0 {
		low, high = -1, n-1
	}
	bound := func(p *int, otherwise int) int {
		if p == nil {
			return otherwise
		}
		i := *p
		if i < 0 {
			i += n
		}
		return min(max(i, low), high)
	}
	from, to := bound(given[0], low), bound(given[1], high)
	if step < 0 {
		from, to = bound(given[0], high), bound(given[1], low)
	}
	part := []T{}
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		part = append(part, items[i])
	}
	return part
}

// arguments evaluates what a call hands over; none for a filter or test without parentheses.
func (e *callExpression) arguments(s *state, c *scope) arguments {
	if e == nil {
		return arguments{}
	}
	a := arguments{list: evalAll(s, c, e.args)}
	for i, name := range e.names {
		if a.named == nil {
			a.named = map[string]any{}
		}
		if _, twice := a.named[name]; twice {
			failf("argument %s is given twice", name)
		}
		a.named[name] = e.values[i].eval(s, c)
	}
	return a
}

func (e *callExpression) eval(s *state, c *scope) any { return e.invoke(s, c, nil) }

// invoke calls; caller is what a macro called by a call block has of that name.
func (e *callExpression) invoke(s *state, c *scope, caller *macro) any {
	s.step()
	callee := e.callee.eval(s, c)
	args := e.arguments(s, c)
	refuseUndefined(callee)
	if caller != nil {
		if m, ok := callee.(*macro); ok {
			return m.call(s, args, caller)
		}
		failf("a call block needs a macro")
	}
	switch f := callee.(type) {
	case Func:
		value, err := f(args.list, args.named)
		if err != nil {
			panic(&failure{err})
		}
		return s.made(value)
	case *macro:
		return f.call(s, args, nil)
	case *loop:
		return f.recurse(s, args)
	case method:
		return s.made(callMethod(f.self, f.name, args))
	}
	failf("a %s cannot be called", typeName(callee))
	return nil
}

func (e *filterExpression) eval(s *state, c *scope) any {
	s.step()
	v := e.of.eval(s, c)
	return s.made(filters[e.name](s, v, e.call.arguments(s, c)))
}

func (e *testExpression) eval(s *state, c *scope) any {
	s.step()
	v := e.of.eval(s, c)
	return tests[e.name](v, e.call.arguments(s, c))
}

func (e *signExpression) eval(s *state, c *scope) any {
	v := e.of.eval(s, c)
	sign := 1
	if e.negative {
		sign = -1
	}
	if i, ok := whole(v); ok {
		return sign * i
	}
	if f, ok := v.(float64); ok {
		return float64(sign) * f
	}
	refuseUndefined(v)
	failf("a %s has no sign", typeName(v))
	return nil
}

func (e *notExpression) eval(s *state, c *scope) any { return !truth(e.of.eval(s, c)) }

func (e *logicExpression) eval(s *state, c *scope) any {
	s.step()
	left := e.left.eval(s, c)
	if truth(left) == e.or {
		return left
	}
	return e.right.eval(s, c)
}

func (e *conditionExpression) eval(s *state, c *scope) any {
	s.step()
	if truth(e.condition.eval(s, c)) {
		return e.value.eval(s, c)
	}
	if e.otherwise == nil {
		return undefined{"an inline if without else is used where its condition is false"}
	}
	return e.otherwise.eval(s, c)
}

func (e *compareExpression) eval(s *state, c *scope) any {
	s.step()
	left := e.operands[0].eval(s, c)
	for i, op := range e.operators {
		right := e.operands[i+1].eval(s, c)
		if !compare(op, left, right) {
			return false
		}
		left = right
	}
	return true
}

func compare(op string, a, b any) bool {
	switch op {
	case "==":
		return equal(a, b)
	case "!=":
		return !equal(a, b)
	case "<":
		return less(a, b)
	case "<=":
		return less(a, b) || equal(a, b)
	case ">":
		return less(b, a)
	case ">=":
		return less(b, a) || equal(a, b)
	case "in":
		return contains(b, a)
	default:
		return !contains(b, a)
	}
}

func (e *concatExpression) eval(s *state, c *scope) any {
	s.step()
	values := evalAll(s, c, e.parts)
	escaped := slices.ContainsFunc(values, func(v any) bool { _, ok := v.(markup); return ok })
	var out builder
	for _, v := range values {
		if _, ok := v.(markup); escaped && !ok {
			out.add(escape(str(v)))
		} else {
			out.add(str(v))
		}
	}
	if escaped {
		return s.made(markup(out.String()))
	}
	return s.made(out.String())
}

func (e *binaryExpression) eval(s *state, c *scope) any {
	s.step()
	left := e.left.eval(s, c)
	return s.made(binary(e.operator, left, e.right.eval(s, c)))
}

func binary(op string, a, b any) any {
	refuseUndefined(a, b)
	x, xi, xok := number(a)
	y, yi, yok := number(b)
	if xok && yok {
		if xi && yi && op != "/" {
			i, _ := whole(a)
			j, _ := whole(b)
			return integers(op, i, j)
		}
		return floats(op, x, y)
	}
	switch op {
	case "+":
		if sum, ok := add(a, b); ok {
			return sum
		}
	case "*":
		if n, ok := whole(b); ok {
			if product, ok := repeat(a, n); ok {
				return product
			}
		}
		if n, ok := whole(a); ok {
			if product, ok := repeat(b, n); ok {
				return product
			}
		}
	case "%":
		if format, ok := a.(string); ok {
			return percent(format, b)
		}
	}
	failf("%s cannot be applied to a %s and a %s", op, typeName(a), typeName(b))
	return nil
}

func add(a, b any) (any, bool) {
	x, ok := text(a)
	y, ok2 := text(b)
	if ok && ok2 {
		if len(x)+len(y) > maxTextBytes {
			failf("makes a text of more than %d bytes", maxTextBytes)
		}
		_, m := a.(markup)
		_, m2 := b.(markup)
		switch {
		case m && !m2:
			return markup(x + escape(y)), true
		case !m && m2:
			return markup(escape(x) + y), true
		case m:
			return markup(x + y), true
		}
		return x + y, true
	}
	l, ok := a.(*List)
	r, ok2 := b.(*List)
	if ok && ok2 && l.Tuple == r.Tuple {
		bounded("a list", len(l.Items)+len(r.Items))
		return &List{Items: slices.Concat(l.Items, r.Items), Tuple: l.Tuple}, true
	}
	return nil, false
}

func repeat(v any, n int) (any, bool) {
	n = max(n, 0)
	switch v := v.(type) {
	case string:
		if len(v) > 0 && n > maxTextBytes/len(v) {
			failf("text of %d times %d bytes is too long", n, len(v))
		}
		return strings.Repeat(v, n), true
	case *List:
		if len(v.Items) > 0 && n > maxRange/len(v.Items) {
			failf("a list of %d times %d items is too long", n, len(v.Items))
		}
		return &List{Items: slices.Repeat(v.Items, n), Tuple: v.Tuple}, true
	}
	return nil, false
}

func integers(op string, a, b int) any {
	var estimate float64
	switch op {
	case "+":
		estimate = float64(a) + float64(b)
	case "-":
		estimate = float64(a) - float64(b)
	case "*":
		estimate = float64(a) * float64(b)
	case "**":
		if b < 0 {
			return floats(op, float64(a), float64(b))
		}
		estimate = math.Pow(float64(a), float64(b))
	}
	if math.Abs(estimate) > 1<<62 {
		failf("%d %s %d is too large", a, op, b)
	}
	switch op {
	case "+":
		return a + b
	case "-":
		return a - b
	case "*":
		return a * b
	case "**":
		power := 1
		for range b {
			if power *= a; power == 0 || power == 1 {
				break
			}
			if a == -1 {
				return 1 - 2*(b%2)
			}
		}
		return power
	}
	if b == 0 {
		failf("division by zero")
	}
	quotient, rest := a/b, a%b
	if rest != 0 && (rest < 0) != (b < 0) {
		quotient, rest = quotient-1, rest+b
	}
	if op == "%" {
		return rest
	}
	return quotient
}

func floats(op string, a, b float64) any {
	switch op {
	case "+":
		return a + b
	case "-":
		return a - b
	case "*":
		return a * b
	case "**":
		if a < 0 && b != math.Trunc(b) || a == 0 && b < 0 {
			failf("%s ** %s has no value", reprFloat(a), reprFloat(b))
		}
		return math.Pow(a, b)
	}
	if b == 0 {
		failf("division by zero")
	}
	switch op {
	case "/":
		return a / b
	case "//":
		return math.Floor(a / b)
	}
	rest := math.Mod(a, b)
	if rest != 0 && (rest < 0) != (b < 0) {
		rest += b
	}
	return rest
}
