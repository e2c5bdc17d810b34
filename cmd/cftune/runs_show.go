package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cftune/internal/spell"
	"cftune/trainer/checkpoint"
	"cftune/trainer/runs"
)

func newRunsShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show RUN",
		Short: "Show a run: where it stands, its plan, settings and checkpoints",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := runs.Show(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(d)
			}
			return printRun(cmd.OutOrStdout(), d)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func printRun(out io.Writer, d runs.Details) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "run\t%s\nstate\t%s\n", spell.Line(d.Run), d.Standing)
	if d.Error != "" {
		fmt.Fprintf(w, "error\t%s\n", spell.Line(strings.ReplaceAll(d.Error, "\n", "; ")))
	}
	fmt.Fprintf(w, "model\t%s\n", d.Model)
	fmt.Fprintf(w, "step\t%d of %d\n", d.Step, d.Steps)
	if d.Step > 0 {
		fmt.Fprintf(w, "loss\t%s\n", spell.Loss(d.Loss))
	}
	if d.Best != nil {
		fmt.Fprintf(w, "best validation loss\t%s after step %d\n", spell.Loss(d.Best.Loss), d.Best.Step)
	}
	fmt.Fprintf(w, "plan\t%d examples, %d tokens, %d of them targets\n", d.Plan.Examples, d.Plan.Tokens, d.Plan.Targets)
	fmt.Fprintf(w, "adapter\t%s\n", d.Config.Adapter.Describe())
	fmt.Fprintf(w, "begun with\tcftune %s\n", d.Version)
	if from := d.WarmStart; from != nil {
		fmt.Fprintf(w, "started from\t%s\n", from.Path)
	}
	for _, a := range d.Accepted {
		for _, f := range a.Fields {
			fmt.Fprintf(w, "changed after step %d\t%s was %s, is %s\n", a.Step, f.Key, f.A, f.B)
		}
	}
	for _, s := range d.Spans {
		fmt.Fprintf(w, "until step %d\t%d steps were planned\n", s.Step, s.Steps)
	}
	if d.Mirror != nil {
		fmt.Fprintf(w, "mirror\t%s\n", strings.TrimPrefix(d.Mirror.String(), "mirror "))
	}
	for _, c := range d.Checkpoints {
		switch {
		case c.Problem != "":
			fmt.Fprintf(w, "checkpoint %d\tDAMAGED: %s\n", c.Step, c.Problem)
		case c.Counters.Skipped > 0:
			fmt.Fprintf(w, "checkpoint %d\t%s, %d examples seen, %d steps skipped\n", c.Step, spell.Size(uint64(c.Bytes)), c.Counters.Examples, c.Counters.Skipped)
		default:
			fmt.Fprintf(w, "checkpoint %d\t%s, %d examples seen\n", c.Step, spell.Size(uint64(c.Bytes)), c.Counters.Examples)
		}
	}
	return w.Flush()
}

const pruneLong = `Remove checkpoints of a run that are not to be kept. The newest one that is whole always is, and so is the best one
(unless --best=false). Nothing is removed while another process writes to the run, or if the newest checkpoint is damaged.

`

func newRunsPruneCommand() *cobra.Command {
	var (
		keep   checkpoint.Retention
		best   bool
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "prune RUN",
		Short: "Remove checkpoints of a run",
		Long:  pruneLong + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if keep.Last < 1 || keep.Every < 0 {
				return codedError{errors.New("--keep-last must be at least 1, --keep-every at least 0"), codeUsage}
			}
			removed, err := pruneRun(args[0], keep, best, dryRun)
			for _, step := range removed {
				verb := "removed"
				if dryRun {
					verb = "would remove"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s checkpoint %d\n", verb, step)
			}
			if err == nil && len(removed) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "nothing to remove")
			}
			return err
		},
	}
	cmd.Flags().IntVar(&keep.Last, "keep-last", 1, "keep so many of the newest")
	cmd.Flags().IntVar(&keep.Every, "keep-every", 0, "keep those whose step is a multiple of this (0: none)")
	cmd.Flags().BoolVar(&best, "best", true, "keep the one with the lowest validation loss")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be removed, and remove nothing")
	return cmd
}

// pruneRun returns the steps of the checkpoints that it removed, or would remove.
func pruneRun(dir string, keep checkpoint.Retention, best, dryRun bool) ([]int, error) {
	latest, _, err := checkpoint.Latest(dir, false)
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	if best && latest.Best != nil {
		keep.Also = []int{latest.Best.Step}
	}
	if keep, err = keep.Pinned(dir); err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	steps, err := checkpoint.List(dir)
	if err != nil {
		return nil, err
	}
	removed := keep.Removed(steps)
	if dryRun {
		return removed, nil
	}
	r, err := checkpoint.OpenRun(nil, dir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := r.Prune(keep); err != nil {
		return nil, err
	}
	return removed, nil
}
