package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"cftune/trainer"
)

const resumeLong = `Go on with a run from its newest checkpoint.

The run's own configuration is used. --set changes it; only model, output, device, threads, train.epochs, train.max_steps,
train.keep_activations, paths of data, checkpoint.* and limits.* may be changed, and model and data must have the same content.
On the same device and number of threads the run ends with the very numbers of an unbroken one. With --accept-changes other
settings, data or another model are taken too, where the checkpoint can be used with them at all; what each change gives up
is told, and kept in the run's record.

`

func newResumeCommand() *cobra.Command {
	var (
		f      trainFlags
		older  bool
		accept bool
	)
	cmd := &cobra.Command{
		Use:   "resume RUN",
		Short: "Go on with a run from its newest checkpoint",
		Long:  resumeLong + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			s := session{out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), stopAfter: f.stopAfter, older: older, accept: accept}
			result, err := s.resume(cmd.Context(), args[0], f.sets)
			if err != nil {
				return err
			}
			return s.print(result, f.asJSON)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&accept, "accept-changes", false, "take up the run though settings, data or model are not those it was begun with")
	cmd.Flags().BoolVar(&older, "older", false, "where the newest checkpoint is damaged, take the newest one that is whole")
	return cmd
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
	text, vocab, err := openText(run)
	if err != nil {
		return trainer.Result{}, err
	}
	defer vocab.Close()
	t, err := trainer.Resume(ctx, dir, s.options(run, text))
	if err != nil {
		return trainer.Result{}, err
	}
	defer t.Close()
	if t.Finished() {
		s.note("%s is done: step %d of %d", dir, t.Done(), t.Plan().Steps)
		return t.Result(), nil
	}
	s.note("%s: going on after step %d of %d", dir, t.Done(), t.Plan().Steps)
	result, err := s.run(ctx, run, t)
	if err != nil {
		return result, fmt.Errorf("resume: %w", err)
	}
	return result, nil
}
