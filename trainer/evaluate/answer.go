package evaluate

import (
	"regexp"
	"strings"
)

// Match says how well an answer gives the form that was asked for. Each level includes those before it in the list.
type Match struct {
	Anywhere bool // the form is somewhere in the answer, as a word
	Leading  bool // the answer leads with it: its first word, or the one that its first "is" states
	Exact    bool // and nothing else follows
}

const (
	quote = "[\"'`*_“”‘’«»\\s]*" // around a stated form, markdown included
	form  = `([\p{L}]+(?:[-'’][\p{L}]+)*)`
)

var (
	words = regexp.MustCompile(form)
	first = regexp.MustCompile(`(?i)^` + quote + `(?:(?:the )?answer(?: is)?:?` + quote + `)?` + form)
	// undecided is behind a form that is none: another stands beside it ("True or false: false"), or it begins other words ("No idea").
	undecided = regexp.MustCompile(`(?i)^` + quote + `(?:/|or\b|and\s+(?:no|yes|true|false)\b|(?:idea|clue)\b)`)
	// The statement must be in the answer's first sentence: nothing that ends one may stand before the "is".
	states = regexp.MustCompile(`(?i)^[^.!?:\n]*?\b(?:is|are|was|were|will be):?` + quote + form)
)

// MatchAnswer compares an answer with the right form, letter case aside.
func MatchAnswer(answer, gold string) Match {
	var m Match
	for _, w := range words.FindAllString(answer, -1) {
		m.Anywhere = m.Anywhere || strings.EqualFold(w, gold)
	}
	for _, pattern := range []*regexp.Regexp{first, states} {
		at := pattern.FindStringSubmatchIndex(answer)
		if at == nil || !strings.EqualFold(answer[at[2]:at[3]], gold) || undecided.MatchString(answer[at[3]:]) {
			continue
		}
		m.Leading = true
		m.Exact = m.Exact || !words.MatchString(answer[at[3]:])
	}
	return m
}

// critiqueForm is what belongs to critiques and not to answers.
var critiqueForm = regexp.MustCompile(`(?i)\bcritique:|\bconclusion\b|\bthe (?:solution|answer) (?:says|gives|has|is (?:right|wrong|correct|incorrect))\b|\[end`)

// Drifted reports whether an answer has taken on the form of a critique.
func Drifted(answer string) bool { return critiqueForm.MatchString(answer) }
