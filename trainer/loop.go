package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"time"

	"cftune/trainer/checkpoint"
	"cftune/trainer/metrics"
	"cftune/trainer/mirror"
	"cftune/trainer/objective"
)

// Result is what a call of Run came to.
type Result struct {
	Run        string           `json:"run"`
	Step       int              `json:"step"`
	Steps      int              `json:"steps"` // planned
	Checkpoint string           `json:"checkpoint"`
	Loss       *float64         `json:"loss,omitempty"` // of the last step; missing if this call took none
	Validation *float64         `json:"validation_loss,omitempty"`
	Best       *checkpoint.Best `json:"best,omitempty"`
	Targets    int64            `json:"targets"` // trained on since the run began
	Seconds    float64          `json:"seconds"` // of this call
	// Stopped says why the run ended before its last step (EndPatience, EndMaxTime, EndStopAfter); empty if it did not.
	Stopped string `json:"stopped,omitempty"`
	// Mirror tells how the mirror stands; missing where there is none.
	Mirror *mirror.Report `json:"mirror,omitempty"`
}

// Run trains until the plan's last step, a limit, or the end of ctx, and leaves a checkpoint of the last completed step.
//
// An error is an *Interrupted if ctx ended, and a *StepError, wrapping ErrNonFinite, if a loss or gradient was not
// finite: then the checkpoints are as they were.
func (t *Trainer) Run(ctx context.Context, engine Engine) (Result, error) {
	began := time.Now()
	if t.dir == nil {
		return Result{}, errors.New("run: it was only prepared")
	}
	limit, err := t.run.Limits.Duration()
	if err != nil {
		return Result{}, fmt.Errorf("limits.max_time: %w", err)
	}
	stall, err := t.run.Health.Stall()
	if err != nil {
		return Result{}, fmt.Errorf("health.stall_timeout: %w", err)
	}
	if err := t.listen(); err != nil {
		return Result{}, err
	}
	if t.base, err = holdFiles(t.record.Model, t.shards); err != nil {
		return Result{}, err
	}
	defer t.base.Close()
	if t.mirror, err = t.openMirror(ctx); err != nil {
		return Result{}, err
	}
	if err := t.begin(engine); err != nil {
		t.mirror.finish(ctx, func(string) {}) // nothing was offered
		return Result{}, err
	}
	t.watch = startWatchdog(stall, t.stalled)
	defer func() {
		for _, s := range t.sinks {
			s.Close()
		}
		t.log.Close() // what must not be lost was synced with the checkpoint
	}()
	for _, note := range t.notes {
		t.progress.Note("note: " + note)
	}
	if t.resumed != nil {
		t.mirror.offer(t.done, t.retention()) // it may have been under way when the run ended
	}
	result := t.Result()
	err = t.loop(ctx, engine, &result, func() string { return t.stopReason(began, limit) })
	if err != nil && t.done == 0 && t.saved < 0 {
		err = errors.Join(err, t.dir.Clear()) // nothing came of it: the folder can be used again
	}
	t.watch.stop()
	t.keepEnd(result.Stopped, err)
	wait := ctx
	if ctx.Err() != nil {
		// The interrupt that ended the run is all the more a reason to wait for the copy; a second one ends the process.
		wait = context.WithoutCancel(ctx)
	}
	result.Mirror = t.mirror.finish(wait, t.progress.Note)
	result.Step, result.Checkpoint = t.done, t.savedDir
	result.Best, result.Targets, result.Seconds = t.best, t.counters.Targets, time.Since(began).Seconds()
	return result, err
}

// SaveOn makes Run commit a checkpoint after the current step whenever asked gives a value.
func (t *Trainer) SaveOn(asked <-chan struct{}) { t.options.SaveNow = asked }

// Result tells where the run stands.
func (t *Trainer) Result() Result {
	return Result{
		Run: t.dir.Dir(), Step: t.done, Steps: t.record.Plan.Steps, Checkpoint: t.savedDir, Best: t.best, Targets: t.counters.Targets,
	}
}

// begin writes the run's record, sets the engine to where the run stands, and opens the metrics.
func (t *Trainer) begin(engine Engine) error {
	text, err := t.record.encode()
	if err != nil {
		return err
	}
	switch {
	case t.resumed != nil:
		state, err := loadState(t.resumed)
		if err != nil {
			return err
		}
		if err := engine.Restore(state); err != nil {
			return fmt.Errorf("resume %s: %w", t.dir.Dir(), err)
		}
		// Newer ones are damaged, and their steps will be saved again.
		if err := t.dir.RemoveAfter(t.done); err != nil {
			return err
		}
	case t.warm != nil:
		if err := warmStart(engine, t.run.Adapter.InitFrom, t.warm); err != nil {
			return err
		}
		t.warm = nil
	}
	if err := t.dir.WriteConfig(text); err != nil {
		return err
	}
	if err := t.beginJournal(); err != nil {
		return err
	}
	path := filepath.Join(t.dir.Dir(), checkpoint.MetricsName)
	if err := metrics.Rewind(t.options.fs, path, metrics.Place{Step: t.done, Validated: t.validated, Skipped: t.counters.Skipped}); err != nil {
		return err
	}
	if t.losses, err = metrics.Losses(path, metrics.SpikeWindow); err != nil {
		return err
	}
	if t.log, err = metrics.OpenLog(t.options.fs, path); err != nil {
		return err
	}
	if err := t.options.fs.SyncDir(t.dir.Dir()); err != nil { // the file's name
		t.log.Close()
		return fmt.Errorf("open metrics: %w", err)
	}
	if err := t.openSinks(path, text); err != nil {
		t.log.Close()
		return err
	}
	return nil
}

// beginJournal writes the changes that a new run was given, and removes requests that nobody waits for, and what was said of an earlier end.
func (t *Trainer) beginJournal() error {
	if t.resumed == nil {
		for _, change := range t.options.Changes {
			if err := appendJournal(t.options.fs, t.dir.Dir(), change); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{checkpoint.ControlName, checkpoint.EndName} {
		if err := t.options.fs.RemoveAll(filepath.Join(t.dir.Dir(), name)); err != nil {
			return fmt.Errorf("clear %s: %w", name, err)
		}
	}
	return nil
}

// loop takes the steps. Whatever ends it, the last completed step is on disk, unless a failure of the engine or the disk
// is what ends it.
func (t *Trainer) loop(ctx context.Context, engine Engine, result *Result, stop func() string) error {
	rate, err := t.rates()
	if err != nil {
		return err
	}
	t.from = t.done
	ends := false // the epochs are over
	feed := t.startFeed(ctx)
	defer func() { feed.stop() }()
	switches := &switcher{trainer: t}
	defer switches.stop()
	for {
		if err := t.betweenSteps(ctx, engine, result, ends); err != nil {
			return t.interrupted(ctx, engine, err)
		}
		t.mirror.tell(t.progress.Note)
		if ends || t.done >= t.last() {
			break
		}
		if result.Stopped = stop(); result.Stopped != "" {
			return t.save(ctx, engine)
		}
		if err := switches.serve(ctx); err != nil {
			return err
		}
		if err := t.saveIfAsked(ctx, engine); err != nil {
			return err
		}
		g, err := t.next(ctx, feed)
		switch {
		case err != nil && ctx.Err() == nil:
			return t.withoutData(ctx, engine, err)
		case err != nil:
			return t.interrupted(ctx, engine, err)
		case g.batches == nil:
			if !t.dynamic() && t.counters.Skipped == 0 {
				return fmt.Errorf("the records end before step %d, though they were planned to last longer", g.step)
			}
			ends = true
			continue
		}
		step, err := t.step(ctx, engine, g, rate(g.step))
		if bad := (*StepError)(nil); errors.As(err, &bad) && bad.skippable() {
			if err := t.skip(ctx, g, bad); err != nil {
				return err
			}
			// The groups that were made ahead have later numbers than theirs.
			feed.stop()
			*feed = *t.startFeed(ctx)
			continue
		}
		if err != nil {
			return t.interrupted(ctx, engine, err)
		}
		result.Loss = &step.Loss
		if err := t.keep(ctx, step); err != nil {
			return err
		}
	}
	if err := t.endsInSkips(); err != nil {
		return err
	}
	if !ends && t.options.StopAfter > 0 && t.done == t.from+t.options.StopAfter && !t.Finished() {
		result.Stopped = EndStopAfter
	}
	return t.save(ctx, engine)
}

// last is the step after which this call ends at the latest.
func (t *Trainer) last() int {
	last := t.record.Plan.Steps
	if t.dynamic() {
		last = math.MaxInt
		if most := t.run.Train.MaxSteps; most > 0 {
			last = most
		}
	}
	if after := t.options.StopAfter; after > 0 {
		last = min(last, t.from+after)
	}
	return last
}

// next returns the group of the next step. The feeder works ahead and does not know of changes and validation losses that
// came since: where the course has another stage than it thought, it begins anew.
func (t *Trainer) next(ctx context.Context, feed *feed) (group, error) {
	for {
		g, ok := <-feed.groups
		if !ok {
			return group{}, ctx.Err()
		}
		if g.err != nil || g.batches == nil {
			// Under another objective there may be no error, and more to do.
			g.epoch = t.cursor.Epoch
		}
		before, number := t.course.State(), t.course.Number()
		t.course.Advance(objective.At{Step: g.step, Epoch: g.epoch, Tokens: t.counters.Tokens})
		if t.course.State().Change != before.Change {
			if err := t.changeHeld(ctx); err != nil {
				return group{}, err
			}
		}
		if t.course.Number() != number {
			t.progress.Note(fmt.Sprintf("note: from step %d on the objective is %s", g.step, objective.MixText(t.course.Stage().Mix)))
		}
		if t.course.Number() == g.stage {
			return g, g.err
		}
		feed.stop()
		*feed = *t.startFeed(ctx)
	}
}

// changeHeld measures the validation loss for the objectives that there are now. The best one so far was of others.
func (t *Trainer) changeHeld(ctx context.Context) error {
	if t.heldSet == nil {
		return nil
	}
	var names []string
	for _, h := range t.held {
		names = append(names, h.objective)
	}
	if slices.Equal(names, t.heldObjectives()) {
		return nil
	}
	t.best = nil
	counted := t.record.Plan // as it was planned
	return t.encodeHeld(ctx, &counted)
}

// betweenSteps measures the validation loss and saves, where that is due at the step that was done last. The measure
// comes first, so that a checkpoint knows it.
func (t *Trainer) betweenSteps(ctx context.Context, engine Engine, result *Result, ends bool) error {
	every := t.run.Data.Validation.EverySteps
	if t.held != nil && t.validated != t.done && (ends || t.done == 0 || t.done%every == 0 || t.done == t.record.Plan.Steps || t.record.measuredAt(t.done) || t.over()) {
		loss, err := t.validate(ctx, engine)
		if err != nil {
			return err
		}
		result.Validation = &loss
	}
	best := t.run.Checkpoint.KeepBest && t.best != nil && t.best.Step == t.done
	if t.done > 0 && (t.done%t.run.Checkpoint.EverySteps == 0 || best) {
		return t.save(ctx, engine)
	}
	return nil
}

// step trains on one group and takes one optimizer step. The loss is the mean over all targets of the group, so short
// and long packs count by their targets.
func (t *Trainer) step(ctx context.Context, engine Engine, g group, lr float64) (metrics.Step, error) {
	began := time.Now()
	t.watch.step.Store(int64(g.step))
	var sum float64
	var targets, computed int
	accumulate := t.accumulator(ctx, engine, g.batches)
	for i, b := range g.batches {
		computed += len(b.Tokens)
		s, n, err := accumulate(i)
		counted := i // a call that fails is not counted by the engine
		if err == nil && (math.IsNaN(s) || math.IsInf(s, 0)) {
			err = fmt.Errorf("the loss is %v: %w", s, ErrNonFinite)
			counted++
		}
		if err != nil {
			engine.Discard()
			return metrics.Step{}, &StepError{Step: g.step, Examples: g.ids[i], Err: err, counted: counted}
		}
		sum += s
		targets += n
	}
	if err := t.base.Check(); err != nil {
		engine.Discard()
		return metrics.Step{}, &StepError{Step: g.step, Err: err, counted: len(g.batches)}
	}
	if err := t.spike(g.step, sum/float64(targets)); err != nil {
		engine.Discard()
		return metrics.Step{}, &StepError{Step: g.step, Err: err, counted: len(g.batches)}
	}
	norm, err := engine.Apply(lr, t.run.Optimizer.MaxGradNorm, float64(targets))
	if err != nil {
		engine.Discard()
		return metrics.Step{}, &StepError{Step: g.step, Err: fmt.Errorf("optimizer step: %w", err), counted: len(g.batches)}
	}
	t.skips = nil
	t.losses = append(t.losses[max(0, len(t.losses)+1-metrics.SpikeWindow):], sum/float64(targets))
	t.done, t.cursor = g.step, g.end
	t.counters.Examples += int64(g.examples)
	t.counters.Tokens += int64(g.tokens)
	t.counters.Targets += int64(targets)
	t.counters.MicroBatches += uint64(len(g.batches))

	seconds := time.Since(began).Seconds()
	return metrics.Step{
		Step: g.step, Epoch: t.epochs(), Loss: sum / float64(targets), Targets: targets, Tokens: g.tokens, Computed: computed,
		Examples: g.examples, Packs: len(g.batches), LR: lr, GradNorm: norm, Objective: g.objective, Stage: g.stage,
		TokensPerS: float64(g.tokens) / seconds, TargetTokensPerS: float64(targets) / seconds,
		MemoryBytes: engine.MemoryBytes(), Time: time.Now().UTC(), Seconds: seconds,
	}, nil
}

// epochs tells how many passes over the records are done, with the part of the current one.
func (t *Trainer) epochs() float64 {
	return float64(t.cursor.Epoch) + float64(t.cursor.Index)/float64(t.set.EpochLen())
}

// validate measures the loss over all held-out examples, and of each objective where there are several.
func (t *Trainer) validate(ctx context.Context, engine Engine) (float64, error) {
	began := time.Now()
	var records []metrics.Validation
	var all float64
	var targets int
	for _, h := range t.held {
		sum := 0.0
		evaluate := t.evaluator(ctx, engine, h.batches)
		for i := range h.batches {
			s, err := evaluate(i)
			if err == nil && (math.IsNaN(s) || math.IsInf(s, 0)) {
				err = fmt.Errorf("the loss is %v: %w", s, ErrNonFinite)
			}
			if err != nil {
				return 0, fmt.Errorf("validation after step %d: %w", t.done, err)
			}
			sum += s
		}
		if err := t.base.Check(); err != nil {
			return 0, fmt.Errorf("validation after step %d: %w", t.done, err)
		}
		all, targets = all+sum, targets+h.targets
		records = append(records, metrics.Validation{Step: t.done, Loss: sum / float64(h.targets), Targets: h.targets, Objective: h.objective})
	}
	total := metrics.Validation{Step: t.done, Loss: all / float64(targets), Targets: targets}
	if len(records) == 1 {
		records = nil
	}
	for _, r := range append(records, total) {
		r.Time, r.Seconds = time.Now().UTC(), time.Since(began).Seconds()
		if err := t.keep(ctx, r); err != nil {
			return 0, err
		}
	}
	t.validated = t.done
	t.course.Validated(total.Loss)
	if t.best == nil || total.Loss < t.best.Loss {
		t.best = &checkpoint.Best{Step: t.done, Loss: total.Loss}
	} else {
		t.best = &checkpoint.Best{Step: t.best.Step, Loss: t.best.Loss, Stale: t.best.Stale + 1}
	}
	return total.Loss, nil
}

// courseState is what a checkpoint holds of the course; nil at its start.
func (t *Trainer) courseState() *objective.State {
	s := t.course.State()
	if !t.dynamic() {
		// Where it stands follows from steps, epochs and tokens.
		return nil
	}
	return &s
}

// interrupted saves the last completed step where ctx ended or the base model is gone, and passes other errors on.
func (t *Trainer) interrupted(ctx context.Context, engine Engine, err error) error {
	if errors.Is(err, ErrModelGone) {
		return t.withoutModel(ctx, engine, err)
	}
	if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	engine.Discard()
	t.progress.Note(fmt.Sprintf("interrupted: saving step %d", t.done))
	if saveErr := t.save(context.WithoutCancel(ctx), engine); saveErr != nil {
		return saveErr
	}
	return &Interrupted{Run: t.dir.Dir(), Step: t.done, Checkpoint: t.savedDir, Err: err}
}

// withoutData saves the last completed step where the records of the next one cannot be had: they were changed, or their disk fails, which is not
// the run's.
func (t *Trainer) withoutData(ctx context.Context, engine Engine, err error) error {
	if t.done == 0 {
		return err
	}
	t.progress.Note(fmt.Sprintf("the records of step %d cannot be had: saving step %d", t.done+1, t.done))
	return errors.Join(err, t.save(ctx, engine))
}

// withoutModel saves the last completed step, which was computed while the base model was what it had been.
func (t *Trainer) withoutModel(ctx context.Context, engine Engine, err error) error {
	engine.Discard()
	if t.done == 0 || t.saved == t.done {
		return err
	}
	t.progress.Note(fmt.Sprintf("the base model cannot be used any more: saving step %d", t.done))
	return errors.Join(err, t.save(ctx, engine))
}

// save commits a checkpoint of the last completed step, unless there is one, and removes old ones.
func (t *Trainer) save(ctx context.Context, engine Engine) error {
	if t.saved == t.done {
		return t.amend()
	}
	state, err := engine.State()
	if err != nil {
		return fmt.Errorf("write checkpoint step %d: %w", t.done, err)
	}
	if state.Steps != uint64(t.done) {
		return fmt.Errorf("write checkpoint step %d: the engine has taken %d steps", t.done, state.Steps)
	}
	// The engine has also counted the packs of a step that was thrown away; they will be computed again.
	state.MicroBatches = t.counters.MicroBatches
	// Metrics first: no checkpoint may be ahead of them.
	if err := t.log.Sync(); err != nil {
		return err
	}
	write := func() error {
		dir, err := t.dir.Write(t.manifest(), contents(t.adapterHead(state.Steps), state))
		if err == nil {
			t.savedDir = dir
		}
		return err
	}
	if err := t.withRoom(ctx, write(), write); err != nil {
		return err
	}
	t.saved, t.savedValidated = t.done, t.validated
	t.watch.beat()
	t.tellSaved(time.Now())
	t.mirror.offer(t.done, t.retention()) // before it can be pruned
	return t.dir.Prune(t.retention())
}

// manifest says where the run stands.
func (t *Trainer) manifest() checkpoint.Manifest {
	return checkpoint.Manifest{
		Step: t.done, Cursor: checkpoint.Cursor(t.cursor), Seed: t.run.Seed,
		ConfigDigest: identity(t.run).Digest(), ModelDigest: t.record.Model.SHA256, DataDigest: t.record.DataDigest,
		Counters: t.counters, ValidatedStep: t.validated, Best: t.best, Objective: (*checkpoint.Objective)(t.courseState()),
	}
}

// amend lets the newest checkpoint know of a validation that came after it: of a run that was interrupted while it measured that.
func (t *Trainer) amend() error {
	if t.savedValidated == t.validated {
		return nil
	}
	if err := t.log.Sync(); err != nil {
		return err
	}
	if err := t.dir.Amend(t.manifest()); err != nil {
		return err
	}
	t.savedValidated = t.validated
	return nil
}

// retention is what is kept of the run's checkpoints.
func (t *Trainer) retention() checkpoint.Retention {
	keep := checkpoint.Retention{Last: t.run.Checkpoint.KeepLast, Every: t.run.Checkpoint.KeepEvery}
	if t.run.Checkpoint.KeepBest && t.best != nil {
		keep.Also = []int{t.best.Step}
	}
	if pinned, err := keep.Pinned(t.dir.Dir()); err == nil { // Prune tells of the error
		keep = pinned
	}
	return keep
}

// saveIfAsked commits a checkpoint between two steps where one was asked for.
func (t *Trainer) saveIfAsked(ctx context.Context, engine Engine) error {
	select {
	case <-t.options.SaveNow:
	default:
		return nil
	}
	if t.done == 0 || t.saved == t.done {
		t.progress.Note(fmt.Sprintf("checkpoint asked for: there is nothing new to save at step %d", t.done))
		return nil
	}
	if err := t.save(ctx, engine); err != nil {
		return err
	}
	t.progress.Note(fmt.Sprintf("checkpoint asked for: step %d is saved in %s", t.done, t.savedDir))
	return nil
}
