package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cftune/trainer"
)

func newCheckCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check RUN",
		Short: "Verify everything in a run directory, changing nothing",
		Long: `Verify everything in a run directory: configuration, metrics, and every checkpoint with the content of its files. Nothing
is changed. Exits with 4 if something is damaged.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := trainer.Check(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(report)
			} else {
				err = printReport(cmd.OutOrStdout(), report)
			}
			if err != nil {
				return err
			}
			if n := len(report.Problems); n > 0 {
				return codedError{fmt.Errorf("check %s: problems found: %d", args[0], n), codeCheckpoint}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func printReport(w io.Writer, r trainer.Report) error {
	for _, c := range r.Checkpoints {
		state := "whole, " + bytesText(uint64(c.Bytes))
		if c.Problem != "" {
			state = c.Problem
		}
		fmt.Fprintf(w, "checkpoint step %d: %s\n", c.Step, state)
	}
	fmt.Fprintf(w, "metrics: last step %d of %d\n", r.Metrics.LastStep, r.Steps)
	if r.Holder != "" {
		fmt.Fprintf(w, "in use by %s\n", r.Holder)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
	for _, problem := range r.Problems {
		fmt.Fprintf(w, "problem: %s\n", problem)
	}
	result := "sound"
	if len(r.Problems) > 0 {
		result = "damaged"
	}
	_, err := fmt.Fprintf(w, "%s: %s\n", r.Run, result)
	return err
}
