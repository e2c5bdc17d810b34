package wordforms

import (
	"fmt"
	"slices"
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
		if t == Participle || t == ThirdPerson {
			continue
		}
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
		for word := range strings.FieldsSeq(list) {
			words = append(words, regular(word, tasks, doubles))
		}
	}
	add(verbsRegular, verbTasks, false)
	add(verbsDoubling, verbTasks, true)
	words = append(words, irregulars(verbsIrregular, []Task{Past, ThirdPerson, Participle}, []Task{Past, ThirdPerson, Participle})...)
	add(nounsRegular, nounTasks, false)
	add(nounsOS, nounTasks, false)
	for word := range strings.FieldsSeq(nounsOES) {
		words = append(words, single(word, Plural, derivation{word + "es", OES, "ends in o and takes -es"}))
	}
	for word := range strings.FieldsSeq(nounsVES) {
		stem := strings.TrimSuffix(strings.TrimSuffix(word, "e"), "f")
		words = append(words, single(word, Plural, derivation{stem + "ves", VES, "ends in f, which becomes v before -es"}))
	}
	words = append(words, irregulars(nounsIrregular, nounTasks, nounTasks)...)
	add(adjectivesRegular, adjectiveTasks, false)
	add(adjectivesDoubling, adjectiveTasks, true)
	return append(words, irregulars(adjectivesIrregular, adjectiveTasks, adjectiveTasks)...)
}

func regular(word string, tasks []Task, doubles bool) Word {
	w := Word{Text: word, forms: map[Task]derivation{}}
	for _, t := range tasks {
		w.forms[t] = derive(word, t, doubles)
	}
	return w
}

func single(word string, t Task, d derivation) Word {
	return Word{Text: word, forms: map[Task]derivation{t: d}}
}

// irregulars reads "word form form; ...". The forms belong to the listed tasks in order; the word's other tasks, and a
// listed form that the rules give too, are regular.
func irregulars(list string, listed, tasks []Task) []Word {
	var words []Word
	for entry := range strings.SplitSeq(list, ";") {
		fields := strings.Fields(entry)
		if len(fields) < 2 || len(fields) > 1+len(listed) {
			panic(fmt.Sprintf("wordforms: entry %q has %d words", entry, len(fields))) // a slip in this package's own lists
		}
		w := regular(fields[0], tasks, false)
		for i, form := range fields[1:] {
			t := listed[i]
			if form != w.forms[t].form {
				w.forms[t] = irregular(fields[0], form, t)
			}
		}
		words = append(words, w)
	}
	return words
}

// irregular describes a listed form; one with a doubled letter is regular once that is known.
func irregular(word, form string, t Task) derivation {
	if doubled := derive(word, t, true); slices.Contains([]Task{Past, Participle, Comparative, Superlative}, t) && form == doubled.form {
		return doubled
	}
	return derivation{form, Irregular, "is irregular"}
}
