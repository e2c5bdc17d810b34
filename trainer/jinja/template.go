package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits of what a template may do.
const (
	maxSourceBytes = 4 << 20
	maxTextBytes   = 4 << 20   // of one text that an operation makes
	maxMadeBytes   = 16 << 20  // of all that one rendering makes and writes
	itemBytes      = 16        // of an item of a list
	runeBytes      = 4         // of a character that is looked at by its index
	scopeBytes     = 64        // of the names of one turn of a loop
	maxSteps       = 2_000_000 // evaluated nodes of one rendering
	maxNesting     = 200       // of brackets and blocks, and of calls of macros
	maxRange       = 100_000   // the sandbox's limit
)

// Template is a parsed template. It is safe for concurrent use.
type Template struct {
	body []statement
}

// failure is an error on its way out of the parser or a rendering.
type failure struct{ err error }

// failf ends parsing or rendering. Parse and Render return what it says.
func failf(format string, args ...any) {
	panic(&failure{fmt.Errorf(format, args...)})
}

func recoverFailure(err *error) {
	switch r := recover().(type) {
	case nil:
	case *failure:
		*err = r.err
	default:
		panic(r)
	}
}

// Parse parses a template.
func Parse(source string) (t *Template, err error) {
	defer recoverFailure(&err)
	if len(source) > maxSourceBytes {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(source), maxSourceBytes)
	}
	p := &parser{tokens: lex(source)}
	body := p.statements()
	if t := p.current(); t.kind != kindEnd {
		p.fail("unexpected {%% %s %%}", t)
	}
	return &Template{body}, nil
}

// Render renders the template with the names that it can use.
func (t *Template) Render(names map[string]any) (text string, err error) {
	defer recoverFailure(&err)
	s := &state{names: names, out: &strings.Builder{}}
	execute(s, newScope(nil), t.body)
	return s.out.String(), nil
}

// state is one rendering.
type state struct {
	names map[string]any
	out   *strings.Builder
	steps int
	depth int
	bytes int // made so far
}

func (s *state) step() {
	if s.steps++; s.steps > maxSteps {
		failf("runs too long: more than %d steps", maxSteps)
	}
}

func (s *state) write(text string) {
	s.charge(len(text))
	s.out.WriteString(text)
}

// capture returns what run writes.
func (s *state) capture(run func()) string {
	outer := s.out
	defer func() { s.out = outer }()
	s.out = &strings.Builder{}
	run()
	return s.out.String()
}

// scope holds the names that statements set; a block that has its own sees those around it.
type scope struct {
	names  []named // few, so a list is quicker than a map
	around *scope
}

type named struct {
	name  string
	value any
}

func newScope(around *scope) *scope { return &scope{around: around} }

func (c *scope) set(name string, value any) {
	if i := c.find(name); i >= 0 {
		c.names[i].value = value
		return
	}
	c.names = append(c.names, named{name, value})
}

func (c *scope) find(name string) int {
	return slices.IndexFunc(c.names, func(n named) bool { return n.name == name })
}

func (s *state) lookup(c *scope, name string) any {
	for ; c != nil; c = c.around {
		if i := c.find(name); i >= 0 {
			return c.names[i].value
		}
	}
	if v, known := s.names[name]; known {
		return v
	}
	if f, known := builtins[name]; known {
		return f
	}
	return undefined{fmt.Sprintf("'%s' is undefined", name)}
}

var builtins = map[string]Func{
	"range":     rangeOf,
	"dict":      dictOf,
	"namespace": namespaceOf,
	"cycler":    unsupported("cycler"),
	"joiner":    unsupported("joiner"),
	"lipsum":    unsupported("lipsum"),
}

func unsupported(name string) Func {
	return func([]any, map[string]any) (any, error) { return nil, errors.New(name + " is not supported") }
}

func rangeOf(args []any, kwargs map[string]any) (any, error) {
	if len(kwargs) > 0 || len(args) < 1 || len(args) > 3 {
		return nil, errors.New("range takes one to three integers")
	}
	var n [3]int
	for i, a := range args {
		v, ok := whole(a)
		if !ok {
			return nil, fmt.Errorf("range takes integers, not a %s", typeName(a))
		}
		n[i] = v
	}
	from, to, step := 0, n[0], 1
	if len(args) > 1 {
		from, to = n[0], n[1]
	}
	if len(args) > 2 {
		step = n[2]
	}
	if step == 0 {
		return nil, errors.New("range's step must not be 0")
	}
	list := NewList()
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		if len(list.Items) == maxRange {
			return nil, fmt.Errorf("range has more than %d numbers", maxRange)
		}
		list.Items = append(list.Items, i)
	}
	return list, nil
}

func dictOf(args []any, kwargs map[string]any) (any, error) {
	if len(args) > 0 {
		return nil, errors.New("dict takes named arguments only")
	}
	d := NewDict()
	for _, name := range sortedNames(kwargs) {
		d.Set(name, kwargs[name])
	}
	if len(kwargs) > 1 {
		return nil, errors.New("dict of more than one name is not supported; write {...}")
	}
	return d, nil
}

func namespaceOf(args []any, kwargs map[string]any) (any, error) {
	ns := &namespace{values: map[string]any{}}
	if len(args) == 1 {
		d, ok := args[0].(*Dict)
		if !ok {
			return nil, errors.New("namespace takes a dict or named arguments")
		}
		for i, key := range d.keys {
			ns.values[str(key)] = d.values[i]
		}
	} else if len(args) > 1 {
		return nil, errors.New("namespace takes a dict or named arguments")
	}
	for name, v := range kwargs {
		ns.values[name] = v
	}
	return ns, nil
}
