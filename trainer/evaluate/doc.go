// Package evaluate scores what a model has written: answers against gold forms, critiques by their verdicts, and counts
// by intervals that say how much they can be trusted.
//
// All functions are pure. Random ones take a seed, so that a report can be made again.
package evaluate
