package study

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"cftune/trainer/internal/durable"
)

// Check compares a study's files with what its record and progress say of them: data, adapters and texts. What is not made
// yet is no problem.
func Check(dir string) (s State, problems []string, err error) {
	if s, err = ReadState(dir); err != nil {
		return s, nil, err
	}
	look := func(want string, names ...string) {
		path := filepath.Join(names...)
		sum, err := durable.Digest(filepath.Join(dir, path))
		switch {
		case err != nil:
			problems = append(problems, err.Error())
		case sum.SHA256 != want:
			problems = append(problems, fmt.Sprintf("%s has sha256 %.12s, the study's is %.12s", path, sum.SHA256, want))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Data)) {
		look(s.Data[name].SHA256, "data", name)
	}
	for _, r := range s.Runs {
		if r.Done {
			look(r.Adapter, "adapters", r.Key+".gguf")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.Scored)) {
		look(s.Scored[key].SHA256, "scores", key+".jsonl")
	}
	return s, problems, nil
}
