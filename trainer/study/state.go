package study

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/objective"
)

// FormatVersion is that of study.json. In version 1 it had the progress too, and one process wrote it again and again; such
// studies are read, and become version 2 when they are gone on with.
const FormatVersion = 2

// formatWithProgress is the version before.
const formatWithProgress = 1

// Names within a study's output.
const (
	StateName = "study.json"
	lockName  = "LOCK" // held while a study is begun, or found begun
)

// Record is study.json: what the study is made from, and what is planned. It is written once. With the files under data/ it
// is all that is needed to make the study again.
type Record struct {
	Format  int       `json:"format"`
	Version string    `json:"version"` // of the program that began it
	Started time.Time `json:"started"`
	Digest  string    `json:"spec_sha256"`
	Spec    Spec      `json:"spec"`
	Model   Model     `json:"model"`
	Prompts Prompts   `json:"prompts"`
	// Rule is how claims are decided, in words, as it was when the study began.
	Rule string `json:"rule"`
	// Notes tell what was left out of the data, set by set.
	Notes []string            `json:"notes,omitempty"`
	Data  map[string]DataFile `json:"data"`
	Runs  []Run               `json:"runs"`
}

// State is a study's record with what is done: what the progress files of its models say.
type State struct {
	Record
	Runs []RunState `json:"runs"`
	// Scored are the models whose texts are complete, by key.
	Scored map[string]Scored `json:"scored"`

	// digest is of the record as it is on the disk.
	digest string
}

// Prompts are the texts that questions are put into, in training and in scoring.
type Prompts struct {
	System   string `json:"system"`
	Answer   string `json:"answer"`
	Critique string `json:"critique"`
	Target   string `json:"critique_target"`
	Refine   string `json:"refine"`
}

// RunState is a planned run and what became of it.
type RunState struct {
	Run
	Done bool `json:"done"`
	// Of a run that is done: the checkpoint that is scored, the steps that it took, and what it learned in them.
	Step    int     `json:"step,omitempty"`
	Taken   int     `json:"steps_taken,omitempty"`
	Targets int64   `json:"targets,omitempty"`
	Tokens  int64   `json:"tokens,omitempty"`
	Seconds float64 `json:"seconds,omitempty"` // its steps took
	Adapter string  `json:"adapter_sha256,omitempty"`
}

// Scored tells how a model's texts were come by.
type Scored struct {
	Texts   int     `json:"texts"`
	Tokens  int     `json:"tokens"`
	Seconds float64 `json:"seconds"` // of writing, in the call that ended it
	Digest  string  `json:"digest"`  // of what decides the texts
	SHA256  string  `json:"sha256"`  // of their file
}

// ErrChanged is wrapped by errors about a study that was begun from another file, model or data.
var ErrChanged = errors.New("the study was begun with something else")

// ErrNone is wrapped by the error about a study that was not begun.
var ErrNone = errors.New("no study is there")

func prompts(spec Spec) Prompts {
	t := objective.DefaultTemplates()
	return Prompts{spec.Chat.System, t.AnswerPrompt, t.CritiquePrompt, t.CritiqueTarget, t.RefinePrompt}
}

// ReadState reads a study's record.
func ReadState(dir string) (State, error) {
	text, err := regular.ReadFile(filepath.Join(dir, StateName))
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, fmt.Errorf("read study %s: %w", dir, ErrNone)
	}
	if err != nil {
		return State{}, fmt.Errorf("read study: %w", err)
	}
	s, err := parseState(text)
	if err != nil {
		return State{}, fmt.Errorf("read study %s: %w", filepath.Join(dir, StateName), err)
	}
	if s.Format != formatWithProgress {
		err = s.readProgress(dir)
	}
	return s, err
}

// parseState reads a record of either version; of version 2 nothing is then done.
func parseState(text []byte) (State, error) {
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return State{}, err
	}
	s := State{digest: digestOf(text), Scored: map[string]Scored{}}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	switch version.Format {
	case FormatVersion:
		if err := d.Decode(&s.Record); err != nil {
			return s, err
		}
		s.planned()
		return s, nil
	case formatWithProgress:
		err := d.Decode(&s)
		for _, r := range s.Runs {
			s.Record.Runs = append(s.Record.Runs, r.Run)
		}
		return s, err
	}
	return s, fmt.Errorf("format %d is not %d or %d, the ones this version reads", version.Format, formatWithProgress, FormatVersion)
}

// planned makes the state of each run that of one that is not made yet.
func (s *State) planned() {
	s.Runs = nil
	for _, r := range s.Record.Runs {
		s.Runs = append(s.Runs, RunState{Run: r})
	}
}

// text is study.json.
func (r Record) text() ([]byte, error) {
	text, err := json.MarshalIndent(r, "", " ")
	return append(text, '\n'), err
}

// save writes the progress of what is done, then the record: a record of the version before is replaced last.
func (s *State) save(dir string) error {
	s.Format = FormatVersion
	text, err := s.Record.text()
	if err != nil {
		return fmt.Errorf("save study: %w", err)
	}
	s.digest = digestOf(text)
	for _, key := range s.keys() {
		if err := s.saveProgress(dir, key); err != nil {
			return fmt.Errorf("save study: %w", err)
		}
	}
	if err := writeWhole(filepath.Join(dir, StateName), text); err != nil {
		return fmt.Errorf("save study: %w", err)
	}
	return nil
}

// same refuses to go on with a study that was begun from something else.
func (s State) same(now State) error {
	differs := func(what string) error {
		return fmt.Errorf("%s differs: %w", what, ErrChanged)
	}
	switch {
	case s.Spec.Digest() != now.Spec.Digest(): // that of the record may be by the rule of an older version
		return differs("the file (" + firstDifference(s.Spec.deciding(), now.Spec.deciding()) + ")")
	case s.Model.SHA256 != now.Model.SHA256:
		return differs("the model")
	case s.Model.ChatSHA256 != now.Model.ChatSHA256:
		return differs("the chat template")
	case s.Prompts != now.Prompts:
		return differs("the wording of prompts")
	}
	for name, f := range now.Data {
		if s.Data[name].SHA256 != f.SHA256 {
			return differs("the data file " + name)
		}
	}
	if len(s.Data) != len(now.Data) {
		return differs("the number of data files")
	}
	return nil
}

// firstDifference names the first section in which two files differ.
func firstDifference(a, b Spec) string {
	var was, is map[string]json.RawMessage
	for _, each := range []struct {
		spec Spec
		to   *map[string]json.RawMessage
	}{{a, &was}, {b, &is}} {
		text, err := json.Marshal(each.spec)
		if err == nil {
			err = json.Unmarshal(text, each.to)
		}
		if err != nil {
			return "what it says"
		}
	}
	for _, key := range []string{
		"name", "about", "seeds", "budget", "sets", "arms", "claims", "chat", "adapter", "train", "optimizer", "checkpoint", "scoring",
	} {
		if !bytes.Equal(was[key], is[key]) {
			return key
		}
	}
	return "what it says"
}

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
