package wordforms

import "fmt"

// Item is a question with an answer to judge.
type Item struct {
	Word  string
	Task  Task
	Class Class
	Gold  string // the right form
	Form  string // the form that the answer gives
	why   string
	style int // which phrasing the question has
}

// Right reports whether the answer is right.
func (i Item) Right() bool { return i.Form == i.Gold }

// phrasings of questions; %[1]s is the task, %[2]s the word.
var phrasings = []string{
	`What is the %[1]s of "%[2]s"?`,
	`Give the %[1]s of "%[2]s".`,
	`Write the %[1]s of the word "%[2]s".`,
}

var taskPhrases = [numTasks]string{"past tense", "present participle", "third person singular", "plural", "comparative", "superlative"}

// Query is the question.
func (i Item) Query() string { return fmt.Sprintf(phrasings[i.style], taskPhrases[i.Task], i.Word) }
