package evaluate

import (
	"regexp"
	"slices"
	"strings"
)

var (
	comparison = regexp.MustCompile(`\\(?:le|ge|lt|gt)\b|[<>]`)
	variable   = regexp.MustCompile(`^\s*(?:[A-Za-z]|\\[A-Za-z]+)(?:_\{?\w+\}?)?\s*$`)
)

// solutions is an inequality of a variable between numbers as an interval, with the variable's name: "5 > x \ge 2" is [2, 5).
func solutions(text string) (s shape, ok bool) {
	sides := comparison.Split(text, -1)
	signs := comparison.FindAllString(text, -1)
	at := slices.IndexFunc(sides, variable.MatchString)
	if len(sides) < 2 || len(sides) > 3 || at < 0 || len(sides) == 3 && at != 1 {
		return s, false
	}
	s = shape{kind: kindTuple, open: '(', close: ')', text: strings.TrimSpace(sides[at]), items: []shape{plain(`-\infty`), plain(`\infty`)}}
	bounded := [2]bool{}
	for i, sign := range signs {
		number := sides[i]
		if i >= at {
			number = sides[i+1]
		}
		if !isNumber(number) {
			return s, false
		}
		end, closed := 0, strings.HasPrefix(sign, `\le`) || strings.HasPrefix(sign, `\ge`)
		if greater := sign == ">" || sign == `\ge` || sign == `\gt`; greater == (i < at) { // "5 > x" and "x < 5"
			end = 1
		}
		if bounded[end] {
			return s, false
		}
		bounded[end] = true
		s.items[end] = plain(strings.TrimSpace(number))
		switch {
		case closed && end == 0:
			s.open = '['
		case closed:
			s.close = ']'
		}
	}
	return s, true
}
