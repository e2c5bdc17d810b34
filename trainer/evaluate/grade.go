package evaluate

import (
	"regexp"
	"strings"
)

// Grade is what a text's final answer was found to be worth.
type Grade struct {
	Extracted
	Right bool
}

// GradeAnswer extracts a text's final answer and compares it with the right one.
//
// Where a text states its answer in a sentence ("the answer is that she has 18 left") and the right one is a number, a
// single number of the sentence stands for it. Where it is a choice, "(B) 12" and "option B" are B.
// Where the right answer is one word, it may be stated as MatchAnswer knows it ("The past tense is carried.").
func GradeAnswer(text, gold string) Grade {
	g := Grade{Extracted: ExtractAnswer(text)}
	if word := letters(gold); oneWord.MatchString(word) && g.leadsWith(word, text) {
		return Grade{Extracted{word, MarkWord}, true}
	}
	if choice := choiceOf(gold); choice != "" {
		if g.Mark == MarkNumber || !g.Found() {
			if m := lastOption(said(text)); m != "" {
				g.Extracted = Extracted{m, MarkStatement}
			} else if line := firstLine(text); chosenIn(line) != "" {
				g.Extracted = Extracted{line, MarkStatement}
			}
		}
		answer := unexplained(g.Text)
		g.Right = chosenIn(answer) == choice || Equal(answer, gold) && !anotherChoice.MatchString(answer)
		return g
	}
	if g.Mark == MarkNumber || !g.Found() {
		if line := oneLine(said(text)); (!hasWords(line) || len(numbers(line)) == 0 || dateOf(clean(line)) != "") && Equal(line, gold) {
			return Grade{Extracted{line, MarkWord}, true}
		}
	}
	g.Right = Equal(g.Text, gold) || g.Mark != MarkNumber && g.means(gold)
	return g
}

// leadsWith reports whether a word is the answer, or else, where none is marked but by a sentence, what the text leads with.
func (e Extracted) leadsWith(word, text string) bool {
	if given := letters(e.Text); e.Mark == MarkBoxed || e.Mark == MarkHash || e.Mark == MarkStatement && oneWord.MatchString(given) {
		return MatchAnswer(given, word).Exact
	}
	return MatchAnswer(strings.TrimSpace(said(text)), word).Leading
}

// means reports whether a marked answer that is not itself the right one is so with its explanation, or in a sentence.
func (e Extracted) means(gold string) bool {
	if m := restated.FindStringSubmatch(e.Text); m != nil && Equal(m[1], m[2]) && Equal(m[1], gold) {
		return true
	}
	for _, answer := range []string{unexplained(e.Text), besideChoice.ReplaceAllString(e.Text, ""), decimalComma.ReplaceAllString(e.Text, "$1.$2"), kindOf.ReplaceAllString(e.Text, "")} {
		if answer != e.Text && Equal(answer, gold) {
			return true
		}
	}
	if e.Mark != MarkStatement || isFormula(shapeOf(clean(e.Text), 0)) {
		return false
	}
	if Equal(lastMatch(result, e.Text), gold) {
		return true
	}
	all := numbers(e.Text)
	return len(all) == 1 && isNumber(gold) && (hasWords(e.Text) || adverb.MatchString(e.Text)) && !denied(e.Text, all[0]) && Equal(all[0], gold)
}

// lastOption is the last choice that a text names without refusing it.
func lastOption(text string) string {
	named := ""
	for _, at := range optionIs.FindAllStringSubmatchIndex(text, -1) {
		if !refused.MatchString(text[at[3]:]) {
			named = text[at[2]:at[3]]
		}
	}
	return named
}

// firstLine is the line that a text begins with, if nothing or an empty line is below.
func firstLine(text string) string {
	line, rest, _ := strings.Cut(strings.TrimSpace(said(text)), "\n")
	if below, _, _ := strings.Cut(rest, "\n"); strings.TrimSpace(below) != "" {
		return ""
	}
	return line
}

// oneLine is all of a text, if that is a line.
func oneLine(text string) string {
	if text = strings.TrimSpace(text); strings.Contains(text, "\n") {
		return ""
	}
	return text
}

var (
	// adverb is before a number that is meant.
	adverb = regexp.MustCompile(`(?i)^(?:(?:therefore|thus|hence|so|then|about|around|just|still|indeed|now|number|\w+ly)[,:]?\s|an?\s+\d)`)
	// notNumber and thanNumber end what is before a number that is not meant, where thanNumber's is not itself denied: "no more than 18".
	notNumber = regexp.MustCompile(`(?i)(?:(?:\bnot(?:\s+equal\s+to)?|\b(?:no|never|hardly|minus|negative|almost|nearly|log)|n['’]t|\banything\s+but|\b(?:over|under|above|below|twice|double|triple|times|either|close\s+to|unequal\s+to|divisible\s+by|different\s+(?:from|than)|one\s+in))|\b(?:half|third|quarter|double|root|square|cube|multiple|factor|divisor|reciprocal|inverse|opposite|short)\s+(?:that\s+)?of)\s+$`)
	// ofFormula ends what is before a number that is part of something else.
	ofFormula = regexp.MustCompile(`(?:[\w{]|[\^√/*+<>≤≥≠|_-]\s*|\\[A-Za-z]+\s*)$`)
	// notAll is behind a number that something is done with.
	notAll     = regexp.MustCompile(`(?i)^\s*(?:\^|!|(?:st|nd|rd|th|hundred|thousand|million|billion|trillion|dozen|squared|cubed|factorial|choose|mod|modulo|times|plus|minus|divided|over)\b)`)
	thanNumber = regexp.MustCompile(`(?i)\b(?:less|more|\w+er)\s+than(?:\s+or\s+equal(?:\s+to)?)?\s+$`)
	negation   = regexp.MustCompile(`(?i)\b(?:no|not|cannot|never)\b|n['’]t\b`)
	// bound is how a statement begins that gives no number but a limit.
	bound = regexp.MustCompile(`(?i)^\W*(?:(?:that\s+)?(?:it|this|there)\s+(?:is|are)\s+)?(?:at\s+(?:least|most)|up\s+to|no\s+(?:more|less|fewer)\s+than|over|under|above|below|almost|nearly)\s`)
	// explained is what a stated answer is followed by that is none of it.
	explained = regexp.MustCompile(`(?i)\s*(?:,\s*(?:and\s+)?not\b|\s(?:rather\s+than|instead\s+of|but\s+not)\b|[,(]?\s*\b(?:because|since|as|which|with|weil|denn|car|parce|porque|perché)\b|[,(]?\s*(?:因为|因為|由于)|,\s*(?:so|i\.?e|that\s+is|I\s+[a-z]+|the|or\s+(?:about|approximately|roughly))\b|\s-\s+[a-z]{2}|\s\((?:i\.?e\b|[a-z]{3,}[\s)])).*$`)
	// doubt is in an explanation that names another answer.
	doubt = regexp.MustCompile(`(?i)^\W*(?:maybe|perhaps|possibly|probably|could)\b`)
	// restated is an answer in parentheses behind another form of it, and result what a calculation comes to.
	restated = regexp.MustCompile(`^(.*\S)\s+\(([^()]+)\)$`)
	result   = regexp.MustCompile(`=\s*([^=]+)$`)
	// besideChoice is the letter of a choice beside its value.
	besideChoice = regexp.MustCompile(`^\W*(?:\([A-J]\)|[A-J][.):])\s+|\s*\([A-J]\)\W*$`)
	// kindOf says before an answer what kind of thing it is.
	kindOf = regexp.MustCompile(`(?i)^(?:the\s+)?(?:(?:ordered\s+)?(?:point|pair)|ordered\s+triple|interval|set|vector|matrix|value|ratio|fraction|equation|function)\s+`)
	// decimalComma is a decimal as it is written elsewhere, unless it may be thousands.
	decimalComma = regexp.MustCompile(`^\W*(-?\d+),(\d{1,2}|\d{4,})\b`)

	// A right answer that is one of the choices: a letter, in parentheses or not.
	choice = regexp.MustCompile(`^(?:\(([A-J])\)|([A-J]))$`)
	// chosen is how a text that has been extracted begins with one: "(B) 12", "option B", "B. 12", "B because ..."; an A without a mark may be
	// an article, and an I who speaks.
	chosen = regexp.MustCompile(`^(?i:(?:therefore|thus|hence|so|\w+ly),?\s+)?(?i:(?:option|choice|letter|statement|answer)\s+)?(?:\(([A-Ja-j])\)(?:\W|$)|([A-J])(?:[).:,;!]|$)|([B-HJ])\s|([AI])\s+(?:because|since|as|is)\b|(I)\s+[^a-z\s]|([a-j])\)?$)`)
	// optionIs is how one is named that no answer is said to be.
	optionIs = regexp.MustCompile(`(?:(?i)\b(?:option|choice|choose|pick|select)(?:\s+is)?:?)\s*[*_]*(\(?[A-J]\)?)[*_]*(?:[).:,\s]|$)`)
	// choiceBehind is one behind its value.
	choiceBehind = regexp.MustCompile(`^[^A-Za-z]+\(([A-J])\)$`)
	// refused is behind a choice that is said to be wrong.
	refused = regexp.MustCompile(`(?i)^(?:\W*(?:(?:option|choice)\s+)?\(?[A-J]\b)?\W*(?:is|was|can)(?:(?:n['’]t|not)\b|['’]t\b|\s+(?:not|never|incorrect|wrong|false)\b)`)
	// anotherChoice is one that stands beside the first.
	anotherChoice = regexp.MustCompile(`^\W*(?:(?i:option|choice)\s+)?\(?[A-Ja-j]\)?[\s*_]*(?:,|/|\bor\b|\band\b)\s*(?:(?i:option|choice)\s+)?\(?[A-Ja-j]\)?(?:\W|$)|^\W*\(?[A-J]\)?[\s*_]*\bor\b`)
)

// unexplained is an answer without what explains it; what doubts it stays.
func unexplained(text string) string {
	if at := explained.FindStringIndex(text); at != nil && !doubt.MatchString(text[at[0]:]) {
		text = text[:at[0]]
	}
	return strings.TrimSpace(text)
}

// denied reports whether a sentence says of its number that it is not the one: "certainly not 18", "she has less than 18".
func denied(text, number string) bool {
	before, after, _ := strings.Cut(text, number)
	return ofFormula.MatchString(before) || notAll.MatchString(after) || bound.MatchString(text) || notNumber.MatchString(before) || thanNumber.MatchString(before) && !negation.MatchString(before)
}

// choiceOf is the letter of a right answer that is a choice, or empty.
func choiceOf(gold string) string {
	m := choice.FindStringSubmatch(letters(gold))
	if m == nil {
		return ""
	}
	return m[1] + m[2]
}

// chosenIn is the letter of the choice that an extracted answer begins with; none where another stands beside it.
func chosenIn(text string) string {
	text = letters(text)
	m := chosen.FindStringSubmatch(text)
	if m == nil {
		m = choiceBehind.FindStringSubmatch(text)
	}
	if m == nil || refused.MatchString(text) || anotherChoice.MatchString(text) {
		return ""
	}
	return strings.ToUpper(strings.Join(m[1:], ""))
}

// letters is a cleaned answer without the marks of text within LaTeX.
func letters(text string) string {
	return strings.Trim(strings.NewReplacer(textOpen, "", textClose, "").Replace(clean(text)), " *_\"'`“”‘’<>")
}

// oneWord is a word of more letters than a choice has.
var oneWord = regexp.MustCompile(`^\p{L}[\p{L}'’-]+$`)

var twoWords = regexp.MustCompile(`[A-Za-z]{2,}[^A-Za-z\\]+[A-Za-z]{2,}`)

func hasWords(text string) bool { return twoWords.MatchString(text) }

func isNumber(text string) bool {
	e, err := parseExpression(amountOf(clean(text)).formula)
	return err == nil && len(e.variables) == 0
}

// GoldAnswer is the final answer of a row's gold field: what stands behind GSM8K's ####, or all of it.
func GoldAnswer(gold string) string {
	if m := lastMatch(hash, gold); m != "" {
		return m
	}
	return gold
}
