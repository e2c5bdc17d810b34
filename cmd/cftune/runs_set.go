package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
)

const runsSetLong = `Change what a run learns, while it trains or while it waits to be resumed.

    cftune runs set RUN objective=cft
    cftune runs set RUN 'objective={cft: 3, sft: 1}'
    cftune runs set RUN 'objective.stages=[{mix: {cft: 1}, until: {steps: 500}}, {mix: {sft: 1}}]'

The new stages take the place of the run's, from its next step on; ends of stages still count from the start of the run.
First all records are looked at: where one cannot be trained so, the change is refused and the run goes on as it was. A
change is written to journal.jsonl in the run directory before it holds, and a resumed run follows it at the same step.
Nothing else of a run can be changed while it trains.

`

// The keys that runs set takes.
const (
	setObjective = "objective"
	setStages    = "objective.stages"
)

func newRunsSetCommand() *cobra.Command {
	var (
		wait   time.Duration
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "set RUN objective=MIX",
		Short: "Change a run's objective from its next step on",
		Long:  runsSetLong + exitCodesHelp,
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait <= 0 {
				return codedError{fmt.Errorf("--wait: must be above 0, got %s", wait), codeUsage}
			}
			step, err := setRun(cmd.Context(), args[0], args[1], wait)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(trainer.Answer{Step: step})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s from step %d on\n", args[0], args[1], step)
			return err
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Minute, "how long to wait for the process that trains the run")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	return cmd
}

// setRun makes a change through the process that trains the run or, where there is none, in its stead. It returns the
// first step that the change holds for.
func setRun(ctx context.Context, dir, setting string, wait time.Duration) (step int, err error) {
	record, err := trainer.ReadRecord(dir)
	if err != nil {
		return 0, err
	}
	stages, err := parseStages(record.Config, setting)
	if err != nil {
		return 0, err
	}
	if _, held := checkpoint.Holder(dir); !held {
		step, err := setStoppedRun(ctx, dir, record, stages)
		if _, taken := errors.AsType[*checkpoint.HeldError](err); !taken {
			return step, err
		}
		// Somebody took it up just now, and can be asked.
	}
	answer, err := trainer.Ask(ctx, dir, stages, wait)
	if err != nil {
		return 0, codedError{err, codeCheckpoint}
	}
	if answer.Refused != "" {
		return 0, codedError{fmt.Errorf("change %s: refused: %s", dir, answer.Refused), codeData}
	}
	return answer.Step, nil
}

// parseStages reads objective=MIX or objective.stages=LIST with the run's configuration around it.
func parseStages(run config.Run, setting string) ([]config.Stage, error) {
	key, value, found := strings.Cut(setting, "=")
	value = strings.TrimSpace(value)
	if !found || value == "" || key != setObjective && key != setStages {
		return nil, codedError{fmt.Errorf("set %q: must be %s=MIX or %s=LIST", setting, setObjective, setStages), codeUsage}
	}
	if key == setObjective {
		if !strings.HasPrefix(value, "{") {
			value = "{" + value + ": 1}"
		}
		value = "[{mix: " + value + "}]"
	}
	changed, err := trainer.Overlay(run, []string{setStages + "=" + value})
	if err != nil {
		return nil, codedError{err, codeUsage}
	}
	return changed.Objective.Stages, nil
}

// setStoppedRun makes a change in a run that nobody trains.
func setStoppedRun(ctx context.Context, dir string, record trainer.Record, stages []config.Stage) (step int, err error) {
	run := record.Config
	run.Output = dir
	local, err := localModel(ctx, run, io.Discard)
	if err != nil {
		return 0, err
	}
	text, vocab, err := openText(local)
	if err != nil {
		return 0, err
	}
	defer vocab.Close()
	s := session{out: io.Discard, notes: io.Discard, quiet: true}
	t, err := trainer.Resume(ctx, dir, s.options(run, local.Model, text))
	if err != nil {
		return 0, err
	}
	defer t.Close()
	if t.Finished() {
		return 0, codedError{fmt.Errorf("change %s: it is done: step %d of %d", dir, t.Done(), t.Plan().Steps), codeUsage}
	}
	return t.Change(ctx, stages)
}

const runsReplayLong = `Make a run again, in another folder: with its configuration, and with its journal's changes of the objective at their steps.

On the same device and number of threads and processes, with the same model and data, the new run ends with the very bits of
the old one, however often that was interrupted, or made longer or shorter by resume. With another model, other data or another chat template it is refused.

`

func newRunsReplayCommand() *cobra.Command {
	var (
		f      trainFlags
		output string
	)
	cmd := &cobra.Command{
		Use:   "replay RUN --output FOLDER",
		Short: "Make a run again from its configuration and journal",
		Long:  runsReplayLong + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if f.processes > 1 {
				return startProcesses(cmd, args, f.processes)
			}
			s := session{out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), stopAfter: f.stopAfter}
			return s.result(cmd.Context(), f, func() (trainer.Result, error) { return s.replay(cmd.Context(), args[0], output, f.sets) })
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "the new run's directory (required)")
	f.add(cmd)
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// replay makes the run in dir again, in output.
func (s session) replay(ctx context.Context, dir, output string, sets []string) (trainer.Result, error) {
	record, err := trainer.ReadRecord(dir)
	if err != nil {
		return trainer.Result{}, err
	}
	if n := len(record.Accepted); n > 0 {
		return trainer.Result{}, codedError{fmt.Errorf("replay %s: it was resumed with --accept-changes after step %d: no single configuration makes it again", dir, record.Accepted[n-1].Step), codeCheckpoint}
	}
	run, err := trainer.Overlay(record.Config, sets)
	if err != nil {
		return trainer.Result{}, codedError{err, codeUsage}
	}
	run.Output = output
	if run.Checkpoint.Mirror == record.Config.Checkpoint.Mirror {
		run.Checkpoint.Mirror = "" // that is the old run's
	}
	s.started, s.again = record.Started, &record
	var torn bool
	if s.changes, torn, err = trainer.ReadJournal(dir); err != nil {
		return trainer.Result{}, err
	}
	if torn {
		s.note("note: the last line of the journal of %s is cut off and does not count", dir)
	}
	return s.train(ctx, run)
}
