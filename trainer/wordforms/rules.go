package wordforms

import (
	"fmt"
	"strings"
)

// Task is a word form that can be asked for.
type Task int

// The tasks.
const (
	Past Task = iota
	Plural
	Comparative
	Superlative
	numTasks
)

var taskNames = [numTasks]string{"past tense", "plural", "comparative", "superlative"}

func (t Task) String() string { return taskNames[t] }

// ending is what the task adds to a word, in its full form.
func (t Task) ending() string { return [numTasks]string{"ed", "es", "er", "est"}[t] }

// Class is the rule that a form follows.
type Class string

// The classes.
const (
	Plain     Class = "ending added"    // walked, books, taller
	AfterE    Class = "after e"         // one e is enough: baked, nicer
	ConsY     Class = "y becomes i"     // carried, babies, happier
	VowelY    Class = "y stays"         // played, boys
	Doubled   Class = "letter doubled"  // stopped, bigger
	Sibilant  Class = "es after a hiss" // boxes, churches
	OES       Class = "es after o"      // heroes
	VES       Class = "f becomes v"     // wolves
	Irregular Class = "irregular"       // went, mice
)

// Classes lists all classes in the order of reports.
func Classes() []Class {
	return []Class{Plain, AfterE, ConsY, VowelY, Doubled, Sibilant, OES, VES, Irregular}
}

// derivation is a form and how it is come by.
type derivation struct {
	form  string
	class Class
	rule  string // what to do with the word: "y becomes i, add ed"
}

// derive applies the spelling rules of a task. doubles says that the word doubles its last letter; that depends on stress
// and cannot be seen.
func derive(word string, t Task, doubles bool) derivation {
	last := word[len(word)-1:]
	ending := t.ending()
	switch {
	case doubles:
		return derivation{word + last + ending, Doubled, fmt.Sprintf("double %s, add %s", last, ending)}
	case endsInConsonantY(word):
		return derivation{word[:len(word)-1] + "i" + ending, ConsY, "y becomes i, add " + ending}
	case t == Plural && isSibilant(word):
		return derivation{word + ending, Sibilant, fmt.Sprintf("after %s add es", hiss(word))}
	case t == Plural:
		ending = "s"
	case last == "e":
		return derivation{word + ending[1:], AfterE, "after e add only " + ending[1:]}
	}
	if last == "y" {
		return derivation{word + ending, VowelY, "keep y, add " + ending}
	}
	return derivation{word + ending, Plain, "add " + ending}
}

// irregular describes a listed form; quizzes, for one, does follow a rule.
func irregular(word, form string, t Task) derivation {
	for _, doubles := range []bool{false, true} {
		if d := derive(word, t, doubles); d.form == form {
			return d
		}
	}
	return derivation{form, Irregular, "irregular"}
}

func isVowel(c byte) bool { return strings.IndexByte("aeiou", c) >= 0 }

func endsInConsonantY(word string) bool {
	n := len(word)
	return n > 1 && word[n-1] == 'y' && !isVowel(word[n-2])
}

var hisses = []string{"ch", "sh", "s", "x", "z"}

// hiss is the sibilant that the word's spelling ends in; empty if none.
func hiss(word string) string {
	for _, end := range hisses {
		if strings.HasSuffix(word, end) {
			return end
		}
	}
	return ""
}

func isSibilant(word string) bool { return hiss(word) != "" }
