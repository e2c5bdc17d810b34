// Package score lets models answer and criticize test sets, and counts what that is worth.
//
// Models come as an interface: the package knows no engine. Every text and every loss is appended to a file with a key
// of all that decides it (weights, prompt, sampling, bounds), so what has been written once is never written again,
// whatever ended the process. Figures come with intervals, comparisons are paired by item.
package score
