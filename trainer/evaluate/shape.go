package evaluate

import (
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// shape is an answer taken apart.
type shape struct {
	kind  byte // see below
	open  byte // of a tuple or an interval: its brackets
	close byte
	items []shape
	// Of a kindPlain:
	amount
	text    string
	formula *expression
	left    *expression // of an equation: the side before the sign
	clock   *clock      // the time of day that it may be
	product *expression // the whole text, where what looks like a unit or a word may be variables side by side: "2 xy", "ab"
}

const (
	kindPlain = 'p' // a formula, an equation or text
	kindList  = 'l' // no order: a list without brackets, a set, a union
	kindTuple = 't' // ordered, with brackets: tuples and intervals
	kindRows  = 'm' // matrix
)

const maxNesting = 8

func shapeOf(text string, depth int) shape {
	text = strings.TrimSpace(text)
	if depth > maxNesting {
		return shape{kind: kindPlain, text: text}
	}
	if date := dateOf(text); date != "" {
		return shape{kind: kindPlain, text: date}
	}
	if s, ok := solutions(text); ok {
		return s
	}
	if m := namedItems.FindStringSubmatch(text); m != nil {
		return shapeOf(m[1], depth+1)
	}
	if rows := matrix(text); rows != nil {
		s := shape{kind: kindRows}
		for _, row := range rows {
			s.items = append(s.items, tuple(row, '[', ']', depth))
		}
		return s
	}
	if parts := splitTop(text, `\cup`); len(parts) > 1 {
		return list(parts, depth)
	}
	if parts := splitTop(text, ";"); len(parts) > 1 {
		return list(parts, depth)
	}
	if thousands.FindString(text) == "" {
		if parts := splitTop(text, ","); len(parts) > 1 {
			return list(parts, depth)
		}
	}
	if parts := conjunction(text); len(parts) > 1 {
		s := list(parts, depth)
		if orElse.MatchString(text) && !slices.ContainsFunc(s.items, func(item shape) bool { return !equalShapes(item, s.items[0]) }) {
			return s.items[0] // said twice: "1/2 or 50%"
		}
		return s
	}
	if text == `\emptyset` || text == setOpen+setClose {
		return shape{kind: kindList}
	}
	if text == `\mathbb{R}` {
		return tuple([]string{`-\infty`, `\infty`}, '(', ')', depth)
	}
	if m := suchThat.FindStringSubmatch(text); m != nil {
		return shapeOf(m[1], depth+1)
	}
	if inner, ok := within(text, setOpen, setClose); ok {
		return list(splitTop(inner, ","), depth)
	}
	if inner, ok := within(text, "{", "}"); ok {
		if parts := splitTop(inner, ","); len(parts) > 1 {
			return list(parts, depth)
		}
	}
	if m := french.FindStringSubmatch(text); m != nil && (m[1] == "]" || m[4] == "[") {
		other := strings.NewReplacer("]", "(", "[", "[")
		end := strings.NewReplacer("[", ")", "]", "]")
		return tuple([]string{m[2], m[3]}, other.Replace(m[1])[0], end.Replace(m[4])[0], depth)
	}
	for _, open := range []string{"(", "["} {
		for _, end := range []string{")", "]"} {
			if inner, ok := within(text, open, end); ok {
				if parts := splitTop(inner, ","); len(parts) > 1 {
					return tuple(parts, open[0], end[0], depth)
				}
			}
		}
	}
	if strings.Contains(text, `\pm`) || strings.Contains(text, `\mp`) {
		up := strings.NewReplacer(`\pm`, "+", `\mp`, "-").Replace(text)
		down := strings.NewReplacer(`\pm`, "-", `\mp`, "+").Replace(text)
		return list([]string{up, down}, depth)
	}
	if parts := compound.FindStringSubmatch(text); parts != nil {
		return list(parts[1:], depth)
	}
	if parts := feetInches.FindStringSubmatch(text); parts != nil {
		return list([]string{parts[1] + " ft", parts[2] + " in"}, depth)
	}
	c := clockOf(text)
	s, ok := ratio(text)
	switch {
	case c != nil && c.minute%60 == 0 && c.second == 0 && leading.MatchString(text):
		s = plain(leading.FindString(text)) // 3:00 is 3
	case !ok:
		s = plain(text)
	}
	s.clock = c
	return s
}

var (
	// french is an interval whose open ends have brackets turned outwards.
	french = regexp.MustCompile(`^([\[\]])([^\[\]]+),([^\[\]]+)([\[\]])$`)
	// suchThat is a set by what holds for its members.
	suchThat = regexp.MustCompile(`^` + setOpen + `\s*[A-Za-z]\s*(?:\\mid\b|:|\|)(.*)` + setClose + `$`)
	// namedItems are a point, a set or a matrix with its name: "v = (1,2)".
	namedItems = regexp.MustCompile(`^[A-Za-z](?:_\w)?\s*=\s*((?:[(\[]|` + setOpen + `).*,.*(?:[)\]]|` + setClose + `)|\\begin\b.*)$`)
	// compound is an amount in two units.
	compound   = regexp.MustCompile(`^(\d+\s*[A-Za-z]+\.?)\s+(\d+(?:\.\d+)?\s*[A-Za-z]+)$`)
	feetInches = regexp.MustCompile(`^(\d+)['’]\s*(\d+(?:\.\d+)?)(?:"|''|”)?$`)
)

func list(parts []string, depth int) shape {
	s := shape{kind: kindList}
	for _, p := range parts {
		item := shapeOf(lastJoined.ReplaceAllString(p, ""), depth+1)
		if item.kind == kindList {
			s.items = append(s.items, item.items...)
			continue
		}
		s.items = append(s.items, item)
	}
	return s
}

// lastJoined is before the last of a list: "1, 2, and 3".
var lastJoined = regexp.MustCompile(`^\s*(?:and|or|⟦\s*(?:and|or)\s*⟧)\s`)

func tuple(parts []string, open, end byte, depth int) shape {
	s := shape{kind: kindTuple, open: open, close: end}
	for _, p := range parts {
		s.items = append(s.items, shapeOf(p, depth+1))
	}
	return s
}

func plain(text string) shape {
	text = withoutSum(text)
	s := shape{kind: kindPlain, text: text, amount: amountOf(text)}
	if left, right, ok := strings.Cut(text, "="); ok && !strings.Contains(right, "=") {
		l, errL := parseExpression(strings.TrimSpace(left))
		r := amountOf(strings.TrimSpace(right))
		e, errR := parseExpression(r.formula)
		if errL == nil && errR == nil {
			s.left, s.formula, s.amount = l, e, r
			return s
		}
		// A name before the sign: "number of apples = 3".
		if errR == nil && errL != nil && hasLetters(left) {
			s.formula, s.amount = e, r
		}
		return s
	}
	if e, err := parseExpression(s.amount.formula); err == nil {
		s.formula = e
	}
	if s.formula == nil || s.short {
		s.product, _ = parseProduct(text)
	}
	return s
}

// withoutSum leaves of "2 + 3 = 5" and "x = 2 + 3 = 5" the 5, and the name before it.
func withoutSum(text string) string {
	sides := strings.Split(text, "=")
	if len(sides) == 1 || slices.Contains([]string{"<", ">", `\`, "!"}, lastOf(sides[0])) {
		return text
	}
	first := len(sides) // of the sides that are numbers, up to the end
	for first > 0 && isNumber(sides[first-1]) {
		first--
	}
	switch last := strings.TrimSpace(sides[len(sides)-1]); {
	case first == 0 && isRoundingOf(last, sides[0]):
		return strings.TrimSpace(sides[0])
	case first == 0:
		return last
	case first == 1 && len(sides) > 2:
		return sides[0] + "= " + last
	}
	return text
}

// isRoundingOf reports whether a decimal is what another number rounds to: "0.33" of "1/3".
func isRoundingOf(decimal, number string) bool {
	_, decimals, ok := strings.Cut(decimal, ".")
	exact, err := parseExpression(amountOf(clean(number)).formula)
	rounded, okRounded := new(big.Rat).SetString(decimal)
	if !ok || !okRounded || err != nil || len(exact.variables) > 0 || !isDecimal(strings.TrimPrefix(decimal, "-")) {
		return false
	}
	y := exact.at(nil)
	r, okY := new(big.Rat).SetString(strconv.FormatFloat(real(y.c), 'f', len(decimals), 64))
	return y.isDefined() && math.Abs(imag(y.c)) <= near && okY && r.Cmp(rounded) == 0
}

func lastOf(text string) string {
	if text = strings.TrimSpace(text); text == "" {
		return ""
	}
	return text[len(text)-1:]
}

func hasLetters(text string) bool {
	return strings.ContainsFunc(text, unicode.IsLetter)
}

// matrix returns the cells of a matrix, nil if the text is none.
func matrix(text string) [][]string {
	for _, brackets := range []string{"()", "[]"} {
		if inner, ok := within(text, brackets[:1], brackets[1:]); ok {
			text = strings.TrimSpace(inner)
		}
	}
	m := matrixEnd.FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	var rows [][]string
	for _, row := range strings.Split(m[1], `\\`) {
		if strings.TrimSpace(row) != "" {
			rows = append(rows, strings.Split(row, "&"))
		}
	}
	return rows
}

var matrixEnd = regexp.MustCompile(`(?s)^\\begin\{(?:[pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{(?:[pbB]?matrix|array)\}$`)

// conjunction splits "3 and 5", "x = 3 or x = 5", "B and D" where each part has a digit or is a choice, and "red and blue".
func conjunction(text string) []string {
	parts := strings.FieldsFunc(conjunctions.ReplaceAllString(text, "\x00"), func(r rune) bool { return r == 0 })
	for _, p := range parts {
		if !strings.ContainsAny(p, "0123456789") && !choice.MatchString(p) && (orElse.MatchString(text) || !fewWords.MatchString(p)) {
			return nil
		}
	}
	if mixedUnit.MatchString(text) {
		return nil
	}
	return parts
}

// mixedUnit is a mixed number with its unit.
var mixedUnit = regexp.MustCompile(`^[-+]?\d+\s+and\s+\d+/\d+\b`)

// fewWords are a name.
var fewWords = regexp.MustCompile(`^\s*[A-Za-z]{2,}(?:\s+[A-Za-z]+)?\s*$`)

var orElse = regexp.MustCompile(`\bor\b`)

var conjunctions = regexp.MustCompile(`\s+(?:and|or)\s+|\s*⟦\s*,?\s*(?:and|or)\s*⟧\s*`)

// splitTop splits at a separator outside all brackets.
func splitTop(text, separator string) []string {
	var parts []string
	depth, from := 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case strings.IndexByte("([{", c) >= 0 || strings.HasPrefix(text[i:], setOpen):
			depth++
		case strings.IndexByte(")]}", c) >= 0 || strings.HasPrefix(text[i:], setClose):
			depth--
		case depth == 0 && strings.HasPrefix(text[i:], separator):
			parts = append(parts, text[from:i])
			from = i + len(separator)
			i = from - 1
		}
	}
	return append(parts, text[from:])
}

// within returns what brackets hold that are around all of a text.
func within(text, open, end string) (string, bool) {
	if len(text) < len(open)+len(end) || !strings.HasPrefix(text, open) || !strings.HasSuffix(text, end) {
		return "", false
	}
	inner := text[len(open) : len(text)-len(end)]
	depth := 0
	for i := range len(inner) {
		switch {
		case strings.IndexByte("([{", inner[i]) >= 0:
			depth++
		case strings.IndexByte(")]}", inner[i]) >= 0:
			if depth--; depth < 0 {
				return "", false
			}
		}
	}
	return inner, depth == 0
}

// pointOf is a list of values that have names as the point that they make: "y=2, x=1" is (1, 2).
func pointOf(list shape) shape {
	items := slices.Clone(list.items)
	for i, item := range items {
		if item.left == nil || len(item.left.variables) != 1 || !isName(item.text) {
			return list
		}
		items[i].text = item.left.variables[0]
	}
	slices.SortFunc(items, func(a, b shape) int { return strings.Compare(a.text, b.text) })
	for i := range items {
		if i > 0 && items[i].text == items[i-1].text {
			return list
		}
		items[i].left = nil
	}
	return shape{kind: kindTuple, open: '(', close: ')', items: items}
}

var toRatio = regexp.MustCompile(`^[\d.]+(?:\s+(?:to|in|out of)\s+[\d.]+)+$`)
var ratioWord = regexp.MustCompile(`to|in|out of`)

// ratio reads "3:4" and "3 out of 4" as the quotient, and "3:4:5" as the quotients by the first.
func ratio(text string) (s shape, ok bool) {
	if toRatio.MatchString(text) {
		text = ratioWord.ReplaceAllString(text, ":")
	}
	parts := splitTop(text, ":")
	for _, p := range parts {
		if p = strings.TrimSpace(p); p == "0" {
			return s, false // a range
		}
		if _, err := parseExpression(p); err != nil {
			return s, false
		}
	}
	over := func(a, b string) shape { return plain("(" + a + ")/(" + b + ")") }
	switch len(parts) {
	case 1:
		return s, false
	case 2:
		return over(parts[0], parts[1]), true
	}
	s = shape{kind: kindTuple, open: ':', close: ':'}
	for _, p := range parts[1:] {
		s.items = append(s.items, over(p, parts[0]))
	}
	return s, true
}
