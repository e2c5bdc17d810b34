package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"cftune/trainer/checkpoint"
	"cftune/trainer/export"
)

const exportLong = `Write the adapter of a run as a GGUF file that llama.cpp loads, from a committed checkpoint.

The file appears whole or not at all; one that is there is replaced with --force only.`

func newExportCommand() *cobra.Command {
	var (
		step    int
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
			var (
				c   *checkpoint.Checkpoint
				err error
			)
			if cmd.Flags().Changed("checkpoint") {
				c, err = checkpoint.Open(args[0], step)
			} else {
				c, _, err = checkpoint.Latest(args[0], false)
			}
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
	cmd.Flags().IntVar(&step, "checkpoint", 0, "the checkpoint's step (default: the newest)")
	cmd.Flags().BoolVar(&options.F16, "f16", false, "store 16-bit numbers: half the size, rounded")
	cmd.Flags().BoolVar(&options.Force, "force", false, "replace an existing file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}
