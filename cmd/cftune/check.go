package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cftune/internal/spell"
	"cftune/trainer"
	"cftune/trainer/mirror"
)

func newCheckCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check RUN|URL",
		Short: "Verify everything in a run directory or a mirror, changing nothing",
		Long: `Verify everything in a run directory: configuration, metrics, and every checkpoint with the content of its files; or, of a
mirror's URL, that every file of every checkpoint is there with its digest. Nothing is changed. Exits with 4 if something is
damaged.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			check := checkRun
			if mirror.IsURL(args[0]) {
				check = checkMirror
			}
			problems, err := check(cmd.Context(), args[0], cmd.OutOrStdout(), asJSON)
			if err == nil && problems > 0 {
				err = codedError{fmt.Errorf("check %s: problems found: %d", args[0], problems), codeCheckpoint}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// checkRun returns how many problems it printed.
func checkRun(_ context.Context, dir string, w io.Writer, asJSON bool) (problems int, err error) {
	report, err := trainer.Check(dir)
	if err != nil {
		return 0, err
	}
	if asJSON {
		return len(report.Problems), json.NewEncoder(w).Encode(report)
	}
	return len(report.Problems), printReport(w, report)
}

func checkMirror(ctx context.Context, url string, w io.Writer, asJSON bool) (problems int, err error) {
	state, err := trainer.CheckMirror(ctx, url)
	if err != nil {
		return 0, err
	}
	if asJSON {
		return len(state.Problems), json.NewEncoder(w).Encode(state)
	}
	for _, c := range state.Checkpoints {
		printCheckpoint(w, c.Step, c.Bytes, c.Problem)
	}
	if state.Holder != "" {
		fmt.Fprintf(w, "copied to last by %s\n", state.Holder)
	}
	return len(state.Problems), printEnd(w, state.URL, state.Notes, state.Problems)
}

func printCheckpoint(w io.Writer, step int, bytes int64, problem string) {
	state := "whole, " + spell.Size(uint64(bytes))
	if problem != "" {
		state = problem
	}
	fmt.Fprintf(w, "checkpoint step %d: %s\n", step, state)
}

func printReport(w io.Writer, r trainer.Report) error {
	for _, c := range r.Checkpoints {
		printCheckpoint(w, c.Step, c.Bytes, c.Problem)
	}
	fmt.Fprintf(w, "metrics: last step %d of %d\n", r.Metrics.LastStep, r.Steps)
	if r.Holder != "" {
		fmt.Fprintf(w, "in use by %s\n", r.Holder)
	}
	return printEnd(w, r.Run, r.Notes, r.Problems)
}

func printEnd(w io.Writer, name string, notes, problems []string) error {
	for _, note := range notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
	result := "sound"
	for _, problem := range problems {
		fmt.Fprintf(w, "problem: %s\n", problem)
		result = "damaged"
	}
	_, err := fmt.Fprintf(w, "%s: %s\n", name, result)
	return err
}
