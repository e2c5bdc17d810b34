package study

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/checkpoint"
	"cftune/trainer/dataset"
	"cftune/trainer/export"
	"cftune/trainer/internal/durable"
	"cftune/trainer/metrics"
	"cftune/trainer/shard"
)

// Options are what a study needs beside its file.
type Options struct {
	Engine  Engine
	Version string // of the program, for the record
	// Shard is the part of the study's models that this process makes.
	Shard shard.Shard
	// Cache is a folder for what takes long to find out about data; empty: nothing is kept.
	Cache string
	// Note tells people what happens; nil says nothing.
	Note func(text string)
}

func (o Options) note(format string, args ...any) {
	if o.Note != nil {
		o.Note(fmt.Sprintf(format, args...))
	}
}

func (o Options) reading() dataset.Options { return dataset.Options{Cache: o.Cache} }

// DataError says that a set cannot be used.
type DataError struct{ Err error }

func (e *DataError) Error() string { return e.Err.Error() }

func (e *DataError) Unwrap() error { return e.Err }

// runner is one call of Do.
type runner struct {
	planner
	Options
	dir   string
	state State
	began time.Time
}

// Do does what is left of a study, or of the process's share of it: plans it, trains every run, scores every model. Started
// again after any end, it goes on. The state that it returns is the whole study's.
func Do(ctx context.Context, spec Spec, o Options) (State, error) {
	share, err := shareOf(spec, o.Shard)
	if err != nil {
		return State{}, err
	}
	sets, left, err := openSets(ctx, spec, o.reading())
	if err != nil {
		return State{}, &DataError{err}
	}
	if err := durable.MkdirAll(durable.OS, filepath.Join(spec.Output, locksName)); err != nil {
		return State{}, fmt.Errorf("study: %w", err)
	}
	lock, err := durable.Acquire(filepath.Join(spec.Output, locksName, shardLock(o.Shard)))
	if err != nil {
		return State{}, fmt.Errorf("study: %w", err)
	}
	defer lock.Release()
	r := &runner{
		planner: planner{engine: o.Engine, spec: spec, sets: sets, data: filepath.Join(spec.Output, "data"), output: spec.Output},
		Options: o, dir: spec.Output, began: time.Now(),
	}
	if err := r.begin(ctx, left); err != nil {
		return State{}, err
	}
	if err := r.all(ctx, share); err != nil {
		return State{}, err
	}
	return ReadState(r.dir)
}

// begin writes the data and the record, or finds both there. Who comes meanwhile waits.
func (r *runner) begin(ctx context.Context, left []string) error {
	model, err := r.engine.Model(ctx, r.spec)
	if err != nil {
		return err
	}
	lock, err := await(ctx, filepath.Join(r.dir, lockName), r.note)
	if err != nil {
		return err
	}
	defer lock.Release()
	now := State{Scored: map[string]Scored{}, Record: Record{
		Format: FormatVersion, Version: r.Version, Started: r.began.UTC().Truncate(time.Second), Digest: r.spec.Digest(), Spec: r.spec,
		Model: model, Prompts: prompts(r.spec), Rule: Rule, Notes: notes(r.sets, left),
	}}
	old, err := ReadState(r.dir)
	switch {
	case err == nil:
		return r.goOn(old, now)
	case !errors.Is(err, ErrNone):
		return err
	}
	if now.Data, err = writeData(r.data, r.spec, r.sets); err != nil {
		return err
	}
	r.note("planning %d arms with %d seeds", len(r.spec.TrainedArms()), len(r.spec.Seeds))
	if now.Record.Runs, err = r.runs(ctx); err != nil {
		return err
	}
	now.planned()
	r.state = now
	return r.state.save(r.dir)
}

// goOn takes a study that is there, if it is this one.
func (r *runner) goOn(old, now State) error {
	if old.Spec.Digest() != now.Spec.Digest() {
		return fmt.Errorf("study %s: %w", r.dir, old.same(now)) // before any data file is replaced
	}
	// What is there must not be replaced before it is known to be the same.
	dir, err := os.MkdirTemp("", "cftune-study-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if now.Data, err = writeData(dir, r.spec, r.sets); err != nil {
		return err
	}
	if err := old.same(now); err != nil {
		return fmt.Errorf("study %s: %w", r.dir, err)
	}
	if _, err := writeData(r.data, r.spec, r.sets); err != nil {
		return err
	}
	r.state = old
	if old.Format == FormatVersion {
		return nil
	}
	r.note("the study's record is of format %d and becomes one of format %d", old.Format, FormatVersion)
	return r.state.save(r.dir)
}

func notes(sets []openSet, left []string) []string {
	notes := left
	for _, s := range sets {
		for _, n := range s.notes {
			notes = append(notes, s.Name+": "+n)
		}
		if len(s.test) > 0 && !s.judged() {
			notes = append(notes, s.Name+": its test rows have no labelled answers of others', so verdicts on those are not measured")
		}
	}
	return notes
}

// baseKey is the base model's, which is scored once for all seeds.
func baseKey(spec Spec) string {
	for _, a := range spec.Arms {
		if !a.Trained() {
			return a.Name
		}
	}
	return ""
}

func (r *runner) adapter(key string) string { return filepath.Join(r.dir, "adapters", key+".gguf") }

// train makes a run, or goes on with it, and exports its adapter.
func (r *runner) train(ctx context.Context, run *RunState) error {
	if run.Done {
		if sum, err := durable.Digest(r.adapter(run.Key)); err == nil && sum.SHA256 == run.Adapter {
			return nil
		}
		r.note("%s: its exported adapter is missing or changed and is exported again", run.Key)
	}
	config := r.config(run.Run)
	r.note("%s: training, %d steps", run.Key, run.Steps)
	began := time.Now()
	if err := r.engine.Train(ctx, config); err != nil {
		return err
	}
	c, err := r.chosen(config.Output)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(durable.OS, filepath.Join(r.dir, "adapters")); err != nil {
		return err
	}
	if _, err := export.Adapter(c, r.adapter(run.Key), export.Options{Force: true}); err != nil {
		return err
	}
	sum, err := durable.Digest(r.adapter(run.Key))
	if err != nil {
		return err
	}
	if run.Done && run.Adapter != sum.SHA256 {
		return fmt.Errorf("the adapter of step %d is not the one that was scored: %w", c.Step, ErrChanged)
	}
	curve, err := ReadCurve(config.Output)
	if err != nil {
		return err
	}
	run.Done, run.Step, run.Taken, run.Adapter = true, c.Step, len(curve.Steps), sum.SHA256
	run.Targets, run.Tokens, run.Seconds = curve.Targets, curve.Tokens, curve.Seconds
	if err := r.state.saveProgress(r.dir, run.Key); err != nil {
		return err
	}
	r.note("%s: trained in %s", run.Key, time.Since(began).Round(time.Second))
	return nil
}

// chosen returns the checkpoint that is scored.
func (r *runner) chosen(dir string) (*checkpoint.Checkpoint, error) {
	last, _, err := checkpoint.Latest(dir, false)
	if err != nil {
		return nil, err
	}
	if last.Manifest.Step == 0 {
		return nil, fmt.Errorf("%s took no step: %w", dir, checkpoint.ErrNotFound)
	}
	if best := last.Manifest.Best; r.spec.Train.Choose == chooseBest && best != nil && best.Step > 0 {
		return checkpoint.Open(dir, best.Step)
	}
	return last, nil
}

// Curve is the course of a run.
type Curve struct {
	Steps   []Point `json:"steps"`
	HeldOut []Point `json:"held_out"`
	Targets int64   `json:"targets"`
	Tokens  int64   `json:"tokens"`
	Seconds float64 `json:"seconds"`
}

// Point is a place of a curve.
type Point struct {
	Step int     `json:"step"`
	Loss float64 `json:"loss"`
}

// ReadCurve reads a run's metrics.
func ReadCurve(dir string) (Curve, error) {
	var c Curve
	text, err := regular.ReadFile(filepath.Join(dir, checkpoint.MetricsName))
	if err != nil {
		return c, err
	}
	for line := range bytes.Lines(text) {
		var record struct {
			metrics.Step
			HeldOut   *float64 `json:"validation_loss"`
			Skipped   *int64   `json:"skipped"`
			Objective any      `json:"objective"` // of a step; hides its type
			Part      string   `json:"validation_objective"`
		}
		if err := json.Unmarshal(line, &record); err != nil {
			return c, fmt.Errorf("metrics of %s: %w", dir, err)
		}
		switch {
		case record.Skipped != nil:
		case record.HeldOut == nil:
			c.Steps = append(c.Steps, Point{record.Step.Step, record.Loss})
			c.Targets += int64(record.Step.Targets)
			c.Tokens += int64(record.Tokens)
			c.Seconds += record.Seconds
		case record.Part == "":
			c.HeldOut = append(c.HeldOut, Point{record.Step.Step, *record.HeldOut})
		}
	}
	return c, nil
}
