package evaluate

import (
	"regexp"
	"slices"
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
	minerva = regexp.MustCompile(`(?i)final answer is:?\s*\$(.*?)\$\.? i hope`)
	boxed   = regexp.MustCompile(`\\f?boxed\s*(\{|[^\s{])`)
	hash    = regexp.MustCompile(`(?m)####[ \t]*(.+)$`)
	// stated is how an answer is said to be one, or not to be; where it is "Final answer" on a line of its own, the answer is below. It is
	// known in some other languages.
	stated = regexp.MustCompile(`(?i)(?:\bans(?:wers?)?\b|\b(?:correct|right|best|final)[ \t]+(?:option|choice)\b|(?:^|[^\p{L}])(?:antwort|r[ée]ponse|respuesta|resposta|risposta|ответ)|答案|答え|정답)` +
		`(?:[ \t]+(?:is|are|final[ae]?)\b)?[*_]*[ \t]*:?[*_]*[ \t]*` +
		`(?:[:=]|(?:is|are|equals|(?:should|would|must|could|may|might)[ \t]+be|est|es|ist|lautet)\b|(?:comes|works|turns)[ \t]+(?:out[ \t]+)?to(?:[ \t]+be)?\b|(?:是|为|為|は|은|는|é|è)|(不是|(?:ist|n['’]est)[ \t]+(?:nicht|pas)\b|no[ \t]+es\b|(?:is|are)n['’]t\b|(?:can(?:not|['’]t)|(?:could|would|should|must)(?:n['’]t|[ \t]+not))[ \t]+be\b))` +
		`[*_]*[ \t]*:?[ \t]*|(?m:^[ \t#*_]*final answer[ \t*_]*$)`)
	// notStated is how it begins where it is said what it is not, and corrected is before what it is instead.
	notStated = regexp.MustCompile(`(?i)^[*_]*(?:\w+ly[ \t]+)?(?:not|never|neither|unlikely|no[ \t]+longer|nicht|pas)\b`)
	corrected = regexp.MustCompile(`(?i)^[^\n]*?[\s,;.](?:but(?:[ \t]+rather)?|rather|(?:it|that)(?:[ \t]+is|['’]s))[ \t]+([^\n]*)`)
	// assessed is a statement that says of the answer what it is like.
	assessed = regexp.MustCompile(`(?i)^(?:\w+ly[ \t]+|also[ \t]+|indeed[ \t]+)*(?:(?:in)?correct|right|wrong|reasonable|(?:in)?valid|verified|confirmed|helpful|useful|(?:un)?clear|an[ \t]+integer|as[ \t]+follows|in[ \t]+\p{L}+)(?:(?:,|[ \t]+(?:because|since|as|and|to|by))[ \t].*)?$`)
	// demanded is how it begins where it says what an answer should be like; without a number, it is not one.
	demanded = regexp.MustCompile(`(?i)\b(?:must|should)\b`)
	// below is the line under a heading, where nothing stands under it.
	below = regexp.MustCompile(`^[ \t]*\n\s*([^\n]+?)[ \t]*(?:\n[ \t]*(?:\n|$)|$)`)
	// inverted is a statement that begins with the answer.
	inverted = regexp.MustCompile(`(?i)(\$?[-\d][^\s]*|\([A-J]\))(?:[ \t]+\p{L}+)?[ \t]+is[ \t]+(?:the|my|our)[ \t]+(?:(?:final|correct|right)[ \t]+)?answer\b`)
	// aside is at the end of a sentence, and not what it says.
	aside    = regexp.MustCompile(`(?:[ \t]+\([^()\n=]*\)|,[ \t]*(?:and[ \t]+)?not\b[^.\n]*)[.\s]*$`)
	lettered = regexp.MustCompile(`(?m)^[ \t]*A:[ \t]*(.+)$`)
	tagged   = regexp.MustCompile(`(?s)<answer>(.*?)</answer>|"(?:final_)?answer"\s*:\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",}]+))`)
	number   = regexp.MustCompile(`\b\d{4}-\d\d-\d\d\b|[-−]?\$?(?:\d{1,3}(?:,\d{3})+\b(?:\.\d+)?|\d*\.\d+|\d+)(?:[eE][-+]?\d{1,3}\b|(?:\s*(?:[×x*]|\\times|\\cdot)\s*10\^\{?-?\d+\}?)|(?::\d{1,2}\b)+|\s\d+/\d+|(?:\s*/\s*\d+)+)?%?`)
	// alternatives are two numbers at the end of a text of which neither is said to be it.
	alternatives = regexp.MustCompile(`(?i)(?:\p{L},?\s+\$?\d+\s+or|\bbetween\s+\$?\d+\s+and)\s+\$?\d+(?:\s+\p{L}+)?[.\s]*$`)
	// sentenceEnd is where a stated answer is over: a full stop, question or exclamation mark before a space.
	sentenceEnd = regexp.MustCompile(`[.!?]["'”’)*_]*(?:\s|$)`)
)

// ExtractAnswer finds the final answer of a text. The marks are tried in this order, the last of each kind counting:
// Minerva's ending, \boxed with balanced braces, GSM8K's ####, <answer>, "answer is" and "Answer:", a line that begins with "A:",
// "18 is the answer". Of a text without a mark it is all, if that is a formula, or else the last number: in the formula that it ends with,
// in bold in the last line, or anywhere but in a last remark in parentheses. What is said not to be the answer is none. What stands
// behind the first end mark ([END] and the like) does not count, since a model that learned critiques goes on into one; nor does a
// thought before </think>, or one that does not end.
func ExtractAnswer(text string) Extracted {
	text = alike(said(text))
	if m := lastMatch(minerva, text); m != "" {
		return Extracted{m, MarkStatement}
	}
	if content, ok := lastBoxed(text); ok {
		return Extracted{content, MarkBoxed}
	}
	if m := lastHash(text); m != "" {
		return Extracted{m, MarkHash}
	}
	if all := tagged.FindAllStringSubmatch(text, -1); all != nil {
		if m := strings.TrimSpace(strings.Join(all[len(all)-1][1:], "")); m != "" {
			return Extracted{m, MarkStatement}
		}
	}
	statement, text := lastStatement(text)
	if statement != "" {
		return Extracted{statement, MarkStatement}
	}
	for _, pattern := range []*regexp.Regexp{lettered, inverted} {
		if m := lastMatch(pattern, text); m != "" {
			return Extracted{m, MarkStatement}
		}
	}
	if line := strings.Trim(oneLine(text), "*"); len(line) <= maxFormula && isFormula(shapeOf(clean(line), 0)) {
		if all := numbers(line); !wordWithin.MatchString(line) || len(all) == 1 && strings.HasPrefix(line, all[0]) {
			return Extracted{line, MarkNumber}
		}
	}
	if formula := lastFormula(text); formula != "" {
		return Extracted{formula, MarkNumber}
	}
	for _, part := range []string{inBold(text), aside.ReplaceAllString(text, ""), text} {
		if m := alternatives.FindString(part); m != "" {
			return Extracted{m, MarkNumber}
		}
		if all := numbers(part); len(all) > 0 {
			return Extracted{all[len(all)-1], MarkNumber}
		}
	}
	return Extracted{}
}

// lastFormula returns the formula between LaTeX's signs that the last number is in, or what it comes to.
func lastFormula(text string) string {
	all := dollars.FindAllStringSubmatchIndex(text, -1)
	if all == nil {
		return ""
	}
	m := all[len(all)-1]
	inner := text[max(m[2], m[4]):max(m[3], m[5])]
	inner = strings.Trim(inner[strings.LastIndex(inner, "=")+1:], " .\n")
	if m[1] < len(text) && isDigit(text[m[1]]) || len(numbers(inner)) == 0 || len(numbers(text[m[1]:])) > 0 || !isFormula(shapeOf(clean(inner), 0)) {
		return ""
	}
	return inner
}

// inBold returns what the last line has in bold.
func inBold(text string) string {
	text = strings.TrimSpace(text)
	var parts []string
	for _, m := range bold.FindAllStringSubmatch(text[strings.LastIndex(text, "\n")+1:], -1) {
		parts = append(parts, m[1])
	}
	return strings.Join(parts, " ; ")
}

var bold = regexp.MustCompile(`\*\*([^*]+)\*\*`)

// wordWithin is a word between others: what is around it is a sentence.
var wordWithin = regexp.MustCompile(`\s[a-z]{2,}\s`)

// isFormula reports whether an answer is a formula, or consists of formulas.
func isFormula(s shape) bool {
	if s.kind == kindPlain {
		return s.formula != nil
	}
	return len(s.items) > 0 && !slices.ContainsFunc(s.items, func(item shape) bool { return !isFormula(item) })
}

// lastHash returns what stands behind the last ####, unless that is a heading, which is words with something below.
func lastHash(text string) string {
	all := hash.FindAllStringSubmatchIndex(text, -1)
	for i := len(all) - 1; i >= 0; i-- {
		content := strings.Trim(text[all[i][2]:all[i][3]], " \t*_")
		if at := stated.FindStringIndex(content); at != nil && strings.TrimSpace(content[at[1]:]) != "" {
			return firstSentence(content[at[1]:])
		}
		if !headingWord.MatchString(content) || strings.TrimSpace(text[all[i][1]:]) == "" {
			return content
		}
	}
	return ""
}

// headingWord is how a heading begins.
var headingWord = regexp.MustCompile(`^\p{L}{2}`)

// lastStatement returns the last answer that a text states. Without one, rest is where else to look: behind what is said not to be it.
func lastStatement(text string) (statement, rest string) {
	rest = text
	all := stated.FindAllStringSubmatchIndex(text, -1)
	opinion := ""
	for i := len(all) - 1; i >= 0; i-- {
		behind := text[all[i][1]:min(all[i][1]+maxAnswer, len(text))]
		if all[i][2] >= 0 || notStated.MatchString(behind) {
			if m := corrected.FindStringSubmatch(behind); m != nil {
				return firstSentence(m[1]), text
			}
			if i == len(all)-1 {
				_, rest, _ = strings.Cut(text[all[i][1]:], "\n")
			}
			continue
		}
		found := statedIn(behind)
		if assessed.MatchString(found) || demanded.MatchString(text[all[i][0]:all[i][1]]) && !strings.ContainsAny(inDigits(found), `0123456789\`) {
			if opinion == "" {
				opinion = found
			}
			continue
		}
		if found != "" {
			return found, text
		}
	}
	return opinion, rest
}

// statedIn returns what stands behind the words that state an answer: a formula on lines of its own, the rest of the sentence, or a short line below.
func statedIn(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	if strings.TrimSpace(line) != "" {
		return firstSentence(line)
	}
	if m := displayed.FindStringSubmatch(text); m != nil {
		return strings.TrimSpace(m[1] + m[2] + m[3] + m[4])
	}
	if m := below.FindStringSubmatch(text); m != nil && !hasWords(commands.ReplaceAllString(m[1], "")) {
		return firstSentence(m[1])
	}
	return ""
}

// said returns what a text says after its thought and before its end mark. Where that is nothing, what there is counts.
func said(text string) string {
	if endless(text) {
		return ""
	}
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
		if content == "" || notBefore.MatchString(text[max(0, all[i][0]-len("not $\\( ")):all[i][0]]) {
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

// notBefore ends what is before a box that is said not to be the answer.
var notBefore = regexp.MustCompile(`(?i)\bnot\s{1,2}[$\\(\[]*$`)

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
	text = boldEnd.ReplaceAllString(strings.ReplaceAll(text, `\!`, ""), "$1")
	end := sentenceEnd.FindStringIndex(text)
	formulas := dollars.FindAllStringSubmatchIndex(text, -1)
	for k, m := range formulas {
		if end != nil && m[0] >= end[0] {
			break
		}
		inner := text[max(m[2], m[4]):max(m[3], m[5])]
		if m[4] < 0 && (hasWords(inner) && !strings.Contains(inner, `\`) || m[1] < len(text) && isDigit(text[m[1]])) {
			break // it is a currency: "$12 and $34"
		}
		listed := strings.Trim(inner, " ,")
		for _, next := range formulas[k+1:] {
			if !together.MatchString(text[m[1] : next[0]+strings.IndexAny(text[next[0]:], `$\`)]) {
				break
			}
			m, listed = next, listed+", "+strings.Trim(text[max(next[2], next[4]):max(next[3], next[5])], " ,")
		}
		return listed
	}
	if end != nil {
		text = text[:end[0]]
	}
	return strings.Trim(copula.ReplaceAllString(strings.TrimSpace(text), ""), "*_\"'`, ")
}

var (
	// copula ends a statement where the verb comes last.
	copula = regexp.MustCompile(`(?:です|である|だ|입니다|이다)$`)
	// boldEnd is the end of bold type.
	boldEnd = regexp.MustCompile(`\*\*(\s|[.,;]|$)`)
	// commands are LaTeX's, and what they begin and end.
	commands = regexp.MustCompile(`\\(?:begin|end)\{\w+\}|\\[A-Za-z]+`)
)

// dollars is LaTeX between dollar signs, within which escaped ones are currency, or between \( and \) or \[ and \].
var dollars = regexp.MustCompile(`(?:^|[^\\])\$((?:\\.|[^$\\])+)\$|\\[(\[](.+?)\\[)\]]`)
