package jinja

import (
	"fmt"
	"slices"
)

// jump says how a statement ended.
type jump int

const (
	jumpNone jump = iota
	jumpBreak
	jumpContinue
)

type statement interface {
	exec(s *state, c *scope) jump
}

type (
	dataStatement   struct{ text string }
	outputStatement struct{ value expression }
	ifStatement     struct {
		conditions []expression
		bodies     [][]statement
		otherwise  []statement
	}
	forStatement struct {
		target          *target
		over, condition expression
		recursive       bool
		body, otherwise []statement
	}
	setStatement struct {
		target               *target
		namespace, attribute string
		value, filters       expression // filters of what the body writes
		body                 []statement
	}
	withStatement struct {
		targets []*target
		values  []expression
		body    []statement
	}
	macroStatement struct {
		name       string
		parameters []string
		defaults   []expression
		body       []statement
	}
	callStatement struct {
		call   *callExpression
		caller *macroStatement
	}
	filterStatement struct {
		filters expression
		body    []statement
	}
	scopeStatement struct{ body []statement }
	jumpStatement  jump
)

// target is a name or a tuple of targets.
type target struct {
	name  string
	inner []*target
	tuple bool
}

func (t *target) assign(c *scope, v any) {
	if !t.tuple {
		c.set(t.name, v)
		return
	}
	items := iterate(v)
	if len(items) != len(t.inner) {
		failf("%d values cannot be assigned to %d names", len(items), len(t.inner))
	}
	for i, inner := range t.inner {
		inner.assign(c, items[i])
	}
}

func execute(s *state, c *scope, list []statement) jump {
	for _, st := range list {
		s.step()
		if j := st.exec(s, c); j != jumpNone {
			return j
		}
	}
	return jumpNone
}

func (st *dataStatement) exec(s *state, _ *scope) jump {
	s.write(st.text)
	return jumpNone
}

func (st *outputStatement) exec(s *state, c *scope) jump {
	s.write(str(st.value.eval(s, c)))
	return jumpNone
}

func (st *ifStatement) exec(s *state, c *scope) jump {
	for i, condition := range st.conditions {
		if truth(condition.eval(s, c)) {
			return execute(s, c, st.bodies[i])
		}
	}
	return execute(s, c, st.otherwise)
}

func (st jumpStatement) exec(*state, *scope) jump { return jump(st) }

func (st *scopeStatement) exec(s *state, c *scope) jump { return execute(s, newScope(c), st.body) }

func (st *setStatement) exec(s *state, c *scope) jump {
	var v any
	if st.value != nil {
		v = st.value.eval(s, c)
	} else {
		v = captured(s, c, st.body, st.filters)
	}
	if st.target != nil {
		st.target.assign(c, v)
		return jumpNone
	}
	ns, ok := s.lookup(c, st.namespace).(*namespace)
	if !ok {
		failf("%s is no namespace: %s.%s cannot be set", st.namespace, st.namespace, st.attribute)
	}
	ns.values[st.attribute] = v
	return jumpNone
}

// given stands for what a block's filters are applied to.
type given struct{ value any }

func (g *given) eval(*state, *scope) any { return g.value }

// captured is what the body writes, filtered.
func captured(s *state, c *scope, body []statement, chain expression) any {
	written := s.capture(func() { execute(s, newScope(c), body) })
	if chain == nil {
		return written
	}
	return applied(chain, &given{written}).eval(s, c)
}

// applied returns the chain of filters with what they are applied to at its start.
func applied(chain, of expression) expression {
	f, ok := chain.(*filterExpression)
	if !ok {
		failf("a block takes filters only")
	}
	copied := *f
	if f.of == nil {
		copied.of = of
	} else {
		copied.of = applied(f.of, of)
	}
	return &copied
}

func (st *filterStatement) exec(s *state, c *scope) jump {
	s.write(str(captured(s, c, st.body, st.filters)))
	return jumpNone
}

func (st *withStatement) exec(s *state, c *scope) jump {
	inner := newScope(c)
	for i, t := range st.targets {
		t.assign(inner, st.values[i].eval(s, c))
	}
	return execute(s, inner, st.body)
}

// macro is a macro with the names around it.
type macro struct {
	*macroStatement
	around *scope
}

func (st *macroStatement) exec(_ *state, c *scope) jump {
	c.set(st.name, &macro{st, c})
	return jumpNone
}

func (m *macro) call(s *state, a arguments, caller *macro) any {
	if s.depth++; s.depth > maxNesting {
		failf("macros call each other deeper than %d", maxNesting)
	}
	defer func() { s.depth-- }()
	if len(a.list) > len(m.parameters) {
		failf("macro %s takes %d arguments, got %d", m.name, len(m.parameters), len(a.list))
	}
	for name := range a.named {
		at := slices.Index(m.parameters, name)
		if at < 0 {
			failf("macro %s has no parameter %s", m.name, name)
		}
		if at < len(a.list) {
			failf("macro %s got parameter %s twice", m.name, name)
		}
	}
	inner := newScope(m.around)
	for i, name := range m.parameters {
		v, known := a.named[name]
		switch {
		case i < len(a.list):
			v = a.list[i]
		case known:
		case m.defaults[i] != nil:
			v = m.defaults[i].eval(s, inner)
		default:
			v = undefined{fmt.Sprintf("parameter '%s' was not provided", name)}
		}
		inner.set(name, v)
	}
	if caller != nil {
		inner.set("caller", caller)
	}
	return s.capture(func() { execute(s, inner, m.body) })
}

func (st *callStatement) exec(s *state, c *scope) jump {
	s.write(str(st.call.invoke(s, c, &macro{st.caller, c})))
	return jumpNone
}

// loop is the name loop in a for statement's body.
type loop struct {
	statement *forStatement
	around    *scope
	items     []any
	at, depth int
	changed   []any
}

func (st *forStatement) exec(s *state, c *scope) jump {
	st.run(s, c, iterate(st.over.eval(s, c)), 1)
	return jumpNone
}

func (st *forStatement) run(s *state, c *scope, items []any, depth int) {
	if st.condition != nil {
		var kept []any
		for _, v := range items {
			s.charge(scopeBytes)
			inner := newScope(c)
			st.target.assign(inner, v)
			if truth(st.condition.eval(s, inner)) {
				kept = append(kept, v)
			}
		}
		items = kept
	}
	l := &loop{statement: st, around: c, items: items, depth: depth}
	for i, v := range items {
		s.step()
		l.at = i
		s.charge(scopeBytes)
		inner := newScope(c)
		inner.names = make([]named, 0, 2)
		inner.set("loop", l)
		st.target.assign(inner, v)
		if execute(s, inner, st.body) == jumpBreak {
			break
		}
	}
	if len(items) == 0 {
		execute(s, newScope(c), st.otherwise)
	}
}

func (l *loop) recurse(s *state, a arguments) any {
	if !l.statement.recursive || len(a.list) != 1 || len(a.named) > 0 {
		failf("loop(...) needs a recursive loop and one argument")
	}
	if s.depth++; s.depth > maxNesting {
		failf("a loop recurses deeper than %d", maxNesting)
	}
	defer func() { s.depth-- }()
	return s.capture(func() { l.statement.run(s, l.around, iterate(a.list[0]), l.depth+1) })
}

func (l *loop) attribute(name string) any {
	n := len(l.items)
	switch name {
	case "index":
		return l.at + 1
	case "index0":
		return l.at
	case "revindex":
		return n - l.at
	case "revindex0":
		return n - l.at - 1
	case "first":
		return l.at == 0
	case "last":
		return l.at == n-1
	case "length":
		return n
	case "depth":
		return l.depth
	case "depth0":
		return l.depth - 1
	case "previtem":
		if l.at > 0 {
			return l.items[l.at-1]
		}
		return undefined{"there is no previous item"}
	case "nextitem":
		if l.at < n-1 {
			return l.items[l.at+1]
		}
		return undefined{"there is no next item"}
	case "cycle":
		return Func(func(args []any, _ map[string]any) (any, error) {
			if len(args) == 0 {
				return nil, fmt.Errorf("loop.cycle needs items")
			}
			return args[l.at%len(args)], nil
		})
	case "changed":
		return Func(func(args []any, _ map[string]any) (any, error) {
			same := l.changed != nil && equal(NewList(l.changed...), NewList(args...))
			l.changed = slices.Clone(args)
			return !same, nil
		})
	}
	return missing(l, name)
}
