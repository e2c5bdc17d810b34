package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Problem is one fault of a configuration.
type Problem struct {
	Key     string // "train.seq_len"; empty where no key is concerned
	Where   string // "run.yaml:12", "line 12", "CFTUNE_TRAIN_SEQ_LEN", "--set"; empty where the key was not set
	Message string
}

func (p Problem) Error() string {
	var parts []string
	for _, part := range []string{p.Where, p.Key, p.Message} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

// Problems is every fault of a configuration, one per line of its text.
type Problems struct {
	List []Problem
}

func (p *Problems) Error() string {
	lines := make([]string, len(p.List))
	for i, problem := range p.List {
		lines[i] = problem.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.As and errors.Is the single problems.
func (p *Problems) Unwrap() []error {
	list := make([]error, len(p.List))
	for i, problem := range p.List {
		list[i] = problem
	}
	return list
}

// suggestKey proposes a key for an unknown name below parent: the same name elsewhere, or one spelt alike.
func suggestKey(root reflect.Type, keys []string, parent, name string) string {
	if at := strings.LastIndexByte(parent, '['); at >= 0 {
		// parent is "data.sources[0]", or "objective.stages[0].until": any key of the items may be meant.
		return suggestion(name, listKeys(typeWithin(root, parent[:at]).Elem(), ""))
	}
	var elsewhere []string
	for _, key := range keys {
		if lastPart(key) == lastPart(name) {
			elsewhere = append(elsewhere, key)
		}
	}
	if len(elsewhere) > 0 {
		return fmt.Sprintf(" (did you mean %s?)", strings.Join(elsewhere, " or "))
	}
	if key := namesElsewhere[lastPart(name)]; slices.Contains(keys, key) {
		return fmt.Sprintf(" (did you mean %s?)", key)
	}
	return suggestion(join(parent, name), keys)
}

func lastPart(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// suggestion proposes the candidate that is nearest to the name, if one is near enough to be meant.
func suggestion(name string, candidates []string) string {
	best, bestDistance := "", max(2, len(name)/5)+1
	for _, c := range candidates {
		if d := distance(name, c, bestDistance); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// distance is the edit distance between a and b with swaps of neighbours, or limit where it is at least that.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit)
}
