package evaluate

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Verdict is what a critique concludes about an answer.
type Verdict string

// The verdicts. NoVerdict is its own result: such a critique judged nothing, which is not the same as judging falsely.
const (
	Right     Verdict = "right"
	Wrong     Verdict = "wrong"
	NoVerdict Verdict = ""
)

// Of returns the verdict that an answer deserves.
func Of(right bool) Verdict {
	if right {
		return Right
	}
	return Wrong
}

// The forms that verdicts come in.
const (
	FormConclusion = "conclusion" // "Conclusion: right [END]", "Final Judgement: wrong", a field named correctness_pred
	FormScore      = "score"      // "[RESULT] 4", "so the overall score is 2"
)

// Judgement is what was read out of a critique.
type Judgement struct {
	Verdict Verdict
	Form    string   // of the verdict; empty without one
	Score   *float64 // the last score, on a scale of 1 to 5, whether it decided or not
	Reason  string   // why there is no verdict
}

// Thresholds say what a score of 1 to 5 means. A score between the two gives no verdict.
type Thresholds struct {
	Right float64 `json:"right"` // this much or more
	Wrong float64 `json:"wrong"` // this much or less
}

// DefaultThresholds follow the rubrics of Prometheus, where 4 and 5 praise, and 1 and 2 find fault.
func DefaultThresholds() Thresholds { return Thresholds{Right: 4, Wrong: 2} }

const (
	marks = "[\\s*_\"'`#$(\\[{\\\\<•✅❌✔✓✗✘✖☑\uFE0F-]*" // around words: markdown, quotes, brackets, LaTeX, ticks and crosses
	// A heading, as an own word; the names with underscores are MR-GSM8K's fields.
	heading = `(?:conclu(?:sion|ded?)|(?:final|overall)\s+(?:judge?ment|verdict|assessment|evaluation|decision)|judge?ment|verdict|(?:\w+_)?correctness(?:_pred)?)`
	// Who is said to be right or wrong, before the word.
	subject = `((?:that\s+)?(?:the|this|his|her|their|its|student's|given|proposed|all|every|both|you|they|everything|steps?)\b(?:[^.:!?\n]|\.\d){0,80}?\b(?:(?:is|are|was|were)(?:n['’]t)?|can(?:not|['’]t|\s+not)\s+be)\s+|(?:it|that)(?:\s+is(?:n['’]t)?|['’]s)\s+)?`
	// What may be granted first: "although the method is right, ...".
	granted = `((?:although|though|while|even\s+though)\b(?:[^.:!?\n]|\.\d){0,80}?,\s+)?`
	manner  = `(?:(?:therefore|thus|hence|overall|so|unfortunately|yes|no|I\s+agree)\b[,;]?\s+)?`
	degree  = `(?:(?:completely|entirely|clearly|definitely|fully|totally|absolutely|perfectly|simply|obviously|mathematically|logically|indeed|therefore|thus|also)\s+)?`
	limits  = `(?:(not\s+only|not(?:\s+(?:\w+ly|quite))?|never|hardly|far\s+from|anything\s+but|half|partially|partly|mostly|nearly|almost|largely|somewhat|neither|probably|likely|possibly|apparently|seemingly)[*_]*\s+)?(?:(?:the|an?)\s+)?`
	judged  = `(right|wrong|correct|incorrect)`
)

var (
	// conclusion is a heading with its word. A colon, a dash or a line break must stand between, or the heading must open
	// with "in"; so "its conclusion is incorrect", which
	// judges a part, is none.
	conclusion = regexp.MustCompile(`(?i)(?:\b` + heading + `\b` + marks + `(?:[:：=–—>|-]|\n|is\s*:)|\bin\s+conclusion\b,?|\b(?:I|we)\s+(?:therefore\s+|thus\s+)?conclude\b,?(?:\s+that\b)?)` + marks +
		`(?:text` + marks + `|boxed` + marks + `)*` + granted + manner + subject + `[*_"'` + "`" + `]*` + degree + limits + degree + `[*_"'` + "`" + `]*` + judged +
		`(?:\b|_)([*_"'` + "`" + `]*\s*(?:/|\||\b(?:or|and)\s+` + judged + `\b|\bor\b|\?)|-[a-z]|\s+(?:triangles?|angles?|hand|side)\b|[ \t]+(?:steps?|parts?|units?|number|sum|total)\s*:|\s+(?:answer|solution|result|value)\s*(?:[:=]|(?:is|was|would|should)\b))?`)

	// negated ends what is said to be otherwise than the word behind it: "the answer isn't correct".
	negated = regexp.MustCompile(`(?i)(?:(is|are|was|were)n['’]t|can(?:not|['’]t|\s+not)\s+be)\s+$`)

	// denial is a limit that turns the word around, and doubt one that only says less: "not entirely correct" is wrong, but "not entirely
	// wrong" is nothing, as is "not necessarily correct".
	denial = regexp.MustCompile(`^(?:not|never|hardly|far\s+from|anything\s+but)$`)
	less   = regexp.MustCompile(`^not\s+(?:completely|entirely|fully|totally|quite|strictly|exactly|actually|really)$`)

	// turned is within what is said before the word where the word is about something else: "the answer says 5 but 6 is correct", "the question is wrong".
	turned = regexp.MustCompile(`(?i)\b(?:but|where|whereas|while|when|although|though|instead|rather|not|never|nor|whether|if|unless)\b|n['’]t\b|\b(?:(?:claim|think|believe|assume|suppose|say|argue|conclude)s|check|see|verify|ensure)\s+(?:that|the|this|his|her|its|it)\b|^\W*(?:the|this)\s+(?:question|problem|task)\s+(?:itself\s+)?(?:is|was)\b`)

	// clause is one more judgement in the same sentence, of something that is named: "but the reasoning is incorrect".
	clause = regexp.MustCompile(`(?i)\b((?:the|this|his|her|their|its|student's|steps?)\b[^.:;!?\n]{0,60}?)\b(?:is|are|was|were)(n['’]t)?\s+` + limits + degree +
		`[*_"'` + "`" + `]*(?:(right|correct|sound|valid)|(wrong|incorrect|flawed|faulty|invalid))\b`)

	// unsaid is one that leaves the word out: "but the reasoning is not".
	unsaid = regexp.MustCompile(`(?i)\b((?:the|this|his|her|their|its|student's)\b[^.:;!?\n]{0,60}?)\b(?:is|are|was|were)(?:\s+not|n['’]t)\s*(?:[,;\[]|$)`)

	// besides is the other word for the same thing: "right for the first part and wrong for the second".
	besides = regexp.MustCompile(`(?i)\b(?:and|but|yet)\s+(?:\w+ly\s+)?` + judged + `\b`)

	// part is what a solution has beside its answer.
	part = regexp.MustCompile(`(?i)\b(?:reasoning|logic|methods?|approach|steps?|explanations?|calculations?|workings?|derivations?|formulas?|arguments?|justifications?|process|analysis|setup)\b`)

	// judgedEnd is where what belongs to a conclusion ends: with its sentence, and with the next one if that is an objection.
	judgedEnd = regexp.MustCompile(`(?i)(?:[.!?](?:\s+(however|but|yet|nevertheless|still)\b|\s|$)|\n)`)

	// score is a stated score. A bare "a score of 5" is none: critiques speak of the rubric's scores.
	score = regexp.MustCompile(`(?i)(?:\[result\]` + marks + `(?:score` + marks + `)?:?|\b(?:result|(?:(?:final|overall)\s+)?score)` + marks + `:|\b(?:final|overall)\s+score\s+(?:is|of)\b|\b(?:is|be|gets?|gives?|deserves?|earns?|receives?)\s+an?\s+(?:(?:final|overall)\s+)?score(?:\s+of)?\b)` +
		marks + `(\d+(?:\.\d+)?)\b(?:\s*(?:/|out\s+of)\s*(\d+))?`)

	// endMark is where a critique is over: what a model goes on with behind it is not part of it.
	endMark = regexp.MustCompile(`(?i)\\?\[\s*end\s*\\?\]|\(END\)|\*\*END\*\*|</s>|<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>`)
)

// CutAtEnd returns the text up to the first end mark ([END] and its variants, and the tokens that end a turn), and
// whether there was one.
func CutAtEnd(text string) (string, bool) {
	if at := endMark.FindStringIndex(text); at != nil {
		return text[:at[0]], true
	}
	return text, false
}

// ParseVerdict returns the verdict of a critique, by the default thresholds where it ends in a score.
func ParseVerdict(critique string) Verdict { return Judge(critique, DefaultThresholds()).Verdict }

// Judge reads a critique's verdict.
//
// What counts is what stands after a thought, if that ends, and before the first end mark. A conclusion that asks ("right?") or repeats the instruction
// ("right/wrong") is none. Conclusions that contradict each other, or a score that contradicts them, give no verdict;
// so do a hedged one ("partially correct"), and opinions outside a conclusion. Of one that judges answer and reasoning apart, a wrong answer
// counts; "the final answer is correct, but the reasoning is incorrect" is no verdict, and "right, although the reasoning is flawed" is one.
func Judge(critique string, t Thresholds) Judgement {
	if endless(critique) {
		return Judgement{Reason: "the thought before the critique does not end"}
	}
	text := said(critique)
	var j Judgement
	concluded, reason := concludes(text)
	scored, value := scores(text, t)
	j.Score = value
	switch {
	case concluded != NoVerdict && scored != NoVerdict && scored != concluded:
		j.Reason = fmt.Sprintf("contradictory: the conclusion says %s, the score %v", concluded, *value)
	case concluded != NoVerdict:
		j.Verdict, j.Form = concluded, FormConclusion
	case reason != "":
		j.Reason = reason
	case scored != NoVerdict:
		j.Verdict, j.Form = scored, FormScore
	case value != nil:
		j.Reason = fmt.Sprintf("the score %v is neither %v or more nor %v or less", *value, t.Right, t.Wrong)
	default:
		j.Reason = "no conclusion"
	}
	return j
}

// concludes returns what a text's conclusions agree on; without that, why, if there were any.
func concludes(text string) (Verdict, string) {
	found, reason := NoVerdict, ""
	for _, at := range conclusion.FindAllStringSubmatchIndex(text, -1) {
		group := func(n int) string {
			if at[2*n] < 0 {
				return ""
			}
			return text[at[2*n]:at[2*n+1]]
		}
		concession, subject, limit, word := group(1), group(2), strings.ToLower(group(3)), strings.ToLower(group(4))
		if negated.MatchString(subject) && limit == "" {
			subject, limit = negated.ReplaceAllString(subject, "$1 "), "not"
		}
		if group(5) != "" || turned.MatchString(subject) {
			continue
		}
		verdict, sure := limited(limit, word == "right" || word == "correct")
		if !sure {
			reason = fmt.Sprintf("hedged: %s %s", limit, word)
			continue
		}
		if verdict = inSentence(concession, subject, verdict, text[at[1]:]); verdict == NoVerdict {
			reason = "mixed: it calls one thing right and another wrong"
			continue
		}
		if found != NoVerdict && found != verdict {
			return NoVerdict, "contradictory: it concludes both right and wrong"
		}
		found = verdict
	}
	if found != NoVerdict && reason != "" {
		return NoVerdict, reason
	}
	return found, reason
}

// limited returns what is left of a word by what stands before it, and whether that is a verdict.
func limited(limit string, right bool) (v Verdict, sure bool) {
	switch {
	case limit == "":
		return Of(right), true
	case denial.MatchString(limit), right && less.MatchString(limit):
		return Of(!right), true
	}
	return NoVerdict, false
}

// inSentence returns what a conclusion comes to with the rest of its sentence, and with what was granted before it. A wrong answer is wrong whatever
// else is said to be right; whether a right one with wrong reasoning passes is for others to decide, and so no verdict. Of a conclusion that
// names nothing, only the word counts.
func inSentence(concession, subject string, verdict Verdict, rest string) Verdict {
	for _, end := range judgedEnd.FindAllStringSubmatchIndex(rest, -1) {
		if end[2] < 0 {
			rest = rest[:end[0]]
			break
		}
	}
	if m := besides.FindStringSubmatch(rest); m != nil && Of(m[1] == "right" || m[1] == "correct") != verdict {
		return NoVerdict
	}
	if subject == "" {
		return verdict
	}
	type claim struct {
		about string
		is    Verdict
	}
	var others []claim
	for _, m := range clause.FindAllStringSubmatch(concession+rest, -1) {
		limit := strings.ToLower(m[3])
		if m[2] != "" {
			limit = "not"
		}
		if v, sure := limited(limit, m[4] != ""); sure {
			others = append(others, claim{m[1], v})
		}
	}
	for _, m := range unsaid.FindAllStringSubmatch(rest, -1) {
		others = append(others, claim{m[1], Of(verdict == Wrong)})
	}
	for _, other := range others {
		if other.is == verdict {
			continue
		}
		aboutPart := part.MatchString(subject)
		switch {
		case aboutPart == part.MatchString(other.about):
			return NoVerdict
		case aboutPart && other.is == Wrong, !aboutPart && verdict == Wrong:
			return Wrong
		}
		return NoVerdict
	}
	return verdict
}

// scaleTop is the best score where the text does not name another.
const scaleTop = 5

// scores returns what a text's last score means, and the score; nil if there is none.
func scores(text string, t Thresholds) (Verdict, *float64) {
	var last *float64
	for _, m := range score.FindAllStringSubmatch(text, -1) {
		value, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			continue
		}
		if m[2] != "" {
			top, err := strconv.ParseFloat(m[2], 64)
			if err != nil || top == 0 {
				continue
			}
			value *= scaleTop / top
		}
		if value <= scaleTop {
			last = &value
		}
	}
	switch {
	case last == nil:
		return NoVerdict, nil
	case *last >= t.Right:
		return Right, last
	case *last <= t.Wrong:
		return Wrong, last
	}
	return NoVerdict, last
}
