package study

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"

	"cftune/internal/regular"
	"cftune/trainer/dataset"
	"cftune/trainer/internal/durable"
	"cftune/trainer/objective"
)

// openSet is a set whose items are known.
type openSet struct {
	Set
	parts
}

// openSets makes or reads all sets. Those that are optional and have no path are left out, with a note.
func openSets(ctx context.Context, spec Spec, o dataset.Options) (sets []openSet, left []string, err error) {
	for _, s := range spec.Sets {
		if s.Generator == "" && s.Path == "" && s.Train.Path == "" && s.Test.Path == "" && s.Optional {
			left = append(left, fmt.Sprintf("%s is left out: it has no path (--set sets.%s.path=FILE gives it one)", s.Name, s.Name))
			continue
		}
		p, err := s.open(ctx, o)
		if err != nil {
			return nil, nil, fmt.Errorf("set %s: %w", s.Name, err)
		}
		sets = append(sets, openSet{s, p})
	}
	if len(sets) == 0 {
		return nil, nil, fmt.Errorf("no set is left to study: %s", strings.Join(left, "; "))
	}
	if err := apart(sets); err != nil {
		return nil, nil, err
	}
	return sets, left, checkNeeds(spec, sets)
}

// checkNeeds refuses arms that learn what rows do not have, and test rows that cannot be graded.
func checkNeeds(spec Spec, sets []openSet) error {
	var problems []string
	lack := func(set, part, what, who string, items []Item, has func(Item) string) {
		n, first := 0, ""
		for _, i := range items {
			if strings.TrimSpace(has(i)) == "" {
				if n++; n == 1 {
					first = i.ID
				}
			}
		}
		if n > 0 {
			problems = append(problems, fmt.Sprintf("set %s: %d of %d %s rows have no %s, which %s needs; the first is row %s",
				set, n, len(items), part, what, who, first))
		}
	}
	gold, response := func(i Item) string { return i.Gold }, func(i Item) string { return i.Response }
	for _, s := range sets {
		lack(s.Name, "test", "gold", "scoring", s.test, gold)
		for _, a := range spec.TrainedArms() {
			arm := "arm " + a.Name
			learns := map[string]bool{}
			for _, stage := range a.Stages {
				for name, weight := range stage.Mix {
					learns[name] = learns[name] || weight > 0
				}
			}
			if learns[objective.CFT] || learns[objective.Refine] {
				lack(s.Name, "training", "critique", arm, s.train, func(i Item) string { return i.Critique })
			}
			if learns[objective.CFT] || learns[objective.Refine] || a.Answers == answersRaw {
				lack(s.Name, "training", "response", arm, s.train, response)
			}
			if (learns[objective.SFT] || learns[objective.Refine]) && a.Answers == answersGold {
				lack(s.Name, "training", "solution", arm, s.train, func(i Item) string { return i.Solution })
			}
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("%s", strings.Join(problems, "\n"))
	}
	return nil
}

// DataFile is a file under data/, as the study's record has it.
type DataFile struct {
	Rows   int    `json:"rows"`
	SHA256 string `json:"sha256"`
	Note   string `json:"note,omitempty"`
}

// lines is the items as a JSONL file, with what is learned under sft as solution.
func lines(items []Item, answers string) ([]byte, error) {
	var text bytes.Buffer
	for _, i := range items {
		if answers == answersRaw {
			i.Solution = i.raw()
		}
		line, err := json.Marshal(i)
		if err != nil {
			return nil, err
		}
		text.Write(append(line, '\n'))
	}
	return text.Bytes(), nil
}

// trainingFile names the training rows of an arm and a seed within data/: arms that learn the same share them.
func trainingFile(set string, a Arm, seed uint64) string {
	name := set + ".train." + a.Answers
	if a.Corrupt > 0 {
		name += fmt.Sprintf(".corrupt%g.s%d", math.Round(a.Corrupt*1e4)/1e2, seed)
	}
	return name + ".jsonl"
}

// validationFile names the held-out rows of all sets, in what they teach alike with the arm.
func validationFile(a Arm) string { return "validation." + a.Answers + ".jsonl" }

func testFile(set string) string { return set + ".test.jsonl" }

// writeData writes every file that arms and scoring read, and tells what they hold. Files that are right already stay.
func writeData(dir string, spec Spec, sets []openSet) (map[string]DataFile, error) {
	files := map[string]DataFile{}
	put := func(name string, items []Item, answers, note string) error {
		if _, done := files[name]; done || len(items) == 0 {
			return nil
		}
		text, err := lines(items, answers)
		if err != nil {
			return err
		}
		files[name] = DataFile{Rows: len(items), SHA256: digestOf(text), Note: note}
		return writeWhole(filepath.Join(dir, name), text)
	}
	for _, s := range sets {
		if err := put(testFile(s.Name), s.test, answersGold, ""); err != nil {
			return nil, err
		}
	}
	for _, a := range spec.TrainedArms() {
		var held []Item
		for _, s := range sets {
			held = append(held, s.validation...)
			for _, seed := range spec.Seeds {
				items, note := s.train, ""
				if a.Corrupt > 0 {
					var n int
					items, n = corrupted(s.train, a.Corrupt, seed)
					note = fmt.Sprintf("the conclusions of %d of %d critiques are turned into their opposites", n, len(items))
				}
				if err := put(trainingFile(s.Name, a, seed), items, a.Answers, note); err != nil {
					return nil, err
				}
			}
		}
		if err := put(validationFile(a), held, a.Answers, ""); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// writeWhole makes path hold the text, durably; a file that has it already stays as it is.
func writeWhole(path string, text []byte) error {
	if old, err := regular.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := durable.MkdirAll(durable.OS, filepath.Dir(path)); err != nil {
		return err
	}
	_, err := durable.ReplaceFile(durable.OS, path, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	return err
}
