package evaluate

import (
	"regexp"
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

// conclusion is how critiques of the published data sets end: "Conclusion: right [END]", "Critique Conclusion: correct
// [END]", "**Conclusion: Incorrect [END]**". A slash after the word is the instruction repeated ("right/wrong"), not a
// verdict.
var conclusion = regexp.MustCompile(`(?i)\bconclusion[\s*_]*:[\s*_]*(?:the (?:answer|solution) is\s+)?[*_"']*(right|wrong|correct|incorrect)\b([*_"']*\s*/)?`)

// ParseVerdict returns the verdict of a critique: that of its last conclusion.
func ParseVerdict(critique string) Verdict {
	verdict := NoVerdict
	for _, m := range conclusion.FindAllStringSubmatch(critique, -1) {
		if m[2] != "" {
			continue
		}
		switch strings.ToLower(m[1]) {
		case "right", "correct":
			verdict = Right
		case "wrong", "incorrect":
			verdict = Wrong
		}
	}
	return verdict
}

// Of returns the verdict that an answer deserves.
func Of(right bool) Verdict {
	if right {
		return Right
	}
	return Wrong
}
