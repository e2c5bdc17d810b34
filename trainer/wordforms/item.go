package wordforms

import "fmt"

// Item is a question with an answer to judge.
type Item struct {
	Word  string
	Task  Task
	Class Class
	Gold  string // the right form
	Form  string // the form that the answer gives
	rule  string
	style int // which phrasing the question has
}

// Right reports whether the answer is right.
func (i Item) Right() bool { return i.Form == i.Gold }

// Label is the verdict that the answer deserves: right or wrong.
func (i Item) Label() string {
	if i.Right() {
		return "right"
	}
	return "wrong"
}

// phrasings of questions; %[1]s is the task, %[2]s the word.
var phrasings = []string{
	`What is the %[1]s of "%[2]s"?`,
	`Give the %[1]s of "%[2]s".`,
	`Write the %[1]s of the word "%[2]s".`,
}

// Query is the question.
func (i Item) Query() string { return fmt.Sprintf(phrasings[i.style], i.Task, i.Word) }

// Answer is the answer to be judged: the form alone.
func (i Item) Answer() string { return i.Form }

// Solution is the right answer as a sentence.
func (i Item) Solution() string { return i.sentence(i.Gold) }

// NoisySolution is the answer to be judged as a sentence, right or not: what supervised fine-tuning learns when nobody
// has checked the answers.
func (i Item) NoisySolution() string { return i.sentence(i.Form) }

func (i Item) sentence(form string) string {
	return fmt.Sprintf("The %s of %q is %q.", i.Task, i.Word, form)
}

// Critique derives the right form and names its rule, compares the answer's form with it, and only then concludes: a
// model that writes left to right can read the verdict off from what it has written before.
func (i Item) Critique() string {
	not := ""
	if !i.Right() {
		not = "not "
	}
	return fmt.Sprintf("The %s of %q is %q: %s. %q is %s%q.\nConclusion: %s [END]",
		i.Task, i.Word, i.Gold, i.rule, i.Form, not, i.Gold, i.Label())
}
