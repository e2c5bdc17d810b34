package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"cftune/trainer/checkpoint"
	"cftune/trainer/export"
)

const exportLong = `Write the adapter of a run as a GGUF file that llama.cpp loads, from a committed checkpoint.

The file appears whole or not at all; one that is there is replaced with --force only.`

func newExportCommand() *cobra.Command {
	var (
		which   string
		output  string
		options export.Options
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:   "export RUN",
		Short: "Write the adapter of a run as a GGUF file",
		Long:  exportLong,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := chooseCheckpoint(args[0], which)
			if err != nil {
				return err
			}
			result, err := export.Adapter(c, output, options)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), result.Path)
			return err
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "the file to write (required)")
	cmd.Flags().StringVar(&which, "checkpoint", "latest", "latest, best (lowest validation loss), or a step")
	cmd.Flags().BoolVar(&options.F16, "f16", false, "store 16-bit numbers: half the size, rounded")
	cmd.Flags().BoolVar(&options.Force, "force", false, "replace an existing file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// chooseCheckpoint opens a run's newest checkpoint, its best one, or that of a step.
func chooseCheckpoint(dir, which string) (*checkpoint.Checkpoint, error) {
	if step, err := strconv.Atoi(which); err == nil {
		return checkpoint.Open(dir, step)
	}
	latest, _, err := checkpoint.Latest(dir, false)
	switch {
	case err != nil:
		return nil, err
	case which == "latest":
		return latest, nil
	case which != "best":
		return nil, codedError{fmt.Errorf("--checkpoint: must be latest, best or a step, got %q", which), codeUsage}
	case latest.Best == nil:
		return nil, codedError{fmt.Errorf("--checkpoint best: %s has no validation loss (data.validation)", dir), codeCheckpoint}
	}
	best, err := checkpoint.Open(dir, latest.Best.Step)
	if errors.Is(err, checkpoint.ErrNotFound) {
		return nil, fmt.Errorf("--checkpoint best: the checkpoint of step %d was not kept (checkpoint.keep_best): %w", latest.Best.Step, err)
	}
	return best, err
}
