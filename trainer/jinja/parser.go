package jinja

import (
	"fmt"
	"slices"
)

type parser struct {
	tokens []token
	at     int
	depth  int
	loops  int // around the statement, in the same macro
}

func (p *parser) current() token { return p.tokens[p.at] }

func (p *parser) take() token {
	t := p.tokens[p.at]
	if t.kind != kindEnd {
		p.at++
	}
	return t
}

func (p *parser) fail(format string, args ...any) {
	failf("line %d: %s", p.current().line, fmt.Sprintf(format, args...))
}

// nest bounds how deep the functions of the parser call each other; call what it returns on the way out.
func (p *parser) nest() func() {
	if p.depth++; p.depth > maxNesting {
		p.fail("nests deeper than %d", maxNesting)
	}
	return func() { p.depth-- }
}

func (p *parser) isOperator(ops ...string) bool {
	return p.current().kind == kindOperator && slices.Contains(ops, p.current().text)
}

func (p *parser) isName(names ...string) bool {
	return p.current().kind == kindName && slices.Contains(names, p.current().text)
}

func (p *parser) skipOperator(op string) bool {
	if p.isOperator(op) {
		p.at++
		return true
	}
	return false
}

func (p *parser) skipName(name string) bool {
	if p.isName(name) {
		p.at++
		return true
	}
	return false
}

func (p *parser) expectOperator(op string) {
	if !p.skipOperator(op) {
		p.fail("expected %s, found %s", op, p.current())
	}
}

func (p *parser) expect(k kind) token {
	if p.current().kind != k {
		p.fail("expected %s, found %s", map[kind]string{kindName: "a name", kindBlockEnd: "%}", kindOutputEnd: "}}"}[k], p.current())
	}
	return p.take()
}

// statements parses up to a block tag of one of the names, whose name is left as the current token, or to the end.
func (p *parser) statements(until ...string) []statement {
	defer p.nest()()
	var list []statement
	for {
		switch t := p.current(); t.kind {
		case kindData:
			p.at++
			list = append(list, &dataStatement{t.text})
		case kindOutputBegin:
			p.at++
			list = append(list, &outputStatement{p.tuple(true)})
			p.expect(kindOutputEnd)
		case kindBlockBegin:
			p.at++
			if p.isName(until...) {
				return list
			}
			if p.current().kind != kindName {
				p.fail("a block begins with %s", p.current())
			}
			list = append(list, p.statement())
		default:
			if len(until) > 0 {
				p.fail("{%% %s %%} is missing", until[len(until)-1])
			}
			return list
		}
	}
}

func (p *parser) endBlock() { p.expect(kindBlockEnd) }

// body parses %} statements {% END %}; extra names may come before END, and are left current.
func (p *parser) body(end string) []statement {
	p.endBlock()
	list := p.statements(end)
	p.at++
	p.endBlock()
	return list
}

func (p *parser) statement() statement {
	switch t := p.take(); t.text {
	case "if":
		return p.ifStatement()
	case "for":
		return p.forStatement()
	case "set":
		return p.setStatement()
	case "macro":
		return p.macroStatement()
	case "call":
		return p.callStatement()
	case "filter":
		f := &filterStatement{}
		f.filters = p.filters(nil)
		f.body = p.body("endfilter")
		return f
	case "with":
		return p.withStatement()
	case "generation":
		return &scopeStatement{p.body("endgeneration")}
	case "break", "continue":
		if p.loops == 0 {
			p.fail("%s is outside a loop", t.text)
		}
		p.endBlock()
		if t.text == "break" {
			return jumpStatement(jumpBreak)
		}
		return jumpStatement(jumpContinue)
	default:
		p.at--
		p.fail("the block %s is not supported", t.text)
		return nil
	}
}

func (p *parser) ifStatement() statement {
	s := &ifStatement{}
	for {
		s.conditions = append(s.conditions, p.tuple(false))
		p.endBlock()
		s.bodies = append(s.bodies, p.statements("elif", "else", "endif"))
		switch p.take().text {
		case "elif":
			continue
		case "else":
			s.otherwise = p.body("endif")
		default:
			p.endBlock()
		}
		return s
	}
}

func (p *parser) forStatement() statement {
	s := &forStatement{target: p.target()}
	if !p.skipName("in") {
		p.fail("expected in, found %s", p.current())
	}
	s.over = p.tuple(false, "recursive")
	if p.skipName("if") {
		s.condition = p.expression()
	}
	s.recursive = p.skipName("recursive")
	p.endBlock()
	p.loops++
	s.body = p.statements("else", "endfor")
	p.loops--
	if p.take().text == "else" {
		s.otherwise = p.body("endfor")
	} else {
		p.endBlock()
	}
	return s
}

// target parses what is assigned: names, or a tuple of them.
func (p *parser) target() *target {
	parenthesis := p.skipOperator("(")
	t := &target{}
	for {
		if p.isOperator("(") {
			t.inner = append(t.inner, p.target())
		} else {
			name := p.expect(kindName)
			if reserved(name.text) {
				p.at--
				p.fail("%s cannot be assigned", name.text)
			}
			t.inner = append(t.inner, &target{name: name.text})
		}
		if !p.isOperator(",") {
			break
		}
		t.tuple = true
		p.at++
		if p.isName("in") || p.isOperator("=", ")") {
			break
		}
	}
	if parenthesis {
		p.expectOperator(")")
	}
	if !t.tuple {
		return t.inner[0]
	}
	return t
}

func reserved(name string) bool {
	return slices.Contains([]string{"true", "false", "none", "True", "False", "None", "and", "or", "not", "if", "else", "in", "is"}, name)
}

func (p *parser) setStatement() statement {
	s := &setStatement{}
	if p.current().kind == kindName && p.tokens[p.at+1].kind == kindOperator && p.tokens[p.at+1].text == "." {
		s.namespace = p.take().text
		p.at++
		s.attribute = p.expect(kindName).text
	} else {
		s.target = p.target()
	}
	if p.skipOperator("=") {
		s.value = p.tuple(true)
		p.endBlock()
		return s
	}
	if p.isOperator("|") {
		s.filters = p.filters(p.filterChain(nil))
	}
	s.body = p.body("endset")
	return s
}

func (p *parser) withStatement() statement {
	s := &withStatement{}
	for p.current().kind != kindBlockEnd {
		if len(s.targets) > 0 {
			p.expectOperator(",")
		}
		s.targets = append(s.targets, p.target())
		p.expectOperator("=")
		s.values = append(s.values, p.expression())
	}
	s.body = p.body("endwith")
	return s
}

func (p *parser) macroStatement() statement {
	s := &macroStatement{name: p.expect(kindName).text}
	p.signature(s)
	loops := p.loops
	p.loops = 0
	s.body = p.body("endmacro")
	p.loops = loops
	return s
}

func (p *parser) signature(s *macroStatement) {
	p.expectOperator("(")
	for !p.skipOperator(")") {
		if len(s.parameters) > 0 {
			p.expectOperator(",")
		}
		s.parameters = append(s.parameters, p.expect(kindName).text)
		var value expression
		if p.skipOperator("=") {
			value = p.expression()
		} else if len(s.defaults) > 0 && s.defaults[len(s.defaults)-1] != nil {
			p.fail("parameter %s has no default, but one before it has", s.parameters[len(s.parameters)-1])
		}
		s.defaults = append(s.defaults, value)
	}
}

func (p *parser) callStatement() statement {
	s := &callStatement{caller: &macroStatement{name: "caller"}}
	if p.isOperator("(") {
		p.signature(s.caller)
	}
	call, ok := p.expression().(*callExpression)
	if !ok {
		p.fail("call needs a call")
	}
	s.call = call
	loops := p.loops
	p.loops = 0
	s.caller.body = p.body("endcall")
	p.loops = loops
	return s
}

// tuple parses an expression, or several with commas between. conditions: inline if is allowed.
func (p *parser) tuple(conditions bool, endNames ...string) expression {
	parse := p.expression
	if !conditions {
		parse = p.or
	}
	var items []expression
	commas := false
	for {
		if p.endsTuple(endNames) {
			break
		}
		items = append(items, parse())
		if !p.isOperator(",") {
			break
		}
		commas = true
		p.at++
	}
	switch {
	case len(items) == 0:
		p.fail("expected an expression, found %s", p.current())
	case !commas:
		return items[0]
	}
	return &listExpression{items: items, tuple: true}
}

func (p *parser) endsTuple(names []string) bool {
	k := p.current().kind
	return k == kindOutputEnd || k == kindBlockEnd || p.isOperator(")") || p.isName(names...)
}

func (p *parser) expression() expression {
	defer p.nest()()
	value := p.or()
	for p.skipName("if") {
		c := &conditionExpression{value: value, condition: p.or()}
		if p.skipName("else") {
			c.otherwise = p.expression()
		}
		value = c
	}
	return value
}

func (p *parser) or() expression {
	left := p.and()
	for p.skipName("or") {
		left = &logicExpression{left: left, right: p.and(), or: true}
	}
	return left
}

func (p *parser) and() expression {
	left := p.not()
	for p.skipName("and") {
		left = &logicExpression{left: left, right: p.not()}
	}
	return left
}

func (p *parser) not() expression {
	if p.skipName("not") {
		defer p.nest()()
		return &notExpression{p.not()}
	}
	return p.compare()
}

func (p *parser) compare() expression {
	first := p.sum()
	c := &compareExpression{operands: []expression{first}}
	for {
		switch {
		case p.isOperator("==", "!=", "<", "<=", ">", ">="):
			c.operators = append(c.operators, p.take().text)
		case p.skipName("in"):
			c.operators = append(c.operators, "in")
		case p.isName("not") && p.tokens[p.at+1].kind == kindName && p.tokens[p.at+1].text == "in":
			p.at += 2
			c.operators = append(c.operators, "not in")
		case len(c.operators) == 0:
			return first
		default:
			return c
		}
		c.operands = append(c.operands, p.sum())
	}
}

// binary parses operands with the operators between them, from the left.
func (p *parser) binary(operand func() expression, operators ...string) expression {
	left := operand()
	for p.isOperator(operators...) {
		op := p.take().text
		left = &binaryExpression{op, left, operand()}
	}
	return left
}

func (p *parser) sum() expression { return p.binary(p.concat, "+", "-") }

func (p *parser) concat() expression {
	first := p.product()
	if !p.isOperator("~") {
		return first
	}
	c := &concatExpression{[]expression{first}}
	for p.skipOperator("~") {
		c.parts = append(c.parts, p.product())
	}
	return c
}

func (p *parser) product() expression { return p.binary(p.power, "*", "/", "//", "%") }
func (p *parser) power() expression {
	return p.binary(func() expression { return p.unary(true) }, "**")
}

func (p *parser) unary(filters bool) expression {
	defer p.nest()()
	var e expression
	switch {
	case p.isOperator("-", "+"):
		op := p.take().text
		e = &signExpression{op == "-", p.unary(false)}
	default:
		e = p.primary()
	}
	e = p.postfix(e)
	if filters {
		e = p.filterChain(e)
	}
	return e
}

func (p *parser) primary() expression {
	switch t := p.take(); t.kind {
	case kindName:
		switch t.text {
		case "true", "True":
			return &constant{true}
		case "false", "False":
			return &constant{false}
		case "none", "None":
			return &constant{nil}
		}
		return &nameExpression{t.text}
	case kindInteger, kindFloat:
		return &constant{t.value}
	case kindString:
		joined := t.text
		for p.current().kind == kindString {
			joined += p.take().text
		}
		return &constant{joined}
	case kindOperator:
		switch t.text {
		case "(":
			if p.skipOperator(")") {
				return &listExpression{tuple: true}
			}
			e := p.tuple(true)
			p.expectOperator(")")
			return e
		case "[":
			return p.list()
		case "{":
			return p.dict()
		}
	}
	p.at--
	p.fail("expected an expression, found %s", p.current())
	return nil
}

func (p *parser) list() expression {
	e := &listExpression{}
	for !p.skipOperator("]") {
		if len(e.items) > 0 {
			p.expectOperator(",")
			if p.skipOperator("]") {
				break
			}
		}
		e.items = append(e.items, p.expression())
	}
	return e
}

func (p *parser) dict() expression {
	e := &dictExpression{}
	for !p.skipOperator("}") {
		if len(e.keys) > 0 {
			p.expectOperator(",")
			if p.skipOperator("}") {
				break
			}
		}
		e.keys = append(e.keys, p.expression())
		p.expectOperator(":")
		e.values = append(e.values, p.expression())
	}
	return e
}

func (p *parser) postfix(e expression) expression {
	for {
		switch {
		case p.skipOperator("."):
			t := p.take()
			switch t.kind {
			case kindName:
				e = &attributeExpression{e, t.text}
			case kindInteger:
				e = &itemExpression{e, &constant{t.value}}
			default:
				p.at--
				p.fail("expected a name after the dot, found %s", p.current())
			}
		case p.skipOperator("["):
			e = p.subscript(e)
		case p.isOperator("("):
			e = p.call(e)
		default:
			return e
		}
	}
}

func (p *parser) subscript(of expression) expression {
	var parts [3]expression
	n := 0
	slice := false
	for !p.skipOperator("]") {
		switch {
		case p.skipOperator(":"):
			slice = true
			if n++; n > 2 {
				p.fail("a slice has three parts at most")
			}
		case parts[n] == nil:
			parts[n] = p.expression()
		default:
			p.fail("expected ], found %s", p.current())
		}
	}
	if slice {
		return &sliceExpression{of, parts}
	}
	if parts[0] == nil {
		p.fail("expected an index, found ]")
	}
	return &itemExpression{of, parts[0]}
}

func (p *parser) call(callee expression) *callExpression {
	c := &callExpression{callee: callee}
	p.expectOperator("(")
	for !p.skipOperator(")") {
		if len(c.args)+len(c.names) > 0 {
			p.expectOperator(",")
			if p.skipOperator(")") {
				break
			}
		}
		switch {
		case p.isOperator("*", "**"):
			p.fail("%s before an argument is not supported", p.current())
		case p.current().kind == kindName && p.tokens[p.at+1].kind == kindOperator && p.tokens[p.at+1].text == "=":
			c.names = append(c.names, p.take().text)
			p.at++
			c.values = append(c.values, p.expression())
		case len(c.names) > 0:
			p.fail("an argument without a name follows one with a name")
		default:
			c.args = append(c.args, p.expression())
		}
	}
	return c
}

// filterChain parses filters, tests and calls after an expression.
func (p *parser) filterChain(e expression) expression {
	for {
		switch {
		case p.isOperator("|"):
			p.at++
			e = p.filter(e)
		case e != nil && p.skipName("is"):
			e = p.test(e)
		case e != nil && p.isOperator("("):
			e = p.call(e)
		default:
			return e
		}
	}
}

// filters parses the filters of a block: NAME, perhaps more after |. e is the chain so far.
func (p *parser) filters(e expression) expression {
	if e == nil {
		e = p.filter(nil)
	}
	return p.filterChain(e)
}

func (p *parser) filter(of expression) expression {
	name := p.expect(kindName).text
	if _, known := filters[name]; !known {
		p.at--
		p.fail("the filter %s is not known or not supported", name)
	}
	f := &filterExpression{name: name, of: of}
	if p.isOperator("(") {
		f.call = p.call(nil)
	}
	return f
}

func (p *parser) test(of expression) expression {
	negate := p.skipName("not")
	name := p.expect(kindName).text
	if _, known := tests[name]; !known {
		p.at--
		p.fail("the test %s is not known or not supported", name)
	}
	t := &testExpression{name: name, of: of}
	k := p.current().kind
	switch {
	case p.isOperator("("):
		t.call = p.call(nil)
	case k == kindString || k == kindInteger || k == kindFloat || p.isOperator("[", "{"), k == kindName && !p.isName("else", "or", "and"):
		if p.isName("is") {
			p.fail("a test cannot follow a test")
		}
		t.call = &callExpression{args: []expression{p.postfix(p.primary())}}
	}
	if negate {
		return &notExpression{t}
	}
	return t
}
