package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/metrics"
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
			folder := "runs"
			if len(args) > 0 {
				folder = args[0]
			}
			runs, err := listRuns(folder)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(runs)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "run\tstate\tstep\tloss\tcheckpoint")
			for _, r := range runs {
				loss := "-"
				if r.Step > 0 {
					loss = fmt.Sprintf("%.4f", r.Loss)
				}
				fmt.Fprintf(w, "%s\t%s\t%d/%d\t%s\t%d\n", r.Run, r.State, r.Step, r.Steps, loss, r.Checkpoint)
			}
			return w.Flush()
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	cmd.AddCommand(list, newRunsShowCommand(), newRunsPruneCommand(), newRunsSetCommand(), newRunsReplayCommand(),
		newRunsTensorBoardCommand())
	return cmd
}

// runSummary is a line of `runs list`.
type runSummary struct {
	Run   string  `json:"run"`
	State string  `json:"state"` // running, done, stopped or damaged
	Step  int     `json:"step"`
	Steps int     `json:"steps"`
	Loss  float64 `json:"loss"` // of the last step
	// Checkpoint is the step of the newest checkpoint, unverified; 0 if there is none.
	Checkpoint int    `json:"checkpoint"`
	Problem    string `json:"problem,omitempty"`
}

func listRuns(folder string) ([]runSummary, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	runs := []runSummary{}
	for _, entry := range entries {
		dir := filepath.Join(folder, entry.Name())
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue // a run is a folder; links to one count
		}
		if r, err := summarize(dir); err == nil {
			runs = append(runs, r)
		} else if !errors.Is(err, checkpoint.ErrNotFound) {
			runs = append(runs, runSummary{Run: dir, State: "damaged", Problem: err.Error()})
		}
	}
	return runs, nil
}

func summarize(dir string) (runSummary, error) {
	steps, err := checkpoint.List(dir)
	if err != nil {
		return runSummary{}, err
	}
	record, err := trainer.ReadRecord(dir)
	if err != nil {
		return runSummary{}, err
	}
	m, err := metrics.Check(filepath.Join(dir, checkpoint.MetricsName))
	if err != nil {
		return runSummary{}, err
	}
	r := runSummary{Run: dir, State: "stopped", Step: m.LastStep, Steps: record.Plan.Steps, Loss: m.LastLoss}
	if len(steps) > 0 {
		r.Checkpoint = steps[len(steps)-1]
	}
	if r.Checkpoint == r.Steps || m.Skipped > 0 && int64(r.Checkpoint)+m.Skipped >= int64(r.Steps) {
		r.State = "done"
	}
	if _, held := checkpoint.Holder(dir); held {
		r.State = "running"
	}
	return r, nil
}
