package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cftune/bindings/engine"
	"cftune/internal/spell"
	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/metrics"
	"cftune/trainer/mirror"
	"cftune/trainer/objective"
	"cftune/trainer/parallel"
)

// trainFlags are those that train and resume share.
type trainFlags struct {
	sets      []string
	stopAfter int
	asJSON    bool
	parallel  string
	processes int
}

func (f *trainFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.sets, "set", nil, "override a key of the configuration (key=value)")
	cmd.Flags().IntVar(&f.stopAfter, "stop-after", 0, "stop with a checkpoint after so many steps; the schedule stays that of the whole run")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print the result as one JSON object")
	cmd.Flags().StringVar(&f.parallel, "parallel", "", "mpi: train together with the other processes that mpirun or srun has started")
	cmd.Flags().IntVar(&f.processes, processesFlag, 0, "train in so many processes on this machine, started by mpirun; each takes a device of its own")
}

func (f *trainFlags) check() error {
	if f.stopAfter < 0 {
		return codedError{fmt.Errorf("--stop-after: must be at least 0, got %d", f.stopAfter), codeUsage}
	}
	if f.processes < 0 {
		return codedError{fmt.Errorf("--processes: must be at least 0, got %d", f.processes), codeUsage}
	}
	if f.processes > 1 && f.parallel != "" {
		return codedError{errors.New("--processes starts the processes that --parallel finds started: give one of them"), codeUsage}
	}
	return nil
}

const trainLong = `Train a LoRA adapter as a configuration says.

The data is looked at whole before the model trains: problems come back together, with their number and the first few
places. The run directory (output) gets config.json, metrics.jsonl and checkpoints; the path of the last checkpoint is
written to standard output.

An interrupt (Ctrl-C, SIGTERM, SIGHUP, SIGUSR2) throws the current step away, saves the one before it and exits with 130; a second one
ends at once. cftune resume goes on, and ends with the very numbers of an unbroken run. SIGUSR1 asks for a checkpoint after
the current step, and the run goes on. A disk that is full is waited for, 10 minutes long: what the run has made since its newest checkpoint
is in memory alone.

With checkpoint.mirror each checkpoint is also copied to a second place while the run goes on, and read back. The end of the
run, also by an interrupt, waits for the last copy (checkpoint.mirror_wait, 5m). A mirror that fails does not end a run: it is
told, and if the last checkpoint is not there in the end, the exit code is 7.

--or-resume makes the command one that can be given again and again, as hosts that may be taken away need it: where the run has
a checkpoint, in its directory or in its mirror, it goes on from the newest that is whole, and a finished run says so. What was
passed over is told; a directory that is behind its mirror is kept beside it (OUTPUT.behind-STEP). The configuration must be the run's.

`

func newTrainCommand() *cobra.Command {
	var (
		f            trainFlags
		path, output string
		dryRun       bool
		orResume     bool
	)
	cmd := &cobra.Command{
		Use:   "train --config FILE",
		Short: "Train an adapter as a configuration says",
		Long:  trainLong + exitCodesHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if f.processes > 1 {
				return startProcesses(cmd, args, f.processes)
			}
			sets := f.sets
			if cmd.Flags().Changed("output") {
				sets = append(slices.Clone(sets), "output="+output)
			}
			load := func() (config.Run, error) { return loadConfig(cmd.Context(), path, sets) }
			s := session{out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), stopAfter: f.stopAfter}
			if dryRun {
				return s.together(cmd.Context(), f, func() error {
					run, err := load()
					if err != nil {
						return err
					}
					return s.dryRun(cmd.Context(), run, f.asJSON)
				})
			}
			return s.result(cmd.Context(), f, func() (trainer.Result, error) {
				run, err := load()
				if err != nil {
					return trainer.Result{}, err
				}
				if orResume {
					return s.trainOrResume(cmd.Context(), run)
				}
				return s.train(cmd.Context(), run)
			})
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration of the run, a YAML file (required)")
	cmd.Flags().StringVar(&output, "output", "", "the run directory, instead of the configuration's output")
	cmd.Flags().BoolVar(&orResume, "or-resume", false, "where the run has a checkpoint, in its directory or its mirror, go on from the newest that is whole")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "look at configuration, model and data, show the plan, and write nothing")
	f.add(cmd)
	if err := cmd.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// session is one call of train or resume.
type session struct {
	out, notes io.Writer
	stopAfter  int
	older      bool
	accept     bool
	// quiet shows no progress.
	quiet bool
	// team is who trains together; nil: this process alone.
	team *team
	// changes, started and again are of a run that is made again.
	changes []objective.Change
	started time.Time
	again   *trainer.Record
}

// together does the work of a command as f says: alone, or as the first of several processes, which the others help.
func (s *session) together(ctx context.Context, f trainFlags, work func() error) error {
	var err error
	if s.team, err = joinTeam(f.parallel); err != nil {
		return err
	}
	if s.team.helps() {
		return s.team.leave(s.team.help(ctx))
	}
	return s.team.leave(work())
}

// result does such work and prints what came of it.
func (s *session) result(ctx context.Context, f trainFlags, work func() (trainer.Result, error)) error {
	var result trainer.Result
	err := s.together(ctx, f, func() (err error) {
		result, err = work()
		return err
	})
	if err != nil || s.team.helps() {
		return err
	}
	return s.print(result, f.asJSON)
}

// train makes a new run of a configuration.
func (s session) train(ctx context.Context, run config.Run) (trainer.Result, error) {
	local, err := localModel(ctx, run, s.notes)
	if err != nil {
		return trainer.Result{}, err
	}
	text, vocab, err := openText(local)
	if err != nil {
		return trainer.Result{}, err
	}
	defer vocab.Close()
	t, err := trainer.New(ctx, s.options(run, local.Model, text))
	if err != nil {
		return trainer.Result{}, err
	}
	defer t.Close()
	return s.run(ctx, local, t)
}

// options are those of a configuration whose model lies at the path model.
func (s session) options(run config.Run, model string, text trainer.Text) trainer.Options {
	if note := cacheNote(); note != "" {
		s.note("%s", note)
	}
	return trainer.Options{
		Config: run, ModelFile: model, Text: text, Version: programVersion(), Progress: s.progress, StopAfter: s.stopAfter, Older: s.older, AcceptChanges: s.accept,
		Changes: s.changes, Started: s.started, Again: s.again, Processes: s.team.processes(), Cache: cacheFolder(), NativeStacks: engine.Stacks,
		Reading: func(file string, rows int64) { s.note("%s", readingNote(file, rows)) },
		Looking: func(done, total int, left time.Duration) { s.note("%s", lookingNote(done, total, left)) },
	}
}

// run loads the model and trains.
func (s session) run(ctx context.Context, run config.Run, t *trainer.Trainer) (result trainer.Result, err error) {
	plan := t.Plan()
	e, err := s.team.open(run, t.MaxSequence())
	if err != nil {
		return trainer.Result{}, err
	}
	defer e.Close()
	var trains trainer.Engine = e
	if s.team != nil {
		s.note("%d processes train together, each with a model and memory of its own", s.team.processes())
		spread := parallel.New(s.team.group, e)
		defer func() { err = errors.Join(err, spread.Close()) }()
		trains = spread
	}
	info, err := e.model.Info()
	if err != nil {
		return trainer.Result{}, engineError(err)
	}
	if note := windowNote(info, run.Train.SeqLen); note != "" {
		s.note("note: %s", note)
	}
	if note := rotationNote(t.ShortContext(), cmp.Or(t.MaxSequence(), run.Train.SeqLen)); note != "" {
		s.note("note: %s", note)
	}
	asked, stop := askForCheckpoints()
	defer stop()
	t.SaveOn(asked)
	s.note("%s: %d steps over %d examples of %d tokens, %d of them targets; %s of memory, activations kept: %s",
		run.Output, plan.Steps, plan.Examples, plan.Tokens, plan.Targets, spell.Size(e.memory.Total), keptText(e.memory))
	if t.Done() == 0 {
		s.noteWarmup(run, plan.Steps)
		s.noteStages(run, plan)
	}
	if e.memory.Streamed > 0 {
		s.note("note: %s of weights do not fit the device beside the rest: they stay in the host's memory and are copied for each use, which is slower", spell.Size(e.memory.Streamed))
	}
	if e.memory.Offloaded > 0 {
		s.note("note: %s of activations wait in the host's memory between forward and backward pass", spell.Size(e.memory.Offloaded))
	}
	if remark := e.trainer.Remark(); remark != "" {
		s.note("note: %s", remark)
	}
	return t.Run(ctx, trains)
}

// noteWarmup says where most of a run is warmup, as with few records and the default.
func (s session) noteWarmup(run config.Run, steps int) {
	if w := run.Optimizer.WarmupSteps; steps > 0 && 2*w > steps {
		s.note("note: the learning rate grows over %d steps (optimizer.warmup_steps), and the run has %d", w, steps)
	}
}

// noteStages says where a run ends before the last of its stages begins.
func (s session) noteStages(run config.Run, plan trainer.Plan) {
	for i, stage := range run.Objective.Stages {
		until, all := 0, 0
		unit := ""
		switch u := stage.Until; {
		case u.Steps > 0:
			until, all, unit = u.Steps, plan.Steps, "steps"
		case u.Epochs > 0:
			until, all, unit = u.Epochs, run.Train.Epochs, "epochs"
		case u.Tokens > 0:
			until, all, unit = u.Tokens, int(plan.Tokens), "tokens"
		}
		if unit != "" && until >= all {
			s.note("note: objective.stages[%d] is never reached: the stage before it ends after %d %s, and the run has %d", i+1, until, unit, all)
			return
		}
	}
}

func (s session) note(format string, args ...any) {
	if !s.quiet {
		fmt.Fprintf(s.notes, format+"\n", args...)
	}
}

// progress is a bar on a terminal, lines elsewhere.
func (s session) progress(first, total int) metrics.Progress {
	switch f, ok := s.notes.(*os.File); {
	case s.quiet:
		return metrics.NewLines(io.Discard, total)
	case ok && hasSize(f):
		return metrics.NewBar(f, first, total)
	}
	return metrics.NewLines(s.notes, total)
}

// hasSize reports whether f is a terminal that a bar can be drawn on; some have no rows, and a dumb one cannot go back.
func hasSize(f *os.File) bool {
	if os.Getenv("TERM") == "dumb" {
		return false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return err == nil && width > 0 && height > 0
}

func validations(n int) string {
	if n == 1 {
		return "one validation"
	}
	return fmt.Sprintf("%d validations", n)
}

// print writes the result: the checkpoint's path, or all of it as JSON.
func (s session) print(r trainer.Result, asJSON bool) error {
	switch r.Stopped {
	case "":
	case trainer.EndPatience:
		s.note("ended after step %d of %d: the validation loss has not fallen for %s (data.validation.patience), and was lowest after step %d; "+
			"cftune resume %s --set data.validation.patience=0 goes on all the same", r.Step, r.Steps, validations(r.Best.Stale), r.Best.Step, spell.Word(r.Run))
	default:
		s.note("stopped after step %d of %d (%s); cftune resume %s goes on", r.Step, r.Steps, r.Stopped, spell.Word(r.Run))
	}
	var err error
	if asJSON {
		err = json.NewEncoder(s.out).Encode(r)
	} else {
		_, err = fmt.Fprintln(s.out, r.Checkpoint)
	}
	if err == nil && r.Mirror != nil && r.Mirror.Behind() {
		err = &mirrorBehindError{r.Run, *r.Mirror}
	}
	return err
}

// mirrorBehindError says that a run ended well, but its newest checkpoint is only on this machine.
type mirrorBehindError struct {
	run    string
	report mirror.Report
}

func (e *mirrorBehindError) Error() string {
	return fmt.Sprintf("the run is as it should be, but step %d is not in the mirror %s", e.report.Wanted, e.report.URL)
}

// dryRun shows what a run would do.
func (s session) dryRun(ctx context.Context, run config.Run, asJSON bool) error {
	local, err := localModel(ctx, run, s.notes)
	if err != nil {
		return err
	}
	text, vocab, err := openText(local)
	if err != nil {
		return err
	}
	defer vocab.Close()
	t, err := trainer.Prepare(ctx, s.options(run, local.Model, text))
	if err != nil {
		return err
	}
	defer t.Close()
	plan := t.Plan()
	s.noteWarmup(run, plan.Steps)
	s.noteStages(run, plan)
	takes := s.memoryOf(local)
	if err := checkpoint.Vacant(run.Output); err != nil {
		s.note("note: it would not begin here: %v", err)
	}
	if asJSON {
		return json.NewEncoder(s.out).Encode(struct {
			trainer.Plan
			Memory *runReport `json:"memory,omitempty"`
		}{plan, takes})
	}
	_, err = fmt.Fprintf(s.out, "steps: %d\nrecords: %d\nexamples: %d\ntokens: %d\ntargets: %d\nlonger than a pack: %d (%s)\nvalidation examples: %d\n",
		plan.Steps, plan.Records, plan.Examples, plan.Tokens, plan.Targets, plan.OverLong.Count, plan.OverLong.Policy, plan.Validation.Examples)
	if err == nil && takes != nil {
		_, err = fmt.Fprintf(s.out, "memory: %s of %s (cftune doctor --config tells more)\n", spell.Size(takes.Buffers), spell.Size(takes.Available))
	}
	return err
}

// memoryOf tells what a run takes on its device. What is wrong there is a note: the plan may be for another machine. It
// returns nil where the device is not here.
func (s session) memoryOf(run config.Run) *runReport {
	devices, err := engine.Devices()
	var takes *runReport
	if err == nil {
		takes, err = examineRun("", run, devices)
	}
	switch {
	case err != nil:
		s.note("note: this machine cannot train it: %v", err)
	case !takes.Fits:
		s.note("note: this machine cannot train it: it takes %s of memory, %s are available; cftune doctor --config names settings that fit",
			spell.Size(takes.Buffers), spell.Size(takes.Available))
	}
	return takes
}

// openText opens the base model's vocabulary and, unless all records are tokenized, its chat template. The caller closes
// the vocabulary when the run is over.
func openText(run config.Run) (trainer.Text, *engine.Vocab, error) {
	formats := map[string]bool{}
	for _, source := range run.Data.Sources {
		formats[source.Format] = true
	}
	if v := run.Data.Validation; v.Path != "" {
		formats[v.Format] = true
	}
	delete(formats, "tokenized")
	if len(formats) == 0 {
		vocab, err := engine.OpenVocab(run.Model)
		if err != nil {
			return trainer.Text{}, nil, engineError(err)
		}
		return trainer.Text{Vocabulary: vocab.Info().Tokens, BOS: vocab.BOS()}, vocab, nil
	}
	vocab, template, err := openChat(run.Model, run.Chat.TemplateFile, run.Chat.System)
	if err != nil {
		return trainer.Text{}, nil, err
	}
	source := vocab.ChatTemplate()
	if run.Chat.TemplateFile != "" {
		if source, err = readTemplate(run.Chat.TemplateFile); err != nil {
			vocab.Close()
			return trainer.Text{}, nil, err
		}
	}
	return trainer.Text{
		Template: template, Digest: digestOf([]byte(source)), Vocabulary: vocab.Info().Tokens, BOS: vocab.BOS(),
	}, vocab, nil
}

// programVersion names this program in a run's record.
func programVersion() string {
	v := newVersionReport()
	return strings.TrimSpace(v.Version + " " + v.checkout())
}

// cacheFolder is where what takes long to make is kept: CFTUNE_CACHE, or the user's. Empty where there is none, or none that can be written to,
// as in containers whose user has no home: then it is made anew each time.
func cacheFolder() string {
	if dir := os.Getenv("CFTUNE_CACHE"); dir != "" {
		return dir
	}
	dir, err := usersCache()
	if err != nil {
		return ""
	}
	return dir
}

// cacheNote says that there is no folder to keep anything in; empty where there is one.
func cacheNote() string {
	if os.Getenv("CFTUNE_CACHE") != "" {
		return ""
	}
	if _, err := usersCache(); err != nil {
		return fmt.Sprintf("note: nothing is kept of what is found out about data: %v; CFTUNE_CACHE names a folder for it", err)
	}
	return ""
}

// usersCache is our folder among the user's caches, if it can be written to.
func usersCache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "cftune")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	remove, err := probe(dir)
	if err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	return dir, remove()
}
