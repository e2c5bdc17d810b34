package study

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"cftune/internal/regular"
)

// progressFormat is the version of a progress file.
const progressFormat = 1

const progressName = "progress"

// progress is progress/KEY.json: what became of one model. A file a model, so that processes which make different models
// never write the same file.
type progress struct {
	Format int `json:"format"`
	// Record is the digest of the study.json that it belongs to: what is left of another study counts for nothing.
	Record string    `json:"study_sha256"`
	Run    *RunState `json:"run,omitempty"`    // nil: the base model, or a run that is not made yet
	Scored *Scored   `json:"scored,omitempty"` // nil: its texts are not complete
}

func progressPath(dir, key string) string { return filepath.Join(dir, progressName, key+".json") }

// readProgress lays what the progress files say over what is planned.
func (s *State) readProgress(dir string) error {
	for _, key := range s.keys() {
		if err := s.readProgressOf(dir, key); err != nil {
			return fmt.Errorf("read study: %w", err)
		}
	}
	return nil
}

// readProgressOf does so for one model, whose state may have been another.
func (s *State) readProgressOf(dir, key string) error {
	path := progressPath(dir, key)
	text, err := regular.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var p progress
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if p.Format != progressFormat {
		return fmt.Errorf("%s: format %d is not %d, the one this version reads", path, p.Format, progressFormat)
	}
	if p.Record != s.digest {
		return nil
	}
	if run := s.run(key); run != nil && p.Run != nil {
		*run = *p.Run
	}
	if p.Scored != nil {
		s.Scored[key] = *p.Scored
	}
	return nil
}

// saveProgress writes what is known of a model, if anything is.
func (s *State) saveProgress(dir, key string) error {
	p := progress{Format: progressFormat, Record: s.digest}
	if run := s.run(key); run != nil && run.Done {
		p.Run = run
	}
	if scored, ok := s.Scored[key]; ok {
		p.Scored = &scored
	}
	if p.Run == nil && p.Scored == nil {
		return nil
	}
	text, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return err
	}
	return writeWhole(progressPath(dir, key), append(text, '\n'))
}

// run is a model's run, nil for the base model.
func (s *State) run(key string) *RunState {
	for i := range s.Runs {
		if s.Runs[i].Key == key {
			return &s.Runs[i]
		}
	}
	return nil
}

// keys are all models, the base model first.
func (s *State) keys() []string { return Models(s.Spec) }

// Missing are the models that are not trained and scored.
func (s *State) Missing() []string {
	var missing []string
	for _, key := range s.keys() {
		if _, done := s.Scored[key]; !done {
			missing = append(missing, key)
		}
	}
	return missing
}
