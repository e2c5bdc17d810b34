// Package wordforms makes a data set of English word forms with answers, flawed answers and critiques.
//
// It is the demo's data: a question asks for the past tense, plural, comparative and so on of a word; a right answer has
// its form, a flawed one a form by the wrong rule ("carryed", "goed"); the critique derives the form by its rule,
// compares it with the answer's and then concludes. Even a very small model can learn such rules in minutes, and whether
// it did can be checked by machine.
//
// Everything is a function of the seed. Words are divided between training, development and test, so that no word of one
// part, nor any of its forms, is in another. The word lists were written for this package; words whose forms differ
// between dictionaries or countries (travelled, learnt, banjoes) were left out.
package wordforms
