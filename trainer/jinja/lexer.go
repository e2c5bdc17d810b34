package jinja

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type kind int

const (
	kindData kind = iota
	kindOutputBegin
	kindOutputEnd
	kindBlockBegin
	kindBlockEnd
	kindName
	kindString
	kindInteger
	kindFloat
	kindOperator
	kindEnd
)

// token is a piece of a template. text is a name, an operator, data, or what a string says.
type token struct {
	kind  kind
	text  string
	value any // of a number
	line  int
}

func (t token) String() string {
	switch t.kind {
	case kindData:
		return "text"
	case kindOutputBegin:
		return "{{"
	case kindOutputEnd:
		return "}}"
	case kindBlockBegin:
		return "{%"
	case kindBlockEnd:
		return "%}"
	case kindEnd:
		return "the end of the template"
	case kindString:
		return strconv.Quote(t.text)
	default:
		return t.text
	}
}

// lexer cuts a source. Errors are panics of *failure (see failf).
type lexer struct {
	source string
	at     int
	line   int
	tokens []token
	// lineStart: nothing but tags stood since the last newline, which the last tag took.
	lineStart bool
}

var newlines = regexp.MustCompile("\r\n|\r|\n")

// lex returns the template's tokens, white space control applied.
func lex(source string) []token {
	source = newlines.ReplaceAllString(source, "\n")
	l := &lexer{source: strings.TrimSuffix(source, "\n"), line: 1, lineStart: true}
	for l.at < len(l.source) {
		l.next()
	}
	return append(l.tokens, token{kind: kindEnd, line: l.line})
}

func (l *lexer) fail(format string, args ...any) {
	failf("line %d: %s", l.line, fmt.Sprintf(format, args...))
}

// advance moves on by n bytes.
func (l *lexer) advance(n int) {
	taken := l.source[l.at : l.at+n]
	l.line += strings.Count(taken, "\n")
	l.lineStart = strings.HasSuffix(taken, "\n")
	l.at += n
}

func (l *lexer) add(k kind, text string, value any) {
	l.tokens = append(l.tokens, token{k, text, value, l.line})
}

// next takes the data up to a tag, and the tag.
func (l *lexer) next() {
	rest := l.source[l.at:]
	begin := -1
	for i := 0; i+1 < len(rest); i++ {
		if rest[i] == '{' && (rest[i+1] == '{' || rest[i+1] == '%' || rest[i+1] == '#') {
			begin = i
			break
		}
	}
	if begin < 0 {
		l.data(rest)
		l.advance(len(rest))
		return
	}
	open := rest[begin+1]
	sign := byte(0)
	if begin+2 < len(rest) && (rest[begin+2] == '-' || rest[begin+2] == '+') {
		sign = rest[begin+2]
	}
	l.data(l.before(rest[:begin], open, sign))
	l.advance(begin)
	skip := 2
	if sign != 0 {
		skip++
	}
	switch open {
	case '#':
		l.comment(skip)
	case '{':
		l.add(kindOutputBegin, "", nil)
		l.advance(skip)
		l.expression("}}", kindOutputEnd)
	default:
		if n := rawTag(rest[begin+skip:], "raw"); n > 0 {
			l.raw(skip + n)
			return
		}
		l.add(kindBlockBegin, "", nil)
		l.advance(skip)
		l.expression("%}", kindBlockEnd)
	}
}

// before is data without the white space that a tag after it takes.
func (l *lexer) before(data string, open, sign byte) string {
	switch {
	case sign == '-':
		return strings.TrimRightFunc(data, unicode.IsSpace)
	case sign == '+' || open == '{':
		return data
	}
	from := strings.LastIndexByte(data, '\n') + 1
	if (from > 0 || l.lineStart) && strings.TrimFunc(data[from:], unicode.IsSpace) == "" {
		return data[:from]
	}
	return data
}

func (l *lexer) data(text string) {
	if text != "" {
		l.add(kindData, text, nil)
	}
}

// ending returns the length of the tag's end at the start of s with the white space that it takes, or 0.
func ending(s, end string) int {
	if strings.HasPrefix(s, "-"+end) {
		rest := s[1+len(end):]
		return 1 + len(end) + len(rest) - len(strings.TrimLeftFunc(rest, unicode.IsSpace))
	}
	trims := end != "}}"
	switch {
	case trims && strings.HasPrefix(s, "+"+end):
		return 1 + len(end)
	case !strings.HasPrefix(s, end):
		return 0
	case trims && strings.HasPrefix(s[len(end):], "\n"):
		return len(end) + 1
	}
	return len(end)
}

func (l *lexer) comment(skip int) {
	rest := l.source[l.at:]
	for i := skip; i < len(rest); i++ {
		if n := ending(rest[i:], "#}"); n > 0 {
			l.advance(i + n)
			return
		}
	}
	l.fail("a comment {# has no end")
}

// rawTag returns the length of NAME %} at the start of s with white space around it, or 0. raw takes no newline.
func rawTag(s, name string) int {
	trimmed := strings.TrimLeftFunc(s, unicode.IsSpace)
	after, found := strings.CutPrefix(trimmed, name)
	if !found {
		return 0
	}
	after = strings.TrimLeftFunc(after, unicode.IsSpace)
	n := ending(after, "%}")
	if n > 0 && name == "raw" && strings.HasPrefix(after, "%}") {
		n = len("%}")
	}
	if n == 0 {
		return 0
	}
	return len(s) - len(after) + n
}

// raw takes what is between {% raw %}, of which skip bytes are left, and {% endraw %} as data.
func (l *lexer) raw(skip int) {
	l.advance(skip)
	rest := l.source[l.at:]
	for i := 0; i < len(rest); i++ {
		if !strings.HasPrefix(rest[i:], "{%") {
			continue
		}
		inner, sign := i+2, byte(0)
		if inner < len(rest) && (rest[inner] == '-' || rest[inner] == '+') {
			sign = rest[inner]
			inner++
		}
		if n := rawTag(rest[inner:], "endraw"); n > 0 {
			l.data(l.before(rest[:i], '%', sign))
			l.advance(inner + n)
			return
		}
	}
	l.fail("{%% raw %%} has no {%% endraw %%}")
}

var (
	floatPattern   = regexp.MustCompile(`^[0-9](?:_?[0-9])*(?:(?:\.[0-9](?:_?[0-9])*)?[eE][+-]?[0-9](?:_?[0-9])*|\.[0-9](?:_?[0-9])*)`)
	integerPattern = regexp.MustCompile(`^(?:0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0[xX](?:_?[0-9a-fA-F])+|[1-9](?:_?[0-9])*|0(?:_?0)*)`)
)

var operators = []string{"==", "!=", "<=", ">=", "//", "**", "+", "-", "*", "/", "%", "~", "(", ")", "[", "]", "{", "}", "<", ">", "=", ".", ":", "|", ",", ";"}

// expression takes the tokens up to the end of the tag.
func (l *lexer) expression(end string, endKind kind) {
	var open []byte
	for {
		rest := l.source[l.at:]
		trimmed := strings.TrimLeftFunc(rest, unicode.IsSpace)
		l.advance(len(rest) - len(trimmed))
		rest = trimmed
		if rest == "" {
			l.fail("a tag has no %s", end)
		}
		if len(open) == 0 {
			if n := ending(rest, end); n > 0 {
				l.add(endKind, "", nil)
				l.advance(n)
				return
			}
		}
		r, _ := utf8.DecodeRuneInString(rest)
		switch {
		case r == '_' || unicode.IsLetter(r):
			n := strings.IndexFunc(rest, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) })
			if n < 0 {
				n = len(rest)
			}
			l.add(kindName, rest[:n], nil)
			l.advance(n)
		case '0' <= r && r <= '9':
			l.number(rest)
		case r == '\'' || r == '"':
			l.text(rest)
		default:
			open = l.operator(rest, open)
		}
	}
}

func (l *lexer) number(rest string) {
	// After a dot, digits are an index: x.0.1 has no number 0.1.
	afterDot := len(l.tokens) > 0 && l.tokens[len(l.tokens)-1].kind == kindOperator && l.tokens[len(l.tokens)-1].text == "."
	if text := floatPattern.FindString(rest); text != "" && !afterDot {
		value, err := strconv.ParseFloat(strings.ReplaceAll(text, "_", ""), 64)
		if err != nil {
			l.fail("the number %s is too large", text)
		}
		l.add(kindFloat, text, value)
		l.advance(len(text))
		return
	}
	text := integerPattern.FindString(rest)
	value, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 0, 64)
	if err != nil {
		l.fail("the number %s is too large", text)
	}
	l.add(kindInteger, text, int(value))
	l.advance(len(text))
}

func (l *lexer) text(rest string) {
	for i := 1; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			i++
		case rest[0]:
			l.add(kindString, l.unescape(rest[1:i]), nil)
			l.advance(i + 1)
			return
		}
	}
	l.fail("text has no closing %c", rest[0])
}

func (l *lexer) operator(rest string, open []byte) []byte {
	for _, op := range operators {
		if !strings.HasPrefix(rest, op) {
			continue
		}
		switch op {
		case "(", "[", "{":
			open = append(open, map[string]byte{"(": ')', "[": ']', "{": '}'}[op])
		case ")", "]", "}":
			if len(open) == 0 || open[len(open)-1] != op[0] {
				l.fail("unexpected %s", op)
			}
			open = open[:len(open)-1]
		}
		l.add(kindOperator, op, nil)
		l.advance(len(op))
		return open
	}
	r, _ := utf8.DecodeRuneInString(rest)
	l.fail("unexpected character %q", r)
	return nil
}

var escapes = map[byte]string{
	'\\': `\`, '\'': `'`, '"': `"`, 'a': "\a", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v", '\n': "",
}

// unescape is what Python makes of text between quotes. What is no escape stays as it is, with its backslash.
func (l *lexer) unescape(text string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, `\`)
		out.WriteString(before)
		if !found {
			return out.String()
		}
		if known, ok := escapes[rest[0]]; ok {
			out.WriteString(known)
			text = rest[1:]
			continue
		}
		from, n, base := 1, map[byte]int{'x': 2, 'u': 4, 'U': 8}[rest[0]], 16
		if '0' <= rest[0] && rest[0] <= '7' {
			from, base = 0, 8
			for n < min(3, len(rest)) && '0' <= rest[n] && rest[n] <= '7' {
				n++
			}
		}
		switch {
		case rest[0] == 'N':
			l.fail(`\N{...} in text is not supported`)
		case n == 0:
			out.WriteByte('\\')
			text = rest
			continue
		case from+n > len(rest):
			l.fail("the escape \\%s in text is cut short", rest)
		}
		code, err := strconv.ParseUint(rest[from:from+n], base, 32)
		if err != nil || !utf8.ValidRune(rune(code)) {
			l.fail("the escape \\%s in text is no character", rest[:from+n])
		}
		out.WriteRune(rune(code))
		text = rest[from+n:]
	}
}
