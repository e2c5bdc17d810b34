package trainer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/gguf"
	"cftune/trainer/internal/durable"
)

// Record is a run's config.json: what the run was made from.
type Record struct {
	Format  int    `json:"format"`
	Version string `json:"version"` // of the program that began the run
	// Started is the time that chat templates see throughout the run.
	Started          time.Time  `json:"started"`
	Cores            int        `json:"cores"`
	Processes        int        `json:"processes,omitempty"` // that trained it together; 0: one
	Config           config.Run `json:"config"`
	Model            ModelFile  `json:"model"`
	ChatDigest       string     `json:"chat_sha256"`
	DataDigest       string     `json:"data_digest"`
	ValidationDigest string     `json:"validation_digest"`
	Plan             Plan       `json:"plan"`
	WarmStart        *Origin    `json:"warm_start,omitempty"`
	// Accepted are the changes that resume was told to accept, oldest first.
	Accepted []Accepted `json:"accepted,omitempty"`
	// Spans are the parts of the run that were made while it was to have another length, in their order.
	Spans []Span `json:"spans,omitempty"`
}

// ModelFile identifies the base model's file.
type ModelFile struct {
	Path     string    `json:"path"` // absolute; the first one of a model in shards
	Bytes    int64     `json:"bytes"`
	Modified time.Time `json:"modified"` // or changed otherwise, the later of both
	SHA256   string    `json:"sha256"`
}

// ModelDigest is the SHA-256 of a base model, in hex.
func ModelDigest(path string) (string, error) {
	base, err := gguf.Open(path)
	if err != nil {
		return "", fmt.Errorf("base model: %w", err)
	}
	m, err := identify(base, ModelFile{})
	return m.SHA256, err
}

// identify digests the base model's files, all its shards, unless they are the known ones by path, size and time.
func identify(base *gguf.File, known ModelFile) (ModelFile, error) {
	absolute, err := filepath.Abs(base.Path)
	if err != nil {
		return ModelFile{}, fmt.Errorf("base model: %w", err)
	}
	m := ModelFile{Path: absolute}
	for _, path := range base.Shards {
		info, err := os.Stat(path)
		if err != nil {
			return ModelFile{}, fmt.Errorf("base model: %w", err)
		}
		m.Bytes += info.Size()
		m.Modified = lastChange(info, m.Modified)
	}
	if m.Path == known.Path && m.Bytes == known.Bytes && m.Modified.Equal(known.Modified) && known.SHA256 != "" {
		return known, nil
	}
	written, err := durable.Digest(base.Shards...)
	if err != nil {
		return ModelFile{}, fmt.Errorf("base model: %w", err)
	}
	m.SHA256 = written.SHA256
	return m, nil
}

// ReadRecord reads a run's config.json.
func ReadRecord(dir string) (Record, error) {
	text, err := checkpoint.ReadConfig(dir)
	if err != nil {
		return Record{}, fmt.Errorf("read run: %w", err)
	}
	var version struct {
		Format int `json:"format"`
	}
	fail := func(err error) (Record, error) {
		return Record{}, fmt.Errorf("read run: %s: %w", filepath.Join(dir, checkpoint.ConfigName), err)
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return fail(fmt.Errorf("%w: %w", checkpoint.ErrCorrupt, err))
	}
	if version.Format != checkpoint.FormatVersion {
		return fail(fmt.Errorf("%w: format %d is not %d, the one this version reads", checkpoint.ErrIncompatible, version.Format, checkpoint.FormatVersion))
	}
	var r Record
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return fail(checkpoint.Undecodable(err))
	}
	if err := r.Config.Validate(); err != nil {
		return fail(fmt.Errorf("%w: %w", checkpoint.ErrCorrupt, err))
	}
	return r, nil
}

func (r Record) encode() ([]byte, error) {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("run record: %w", err)
	}
	return append(text, '\n'), nil
}

// identity is what must not change between the parts of a run. Left out is what decides how long the run goes on, where
// it computes and writes, who watches, and the paths of files that are known by their digests.
func identity(run config.Run) config.Run {
	run.Model, run.Output, run.Device, run.Threads = "", "", "", 0
	sources := make([]config.Source, len(run.Data.Sources))
	for i, s := range run.Data.Sources {
		sources[i] = config.Source{Format: s.Format, Weight: s.Weight, Sample: s.Sample, Fields: s.Fields}
	}
	run.Data.Sources = sources
	run.Data.Validation.Path, run.Data.Validation.Patience = "", 0
	run.Health.StallTimeout = ""
	run.Train.Epochs, run.Train.MaxSteps, run.Train.KeepActivations = 0, 0, ""
	run.Checkpoint, run.Limits, run.Metrics = config.Checkpoint{}, config.Limits{}, config.Metrics{}
	return run
}

// The keys of differences that are not of the configuration.
const (
	keyModelDigest = "the base model's sha256"
	keyDataDigest  = "the records' digest"
	keyHeldDigest  = "the held-out records' digest"
	keyChatDigest  = "the chat template's sha256"
)

// differences returns what of a run differs from what it is to be resumed with.
func (r Record) differences(now Record) []config.FieldDiff {
	return append(config.Diff(identity(r.Config), identity(now.Config)), r.fileDifferences(now)...)
}

// fileDifferences returns which of the files that a run is made from are others.
func (r Record) fileDifferences(now Record) []config.FieldDiff {
	var fields []config.FieldDiff
	for _, d := range []struct{ key, a, b string }{
		{keyModelDigest, r.Model.SHA256, now.Model.SHA256},
		{keyDataDigest, r.DataDigest, now.DataDigest},
		{keyHeldDigest, r.ValidationDigest, now.ValidationDigest},
		{keyChatDigest, r.ChatDigest, now.ChatDigest},
	} {
		if d.a != d.b {
			fields = append(fields, config.FieldDiff{Key: d.key, A: orNone(d.a), B: orNone(d.b)})
		}
	}
	return fields
}

// sameFiles is an error where a run that is to be made again would be made from other files.
func (r Record) sameFiles(now Record) error {
	fields := r.fileDifferences(now)
	if was, is := r.WarmStart, now.WarmStart; was != nil && is != nil && was.SHA256 != is.SHA256 {
		fields = append(fields, config.FieldDiff{Key: "adapter.init_from's sha256", A: orNone(was.SHA256), B: orNone(is.SHA256)})
	}
	if len(fields) == 0 {
		return nil
	}
	return &MismatchError{Run: r.Config.Output, Fields: fields, Again: true}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// notes tells what of the free settings has changed that shows in the results.
func (r Record) notes(now Record) []string {
	var notes []string
	for _, d := range config.Diff(r.Config, now.Config) {
		switch d.Key {
		case "device": // CUDA devices compute in bf16, others in F32
			notes = append(notes, fmt.Sprintf("device was %s, is %s: results may differ from an unbroken run's, by the devices' rounding", d.A, d.B))
		case "threads":
			notes = append(notes, fmt.Sprintf("%s was %s, is %s: results may differ from an unbroken run's in the last bits", d.Key, d.A, d.B))
		case "train.epochs", "train.max_steps":
			notes = append(notes, fmt.Sprintf("%s was %s, is %s: the learning rate's schedule now spans %d steps, not %d", d.Key, d.A, d.B, now.Plan.Steps, r.Plan.Steps))
		}
	}
	if was, is := max(r.Processes, 1), max(now.Processes, 1); was != is {
		notes = append(notes, fmt.Sprintf("%d processes train now, %d did: the order of the data is the same, results may differ from an unbroken run's in the last bits", is, was))
	}
	if r.Config.Threads == 0 && now.Config.Threads == 0 && r.Cores != now.Cores {
		notes = append(notes, fmt.Sprintf("this machine has %d cores, the run began on %d: results may differ from an unbroken run's in the last bits", now.Cores, r.Cores))
	}
	return notes
}

// isMissing reports whether a run has nothing under the path yet.
func isMissing(err error) bool { return errors.Is(err, os.ErrNotExist) }
