package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cftune/trainer/launch"
)

// launched is a subcommand that deals with one run that was launched.
func launched(use, short, long string, do func(l launcher, ctx context.Context, p launchPlace, r launch.Record, name string) error) (*cobra.Command, *launchFlags) {
	f := &launchFlags{}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l := launcher{out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr()}
			var record launch.Record
			var err error
			if l.config, record, err = f.known(args[0]); err != nil {
				return err
			}
			p, err := l.openPlace(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return errors.Join(do(l, cmd.Context(), p, record, args[0]), p.Close())
		},
	}
	f.add(cmd)
	return cmd, f
}

func newLaunchFollowCommand() *cobra.Command {
	cmd, _ := launched("follow NAME", "Show a launched run's log as it grows, until it is over",
		`Show the last lines of a launched run's log and what is added, until the run is over. A lost connection is made again.
The exit code is 0 if the run ended well; Ctrl-C ends the showing, not the run.`,
		func(l launcher, ctx context.Context, _ launchPlace, _ launch.Record, name string) error {
			return l.follow(ctx, name, true)
		})
	return cmd
}

func newLaunchStatusCommand() *cobra.Command {
	var asJSON bool
	cmd, _ := launched("status NAME", "Show how a launched run stands",
		"Show how a launched run stands: what its supervisor wrote down, and what the host, Slurm or Kubernetes says now.",
		func(l launcher, ctx context.Context, p launchPlace, _ launch.Record, name string) error {
			s, err := p.Status(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(l.out).Encode(s)
			}
			return printState(l.out, name, s)
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func printState(out io.Writer, name string, s launch.State) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\t%s\t%s\n", name, s.Phase, s.Message)
	for i, p := range s.Parts {
		fmt.Fprintf(w, "part %d\t%s\t%s\n", i+1, p.Phase, p.Message)
		printAttempts(w, p)
	}
	printAttempts(w, s)
	return w.Flush()
}

func printAttempts(w io.Writer, s launch.State) {
	for i, a := range s.Attempts {
		ended := "runs"
		if !a.Ended.IsZero() {
			ended = fmt.Sprintf("%s, exit code %d", a.Ended.Format("2006-01-02 15:04:05"), a.Code)
			if a.Signal != "" {
				ended += ", " + a.Signal
			}
		}
		fmt.Fprintf(w, "attempt %d\t%s\t%s\n", i+1, a.Started.Format("2006-01-02 15:04:05"), ended)
	}
}

func newLaunchListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the runs that were launched from here", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := launch.Records(launchFolder())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, r := range records {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Name, r.Target, r.Time.Local().Format("2006-01-02 15:04"), r.Output)
			}
			return w.Flush()
		},
	}
}

func newLaunchFetchCommand() *cobra.Command {
	var (
		output string
		all    bool
	)
	cmd, _ := launched("fetch NAME", "Fetch a launched run's checkpoints and metrics, and verify them",
		`Fetch the newest checkpoint of a launched run, its record and its metrics into the run directory that its configuration
names, or --output. What is here already is not fetched again, an interrupted transfer goes on where it ended, and what
has come is verified as cftune check does. From Kubernetes they come by the run's mirror
(checkpoint.mirror), or from its claim through a pod. Of a study come record, texts, adapters and the courses of its runs (--all: their
newest checkpoints too), and the report of what is there so far is made here. Then cftune export, generate and resume work on it as on any run.`,
		func(l launcher, ctx context.Context, p launchPlace, r launch.Record, name string) error {
			if output == "" {
				output = r.Output
			}
			if output == "" {
				return codedError{errors.New("launch fetch: --output says where to"), codeUsage}
			}
			if err := p.Fetch(ctx, output, all); err != nil {
				return err
			}
			_, err := fmt.Fprintln(l.out, output)
			return err
		})
	cmd.Flags().StringVar(&output, "output", "", "the run directory here, instead of the configuration's output")
	cmd.Flags().BoolVar(&all, "all", false, "all checkpoints, not only the newest")
	return cmd
}

func newLaunchStopCommand() *cobra.Command {
	cmd, _ := launched("stop NAME", "Let a launched run save a checkpoint and end",
		"Let a launched run save a checkpoint and end, and wait for it. One that waits in a queue is taken out. Given again after a minute, it\nends a run that hangs, without another checkpoint. cftune launch resume goes on.",
		func(l launcher, ctx context.Context, p launchPlace, _ launch.Record, name string) error {
			s, err := p.Stop(ctx)
			if err != nil {
				return err
			}
			return printState(l.out, name, s)
		})
	return cmd
}

func newLaunchResumeCommand() *cobra.Command {
	var detach bool
	cmd, _ := launched("resume NAME", "Start a launched run again that was stopped, failed or lost, or that limits.max_time has ended",
		"Start a launched run again, from its newest checkpoint, and follow it. One that runs is followed.",
		func(l launcher, ctx context.Context, p launchPlace, _ launch.Record, name string) error {
			if err := p.Resume(ctx); err != nil {
				return err
			}
			if detach {
				_, err := fmt.Fprintln(l.out, name)
				return err
			}
			return l.follow(ctx, name, true)
		})
	cmd.Flags().BoolVar(&detach, "detach", false, "do not follow the run")
	return cmd
}

func newLaunchRemoveCommand() *cobra.Command {
	cmd, _ := launched("remove NAME", "Remove a launched run from its target, and forget it",
		`Remove a launched run's folder on its target: configuration, log, and the run directory if it lies there. What was fetched
stays. Builds and data that were sent stay too, for other runs; they lie in builds and files of the target's folder. In Kubernetes
the run's objects are removed, and what lies on claims stays.`,
		func(l launcher, ctx context.Context, p launchPlace, _ launch.Record, name string) error {
			if err := p.Remove(ctx); err != nil {
				return fmt.Errorf("remove %s: %w", name, err)
			}
			return launch.Forget(launchFolder(), name)
		})
	return cmd
}
