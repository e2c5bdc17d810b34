package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cftune/trainer/launch"
)

const launchLong = `Start a run on another machine, and see it through.

hosts.yaml describes the targets (configs/launch/hosts.example.yaml): this machine (local), hosts that are reached by ssh, Slurm
and Kubernetes clusters. launch looks whether the target can take the run, sends this program with its libraries, the configuration and the
files that it names, starts the run so that it outlives the connection, and shows its log. Ctrl-C ends the showing, not the
run. Given again, it shows a run that runs, tells of one that is done, and goes on with one that was interrupted.

Secrets are named in hosts.yaml and taken from this command's environment; their values go to the run's environment and
nowhere else. Several --config make a job array, on Slurm; so does --study FILE with --shards 8, whose last job writes the report.
On Kubernetes the image is the program, and --dry-run prints the manifests, as kubectl apply takes them, without a word to the
cluster.

`

// launchFlags are those of all commands that deal with a launched run.
type launchFlags struct{ on, hosts string }

func (f *launchFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.on, "on", "", "the target, by its name in the file of targets")
	cmd.Flags().StringVar(&f.hosts, "hosts", "", "the file of targets (default ./hosts.yaml, then cftune/hosts.yaml in the user's configuration folder)")
}

// target reads the target's description.
func (f launchFlags) target() (launch.TargetConfig, string, error) {
	folder := ""
	if dir, err := os.UserConfigDir(); err == nil {
		folder = filepath.Join(dir, "cftune")
	}
	path, err := launch.FindHosts(f.hosts, folder)
	if err != nil {
		return launch.TargetConfig{}, "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return launch.TargetConfig{}, "", err
	}
	t, err := launch.LoadTarget(path, f.on)
	return t, path, err
}

// known finds where a run was launched: as the flags say, or as is remembered.
func (f launchFlags) known(name string) (launch.TargetConfig, launch.Record, error) {
	record, err := launch.Recall(launchFolder(), name)
	if f.on == "" {
		if err != nil {
			return launch.TargetConfig{}, record, err
		}
		f.on = record.Target
		if f.hosts == "" {
			f.hosts = record.Hosts
		}
	}
	if err := launch.CheckName(name); err != nil {
		return launch.TargetConfig{}, record, codedError{err, codeUsage}
	}
	t, _, err := f.target()
	return t, record, err
}

// launchFolder is where launched runs are remembered.
func launchFolder() string {
	dir := os.Getenv("XDG_STATE_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "."
		}
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "cftune", "launch")
}

func newLaunchCommand() *cobra.Command {
	var (
		f               launchFlags
		configs, sets   []string
		name, studyFile string
		shards          int
		dryRun, detach  bool
	)
	cmd := &cobra.Command{
		Use:   "launch",
		Short: "Start a run on another machine, follow it, and fetch what it made",
		Long:  launchLong + exitCodesHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(configs) == 0 && studyFile == "" && f.on == "" {
				return cmd.Help()
			}
			if len(configs) == 0 && studyFile == "" || f.on == "" {
				return codedError{errors.New("launch: --config or --study says what to run, and --on where"), codeUsage}
			}
			if err := oneKind(configs, studyFile, shards); err != nil {
				return err
			}
			l := launcher{out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), detach: detach, dryRun: dryRun}
			var err error
			if l.config, l.hosts, err = f.target(); err != nil {
				return err
			}
			if studyFile != "" {
				r, err := studyRequest(cmd.Context(), studyFile, sets, name, shards)
				if err != nil {
					return err
				}
				l.requests = []launch.Request{r}
			} else if l.requests, err = launchRequests(cmd.Context(), configs, sets, name); err != nil {
				return err
			}
			return l.launch(cmd.Context())
		},
	}
	f.add(cmd)
	cmd.Flags().StringArrayVarP(&configs, "config", "c", nil, "configuration of the run; on Slurm it may be given several times")
	cmd.Flags().StringVar(&studyFile, "study", "", "file of a study to run instead")
	cmd.Flags().IntVar(&shards, "shards", 1, "how many jobs make the study, on Slurm: the elements of an array, each with a share of its models")
	cmd.Flags().StringArrayVar(&sets, "set", nil, "override a key of the configuration, or of the study (key=value)")
	cmd.Flags().StringVar(&name, "name", "", "what the run is called (default: the last part of its output)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "look at the target, show what would be sent and done, and do nothing")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not follow the run")
	cmd.AddCommand(newLaunchFollowCommand(), newLaunchStatusCommand(), newLaunchListCommand(), newLaunchFetchCommand(),
		newLaunchStopCommand(), newLaunchResumeCommand(), newLaunchRemoveCommand(), newLaunchJobCommand(), newLaunchFarCommand(), newLaunchTogetherCommand(), newLaunchOutlastCommand())
	return cmd
}

// launchRequests loads the configurations and names the runs.
func launchRequests(ctx context.Context, paths, sets []string, name string) ([]launch.Request, error) {
	if name != "" && len(paths) > 1 {
		return nil, codedError{errors.New("launch: --name names one run; several are named by their outputs"), codeUsage}
	}
	var requests []launch.Request
	seen := map[string]string{}
	for _, path := range paths {
		run, err := loadConfig(ctx, path, sets)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		r := launch.Request{Name: name, Run: run}
		if name == "" {
			r.Name = filepath.Base(filepath.Clean(run.Output))
			if err := launch.CheckName(r.Name); err != nil {
				return nil, codedError{fmt.Errorf("launch: %s: the last part of its output is to be the run's name, and %w; --name gives it one", path, err), codeUsage}
			}
		}
		if other, twice := seen[r.Name]; twice {
			return nil, codedError{fmt.Errorf("launch: %s and %s are both called %s: their outputs must end differently", other, path, r.Name), codeUsage}
		}
		seen[r.Name] = path
		requests = append(requests, r)
	}
	return requests, nil
}

// launcher is one call of launch.
type launcher struct {
	out, notes     io.Writer
	config         launch.TargetConfig
	hosts          string
	requests       []launch.Request
	detach, dryRun bool
}

func (l launcher) say(format string, args ...any) { fmt.Fprintf(l.notes, format+"\n", args...) }

func (l launcher) launch(ctx context.Context) error {
	if l.config.Kind == launch.KindKubernetes {
		return l.launchInCluster(ctx)
	}
	target, err := launch.OpenTarget(ctx, l.config)
	if err != nil {
		return err
	}
	defer target.Close()
	program, err := os.Executable()
	if err != nil {
		return err
	}
	plan, err := launch.Prepare(ctx, l.config, target, l.requests, launch.Options{Say: l.say, Getenv: os.Getenv, Executable: program})
	if err != nil {
		return err
	}
	if state, is := plan.Running(); is && !l.dryRun {
		name := l.requests[0].Name
		l.say("%s is %s already", name, state.Phase)
		if state.StepsLeft {
			l.say("%s", state.Message)
		}
		if state.Phase == launch.PhaseDone {
			l.say("cftune launch fetch %s brings what it made", name)
			_, err := fmt.Fprintln(l.out, name)
			return err
		}
		return l.started(ctx)
	}
	findings, err := plan.First(ctx)
	if err != nil {
		return err
	}
	if err := l.table(findings); err != nil {
		return err
	}
	if l.dryRun {
		return errors.Join(plan.Describe(l.out), plan.Failed(findings))
	}
	if err := plan.Failed(findings); err != nil {
		return err
	}
	if err := plan.Send(ctx); err != nil {
		return err
	}
	findings = plan.Second(ctx)
	if err := errors.Join(l.table(findings), plan.Failed(findings)); err != nil {
		return err
	}
	// Remembered first: what is started must never be unknown here.
	for _, r := range l.requests {
		if err := l.remember(r); err != nil {
			return err
		}
	}
	if err := plan.Begin(ctx); err != nil {
		return err
	}
	return l.started(ctx)
}

func (l launcher) remember(r launch.Request) error {
	return launch.Remember(launchFolder(), launch.Record{
		Name: r.Name, Target: l.config.Name(), Hosts: l.hosts, Output: r.Output(), Time: time.Now().UTC(),
	})
}

// started shows what was started, or how it can be seen.
func (l launcher) started(ctx context.Context) error {
	for _, r := range l.requests {
		if _, err := fmt.Fprintln(l.out, r.Name); err != nil {
			return err
		}
	}
	if l.detach || len(l.requests) > 1 {
		l.say("cftune launch follow NAME shows its log, launch status how it stands, launch fetch brings its checkpoints")
		return nil
	}
	return l.follow(ctx, l.requests[0].Name, false)
}

// follow shows a run until it is over or the context ends.
func (l launcher) follow(ctx context.Context, name string, tail bool) error {
	place, err := l.openPlace(ctx, name)
	if err != nil {
		return err
	}
	defer place.Close()
	state, err := place.Follow(ctx, tail)
	if ctx.Err() != nil {
		l.say("the run goes on without being shown; cftune launch follow %s shows it again, cftune launch stop %s ends it", name, name)
		return nil
	}
	if err != nil {
		return err
	}
	// The connection may have been lost meanwhile.
	again, err := l.openPlace(ctx, name)
	if err != nil {
		return err
	}
	defer again.Close()
	return again.Outcome(ctx, state)
}

func (l launcher) table(findings []launch.Finding) error {
	w := tabwriter.NewWriter(l.notes, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Level, f.What, f.Found)
		if f.WayOut != "" {
			fmt.Fprintf(w, "\t\t-> %s\n", f.WayOut)
		}
	}
	return w.Flush()
}
