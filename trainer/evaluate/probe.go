package evaluate

import (
	"encoding/json"
	"regexp"
	"strings"
	"unicode"
)

// Probe is an instruction about an answer's form that can be checked without knowing what is right. Probes tell whether
// training has spoilt how a model follows instructions.
type Probe struct {
	Name   string
	Prompt string
	Obeyed func(answer string) bool
}

// Probes returns the built-in probes. Their order is part of reports: new ones are added at the end.
func Probes() []Probe {
	return []Probe{
		{"one word", "What is the capital of France? Answer with one word only.", func(a string) bool { return len(strings.Fields(a)) == 1 }},
		{"a number only", "How many days does a week have? Reply with the number only, in digits.", matcher(`^\s*\d+\.?\s*$`)},
		{"yes or no", "Is ice cold? Answer only yes or no.", matcher(`(?i)^\W*(yes|no)\W*$`)},
		{"capital letters", "Write the sentence \"the sun is warm\" in capital letters only.", func(a string) bool { return hasLetter(a) && a == strings.ToUpper(a) }},
		{"small letters", "Name three animals. Use small letters only.", func(a string) bool { return hasLetter(a) && a == strings.ToLower(a) }},
		{"separated by commas", "List three colors in one line, separated by commas, and nothing else.", func(a string) bool {
			return !strings.Contains(strings.TrimSpace(a), "\n") && strings.Count(a, ",") == 2
		}},
		{"three bullets", "Give three reasons to sleep enough, as a list with exactly three bullet points that begin with \"- \".", func(a string) bool { return countLines(a, "- ") == 3 }},
		{"numbered", "Give two steps to boil water, as a list numbered 1. and 2.", func(a string) bool {
			return countLines(a, "1.") == 1 && countLines(a, "2.") == 1 && countLines(a, "3.") == 0
		}},
		{"JSON", "Give the name Ada and the age 36 as a JSON object with the keys name and age, and nothing else.", isJSON},
		{"begins as told", "Tell in one sentence what rain is. Begin your answer with the words \"Rain is\".", func(a string) bool { return strings.HasPrefix(strings.TrimSpace(a), "Rain is") }},
		{"ends as told", "Tell in one sentence what snow is. End your answer with the words \"That is all.\"", func(a string) bool { return strings.HasSuffix(strings.TrimSpace(a), "That is all.") }},
		{"one sentence", "Explain in exactly one sentence what a tree is.", func(a string) bool { return len(sentenceEnd.FindAllString(strings.TrimSpace(a), -1)) == 1 }},
		{"few words", "Describe the sea in at most ten words.", func(a string) bool { n := len(strings.Fields(a)); return n > 0 && n <= 10 }},
		{"in quotes", "Repeat the word hello, in double quotes, and write nothing else.", matcher(`(?i)^\s*"hello\.?"\.?\s*$`)},
		{"without a word", "Describe a cat in one sentence without using the word \"cat\".", func(a string) bool {
			return hasLetter(a) && !regexp.MustCompile(`(?i)\bcats?\b`).MatchString(a)
		}},
		{"a greeting", "Greet me with one short sentence.", func(a string) bool { return len(strings.Fields(a)) > 0 && len(strings.Fields(a)) <= 15 }},
	}
}

func matcher(pattern string) func(string) bool { return regexp.MustCompile(pattern).MatchString }

func hasLetter(text string) bool { return strings.ContainsFunc(text, unicode.IsLetter) }

func countLines(text, prefix string) int {
	n := 0
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), prefix) {
			n++
		}
	}
	return n
}

func isJSON(answer string) bool {
	var object map[string]any
	if json.Unmarshal([]byte(strings.TrimSpace(answer)), &object) != nil {
		return false
	}
	_, name := object["name"]
	_, age := object["age"]
	return name && age
}
