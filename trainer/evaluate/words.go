package evaluate

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// numerals are the words that numbers are made of. Those from a hundred on multiply what is before them.
var numerals = map[string]int64{
	"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
	"eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
	"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
	"hundred": 100, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12,
}

// denominators are the words for parts of a whole, in the singular.
var denominators = map[string]int64{
	"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
}

var (
	// signWord is a sign in words before a number.
	signWord = regexp.MustCompile(`(?i)^(negative|minus|positive|plus)\s+`)
	// numeralWords are a number in words at the beginning of an answer, and what follows it.
	numeralWords = regexp.MustCompile(`(?i)^((?:an?\s+)?(?:` + oneOf(numerals) + `)(?:(?:\s+and\s+|\s+|-)(?:` + oneOf(numerals) + `))*)\b`)
	partWords    = regexp.MustCompile(`(?i)^(?:\s+|-)(` + oneOf(denominators) + `)(s?)\b`)
	onePart      = regexp.MustCompile(`(?i)^(?:an?\s+)?(half|(?:an?\s+)(?:` + oneOf(denominators) + `))\b`)
	// halfOf is half of what multiplies, and aDozen one; again is a number in digits behind the same in words.
	aDozen = regexp.MustCompile(`(?i)^an?(\s+dozen\b.*)$`)
	halfOf = regexp.MustCompile(`(?i)^half\s+an?(\s+(?:dozen|hundred|thousand|million|billion)\b.*)$`)
	again  = regexp.MustCompile(`^\s*\((\d+)\)`)
	// andPart is the fraction of a mixed number, also behind digits.
	andPart = regexp.MustCompile(`(?i)^\s+and\s+(?:an?|one)\s+(half|third|quarter)\b`)
	// noCount is behind a word that does not count what follows: "one of them", "five or six", "one-to-one", "twenty third".
	noCount = regexp.MustCompile(`(?i)^(?:[-'’\p{L}\d]|\s+(?:of|or|and|to|by|in|out|at|is|was|plus|minus|times|who|that|another|first|second|` + oneOf(denominators) + `)\b|\s+\d)`)
	leading = regexp.MustCompile(`^\d+`)
)

func oneOf(words map[string]int64) string {
	return strings.Join(slices.Sorted(maps.Keys(words)), "|")
}

// inDigits is an answer that begins with a number in words, with digits instead: "minus twenty-five apples" is "-25 apples".
func inDigits(text string) string {
	sign, rest := "", text
	if m := signWord.FindStringSubmatch(text); m != nil {
		rest = text[len(m[0]):]
		if strings.EqualFold(m[1], "negative") || strings.EqualFold(m[1], "minus") {
			sign = "-"
		}
	}
	number, after, ok := leadingNumber(rest)
	switch {
	case ok:
		return sign + number + after
	case rest != text && strings.ContainsAny(rest[:min(1, len(rest))], `0123456789.$\`):
		return sign + rest
	}
	return text
}

func leadingNumber(text string) (number, after string, ok bool) {
	if m := halfOf.FindStringSubmatch(text); m != nil {
		return "1/2", m[1], true
	}
	if m := onePart.FindStringSubmatch(text); m != nil {
		words := strings.Fields(strings.ToLower(m[1]))
		return fraction(1, words[len(words)-1]), text[len(m[0]):], true
	}
	if m := aDozen.FindStringSubmatch(text); m != nil {
		return "1", m[1], true
	}
	digits := leading.FindString(text)
	after = text[len(digits):]
	if digits == "" {
		m := numeralWords.FindString(text)
		n, known := valueOf(strings.ToLower(m))
		if !known {
			return "", "", false
		}
		digits, after = strconv.FormatInt(n, 10), text[len(m):]
		if a := again.FindStringSubmatch(after); a != nil && a[1] == digits {
			after = after[len(a[0]):]
		}
		if p := partWords.FindStringSubmatch(after); p != nil && (p[2] == "") == (n == 1) { // "twenty third" is no part
			return fraction(n, p[1]), after[len(p[0]):], true
		}
	}
	if p := andPart.FindStringSubmatch(after); p != nil {
		return digits + " " + fraction(1, p[1]), after[len(p[0]):], true
	}
	return digits, after, len(after) < len(text) && !noCount.MatchString(after) && !isDigit(text[0])
}

func fraction(n int64, part string) string {
	return strconv.FormatInt(n, 10) + "/" + strconv.FormatInt(denominators[strings.ToLower(part)], 10)
}

// valueOf is the number that words name; words which follow each other as in no number name none.
func valueOf(words string) (n int64, ok bool) {
	var total, group int64 // of thousands and more, and below
	scale := int64(1e15)   // the last of thousands and more
	list := strings.FieldsFunc(words, func(r rune) bool { return r == ' ' || r == '-' })
	for i, w := range list {
		v, known := numerals[w]
		switch {
		case w == "a" || w == "an":
			group = 1
			if len(list) < 2 || numerals[list[1]] < 100 {
				return 0, false
			}
		case w == "and":
		case !known, v == 0 && len(list) > 1:
			return 0, false
		case v >= 1000:
			if group == 0 || v >= scale {
				return 0, false
			}
			total, group, scale = total+group*v, 0, v
		case v == 100:
			if group == 0 || group >= 100 {
				return 0, false
			}
			group *= 100
		case v >= 10 && group%100 != 0, v < 10 && (group%10 != 0 || group%100 == 10):
			return 0, false
		default:
			group += v
		}
		n, ok = total+group, i == len(list)-1
	}
	return n, ok
}
