package evaluate

import (
	"errors"
	"math"
	"math/big"
	"math/cmplx"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// expression is a parsed formula. At gives its value where its variables have values.
type expression struct {
	at        func(variables map[string]value) value
	variables []string
	literal   string // the number as written, if the formula is nothing else
}

var errNoFormula = errors.New("no formula")

// Bounds of what is parsed: an answer, not a text.
const (
	maxFormula = 2000 // bytes
	maxDepth   = 60
)

// parseExpression reads a formula in plain or LaTeX notation: + - * / ^ ! and juxtaposition, fractions, roots, absolute
// values, binomials, the usual functions, pi, e and i. A word of more than three letters that is none of these is no
// formula, nor are words alone: they are text.
func parseExpression(text string) (*expression, error) {
	if len(text) > maxFormula || !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsDigit(r) || strings.ContainsRune(`+-*/^(|\`, r) }) && len(text) > 1 {
		return nil, errNoFormula
	}
	return parseFormula(text)
}

// maxProduct bounds what parseProduct takes for variables, in bytes.
const maxProduct = 40

// parseProduct reads letters side by side as variables.
func parseProduct(text string) (*expression, error) {
	if len(text) > maxProduct {
		return nil, errNoFormula
	}
	return parseFormula(text)
}

func parseFormula(text string) (*expression, error) {
	p := &parser{text: text, seen: map[string]bool{}}
	n := p.sum()
	p.space()
	if p.failed || p.pos < len(p.text) {
		return nil, errNoFormula
	}
	e := &expression{at: n}
	for name := range p.seen {
		e.variables = append(e.variables, name)
	}
	slices.Sort(e.variables)
	if text = strings.TrimSpace(text); isDecimal(strings.TrimPrefix(text, "-")) {
		e.literal = text
	}
	return e, nil
}

type node = func(map[string]value) value

// parser is a recursive descent over the text. After a failure it returns anything.
type parser struct {
	text   string
	pos    int
	depth  int
	failed bool
	seen   map[string]bool
}

func (p *parser) fail() node {
	p.failed = true
	return constant(undefined)
}

func constant(v value) node { return func(map[string]value) value { return v } }

func binary(op func(a, b value) value, a, b node) node {
	return func(m map[string]value) value { return op(a(m), b(m)) }
}

func unary(op func(value) value, a node) node {
	return func(m map[string]value) value { return op(a(m)) }
}

func (p *parser) space() {
	for p.pos < len(p.text) && (p.text[p.pos] == ' ' || p.text[p.pos] == '\n' || p.text[p.pos] == '\t') {
		p.pos++
	}
}

// peek returns the next byte that is no space, 0 at the end.
func (p *parser) peek() byte {
	p.space()
	if p.failed || p.pos == len(p.text) {
		return 0
	}
	return p.text[p.pos]
}

func (p *parser) take(token string) bool {
	p.space()
	if p.failed || !strings.HasPrefix(p.text[p.pos:], token) {
		return false
	}
	p.pos += len(token)
	return true
}

func (p *parser) sum() node {
	if p.depth++; p.depth > maxDepth {
		return p.fail()
	}
	defer func() { p.depth-- }()
	left := p.product()
	for {
		switch p.peek() {
		case '+':
			p.pos++
			left = binary(add, left, p.product())
		case '-':
			p.pos++
			left = binary(add, left, unary(negate, p.product()))
		default:
			return left
		}
	}
}

func (p *parser) product() node {
	left := p.signed()
	for {
		switch c := p.peek(); {
		case c == '*':
			p.pos++
			left = binary(multiply, left, p.signed())
		case c == '/':
			p.pos++
			left = binary(divide, left, p.signed())
		case c == '(' || c == '{' || c == '\\' || isLetter(c):
			left = binary(multiply, left, p.raised()) // juxtaposition
		case isDigit(c) && p.pos > 0 && strings.IndexByte(")}", p.text[p.pos-1]) >= 0:
			left = binary(multiply, left, p.raised())
		default:
			return left
		}
		if p.failed {
			return left
		}
	}
}

// signed is a factor with signs before it: -x^2 is -(x^2).
func (p *parser) signed() node {
	switch p.peek() {
	case '-':
		p.pos++
		if p.depth++; p.depth > maxDepth {
			return p.fail()
		}
		defer func() { p.depth-- }()
		return unary(negate, p.signed())
	case '+':
		p.pos++
		return p.raised()
	}
	return p.raised()
}

func (p *parser) raised() node {
	base := p.atom()
	for p.take("!") {
		base = unary(factorial, base)
	}
	if p.take("°") {
		base = binary(multiply, base, constant(inexactly(complex(math.Pi/180, 0))))
	}
	if p.take("**") || p.take("^") {
		if p.depth++; p.depth > maxDepth {
			return p.fail()
		}
		defer func() { p.depth-- }()
		return binary(power, base, p.signed())
	}
	return base
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

func isDecimal(text string) bool {
	digits := 0
	for i := range len(text) {
		switch {
		case isDigit(text[i]):
			digits++
		case text[i] != '.':
			return false
		}
	}
	return digits > 0 && strings.Count(text, ".") <= 1
}

func (p *parser) atom() node {
	switch c := p.peek(); {
	case isDigit(c) || c == '.':
		return p.number()
	case c == '(':
		return p.enclosed("(", ")")
	case c == '[':
		return p.enclosed("[", "]")
	case c == '{':
		return p.enclosed("{", "}")
	case c == '|':
		return unary(magnitude, p.enclosed("|", "|"))
	case c == '\\':
		p.pos++
		return p.named(p.letters(math.MaxInt))
	case isLetter(c):
		return p.word()
	}
	return p.fail()
}

func (p *parser) enclosed(open, end string) node {
	p.take(open)
	inner := p.sum()
	if !p.take(end) {
		return p.fail()
	}
	return inner
}

func (p *parser) letters(most int) string {
	from := p.pos
	for p.pos < len(p.text) && p.pos-from < most && isLetter(p.text[p.pos]) {
		p.pos++
	}
	return p.text[from:p.pos]
}

// number reads digits, and the fraction of a mixed number behind them.
func (p *parser) number() node {
	from := p.pos
	for p.pos < len(p.text) && (isDigit(p.text[p.pos]) || p.text[p.pos] == '.') {
		p.pos++
	}
	text := p.text[from:p.pos]
	if !isDecimal(text) {
		return p.fail()
	}
	if p.pos < len(p.text) && p.text[p.pos] == '_' {
		return p.fail() // a number in another base: text
	}
	// 1.5e10, where e directly between digits is no variable.
	if rest := p.text[p.pos:]; len(rest) > 1 && (rest[0] == 'e' || rest[0] == 'E') {
		n := 1
		if len(rest) > 2 && (rest[1] == '-' || rest[1] == '+') {
			n = 2
		}
		digits := n
		for digits < len(rest) && isDigit(rest[digits]) {
			digits++
		}
		if digits > n && digits-n <= 3 {
			text += rest[:digits]
			p.pos += digits
		}
	}
	r, ok := new(big.Rat).SetString(text)
	if !ok {
		return p.fail()
	}
	v := exactly(r)
	if r.IsInt() && p.peek() == '\\' && strings.HasPrefix(p.text[p.pos:], `\frac`) {
		if f, ok := p.plainFraction(); ok {
			v = add(v, f)
		}
	}
	return constant(v)
}

// plainFraction takes a fraction of whole numbers, as in the mixed number 1\frac{4}{5}; it takes nothing else.
func (p *parser) plainFraction() (value, bool) {
	m := ofDigits.FindStringSubmatch(p.text[p.pos:])
	if m == nil {
		return value{}, false
	}
	num, okNum := new(big.Rat).SetString(strings.Trim(m[1], "{} "))
	den, okDen := new(big.Rat).SetString(strings.Trim(m[2], "{} "))
	if !okNum || !okDen {
		return value{}, false
	}
	p.pos += len(m[0])
	return divide(exactly(num), exactly(den)), true
}

var ofDigits = regexp.MustCompile(`^\\frac\s*(\d|\{\s*\d+\s*\})\s*(\d|\{\s*\d+\s*\})`)

// argument is a command's: in braces, or one digit, letter or command.
func (p *parser) argument() node {
	switch c := p.peek(); {
	case c == '{':
		return p.enclosed("{", "}")
	case isDigit(c):
		p.pos++
		return constant(whole(int64(c - '0')))
	case isLetter(c):
		return p.variable(p.letters(1))
	case c == '\\':
		p.pos++
		return p.named(p.letters(math.MaxInt))
	}
	return p.fail()
}

// word is a name without backslash: a function, a constant, or up to three variables side by side.
func (p *parser) word() node {
	from := p.pos
	name := p.letters(math.MaxInt)
	if _, known := functions[name]; known || slices.Contains([]string{"pi", "sqrt", "log", "ln", "infty", "cbrt"}, name) {
		return p.named(name)
	}
	const mostTogether = 3
	if len(name) > mostTogether {
		if slices.Contains(greek, name) {
			return p.variable(name)
		}
		return p.fail()
	}
	p.pos = from
	return p.variable(p.letters(1))
}

func (p *parser) variable(name string) node {
	if p.pos < len(p.text) && p.text[p.pos] == '_' {
		from := p.pos
		p.pos++
		if p.peek() == '{' {
			end := closing(p.text[p.pos:])
			if end == 0 {
				return p.fail()
			}
			p.pos += end + 1
		} else if p.pos < len(p.text) {
			p.pos++
		}
		name += strings.Trim(p.text[from:p.pos], "_{}")
	}
	switch name {
	case "e":
		return constant(inexactly(complex(math.E, 0)))
	case "i":
		return constant(inexactly(1i))
	}
	p.seen[name] = true
	return func(m map[string]value) value {
		if v, ok := m[name]; ok {
			return v
		}
		return undefined
	}
}

var functions = map[string]func(complex128) complex128{
	"sin": cmplx.Sin, "cos": cmplx.Cos, "tan": cmplx.Tan, "cot": cmplx.Cot,
	"sec": func(x complex128) complex128 { return 1 / cmplx.Cos(x) }, "csc": func(x complex128) complex128 { return 1 / cmplx.Sin(x) },
	"arcsin": cmplx.Asin, "arccos": cmplx.Acos, "arctan": cmplx.Atan,
	"sinh": cmplx.Sinh, "cosh": cmplx.Cosh, "tanh": cmplx.Tanh, "exp": cmplx.Exp,
}

// greek are the letters that are variables.
var greek = strings.Fields("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega infty ell")

// named is what follows a command's or a function's name.
func (p *parser) named(name string) node {
	switch name {
	case "frac":
		a := p.argument()
		return binary(divide, a, p.argument())
	case "binom":
		a := p.argument()
		return binary(choose, a, p.argument())
	case "sqrt":
		return p.rootOf()
	case "cbrt":
		return binary(power, p.operand(), constant(exactly(big.NewRat(1, 3))))
	case "pi":
		return constant(inexactly(complex(math.Pi, 0)))
	case "log", "ln":
		return p.logarithm(name)
	case "cdot", "times", "":
		return p.fail() // they stand between factors, and are replaced before
	}
	if f, ok := functions[name]; ok {
		exponent := node(nil)
		switch inverse := functions["arc"+name]; {
		case inverse != nil && (p.take("^{-1}") || p.take("^-1")):
			f = inverse
		case p.take("^"):
			exponent = p.argument() // sin^2 x
		}
		of := unary(func(v value) value { return v.through(f) }, p.operand())
		if exponent != nil {
			return binary(power, of, exponent)
		}
		return of
	}
	if slices.Contains(greek, name) {
		return p.variable(name)
	}
	return p.fail()
}

// operand is what a function is of: a group, or a factor with its power.
func (p *parser) operand() node {
	if p.depth++; p.depth > maxDepth {
		return p.fail()
	}
	defer func() { p.depth-- }()
	if c := p.peek(); c == '(' || c == '{' {
		return p.atom()
	}
	left := p.raised()
	for { // sin 2x is of 2x
		if c := p.peek(); !isLetter(c) && !strings.HasPrefix(p.text[p.pos:], `\pi`) || p.failed {
			return left
		}
		left = binary(multiply, left, p.raised())
	}
}

func (p *parser) rootOf() node {
	if p.peek() == '[' {
		degree := p.enclosed("[", "]")
		return binary(rootOfDegree, p.argument(), degree)
	}
	if p.peek() == '(' {
		return unary(root, p.enclosed("(", ")"))
	}
	return unary(root, p.argument())
}

// logarithm: ln is natural, log of base 10 unless it names another.
func (p *parser) logarithm(name string) node {
	base := constant(whole(10))
	if name == "ln" {
		base = constant(inexactly(complex(math.E, 0)))
	}
	if p.take("_") {
		base = p.argument()
	}
	return binary(func(a, b value) value {
		if a.c == 0 || b.c == 0 || b.c == 1 {
			return undefined
		}
		return divide(a.through(cmplx.Log), b.through(cmplx.Log))
	}, p.operand(), base)
}
