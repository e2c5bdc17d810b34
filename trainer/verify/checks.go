package verify

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"cftune/trainer/evaluate"
)

// Check is something that may be wrong with a row.
type Check string

// The checks.
const (
	Mismatch   Check = "mismatch"   // the verdict is against the label
	NoVerdict  Check = "no_verdict" // the critique does not conclude, or contradicts itself
	Empty      Check = "empty"      // there is no critique
	Truncated  Check = "truncated"  // the critique breaks off: no verdict, no end mark, no end of a sentence
	Unended    Check = "unended"    // whole, but without [END]
	Short      Check = "short"
	Long       Check = "long"
	Repetition Check = "repetition" // the same words over and over
	Duplicate  Check = "duplicate"  // an earlier row has the same query, response and critique
	Disagree   Check = "disagree"   // other critiques of the same response conclude otherwise
	Leak       Check = "leak"       // a test set asks the same
)

// Checks lists the checks in the order of the report.
func Checks() []Check {
	return []Check{Mismatch, NoVerdict, Empty, Truncated, Unended, Short, Long, Repetition, Duplicate, Disagree, Leak}
}

// Policy is what becomes of a row that fails a check.
type Policy string

// The policies.
const (
	Keep       Policy = "keep"
	Drop       Policy = "drop"
	DownWeight Policy = "down-weight" // its loss counts less
	Relabel    Policy = "relabel"     // for Disagree: the majority's verdict becomes the label
)

// DefaultPolicies drop what would teach something false or nothing, and keep what is a matter of taste.
func DefaultPolicies() map[Check]Policy {
	return map[Check]Policy{
		Mismatch: Drop, NoVerdict: Drop, Empty: Drop, Truncated: Drop, Unended: Keep, Short: Keep, Long: Keep, Repetition: Drop, Duplicate: Drop,
		Disagree: DownWeight, Leak: Drop,
	}
}

// Limits say from where on a critique is short or long, in characters.
type Limits struct {
	Short int `json:"short"` // fewer are short
	Long  int `json:"long"`  // more are long
}

// form returns the checks that a critique fails by its form alone.
func form(critique string, verdict evaluate.Verdict, l Limits) []Check {
	text := strings.TrimSpace(critique)
	if text == "" {
		return []Check{Empty}
	}
	var failed []Check
	_, ended := evaluate.CutAtEnd(text)
	switch {
	case !ended && verdict == evaluate.NoVerdict && !endsSentence(text):
		failed = append(failed, Truncated)
	case !ended:
		failed = append(failed, Unended)
	}
	switch n := utf8.RuneCountInString(text); {
	case n < l.Short:
		failed = append(failed, Short)
	case l.Long > 0 && n > l.Long:
		failed = append(failed, Long)
	}
	if repeats(text) {
		failed = append(failed, Repetition)
	}
	return failed
}

func endsSentence(text string) bool {
	text = strings.TrimRightFunc(text, func(r rune) bool { return strings.ContainsRune("*_\"'`)]}$”’", r) || unicode.IsSpace(r) })
	last, _ := utf8.DecodeLastRuneInString(text)
	return strings.ContainsRune(".!?。！？", last)
}

// A critique repeats itself if so many words in a row come so often, or if a short run of words fills this share of it.
const (
	loopWords  = 12
	loopTimes  = 5
	shortLoop  = 3 // words
	shortShare = 0.5
	leastWords = 40 // for the share to mean something
)

// repeats reports whether a text goes round in circles, as models do that do not find an end.
func repeats(text string) bool {
	words := strings.Fields(strings.ToLower(text))
	if most, _ := mostFrequent(words, loopWords); most >= loopTimes {
		return true
	}
	most, total := mostFrequent(words, shortLoop)
	return total >= leastWords && float64(most*shortLoop) >= shortShare*float64(total)
}

// mostFrequent returns how often the most frequent run of n words comes, and how many words there are.
func mostFrequent(words []string, n int) (most, total int) {
	counts := map[string]int{}
	for i := 0; i+n <= len(words); i++ {
		key := strings.Join(words[i:i+n], " ")
		counts[key]++
		most = max(most, counts[key])
	}
	return most, len(words)
}

// normalize brings a text to its letters and digits, in lower case, words apart by one space.
func normalize(text string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(text), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }), " ")
}
