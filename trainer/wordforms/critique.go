package wordforms

import "fmt"

// Answer is the answer to be judged: the form alone.
func (i Item) Answer() string { return i.Form }

// Solution is the right answer as a sentence, for supervised fine-tuning.
func (i Item) Solution() string {
	return fmt.Sprintf("The %s of %q is %q.", taskPhrases[i.Task], i.Word, i.Gold)
}

// Label is the verdict that the answer deserves: right or wrong.
func (i Item) Label() string {
	if i.Right() {
		return "right"
	}
	return "wrong"
}

// Critique derives the right form, names its rule, compares the answer's form with it, and only then concludes: what
// comes before the verdict is what it can be read off from.
func (i Item) Critique() string {
	not := ""
	if !i.Right() {
		not = "not "
	}
	return fmt.Sprintf("%s It %s. %q is %s%q.\nConclusion: %s [END]", i.Solution(), i.why, i.Form, not, i.Gold, i.Label())
}
