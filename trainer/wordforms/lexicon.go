package wordforms

import (
	"fmt"
	"strings"
)

// Word is a dictionary word with the forms that can be asked for.
type Word struct {
	Text  string
	forms map[Task]derivation
}

// Tasks returns the tasks that the word has a form for, in order.
func (w Word) Tasks() []Task {
	var tasks []Task
	for t := range numTasks {
		if _, ok := w.forms[t]; ok {
			tasks = append(tasks, t)
		}
	}
	return tasks
}

// Form returns the word's form and the rule that it follows.
func (w Word) Form(t Task) (string, Class) { return w.forms[t].form, w.forms[t].class }

// spellings are the word and all its forms.
func (w Word) spellings() []string {
	all := []string{w.Text}
	for _, t := range w.Tasks() {
		all = append(all, w.forms[t].form)
	}
	return all
}

var (
	verbTasks      = []Task{Past}
	nounTasks      = []Task{Plural}
	adjectiveTasks = []Task{Comparative, Superlative}
)

// lexicon returns all words, in the order of the lists.
func lexicon() []Word {
	var words []Word
	add := func(list string, tasks []Task, doubles bool) {
		for text := range strings.FieldsSeq(list) {
			w := Word{text, map[Task]derivation{}}
			for _, t := range tasks {
				w.forms[t] = derive(text, t, doubles)
			}
			words = append(words, w)
		}
	}
	addPlural := func(word, form string, class Class, rule string) {
		words = append(words, Word{word, map[Task]derivation{Plural: {form, class, rule}}})
	}
	add(verbsRegular, verbTasks, false)
	add(verbsDoubling, verbTasks, true)
	words = append(words, irregulars(verbsIrregular, verbTasks)...)
	add(nounsRegular, nounTasks, false)
	add(nounsOS, nounTasks, false)
	for word := range strings.FieldsSeq(nounsOES) {
		addPlural(word, word+"es", OES, "after o add es")
	}
	for word := range strings.FieldsSeq(nounsVES) {
		stem := strings.TrimSuffix(strings.TrimSuffix(word, "e"), "f")
		addPlural(word, stem+"ves", VES, "f becomes v, add es")
	}
	words = append(words, irregulars(nounsIrregular, nounTasks)...)
	add(adjectivesRegular, adjectiveTasks, false)
	add(adjectivesDoubling, adjectiveTasks, true)
	return append(words, irregulars(adjectivesIrregular, adjectiveTasks)...)
}

// irregulars reads "word form form; ...", a form for each task.
func irregulars(list string, tasks []Task) []Word {
	var words []Word
	for entry := range strings.SplitSeq(list, ";") {
		fields := strings.Fields(entry)
		if len(fields) != 1+len(tasks) {
			panic(fmt.Sprintf("wordforms: entry %q has %d words", entry, len(fields))) // a slip in this package's own lists
		}
		w := Word{fields[0], map[Task]derivation{}}
		for i, t := range tasks {
			w.forms[t] = irregular(fields[0], fields[1+i], t)
		}
		words = append(words, w)
	}
	return words
}
