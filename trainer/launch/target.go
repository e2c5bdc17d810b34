package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"cftune/internal/spell"
)

// Target is a place where runs are started. A run is known by its job folder there.
type Target interface {
	// Host is where job folders are read and written.
	Host() Host
	// Root is the absolute folder in which all lies.
	Root() string
	// Check says what only this kind of target knows before a run is started, of jobs that are prepared.
	Check(ctx context.Context, jobs []Placed) []Finding
	// Start starts what is prepared, or queues it. What runs already or is done is left as it is.
	Start(ctx context.Context, jobs []Placed, secrets map[string]string) error
	// Script is what Start would hand to a scheduler, empty where there is none.
	Script(jobs []Placed) (string, error)
	Status(ctx context.Context, dir string) (State, error)
	// Stop ends a run with a checkpoint and returns how it then stands.
	Stop(ctx context.Context, dir string) (State, error)
	// Remove removes a job folder in which nothing runs.
	Remove(ctx context.Context, dir string) error
	Close() error
}

// Placed is a job and its folder on the target.
type Placed struct {
	Job Job
	Dir string
}

// OpenTarget connects to a target.
func OpenTarget(ctx context.Context, t TargetConfig) (Target, error) {
	var h Host = localHost{}
	if t.Host != "" {
		far, err := dialHost(ctx, t)
		if err != nil {
			return nil, err
		}
		h = far
	}
	d := &direct{config: t, host: h}
	folder := t.Folder
	if folder == "" {
		folder = defaultFolder
	}
	folder = strings.TrimPrefix(folder, "~/")
	if !path.IsAbs(folder) {
		dir, err := home(ctx, h)
		if err != nil {
			return nil, errors.Join(err, h.Close())
		}
		folder = path.Join(dir, folder)
	}
	d.root = path.Clean(folder)
	if t.Kind == KindSlurm {
		if strings.ContainsRune(d.root, '%') {
			return nil, errors.Join(usage("folder %q: Slurm gives %% a meaning of its own in paths", d.root), h.Close())
		}
		return &slurm{direct: d}, nil
	}
	return d, nil
}

// direct is a target whose runs are processes of the host itself: local and ssh.
type direct struct {
	config TargetConfig
	host   Host
	root   string
}

func (d *direct) Host() Host   { return d.host }
func (d *direct) Root() string { return d.root }
func (d *direct) Close() error { return d.host.Close() }

func (d *direct) Check(context.Context, []Placed) []Finding { return nil }

func (d *direct) Script([]Placed) (string, error) { return "", nil }

// far asks the program that a job uses.
func (d *direct) far(ctx context.Context, do, dir string, env map[string]string) (farAnswer, error) {
	var a farAnswer
	job, err := d.job(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return a, err
	}
	request, err := json.Marshal(farRequest{Do: do, Dir: dir})
	if err != nil {
		return a, err
	}
	out, err := d.host.Run(ctx, "exec "+quoteAll(job.Program, "launch", "far"), request, env)
	if err != nil {
		if _, statErr := d.host.Stat(job.Program); errors.Is(statErr, fs.ErrNotExist) {
			return a, &buildGoneError{host: d.host.Name(), program: job.Program, name: job.Name}
		}
		return a, fmt.Errorf("%s: %w", do, err)
	}
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&a); err != nil {
		return a, fmt.Errorf("%s: on %s: the program answers %q", do, d.host.Name(), lastLines(string(out), 3))
	}
	return a, nil
}

// buildGoneError says that the program which minds a run is no longer on its host.
type buildGoneError struct{ host, program, name string }

func (e *buildGoneError) Error() string {
	return fmt.Sprintf("the build of %s is gone from %s: there is no %s; the command that launched it, given again, sends a build and goes on", e.name, e.host, e.program)
}

// lastKnown is what a supervisor wrote down last, where no program can be asked whether it lives.
func (d *direct) lastKnown(dir string) (State, error) {
	text, err := readSmall(d.host, path.Join(dir, stateName), maxJobBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return State{Phase: PhaseNew}, nil
	}
	if err != nil {
		return State{}, err
	}
	return parseState(text)
}

// maxJobBytes bounds the files that describe a job.
const maxJobBytes = 1 << 20

func (d *direct) job(dir string) (Job, error) {
	text, err := readSmall(d.host, path.Join(dir, jobName), maxJobBytes)
	if err != nil {
		return Job{}, err
	}
	return parseJob(text)
}

func (d *direct) Status(ctx context.Context, dir string) (State, error) {
	a, err := d.far(ctx, "status", dir, nil)
	if gone, is := errors.AsType[*buildGoneError](err); is {
		s, err := d.lastKnown(dir)
		if err == nil && !Over(s.Phase) {
			s.Message = fmt.Sprintf("it was %s when it was last heard of (%s), and nobody can be asked now: %v", s.Phase, s.Updated.Format(time.RFC3339), gone)
			s.Phase = PhaseLost // launched again, it is found where it runs
		}
		return s, err
	}
	if !a.Exists {
		a.State.Phase = PhaseNew
	}
	return a.State, err
}

func (d *direct) Start(ctx context.Context, jobs []Placed, secrets map[string]string) error {
	if len(jobs) != 1 {
		return usage("target %s: several configurations at once need a scheduler (kind slurm); start them one by one", d.config.name)
	}
	_, err := d.far(ctx, "start", jobs[0].Dir, secrets)
	return err
}

func (d *direct) Stop(ctx context.Context, dir string) (State, error) {
	a, err := d.far(ctx, "stop", dir, nil)
	return a.State, err
}

func (d *direct) Remove(ctx context.Context, dir string) error {
	_, err := d.far(ctx, "remove", dir, nil)
	if _, gone := errors.AsType[*buildGoneError](err); gone {
		s, knownErr := d.lastKnown(dir)
		switch {
		case knownErr != nil:
			err = knownErr
		case Over(s.Phase): // else it may run
			_, err = d.host.Run(ctx, "rm -rf -- "+spell.Quote(dir), nil, nil)
		}
	}
	return err
}

// Secrets takes the values of a target's secrets from an environment.
func (t TargetConfig) secretValues(getenv func(string) string) (map[string]string, error) {
	values := map[string]string{}
	var problems []error
	for _, name := range t.Secrets {
		v := getenv(name)
		switch {
		case v == "":
			problems = append(problems, fmt.Errorf("secret %s: the variable is empty here", name))
		case strings.ContainsAny(v, "\x00\n\r"):
			problems = append(problems, fmt.Errorf("secret %s: its value has a line break, which cannot be passed on", name))
		}
		values[name] = v
	}
	if len(problems) > 0 {
		return nil, &UsageError{errors.Join(problems...)}
	}
	return values, nil
}

// JobDir is where a run's job folder is.
func JobDir(t Target, name string) string { return path.Join(t.Root(), "runs", name) }

// logTail returns the last lines of a job's log.
func logTail(h Host, dir string, lines int) string {
	f, err := h.Open(path.Join(dir, logName))
	if err != nil {
		return ""
	}
	defer f.Close()
	return tail(f, lines)
}

// RunError says that a run did not end well on its target, and what happened there.
type RunError struct {
	Name, Target string
	State        State
	Log          string
}

func (e *RunError) Error() string {
	text := fmt.Sprintf("%s on %s: %s", e.Name, e.Target, e.State.Phase)
	if e.State.Message != "" {
		text += ": " + e.State.Message
	}
	if e.Log != "" {
		text += "\nthe last lines of its log there:\n  " + strings.ReplaceAll(e.Log, "\n", "\n  ")
	}
	return text
}

// Outcome is an error where a run is over and did not end well.
func Outcome(t Target, name, target string, s State) error {
	switch s.Phase {
	case PhaseFailed, PhaseLost, PhaseStopped:
		const lines = 15
		return &RunError{Name: name, Target: target, State: s, Log: logTail(t.Host(), JobDir(t, name), lines)}
	}
	return nil
}

// pollSlow is the pause between looks at a run.
const pollSlow = time.Second

// Resume starts a run again that is there and over.
func Resume(ctx context.Context, config TargetConfig, t Target, name string, getenv func(string) string) error {
	dir := JobDir(t, name)
	job, err := readJobOf(t.Host(), dir)
	if err != nil {
		return err
	}
	if job == nil {
		return usage("there is no run %s on %s", name, t.Host().Name())
	}
	config.Secrets = job.Secrets
	secrets, err := config.secretValues(getenv)
	if err != nil {
		return err
	}
	return t.Start(ctx, []Placed{{Job: *job, Dir: dir}}, secrets)
}
