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
	Participle
	ThirdPerson
	Plural
	Comparative
	Superlative
	numTasks
)

var taskNames = [numTasks]string{"past tense", "present participle", "third person", "plural", "comparative", "superlative"}

func (t Task) String() string { return taskNames[t] }

// Class is the rule that a form follows.
type Class string

// The classes.
const (
	Plain     Class = "added"     // the ending is added: walked, books, taller
	DropE     Class = "after e"   // one e is enough, or e falls away: baked, baking, nicer
	ConsY     Class = "y to i"    // carried, babies, happier
	VowelY    Class = "vowel y"   // played, boys
	Doubled   Class = "doubled"   // stopped, bigger
	Sibilant  Class = "sibilant"  // watches, boxes
	IEToY     Class = "ie to y"   // dying
	OES       Class = "o with es" // heroes
	VES       Class = "f to ves"  // wolves
	Irregular Class = "irregular" // went, mice
)

// Classes lists all classes in the order of reports.
func Classes() []Class {
	return []Class{Plain, DropE, ConsY, VowelY, Doubled, Sibilant, IEToY, OES, VES, Irregular}
}

const vowels = "aeiou"

func isVowel(c byte) bool { return strings.IndexByte(vowels, c) >= 0 }

func endsInConsonantY(word string) bool {
	n := len(word)
	return n > 1 && word[n-1] == 'y' && !isVowel(word[n-2])
}

func endsInVowelY(word string) bool {
	n := len(word)
	return n > 1 && word[n-1] == 'y' && isVowel(word[n-2])
}

func isSibilant(word string) bool {
	for _, end := range []string{"s", "x", "z", "ch", "sh"} {
		if strings.HasSuffix(word, end) {
			return true
		}
	}
	return false
}

// derivation is a form and how it is come by.
type derivation struct {
	form  string
	class Class
	why   string // completes "walk ...": "takes -ed"
}

// derive applies the spelling rules of a task. doubles says that the word doubles its last letter before a vowel; that
// depends on stress and cannot be seen.
func derive(word string, task Task, doubles bool) derivation {
	switch task {
	case Past:
		return beforeE(word, "ed", doubles)
	case Comparative:
		return beforeE(word, "er", doubles)
	case Superlative:
		return beforeE(word, "est", doubles)
	case Participle:
		return participle(word, doubles)
	default:
		return withS(word)
	}
}

// beforeE adds an ending that begins with e.
func beforeE(word, ending string, doubles bool) derivation {
	last := word[len(word)-1:]
	switch {
	case doubles:
		return derivation{word + last + ending, Doubled, fmt.Sprintf("doubles the %s and takes -%s", last, ending)}
	case last == "e":
		return derivation{word + ending[1:], DropE, fmt.Sprintf("ends in e and takes only -%s", ending[1:])}
	case endsInConsonantY(word):
		return derivation{word[:len(word)-1] + "i" + ending, ConsY, fmt.Sprintf("ends in consonant + y, so y becomes i and -%s follows", ending)}
	case endsInVowelY(word):
		return derivation{word + ending, VowelY, fmt.Sprintf("ends in vowel + y, keeps y and takes -%s", ending)}
	}
	return derivation{word + ending, Plain, "takes -" + ending}
}

func participle(word string, doubles bool) derivation {
	last := word[len(word)-1:]
	stem, ie := strings.CutSuffix(word, "ie")
	silent := last == "e" && !strings.HasSuffix(word, "ee") && !strings.HasSuffix(word, "oe") && !strings.HasSuffix(word, "ye")
	switch {
	case doubles:
		return derivation{word + last + "ing", Doubled, fmt.Sprintf("doubles the %s and takes -ing", last)}
	case ie:
		return derivation{stem + "ying", IEToY, "ends in ie, which becomes y before -ing"}
	case silent:
		return derivation{word[:len(word)-1] + "ing", DropE, "ends in silent e, which falls away before -ing"}
	}
	return derivation{word + "ing", Plain, "takes -ing"}
}

// withS makes plurals and third persons.
func withS(word string) derivation {
	switch {
	case isSibilant(word):
		return derivation{word + "es", Sibilant, "ends in a hissing sound and takes -es"}
	case endsInConsonantY(word):
		return derivation{word[:len(word)-1] + "ies", ConsY, "ends in consonant + y, so y becomes i and -es follows"}
	case endsInVowelY(word):
		return derivation{word + "s", VowelY, "ends in vowel + y, keeps y and takes -s"}
	}
	return derivation{word + "s", Plain, "takes -s"}
}
