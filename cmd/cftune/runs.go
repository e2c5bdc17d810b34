package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cftune/internal/spell"
	"cftune/trainer/runs"
)

func newRunsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "runs",
		Short: "Show runs and change them",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var asJSON bool
	list := &cobra.Command{
		Use:   "list [FOLDER]",
		Short: "List the runs in a folder (default: runs)",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			folder, hint := "runs", "cftune runs list FOLDER lists the runs in another folder"
			if len(args) > 0 {
				folder, hint = args[0], ""
			}
			list, err := runs.List(folder)
			if err != nil {
				return &usageError{err, hint}
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "run\tstate\tstep\tloss\tcheckpoint")
			for _, r := range list {
				loss := "-"
				if r.Step > 0 {
					loss = spell.Loss(r.Loss)
				}
				fmt.Fprintf(w, "%s\t%s\t%d/%d\t%s\t%d\n", spell.Line(r.Run), r.Standing, r.Step, r.Steps, loss, r.Checkpoint)
			}
			return w.Flush()
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	cmd.AddCommand(list, newRunsShowCommand(), newRunsPruneCommand(), newRunsSetCommand(), newRunsReplayCommand(),
		newRunsTensorBoardCommand())
	return cmd
}
