package evaluate

import (
	"regexp"
	"strings"
)

// The ways in which an answer is marked in a text.
const (
	MarkBoxed     = "boxed"     // \boxed{...}
	MarkHash      = "####"      // GSM8K's
	MarkStatement = "statement" // "the answer is ...", "final answer is $...$. I hope", "A: ..."
	MarkNumber    = "number"    // none of these: the last number
	MarkWord      = "word"      // the right word, where the answer leads with it: see MatchAnswer
)

// Extracted is the final answer of a text.
type Extracted struct {
	Text string // empty: none was found
	Mark string
}

var (
	// minerva is the ending that Minerva's prompts ask for; its dollar signs are LaTeX's.
	minerva  = regexp.MustCompile(`(?i)final answer is:?\s*\$(.*?)\$\.? i hope`)
	boxed    = regexp.MustCompile(`\\f?boxed\s*(\{|[^\s{])`)
	hash     = regexp.MustCompile(`(?m)####[ \t]*(.+)$`)
	stated   = regexp.MustCompile(`(?i)\banswer(?:[ \t]+is)?[*_]*:?[*_]*[ \t]*(?:[:=]|is\b)[*_]*[ \t]*:?[ \t]*`)
	lettered = regexp.MustCompile(`(?m)^[ \t]*A:[ \t]*(.+)$`)
	number   = regexp.MustCompile(`[-−]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|\d)(?:\s*/\s*\d+)?%?`)
	// sentenceEnd is where a stated answer is over: a full stop, question or exclamation mark before a space.
	sentenceEnd = regexp.MustCompile(`[.!?]["'”’)*_]*(?:\s|$)`)
)

// ExtractAnswer finds the final answer of a text. The marks are tried in this order, the last of each kind counting:
// Minerva's ending, \boxed with balanced braces, GSM8K's ####, "answer is" and "Answer:", a line that begins with "A:",
// and otherwise the last number. What stands behind the first end mark ([END] and the like) does not count, since a
// model that learned critiques goes on into one.
func ExtractAnswer(text string) Extracted {
	if before, _ := CutAtEnd(text); strings.TrimSpace(before) != "" {
		text = before
	}
	if m := lastMatch(minerva, text); m != "" {
		return Extracted{m, MarkStatement}
	}
	if content, ok := lastBoxed(text); ok {
		return Extracted{content, MarkBoxed}
	}
	if m := lastMatch(hash, text); m != "" {
		return Extracted{m, MarkHash}
	}
	if at := stated.FindAllStringIndex(text, -1); at != nil {
		line, _, _ := strings.Cut(text[at[len(at)-1][1]:], "\n")
		if m := firstSentence(line); m != "" {
			return Extracted{m, MarkStatement}
		}
	}
	if m := lastMatch(lettered, text); m != "" {
		return Extracted{m, MarkStatement}
	}
	if all := number.FindAllString(text, -1); len(all) > 0 {
		return Extracted{all[len(all)-1], MarkNumber}
	}
	return Extracted{}
}

// Found reports whether there was an answer.
func (e Extracted) Found() bool { return e.Text != "" }

func lastMatch(pattern *regexp.Regexp, text string) string {
	all := pattern.FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return ""
	}
	return strings.TrimSpace(all[len(all)-1][1])
}

// lastBoxed returns what the last \boxed holds; braces that never close take all that is left of the line.
func lastBoxed(text string) (string, bool) {
	all := boxed.FindAllStringSubmatchIndex(text, -1)
	for i := len(all) - 1; i >= 0; i-- {
		from := all[i][2]
		if text[from] != '{' {
			word, _, _ := strings.Cut(text[from:], " ")
			word, _, _ = strings.Cut(word, "\n")
			return strings.TrimRight(word, "$.,"), true
		}
		content := text[from+1:]
		if end := closing(text[from:]); end > 0 {
			content = text[from+1 : from+end]
		} else {
			content, _, _ = strings.Cut(content, "\n")
		}
		if content = strings.TrimSpace(content); content != "" {
			return content, true
		}
	}
	return "", false
}

// closing returns the place of the brace that closes the one which text begins with, 0 if none does.
func closing(text string) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++ // \{ and \} are no braces
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return 0
}

// firstSentence cuts a stated answer off where its sentence ends; LaTeX between dollar signs stands for all of it.
func firstSentence(text string) string {
	end := sentenceEnd.FindStringIndex(text)
	if m := dollars.FindStringSubmatchIndex(text); m != nil && (end == nil || m[0] < end[0]) {
		if inner := text[m[2]:m[3]]; !hasWords(inner) || strings.Contains(inner, `\`) {
			return strings.TrimSpace(inner)
		}
	}
	if end != nil {
		text = text[:end[0]]
	}
	return strings.Trim(strings.TrimSpace(text), "*_\"'` ")
}

// dollars is LaTeX between dollar signs, within which escaped ones are currency.
var dollars = regexp.MustCompile(`(?:^|[^\\])\$((?:\\.|[^$\\])+)\$`)
