package evaluate

import (
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Equal reports whether two answers mean the same, in plain or LaTeX notation.
//
// Numbers are compared exactly, in digits or in English words: separators, currency, a unit that only one of the two has, and trailing
// zeros do not count. 50 % is 0.5 and is 50, since both are meant, but no dollars; a decimal with four digits or more stands for what
// it is the rounding of. Formulas are equal if they have the same value at several points, some of them complex: exact for
// rational ones, to ten digits otherwise. Equations may differ by a factor, ratios too. Lists without brackets and sets have no
// order; tuples and intervals have, and keep their brackets; matrices are compared by their cells. An inequality of a variable between
// numbers is an interval. Dates and times of day are compared as such. All else is text.
//
// Letters behind a number are a unit if they are a known one ("5cm"), stand apart or are more than three ("5 men", "5apples"), and
// variables otherwise ("6xy"); "6 ft" is 6 feet, and "1 hour 30 minutes" and "3 to 4" are not 1 and 3. Sums with their result
// ("2 + 3 = 5") stand for that.
//
// Its limits: a formula's domain is not looked at, so x/x is 1; units are names and are never converted; other inequalities,
// and numbers of another base than ten, are text. 3/4/2020 is in March.
func Equal(a, b string) bool {
	a, b = clean(a), clean(b)
	if a == "" || b == "" {
		return false
	}
	if a == b || len(a) > maxAnswer || len(b) > maxAnswer {
		return a == b
	}
	if parts, others := aboutParts(a), aboutParts(b); len(parts) != 1 || len(others) != 1 || parts[0] != a || others[0] != b {
		return slices.ContainsFunc(parts, func(p string) bool {
			return slices.ContainsFunc(others, func(o string) bool { return Equal(p, o) })
		})
	}
	if equalShapes(shapeOf(a, 0), shapeOf(b, 0)) {
		return true
	}
	// "58, 500" and "1,00,000" are lists, but may stand for one number.
	narrowA, narrowB := narrow(a), narrow(b)
	return (narrowA != a || narrowB != b) && equalShapes(shapeOf(narrowA, 0), shapeOf(narrowB, 0))
}

func narrow(text string) string {
	if indian.MatchString(text) {
		return strings.ReplaceAll(text, ",", "")
	}
	return wideThousands.ReplaceAllString(text, ",$1")
}

var wideThousands = regexp.MustCompile(`,\s(\d{3})\b`)

// maxAnswer bounds what is taken apart, in bytes: a longer answer is equal to itself only.
const maxAnswer = 5000

func equalShapes(a, b shape) bool {
	if a.kind == kindList && len(a.items) == 1 && b.kind != kindList {
		a = a.items[0]
	}
	if b.kind == kindList && len(b.items) == 1 && a.kind != kindList {
		b = b.items[0]
	}
	if a.kind == kindList && b.kind == kindTuple {
		a = pointOf(a)
	}
	if b.kind == kindList && a.kind == kindTuple {
		b = pointOf(b)
	}
	if a.kind != b.kind {
		return false
	}
	switch a.kind {
	case kindTuple, kindRows:
		if a.text != "" && b.text != "" && a.text != b.text {
			return false // inequalities of different variables
		}
		return a.open == b.open && a.close == b.close && slices.EqualFunc(a.items, b.items, equalShapes)
	case kindList:
		return equalLists(a.items, b.items)
	}
	return equalPlain(a, b)
}

// equalLists finds a partner in b for each item of a.
func equalLists(a, b []shape) bool {
	if len(a) != len(b) {
		return false
	}
	left := slices.Clone(b)
	for _, item := range a {
		at := slices.IndexFunc(left, func(other shape) bool { return equalShapes(item, other) })
		if at < 0 {
			return false
		}
		left = slices.Delete(left, at, at+1)
	}
	return true
}

func equalPlain(a, b shape) bool {
	if a.clock != nil && b.clock != nil {
		return a.clock.same(b.clock)
	}
	if a.unit != "" && b.unit != "" && differ(a.unit, b.unit) || a.percent && !b.percent && b.unit != "" || b.percent && !a.percent && a.unit != "" {
		return false
	}
	if a.formula == nil || b.formula == nil || a.short != b.short {
		switch {
		case a.formula == nil && b.formula == nil:
			return textOf(a.text) == textOf(b.text)
		case b.product != nil && a.formula != nil && len(a.formula.variables) > 0 && a.left == nil && a.unit == "":
			return equalFormulas(a.formula, b.product)
		case a.product != nil && b.formula != nil && len(b.formula.variables) > 0 && b.left == nil && b.unit == "":
			return equalFormulas(a.product, b.formula)
		case a.formula == nil || b.formula == nil:
			return false
		}
	}
	switch {
	case a.left != nil && b.left != nil:
		return equalEquations(a, b)
	case a.left != nil && !isName(a.text), b.left != nil && !isName(b.text):
		return false // only "x =" and "f(x) =" go without saying
	}
	return equalAmounts(a, b)
}

// isName reports whether the side before an equation's sign is a variable alone, a function of one, or a distance.
func isName(equation string) bool { return nameOnly.MatchString(equation) }

var nameOnly = regexp.MustCompile(`^\s*(?:\|[A-Z]{2}\||\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\^\{?-1\}?)?(?:\(\s*[A-Za-z]\s*\))?|\\frac\s*\{d[a-z]?\}\s*\{d[a-z]\})\s*=`)

func equalAmounts(a, b shape) bool {
	if equalFormulas(a.formula, b.formula) {
		return true
	}
	hundredth := func(e *expression) *expression {
		return &expression{variables: e.variables, at: binary(divide, e.at, constant(whole(100)))}
	}
	switch {
	case a.percent && !b.percent:
		return equalFormulas(hundredth(a.formula), b.formula)
	case b.percent && !a.percent:
		return equalFormulas(a.formula, hundredth(b.formula))
	}
	return false
}

// rounds is at how many points formulas are compared, and leastRounds at how many both must be defined.
const (
	rounds      = 8
	leastRounds = 3
)

// equalFormulas compares values: of formulas without variables once, of others at several points.
func equalFormulas(a, b *expression) bool {
	names := slices.Concat(a.variables, b.variables)
	if len(names) == 0 {
		x, y := a.at(nil), b.at(nil)
		return x.isDefined() && y.isDefined() && (same(x, y) || isRounded(a, b, y) || isRounded(b, a, x))
	}
	if defined, alike := compare(a, b, rounds, func(round int) map[string]value { return point(names, round) }); defined >= leastRounds || !alike {
		return alike
	}
	// Factorials and binomials are of whole numbers only.
	defined, alike := compare(a, b, wholeRounds, func(round int) map[string]value { return wholePoint(names, round) })
	return alike && defined >= leastRounds
}

// compare says at how many points both formulas are defined, and whether they are alike there.
func compare(a, b *expression, rounds int, at func(round int) map[string]value) (defined int, alike bool) {
	for round := range rounds {
		m := at(round)
		x, y := a.at(m), b.at(m)
		if !x.isDefined() || !y.isDefined() {
			continue
		}
		if !same(x, y) {
			return defined, false
		}
		defined++
	}
	return defined, true
}

// wholeRounds is at how many points of small whole numbers formulas are compared that are defined nowhere else.
const wholeRounds = 40

// wholePoint gives each variable a whole number from 1 to 12.
func wholePoint(names []string, round int) map[string]value {
	m := map[string]value{}
	for _, name := range names {
		m[name] = whole(int64(hashOf(name, round)%12) + 1)
	}
	return m
}

func hashOf(name string, round int) uint64 {
	h := uint64(round + 1)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 0x9e3779b97f4a7c15
		h ^= h >> 29
	}
	return h
}

// point gives each variable a value that depends on its name and the round: fractions in even rounds, negative ones
// among them, complex numbers in odd ones.
func point(names []string, round int) map[string]value {
	m := map[string]value{}
	for _, name := range names {
		h := hashOf(name, round)
		num, den := int64(h%97)+2, int64(h>>20%31)+3
		if round%2 == 0 {
			if h>>40%2 == 0 {
				num = -num
			}
			m[name] = exactly(big.NewRat(num, den))
			continue
		}
		m[name] = inexactly(complex(float64(num)/float64(den), 0.3+float64(h>>50%17)/11))
	}
	return m
}

// leastDigits is from how many decimal places on a decimal is taken for a rounded number.
const leastDigits = 4

// isRounded reports whether e is a decimal that another formula's value y, itself no decimal, rounds to.
func isRounded(e, other *expression, y value) bool {
	_, decimals, ok := strings.Cut(e.literal, ".")
	if !ok || other.literal != "" || len(decimals) < leastDigits || math.Abs(imag(y.c)) > near {
		return false
	}
	if y.exact != nil {
		if digits, finite := y.exact.FloatPrec(); finite && digits <= len(decimals) {
			return false // it needs no rounding
		}
	}
	rounded := strconv.FormatFloat(real(y.c), 'f', len(decimals), 64)
	x, okX := new(big.Rat).SetString(e.literal)
	r, okR := new(big.Rat).SetString(rounded)
	return okX && okR && x.Cmp(r) == 0
}

// equalEquations reports whether the sides' differences are the same but for a factor.
func equalEquations(a, b shape) bool {
	difference := func(s shape, m map[string]value) value { return add(s.left.at(m), negate(s.formula.at(m))) }
	names := slices.Concat(a.left.variables, a.formula.variables, b.left.variables, b.formula.variables)
	var before [2]value
	defined := 0
	for round := range rounds {
		m := point(names, round)
		x, y := difference(a, m), difference(b, m)
		if !x.isDefined() || !y.isDefined() {
			continue
		}
		if (x.c == 0) != (y.c == 0) {
			return false
		}
		if defined > 0 && !same(multiply(x, before[1]), multiply(y, before[0])) {
			return false
		}
		before = [2]value{x, y}
		defined++
	}
	return defined >= leastRounds
}
