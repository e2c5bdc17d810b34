package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
)

const runsTensorBoardLong = `Make TensorBoard's event file of a run's metrics.jsonl, as the run itself does with metrics.tensorboard: true.

    cftune runs tensorboard runs/first
    tensorboard --logdir runs

The file is in RUN/tensorboard, or in --output, and takes the place of an older one of cftune there; files of others stay. Its path
is written to standard output. While a run trains, its own folder is the run's: --output names another, and the file has what
is recorded so far.

`

// eventsHeldError says that the run's own folder is written to by whoever trains it.
type eventsHeldError struct{ err error }

func (e *eventsHeldError) Error() string { return e.err.Error() }

func (e *eventsHeldError) Unwrap() error { return e.err }

func newRunsTensorBoardCommand() *cobra.Command {
	var (
		output        string
		force, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "tensorboard RUN",
		Short: "Make TensorBoard's event file of a run's metrics",
		Long:  runsTensorBoardLong + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			own := !cmd.Flags().Changed("output")
			if own {
				output = filepath.Join(args[0], checkpoint.TensorBoardName)
			}
			written, err := trainer.WriteEvents(args[0], output, force || own)
			if as[*checkpoint.HeldError](err) {
				return &eventsHeldError{err}
			}
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(written)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d steps, %d validation losses, %d skipped steps; tensorboard --logdir %s shows them\n",
				written.Steps, written.Validations, written.Skips, output)
			if written.Torn {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: the last line of %s is cut off and does not count\n", checkpoint.MetricsName)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), written.File)
			return err
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "the folder, instead of RUN/tensorboard")
	cmd.Flags().BoolVar(&force, "force", false, "replace cftune's event file in --output")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
