package evaluate

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
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
	stated   = regexp.MustCompile(`(?i)\banswers?(?:[ \t]+(?:is|are))?[*_]*:?[*_]*[ \t]*(?:[:=]|(?:is|are|equals|(?:should|would|must)[ \t]+be)\b)[*_]*[ \t]*:?[ \t]*`)
	lettered = regexp.MustCompile(`(?m)^[ \t]*A:[ \t]*(.+)$`)
	tagged   = regexp.MustCompile(`(?s)<answer>(.*?)</answer>`)
	number   = regexp.MustCompile(`[-−]?\$?(?:\d{1,3}(?:,\d{3})+\b(?:\.\d+)?|\d*\.\d+|\d+)(?:\s*/\s*\d+)?%?`)
	// sentenceEnd is where a stated answer is over: a full stop, question or exclamation mark before a space.
	sentenceEnd = regexp.MustCompile(`[.!?]["'”’)*_]*(?:\s|$)`)
)

// ExtractAnswer finds the final answer of a text. The marks are tried in this order, the last of each kind counting:
// Minerva's ending, \boxed with balanced braces, GSM8K's ####, <answer>, "answer is" and "Answer:", a line that begins with "A:",
// and otherwise the last number. What stands behind the first end mark ([END] and the like) does not count, since a
// model that learned critiques goes on into one; nor does a thought before </think>.
func ExtractAnswer(text string) Extracted {
	text = said(text)
	if m := lastMatch(minerva, text); m != "" {
		return Extracted{m, MarkStatement}
	}
	if content, ok := lastBoxed(text); ok {
		return Extracted{content, MarkBoxed}
	}
	if m := lastMatch(hash, text); m != "" {
		return Extracted{m, MarkHash}
	}
	if m := lastMatch(tagged, text); m != "" {
		return Extracted{m, MarkStatement}
	}
	if at := stated.FindAllStringIndex(text, -1); at != nil {
		rest := text[at[len(at)-1][1]:]
		line, _, _ := strings.Cut(rest, "\n")
		if m := displayed.FindStringSubmatch(rest); m != nil && strings.TrimSpace(line) == "" {
			return Extracted{strings.TrimSpace(m[1] + m[2] + m[3] + m[4]), MarkStatement}
		}
		if m := firstSentence(strings.ReplaceAll(line, `\!`, "")); m != "" {
			return Extracted{m, MarkStatement}
		}
	}
	if m := lastMatch(lettered, text); m != "" {
		return Extracted{m, MarkStatement}
	}
	if all := numbers(text); len(all) > 0 {
		return Extracted{all[len(all)-1], MarkNumber}
	}
	return Extracted{}
}

// said returns what a text says after its thought and before its end mark. Where that is nothing, what there is counts.
func said(text string) string {
	if at := strings.LastIndex(text, endOfThought); at >= 0 {
		thought, rest := text[:at], text[at+len(endOfThought):]
		if text = rest; strings.TrimSpace(rest) == "" {
			text = thought
		}
	}
	if before, _ := CutAtEnd(text); strings.TrimSpace(before) != "" {
		text = before
	}
	return text
}

const (
	beginOfThought = "<think>"
	endOfThought   = "</think>"
)

// CutThought returns a text without what its writer thinks before it, and whether that was anything. A thought that does not
// end leaves nothing.
func CutThought(text string) (rest string, thought bool) {
	if at := strings.LastIndex(text, endOfThought); at >= 0 {
		return text[at+len(endOfThought):], true
	}
	if endless(text) {
		return "", true
	}
	return text, false
}

// endless reports whether a text is a thought that does not end.
func endless(text string) bool {
	return strings.HasPrefix(strings.TrimSpace(text), beginOfThought) && !strings.Contains(text, endOfThought)
}

// numbers returns the numbers of a text. A hyphen behind a digit or a letter is no sign: "3-5" ends with a 5.
func numbers(text string) []string {
	var list []string
	for _, at := range number.FindAllStringIndex(text, -1) {
		found := text[at[0]:at[1]]
		if before, _ := utf8.DecodeLastRuneInString(text[:at[0]]); unicode.IsDigit(before) || unicode.IsLetter(before) || before == ')' {
			found = strings.TrimLeft(found, "-−")
		}
		list = append(list, found)
	}
	return list
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

// lastBoxed returns what the last \boxed holds; braces that never close take all that is left of the line. Boxes with nothing but
// a comma or a word between them are one answer.
func lastBoxed(text string) (string, bool) {
	all := boxed.FindAllStringSubmatchIndex(text, -1)
	for i := len(all) - 1; i >= 0; i-- {
		content, _ := inBox(text, all[i][2])
		if content == "" {
			continue
		}
		for i--; i >= 0; i-- {
			before, end := inBox(text, all[i][2])
			if before == "" || end > all[i+1][0] || !together.MatchString(text[end:all[i+1][0]]) {
				break
			}
			content = before + ", " + content
		}
		return content, true
	}
	return "", false
}

// displayed is a formula on lines of its own.
var displayed = regexp.MustCompile(`(?s)^\s*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$\n]+)\$)[ \t.]*(?:\n|$)`)

// together is what stands between two parts of one answer.
var together = regexp.MustCompile(`^[ \t]*\$?[ \t]*(?:,|,?[ \t]*(?:and|or)|,?[ \t]*\\text\{ *(?:and|or) *\})[ \t]*\$?[ \t]*$`)

// inBox returns what a box holds whose brace, or else content, begins at from, and where it ends.
func inBox(text string, from int) (content string, end int) {
	if text[from] != '{' {
		word, _, _ := strings.Cut(text[from:], " ")
		word, _, _ = strings.Cut(word, "\n")
		return strings.TrimRight(word, "$.,"), from + len(word)
	}
	content, end = text[from+1:], len(text)
	if length := closing(text[from:]); length > 0 {
		content, end = text[from+1:from+length], from+length+1
	} else {
		content, _, _ = strings.Cut(content, "\n")
	}
	return strings.TrimSpace(content), end
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

// firstSentence cuts a stated answer off where its sentence ends; a formula between LaTeX's signs stands for all of it, and so do
// several that are listed.
func firstSentence(text string) string {
	end := sentenceEnd.FindStringIndex(text)
	formulas := dollars.FindAllStringSubmatchIndex(text, -1)
	for k, m := range formulas {
		if end != nil && m[0] >= end[0] {
			break
		}
		inner := text[max(m[2], m[4]):max(m[3], m[5])]
		if m[4] < 0 && hasWords(inner) && !strings.Contains(inner, `\`) {
			break
		}
		listed := strings.TrimSpace(inner)
		for _, next := range formulas[k+1:] {
			if !together.MatchString(text[m[1] : next[0]+strings.IndexAny(text[next[0]:], `$\`)]) {
				break
			}
			m, listed = next, listed+", "+strings.TrimSpace(text[max(next[2], next[4]):max(next[3], next[5])])
		}
		return listed
	}
	if end != nil {
		text = text[:end[0]]
	}
	return strings.Trim(strings.TrimSpace(text), "*_\"'` ")
}

// dollars is LaTeX between dollar signs, within which escaped ones are currency, or between \( and \) or \[ and \].
var dollars = regexp.MustCompile(`(?:^|[^\\])\$((?:\\.|[^$\\])+)\$|\\[(\[](.+?)\\[)\]]`)
