package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/metrics"
	"cftune/trainer/mirror"
)

const resumeLong = `Go on with a run from its newest checkpoint.

The run's own configuration is used. --set changes it; only model, output, device, threads, train.epochs, train.max_steps,
train.keep_activations, paths of data, checkpoint.*, limits.* and metrics.* may be changed, and model and data must have the same content.
On the same device and number of threads the run ends with the very numbers of an unbroken one. With --accept-changes other
settings, data or another model are taken too, where the checkpoint can be used with them at all; what each change gives up
is told, and kept in the run's record.

RUN may be the URL of a mirror (checkpoint.mirror): s3://bucket/folder, gs://, azblob:// or file:///folder. Then the newest
checkpoint there that is whole is brought to a new run directory first: --output, or runs/ and the last part of the URL.
Where the run is there already, at that step or a later one, it goes on from what is there.

`

func newResumeCommand() *cobra.Command {
	var (
		f      trainFlags
		older  bool
		accept bool
		output string
	)
	cmd := &cobra.Command{
		Use:   "resume RUN|URL",
		Short: "Go on with a run from its newest checkpoint",
		Long:  resumeLong + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if f.processes > 1 {
				return startProcesses(cmd, args, f.processes)
			}
			s := session{out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), stopAfter: f.stopAfter, older: older, accept: accept}
			return s.result(cmd.Context(), f, func() (trainer.Result, error) {
				dir, err := s.restore(cmd.Context(), args[0], output)
				if err != nil {
					return trainer.Result{}, err
				}
				return s.resume(cmd.Context(), dir, f.sets)
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&output, "output", "", "of a mirror's URL: the new run directory")
	cmd.Flags().BoolVar(&accept, "accept-changes", false, "take up the run though settings, data or model are not those it was begun with")
	cmd.Flags().BoolVar(&older, "older", false, "where the newest checkpoint is damaged, take the newest one that is whole")
	return cmd
}

// restore returns the run directory to go on in. From a mirror's URL it brings the run there.
func (s session) restore(ctx context.Context, from, output string) (string, error) {
	if !mirror.IsURL(from) {
		if output != "" {
			return "", codedError{errors.New("--output: only a run from a mirror's URL gets a new directory"), codeUsage}
		}
		return from, nil
	}
	if output == "" {
		name := mirror.LastPart(from)
		if name == "" {
			return "", codedError{fmt.Errorf("resume %s: it has no name to call the run by: --output says where it goes", from), codeUsage}
		}
		output = filepath.Join("runs", name)
	}
	r, err := trainer.Restore(ctx, from, output, func(text string) { s.note("note: %s", text) })
	switch {
	case err != nil:
		return "", err
	case r.Kept:
		s.note("%s has this run already, no older than the mirror's", r.Dir)
	default:
		s.note("%s: step %d is restored from the mirror, verified", r.Dir, r.Step)
	}
	return r.Dir, nil
}

// resume goes on with the run in dir.
func (s session) resume(ctx context.Context, dir string, sets []string) (trainer.Result, error) {
	record, err := trainer.ReadRecord(dir)
	if err != nil {
		return trainer.Result{}, err
	}
	run, err := trainer.Overlay(record.Config, sets)
	if err != nil {
		return trainer.Result{}, codedError{err, codeUsage}
	}
	run.Output = dir
	return s.goOn(ctx, run)
}

// goOn takes up the run in a configuration's output with that configuration.
func (s session) goOn(ctx context.Context, run config.Run) (trainer.Result, error) {
	dir := run.Output
	local, err := localModel(ctx, run, s.notes)
	if err != nil {
		return trainer.Result{}, err
	}
	text, vocab, err := openText(local)
	if err != nil {
		return trainer.Result{}, err
	}
	defer vocab.Close()
	t, err := trainer.Resume(ctx, dir, s.options(run, local.Model, text))
	if err != nil {
		return trainer.Result{}, err
	}
	defer t.Close()
	if t.Finished() {
		s.note("%s is done: step %d of %d", dir, t.Done(), t.Plan().Steps)
		result := t.Result()
		result.Mirror, err = t.Mirror(ctx, func(text string) { s.note("%s", text) })
		return result, err
	}
	s.note("%s: going on after step %d of %d", dir, t.Done(), t.Plan().Steps)
	s.noteLostRecords(dir, t.Done())
	result, err := s.run(ctx, local, t)
	if err != nil {
		return result, fmt.Errorf("resume: %w", err)
	}
	return result, nil
}

// noteLostRecords says where records of steps are lost that a checkpoint has: no crash does that, since they are on the disk before it, but a
// copy of a run without them does. What is learned comes from the checkpoint; of the losses, those since then are what spikes are told by.
func (s session) noteLostRecords(dir string, done int) {
	m, err := metrics.Check(filepath.Join(dir, checkpoint.MetricsName))
	switch {
	case err != nil:
		s.note("note: %v; its curves have a gap, and cftune check calls the run damaged", err)
	case m.LastStep < done:
		s.note("note: %s ends with step %d, before the checkpoint of step %d: its curves will have a gap, and cftune check will call the run damaged",
			checkpoint.MetricsName, m.LastStep, done)
	}
}
