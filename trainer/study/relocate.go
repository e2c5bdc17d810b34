package study

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"cftune/trainer/config"
)

// Relocate returns the study with paths that are what place makes of them. Output is not among them. All problems are told
// at once.
func (s Spec) Relocate(place func(key, path string) (string, error)) (Spec, error) {
	paths := config.Relocation{Place: place}
	s.Sets = slices.Clone(s.Sets)
	paths.Move("model", &s.Model)
	for i := range s.Sets {
		set, key := &s.Sets[i], "sets."+s.Sets[i].Name
		paths.Move(key+".path", &set.Path)
		paths.Move(key+".train.path", &set.Train.Path)
		paths.Move(key+".validation.path", &set.Validation.Path)
		paths.Move(key+".test.path", &set.Test.Path)
	}
	paths.Move("chat.template_file", &s.Chat.TemplateFile)
	return s, paths.Err()
}

// withoutFolders names files alone; URLs stay.
func (s Spec) withoutFolders() Spec {
	s, err := s.Relocate(func(_, path string) (string, error) {
		if strings.Contains(path, "://") {
			return path, nil
		}
		return filepath.Base(path), nil
	})
	if err != nil {
		panic("study: base names: " + err.Error()) // there is nothing that could fail
	}
	return s
}

// File is the study as a file that Load reads.
func (s Spec) File() ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("study: %w", err)
	}
	var all any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // seeds have 64 bits
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("study: %w", err)
	}
	if text, err = json.MarshalIndent(withoutNothing(all), "", "  "); err != nil {
		return nil, fmt.Errorf("study: %w", err)
	}
	return append(text, '\n'), nil
}

// withoutNothing leaves keys out that have no value: a file has none rather than null.
func withoutNothing(value any) any {
	switch v := value.(type) {
	case map[string]any:
		maps.DeleteFunc(v, func(_ string, x any) bool { return x == nil })
		for key := range v {
			v[key] = withoutNothing(v[key])
		}
	case []any:
		for i := range v {
			v[i] = withoutNothing(v[i])
		}
	}
	return value
}
