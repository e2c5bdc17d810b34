package trainer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/gguf"
	"cftune/trainer/internal/durable"
	"cftune/trainer/metrics"
	"cftune/trainer/metrics/exporter"
	"cftune/trainer/mirror"
	"cftune/trainer/objective"
	"cftune/trainer/pack"
)

// Options are what a run needs beside the engine.
type Options struct {
	Config config.Run
	// ModelFile is the base model's file where Config.Model is another name of it; empty: Config.Model is the file.
	ModelFile string
	Text      Text
	// Version is the program's, for the run's record.
	Version string
	// Progress makes the display of a run that is at step first of total; nil shows nothing.
	Progress func(first, total int) metrics.Progress
	// StopAfter ends Run, with a checkpoint, after so many steps of this call; 0 = never.
	StopAfter int
	// SaveNow, if not nil, asks for a checkpoint after the current step.
	SaveNow <-chan struct{}
	// Processes is how many processes train together; 0 means one.
	Processes int
	// NativeStacks, if not nil, tells where the threads of the native engine stand, for the record of a stall.
	NativeStacks func() string
	// Older lets Resume take an older checkpoint where the newest is damaged.
	Older bool
	// AcceptChanges lets Resume take up a run with settings, data or a model that are not those it was begun with, where
	// the checkpoint can be used with them at all. What that gives up is told, and kept in the run's record.
	AcceptChanges bool
	// Cache is a folder for what takes long to find out about data; empty: nothing is kept.
	Cache string
	// Reading, if not nil, is called now and then while a file is read for the first time.
	Reading func(file string, rows int64)
	// Looking, if not nil, is called now and then while all records are looked at: how many of them are, and how long the others may take.
	Looking func(done, total int, left time.Duration)
	// Changes are another run's journal for a new run to follow, and Started the time that its chat template saw (zero:
	// now). With both, and the same configuration, a run is made again to the same bits.
	Changes []objective.Change
	Started time.Time
	// Again, if not nil, is the record of that run: New refuses another model, data, chat template or first adapter.
	Again *Record

	fs durable.FS // nil means durable.OS
	// openMirror is mirror.Open where it is nil.
	openMirror func(ctx context.Context, url string, make bool) (*mirror.Store, error)
}

// Trainer is one run, from its preparation to its end.
type Trainer struct {
	options Options
	run     config.Run
	record  Record
	notes   []string

	set, heldSet *dataset.Set
	encoder      *encoder
	held         []held
	warm         *gguf.Adapter
	architecture string
	shortContext int             // see ShortContext
	modules      []config.Module // that get an adapter
	shards       []string        // the base model's files
	base         *HeldModel      // while it trains

	dir     *checkpoint.Run
	mirror  *mirroring             // nil where there is none
	resumed *checkpoint.Checkpoint // nil for a new run

	// Where the run stands: what a checkpoint holds beside the engine's state.
	done     int // steps
	cursor   dataset.Cursor
	course   *objective.Course
	counters checkpoint.Counters
	// validated is the step of the last validation, -1 before the first.
	validated int
	best      *checkpoint.Best
	saved     int // step of the newest checkpoint, -1 if there is none
	savedDir  string
	// savedValidated is the last validation that the newest checkpoint knows of.
	savedValidated int

	losses   []float64 // of the last steps, at most metrics.SpikeWindow
	watch    *watchdog
	skips    []error // since the last step that was made
	from     int     // done when this call of Run began
	log      *metrics.Log
	progress metrics.Progress
	sinks    []metrics.Sink   // progress among them
	server   *exporter.Server // nil where nobody is to be answered
}

// Prepare looks at everything that a run of this configuration needs but the engine, and writes nothing. Its Plan tells
// what the run would do.
func Prepare(ctx context.Context, o Options) (*Trainer, error) {
	t := newTrainer(o)
	if err := t.prepare(ctx); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// New prepares a run and makes its directory. Where it fails, nothing is left behind.
func New(ctx context.Context, o Options) (*Trainer, error) {
	t := newTrainer(o)
	dir, err := checkpoint.Create(t.options.fs, o.Config.Output)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Trainer, error) {
		dir.Abandon()
		t.Close()
		return nil, err
	}
	if err := t.listen(); err != nil { // first: reading the data may take long
		return fail(err)
	}
	if err := t.prepare(ctx); err != nil {
		return fail(err)
	}
	if was := o.Again; was != nil {
		if err := was.sameFiles(t.record); err != nil {
			return fail(err)
		}
		t.notes = append(t.notes, was.notes(t.record)...)
		t.record.Spans = slices.Clone(was.Spans)
		if err := t.keepRotation(*was); err != nil {
			return fail(err)
		}
	}
	t.dir = dir
	return t, nil
}

func newTrainer(o Options) *Trainer {
	if o.fs == nil {
		o.fs = durable.OS
	}
	if o.Started.IsZero() {
		o.Started = time.Now()
	}
	return &Trainer{
		options:   o,
		run:       o.Config,
		course:    objective.NewCourse(o.Config.Objective.Stages, o.Changes...),
		validated: -1,
		saved:     -1,
		record: Record{
			Format: checkpoint.FormatVersion, Version: o.Version, Started: o.Started.UTC(), Cores: runtime.GOMAXPROCS(0), Processes: o.Processes,
			Config: o.Config, ChatDigest: o.Text.Digest,
		},
	}
}

// modelFile is where the base model lies.
func (t *Trainer) modelFile() string { return cmp.Or(t.options.ModelFile, t.run.Model) }

// prepare opens base model, data and adapter, and plans.
func (t *Trainer) prepare(ctx context.Context) error {
	base, err := gguf.Open(t.modelFile())
	if err != nil {
		return fmt.Errorf("base model: %w", err)
	}
	if err := t.openBase(base); err != nil {
		return err
	}
	if t.record.Model, err = identify(base, ModelFile{}); err != nil {
		return err
	}
	t.shards = base.Shards
	if t.warm, t.record.WarmStart, err = readWarmStart(t.run, base, t.modules); err != nil {
		return err
	}
	if from := t.record.WarmStart; from != nil && from.ModelSHA256 != "" && from.ModelSHA256 != t.record.Model.SHA256 {
		t.notes = append(t.notes, fmt.Sprintf("%s was trained on another base model (sha256 %.12s, this one is %.12s)", from.Path, from.ModelSHA256, t.record.Model.SHA256))
	}
	if err := t.openData(ctx); err != nil {
		return err
	}
	return t.plan(ctx)
}

// openBase finds what gets an adapter.
func (t *Trainer) openBase(base *gguf.File) error {
	var err error
	t.architecture, t.shortContext = base.Architecture(), ShortContext(base)
	t.modules, err = AdapterModules(t.run.Adapter, base)
	return err
}

// openData opens the records and fixes the time that chat templates see.
func (t *Trainer) openData(ctx context.Context) error {
	text := t.options.Text
	if text.Template != nil {
		text.Template = text.Template.At(t.record.Started)
	}
	var err error
	o := dataset.Options{Cache: t.options.Cache, Progress: t.options.Reading}
	if t.set, err = dataset.Open(ctx, t.run.Data.Sources, o); err != nil {
		return openError(err)
	}
	t.record.DataDigest = t.set.Digest()
	t.encoder = &encoder{set: t.set, text: text, run: t.run}
	v := t.run.Data.Validation
	if v.Path == "" {
		return nil
	}
	if t.heldSet, err = dataset.Open(ctx, []config.Source{{Path: v.Path, Format: v.Format, Weight: 1, Fields: v.Fields}}, o); err != nil {
		return openError(err)
	}
	t.record.ValidationDigest = t.heldSet.Digest()
	return nil
}

// holdOut makes records that are held out as well a fault of the training data.
func (t *Trainer) holdOut(ctx context.Context) error {
	if !t.run.Data.Audit {
		return nil
	}
	var err error
	t.encoder.held, err = heldKeys(ctx, t.heldSet)
	return err
}

// openError tells faults of the data from those of the disk.
func openError(err error) error {
	var fault *dataset.Error
	if errors.As(err, &fault) && !errors.Is(err, context.Canceled) {
		return &DataError{Problems: []string{err.Error()}}
	}
	return err
}

// plan looks at all records.
func (t *Trainer) plan(ctx context.Context) error {
	plan, path, known, err := t.keptPlan()
	if err == nil && !known {
		if plan, err = t.makePlan(ctx); err == nil {
			t.keepPlan(path, plan)
		}
	}
	if err == nil {
		err = t.encodeHeld(ctx, &plan)
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("looking at the data: %w", err)
	}
	if err != nil {
		return err
	}
	t.record.Plan = plan
	if o := plan.OverLong; o.Count > 0 {
		done := map[string]string{"drop": "dropped", "truncate_prompt": "cut at the start of their prompts", "split": "split"}[o.Policy]
		t.notes = append(t.notes, fmt.Sprintf("%d examples longer than a pack of %d tokens are %s (data.over_long): %s",
			o.Count, t.run.Train.SeqLen, done, named(o.First, o.Count)))
	}
	return nil
}

func (t *Trainer) makePlan(ctx context.Context) (Plan, error) {
	if err := t.holdOut(ctx); err != nil {
		return Plan{}, err
	}
	p := newPlanner(t.encoder)
	p.looking = t.options.Looking
	plan, err := p.plan(ctx)
	for _, change := range t.course.Changes() {
		if err == nil {
			err = p.check(ctx, change.Stages)
		}
	}
	return plan, err
}

func (t *Trainer) encodeHeld(ctx context.Context, plan *Plan) error {
	if t.heldSet == nil {
		return nil
	}
	var err error
	t.held, err = encodeHeld(ctx, t.heldEncoder(), t.heldObjectives(), plan)
	return err
}

func (t *Trainer) heldEncoder() *encoder {
	return &encoder{set: t.heldSet, text: t.encoder.text, run: t.run}
}

// heldObjectives are those that the validation loss is measured for: the configuration's, and those of the change in force.
func (t *Trainer) heldObjectives() []string {
	return objective.Objectives(append(slices.Clone(t.run.Objective.Stages), t.course.Stages()...)...)
}

// Plan tells what the run will do, or has done in part.
func (t *Trainer) Plan() Plan { return t.record.Plan }

// MaxSequence is how long a sequence the engine is to be made for.
func (t *Trainer) MaxSequence() int { return t.record.MaxSequence() }

// Done tells the steps taken so far.
func (t *Trainer) Done() int { return t.done }

// Finished reports whether nothing is left to do.
func (t *Trainer) Finished() bool {
	if t.held != nil && t.validated != t.done {
		return false
	}
	if !t.dynamic() {
		// What was skipped makes no steps: then the records end before the last one that was planned.
		return t.done >= t.record.Plan.Steps || t.counters.Skipped > 0 && t.epochs() >= float64(t.run.Train.Epochs)
	}
	if most := t.run.Train.MaxSteps; most > 0 && t.done >= most {
		return true
	}
	next := t.newFeeder().make(t.cursor, t.done+1)
	return next.err == nil && next.batches == nil
}

// dynamic reports whether the number of steps may differ from the planned one: what a step is made of can depend on the
// objective, and when that changes was not known; and data or batches can have changed on the way.
func (t *Trainer) dynamic() bool {
	return len(t.course.Changes()) > 0 || hasPlateau(t.run.Objective.Stages) || len(t.record.Accepted) > 0
}

// Preview returns the first n examples of a run in the order of training, without looking at the rest.
func Preview(ctx context.Context, o Options, n int) ([]pack.Example, error) {
	t := newTrainer(o)
	defer t.Close()
	if err := t.openData(ctx); err != nil {
		return nil, err
	}
	g := t.grouper()
	var examples []pack.Example
	for i := range min(n, g.records) {
		k := g.pickAt(dataset.Cursor{Index: i})
		e, err := t.encoder.encode(k.record, k.objective)
		if err != nil {
			return nil, &DataError{Problems: []string{words(err)}, TooLong: errors.Is(err, errTooLong), Objective: errors.Is(err, errLayout)}
		}
		examples = append(examples, e.parts...)
	}
	return examples, nil
}

// Close gives the run directory back and closes the data. A new run that has written nothing leaves nothing.
func (t *Trainer) Close() error {
	if t.server != nil {
		t.server.Close()
	}
	var errs []error
	for _, set := range []*dataset.Set{t.set, t.heldSet} {
		if set != nil {
			errs = append(errs, set.Close())
		}
	}
	t.set, t.heldSet = nil, nil
	if t.dir != nil {
		if _, err := os.Lstat(filepath.Join(t.dir.Dir(), checkpoint.ConfigName)); isMissing(err) {
			t.dir.Abandon()
		}
		errs = append(errs, t.dir.Close())
		t.dir = nil
	}
	return errors.Join(errs...)
}

// Resume takes up the run in a directory. The configuration is the run's own with changes laid over it (Overlay); what
// must not change is compared field by field, and differences come back as a *MismatchError, unless they are accepted.
func Resume(ctx context.Context, dir string, o Options) (*Trainer, error) {
	t := newTrainer(o)
	var err error
	if t.dir, err = checkpoint.OpenRun(t.options.fs, dir); err != nil {
		return nil, err
	}
	if err := t.resume(ctx, dir); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Trainer) resume(ctx context.Context, dir string) error {
	was, err := ReadRecord(dir)
	if err != nil {
		return err
	}
	c, passed, err := checkpoint.Latest(dir, t.options.Older)
	if err != nil {
		return err
	}
	for _, p := range passed {
		t.notes = append(t.notes, fmt.Sprintf("passed over: %v", p))
	}
	t.resumed, t.saved, t.savedDir = c, c.Step, c.Dir
	t.record.Started, t.record.Version, t.record.WarmStart = was.Started, was.Version, was.WarmStart
	if err := t.restoreCourse(dir, c); err != nil {
		return err
	}
	if err := t.prepareResumed(ctx, was); err != nil {
		return err
	}
	if err := t.keepRotation(was); err != nil {
		return fmt.Errorf("resume %s: %w", dir, err)
	}
	if !was.owns(c) {
		return fmt.Errorf("resume %s: checkpoint step %d is not of the run in %s: %w", dir, c.Step, checkpoint.ConfigName, checkpoint.ErrIncompatible)
	}
	if steps := t.record.Plan.Steps; !t.dynamic() && steps < c.Step && steps < was.Plan.Steps {
		return &config.Problems{List: []config.Problem{{Message: fmt.Sprintf(
			"resume %s: train.epochs and train.max_steps make a run of %d steps, and %d are done: ask for at least so many", dir, steps, c.Step)}}}
	}
	t.keepSpan(was)
	t.notes = append(t.notes, was.notes(t.record)...)
	t.done, t.cursor = c.Step, dataset.Cursor(c.Cursor)
	t.counters, t.validated, t.best = c.Counters, c.ValidatedStep, c.Best
	t.savedValidated = c.ValidatedStep
	if t.forgetsBest() {
		t.best = nil
	}
	return nil
}

// restoreCourse reads the journal and sets the course to where the checkpoint says it stood.
func (t *Trainer) restoreCourse(dir string, c *checkpoint.Checkpoint) error {
	changes, torn, err := ReadJournal(dir)
	if err != nil {
		return err
	}
	if torn {
		t.notes = append(t.notes, fmt.Sprintf("the last line of %s is cut off and does not count", checkpoint.JournalName))
	}
	t.course = objective.NewCourse(t.run.Objective.Stages, changes...)
	if c.Objective == nil {
		return nil
	}
	if err := t.course.Restore(objective.State(*c.Objective)); err != nil {
		return fmt.Errorf("resume %s: checkpoint step %d: %w: %w", dir, c.Step, checkpoint.ErrIncompatible, err)
	}
	return nil
}

// prepareResumed is prepare without what the run has behind it: its adapter was read when it began, and its plan is
// known unless the number of steps changes.
func (t *Trainer) prepareResumed(ctx context.Context, was Record) error {
	base, err := gguf.Open(t.modelFile())
	if err != nil {
		return fmt.Errorf("base model: %w", err)
	}
	if err := t.openBase(base); err != nil {
		return err
	}
	if t.record.Model, err = identify(base, was.Model); err != nil {
		return err
	}
	t.shards = base.Shards
	if err := t.openData(ctx); err != nil {
		return err
	}
	changed, err := t.accept(was)
	if err != nil {
		return err // before the data is looked at with other settings
	}
	if changed || t.run.Train.Epochs != was.Config.Train.Epochs || t.run.Train.MaxSteps != was.Config.Train.MaxSteps {
		return t.plan(ctx)
	}
	t.record.Plan = was.Plan
	again := was.Plan // its counts are taken already
	return t.encodeHeld(ctx, &again)
}

// Overlay lays settings ("train.max_steps=50") over a run's configuration. The environment is not asked: what it said
// when the run began is in the configuration.
func Overlay(run config.Run, sets []string) (config.Run, error) {
	text, err := json.Marshal(run)
	if err != nil {
		return config.Run{}, fmt.Errorf("overlay: %w", err)
	}
	return config.Parse(text, sets, nil) // JSON is YAML
}
