// Package teacher holds the prompts with which teachers are asked for critiques, for the program to carry along.
//
// A prompt is a file of turns. Lines before the first turn that begin with # are comments; "--- system" and "--- user"
// begin a turn; {query}, {response}, {gold} and {solution} stand for a record's texts.
package teacher

import "embed"

// Prompts are the files *.tmpl of this folder.
//
//go:embed *.tmpl
var Prompts embed.FS
