package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cftune/trainer/study"
)

const studyLong = `Run a study: one file describes model, data, arms, seeds, budget and claims; the command trains every arm with every
seed, lets every model answer the test questions and judge answers, and reports what came out, with intervals.

Arms learn answers (sft), critiques (cft), refinements or mixes and orders of them, from the same questions; corrupt turns
the conclusions of a share of the critiques into their opposites. Claims are decided by a rule that is written down before
the first run (cftune study --rule shows it) as yes, no or not shown.

Everything lies under the file's output: study.json (the record: file, digests, prompts, versions, seeds), data, runs
(ordinary run directories), adapters, scores (every text) and report.json, report.md and report.html. What is finished is
not done again: a study that was interrupted or killed goes on when the same command is given again. A study whose file,
model or data has changed since it began is refused.

`

type studyFlags struct {
	sets                       []string
	dryRun, reportOnly, asJSON bool
	rule                       bool
}

func newStudyCommand() *cobra.Command {
	var f studyFlags
	cmd := &cobra.Command{
		Use:   "study FILE.yaml",
		Short: "Compare ways of training, with seeds and claims decided beforehand",
		Long:  studyLong + exitCodesHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if f.rule {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.rule {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), study.Rule)
				return err
			}
			if f.dryRun && f.reportOnly {
				return codedError{errors.New("--dry-run and --report-only exclude each other"), codeUsage}
			}
			spec, err := study.Load(args[0], f.sets)
			if err != nil {
				return codedError{err, codeUsage}
			}
			return f.run(cmd.Context(), spec, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringArrayVar(&f.sets, "set", nil, "override a key of the file (key=value; list items by name: sets.svamp.path=FILE)")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the plan, with estimates of time and disk, and write nothing")
	cmd.Flags().BoolVar(&f.reportOnly, "report-only", false, "make the report of what is there, and train and score nothing")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print the plan, or the report, as JSON")
	cmd.Flags().BoolVar(&f.rule, "rule", false, "show the rule by which claims are decided")
	return cmd
}

func (f studyFlags) run(ctx context.Context, spec study.Spec, out, notes io.Writer) error {
	began := time.Now()
	o := study.Options{
		Engine: &studyEngine{notes: notes}, Version: programVersion(), Cache: cacheFolder(),
		Note: func(text string) { fmt.Fprintf(notes, "[%6s] %s\n", time.Since(began).Round(time.Second), text) },
	}
	if f.dryRun {
		plan, err := study.MakePlan(ctx, spec, o)
		if err != nil {
			return studyError(spec, err)
		}
		if f.asJSON {
			return json.NewEncoder(out).Encode(plan)
		}
		return printPlan(out, plan)
	}
	if !f.reportOnly {
		if _, err := study.Do(ctx, spec, o); err != nil {
			return studyError(spec, err)
		}
	}
	return f.report(spec, out, notes)
}

// report writes the three files, and the words at a terminal.
func (f studyFlags) report(spec study.Spec, out, notes io.Writer) error {
	r, err := study.MakeReport(spec.Output)
	if err != nil {
		return studyError(spec, err)
	}
	paths, err := study.WriteReport(spec.Output, r)
	if err != nil {
		return studyError(spec, err)
	}
	if f.asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	fmt.Fprintln(notes)
	for _, c := range r.Claims {
		fmt.Fprintf(notes, "%-10s %s\n           %s\n", c.Word, c.Text, c.Because)
	}
	for _, line := range r.Reading {
		fmt.Fprintln(notes, line)
	}
	for _, path := range paths {
		if _, err := fmt.Fprintln(out, path); err != nil {
			return err
		}
	}
	return nil
}

// studyError says of an end that can be gone on from how to do that.
func studyError(spec study.Spec, err error) error {
	err = fmt.Errorf("study: %w", err)
	if exitCode(err) == codeInterrupted {
		return &studyInterrupted{spec.Output, err}
	}
	return err
}

// studyInterrupted is the end of a study that was asked to stop.
type studyInterrupted struct {
	output string
	err    error
}

func (e *studyInterrupted) Error() string { return e.err.Error() }

func (e *studyInterrupted) Unwrap() error { return e.err }

func printPlan(out io.Writer, p study.Plan) error {
	fmt.Fprintf(out, "study: %s, %d runs\nmodel: %s\n", p.Name, len(p.Runs), p.Model.File)
	for _, s := range p.Sets {
		fmt.Fprintf(out, "set %s: %d training, %d validation and %d test rows\n", s.Name, s.Train, s.Validation, s.Test)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(out, "note: %s\n", n)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "arm\tseeds\tsteps\tepochs\ttarget tokens\ttokens")
	for _, a := range p.Arms {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\n", a.Arm, a.Seeds, a.Steps, a.Epochs, a.Targets, a.Tokens)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "texts: %d of %d models, at most %d tokens in all\n", p.Texts, p.Models, p.TextTokens)
	if p.Seconds > 0 {
		fmt.Fprintf(out, "time: about %s (%s)\n", (time.Duration(p.Seconds) * time.Second).Round(time.Minute), p.SecondsFrom)
	} else {
		fmt.Fprintln(out, "time: not known for this device before a run is made")
	}
	_, err := fmt.Fprintf(out, "disk: about %s in %s\nclaims: %d, decided by the rule that cftune study --rule shows\n", bytesText(uint64(p.Bytes)), p.Output, p.Claims)
	return err
}
