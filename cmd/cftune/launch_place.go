package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"cftune/internal/spell"
	"cftune/trainer"
	"cftune/trainer/launch"
	"cftune/trainer/launch/kube"
)

// launchPlace is where one launched run is: a job folder on a host, or objects in a cluster.
type launchPlace interface {
	Status(ctx context.Context) (launch.State, error)
	Stop(ctx context.Context) (launch.State, error)
	Resume(ctx context.Context) error
	Remove(ctx context.Context) error
	// Fetch brings what was made to output, and verifies it.
	Fetch(ctx context.Context, output string, all bool) error
	// Follow shows the log until the run is over; Outcome is an error if it did not end well.
	Follow(ctx context.Context, tail bool) (launch.State, error)
	Outcome(ctx context.Context, s launch.State) error
	Close() error
}

// openPlace connects to where a run is.
func (l launcher) openPlace(ctx context.Context, name string) (launchPlace, error) {
	if l.config.Kind == launch.KindKubernetes {
		if err := kube.CheckName(name); err != nil {
			return nil, err
		}
		c, err := kube.Open(l.config)
		if err != nil {
			return nil, err
		}
		return inCluster{c, l, name}, nil
	}
	t, err := launch.OpenTarget(ctx, l.config)
	if err != nil {
		return nil, err
	}
	parts, err := launch.PartsOf(t, name)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	h := onHost{t, l, name}
	if len(parts) > 0 {
		return studyOnHost{h, parts}, nil
	}
	return h, nil
}

// onHost is a run in a job folder.
type onHost struct {
	target launch.Target
	l      launcher
	name   string
}

func (h onHost) dir() string  { return launch.JobDir(h.target, h.name) }
func (h onHost) Close() error { return h.target.Close() }

func (h onHost) Status(ctx context.Context) (launch.State, error) {
	return h.target.Status(ctx, h.dir())
}
func (h onHost) Stop(ctx context.Context) (launch.State, error) { return h.target.Stop(ctx, h.dir()) }
func (h onHost) Remove(ctx context.Context) error               { return h.target.Remove(ctx, h.dir()) }

func (h onHost) Resume(ctx context.Context) error {
	return launch.Resume(ctx, h.l.config, h.target, h.name, os.Getenv)
}

func (h onHost) Fetch(ctx context.Context, output string, all bool) error {
	steps, err := launch.Fetch(ctx, h.target, h.name, output, all, h.l.say)
	if err != nil {
		return err
	}
	return h.l.fetched(output, len(steps))
}

// fetched verifies a run that was fetched.
func (l launcher) fetched(output string, checkpoints int) error {
	report, err := trainer.Check(output)
	if err != nil {
		return err
	}
	var problems []string
	for _, problem := range report.Problems {
		problems = append(problems, fmt.Sprint(problem))
	}
	if err := l.sound(output, problems); err != nil {
		return err
	}
	if checkpoints == 0 {
		l.say("%s: made here, so that there is nothing to fetch; verified", output)
	} else {
		l.say("%s: %d checkpoints are here, verified", output, checkpoints)
	}
	return nil
}

func (h onHost) Follow(ctx context.Context, tail bool) (launch.State, error) {
	return h.follower(tail, nil).Follow(ctx)
}

func (h onHost) follower(tail bool, parts []string) *launch.Follower {
	return &launch.Follower{
		Open: func(ctx context.Context) (launch.Target, error) { return launch.OpenTarget(ctx, h.l.config) },
		Name: h.name, Parts: parts, Log: h.l.notes, Tail: tail, Say: h.l.say,
	}
}

func (h onHost) Outcome(_ context.Context, s launch.State) error {
	return launch.Outcome(h.target, h.name, h.l.config.Name(), s)
}

// inCluster is a run in a Kubernetes cluster.
type inCluster struct {
	cluster *kube.Cluster
	l       launcher
	name    string
}

func (c inCluster) Close() error { return nil }

func (c inCluster) Status(ctx context.Context) (launch.State, error) {
	return c.cluster.Status(ctx, c.name)
}
func (c inCluster) Stop(ctx context.Context) (launch.State, error) {
	return c.cluster.Stop(ctx, c.name)
}
func (c inCluster) Resume(ctx context.Context) error { return c.cluster.Resume(ctx, c.name) }
func (c inCluster) Remove(ctx context.Context) error { return c.cluster.Remove(ctx, c.name) }

func (c inCluster) Follow(ctx context.Context, tail bool) (launch.State, error) {
	f := &kube.Follower{Cluster: c.cluster, Name: c.name, Log: c.l.notes, Tail: tail, Say: c.l.say}
	return f.Follow(ctx)
}

func (c inCluster) Outcome(ctx context.Context, s launch.State) error {
	return c.cluster.Outcome(ctx, c.name, s)
}

// Fetch brings the newest checkpoint from the run's mirror, which needs no pod; without one, or all of them, from its claim.
func (c inCluster) Fetch(ctx context.Context, output string, all bool) error {
	run, _, err := c.cluster.RunOf(ctx, c.name)
	if err != nil {
		return err
	}
	if run.Checkpoint.Mirror == "" || all {
		steps, err := c.cluster.Fetch(ctx, c.name, output, all, c.l.say)
		if err != nil {
			return err
		}
		return c.l.fetched(output, len(steps))
	}
	r, err := trainer.Restore(ctx, run.Checkpoint.Mirror, output, func(text string) { c.l.say("note: %s", text) })
	if err != nil {
		return err
	}
	if r.Kept {
		c.l.say("%s has this run already, no older than the mirror's", r.Dir)
	}
	return c.l.fetched(output, 1)
}

// launchInCluster is launch for a target of kind kubernetes.
func (l launcher) launchInCluster(ctx context.Context) error {
	if len(l.requests) != 1 {
		return codedError{fmt.Errorf("launch: target %s: several configurations at once need Slurm; start them one by one", l.config.Name()), codeUsage}
	}
	r := l.requests[0]
	if r.Study != nil {
		return codedError{fmt.Errorf("launch: target %s: studies are launched on this machine, by ssh and on Slurm; in Kubernetes, pods of an indexed Job can run cftune study --shard auto", l.config.Name()), codeUsage}
	}
	namespace, err := kube.Namespace(l.config)
	if err != nil {
		return err
	}
	m, err := kube.Render(l.config, namespace, r.Name, r.Run)
	if err != nil {
		return err
	}
	if l.dryRun {
		text, err := m.YAML()
		if err != nil {
			return err
		}
		_, err = l.out.Write(text)
		return err
	}
	c, err := kube.Open(l.config)
	if err != nil {
		return err
	}
	if err := c.Same(ctx, m); err != nil {
		return err
	}
	state, err := c.Status(ctx, r.Name)
	if err != nil {
		return err
	}
	switch {
	case state.Phase == launch.PhaseNew:
		findings := append(c.Check(ctx, m), l.podFit(r))
		if err := errors.Join(l.table(findings), launch.Failed(l.config, findings)); err != nil {
			return err
		}
	case state.Phase == launch.PhaseDone:
		l.say("%s is done already; cftune launch fetch %s brings what it made", r.Name, r.Name)
		_, err := fmt.Fprintln(l.out, r.Name)
		return err
	case !launch.Over(state.Phase):
		l.say("%s is %s already", r.Name, state.Phase)
		return l.started(ctx)
	}
	// Remembered first: what is started must never be unknown here.
	if err := l.remember(r); err != nil {
		return err
	}
	if state.Phase == launch.PhaseNew {
		err = c.Apply(ctx, m)
	} else {
		err = c.Resume(ctx, r.Name)
	}
	if err != nil {
		return err
	}
	return l.started(ctx)
}

// podFit compares what a run takes with a pod's memory, where the model is here as well and the pod has no device.
func (l launcher) podFit(r launch.Request) launch.Finding {
	f := launch.Finding{Level: launch.LevelWarn, What: "fit"}
	k := l.config.Kubernetes
	info, err := os.Stat(r.Run.Model)
	switch {
	case k.GPUs > 0:
		f.Found = "not looked at: the node's device is the cluster's"
		return f
	case k.Memory == "":
		f.Found, f.WayOut = "not looked at: a pod without kubernetes.memory may be ended when its node runs short", "kubernetes.memory of the target asks for it"
		return f
	case err != nil || !info.Mode().IsRegular():
		f.Found = "not looked at: the model is not here"
		return f
	}
	limit, err := kube.Bytes(k.Memory)
	if err != nil {
		return launch.Finding{Level: launch.LevelFail, What: "fit", Found: err.Error()}
	}
	run := r.Run
	if run.Device = "cpu"; run.Limits.Memory == "" {
		run.Limits.Memory = strconv.FormatUint(uint64(float64(limit)*usableMemory), 10)
	}
	report, err := examineRun(r.Name, run, nil)
	if err != nil {
		return launch.Finding{Level: launch.LevelFail, What: "fit", Found: err.Error()}
	}
	f.Level, f.Found = launch.LevelOK, fmt.Sprintf("%s of buffers, a pod has %s", spell.Size(report.Buffers), k.Memory)
	if !report.Fits {
		f.Level = launch.LevelFail
		for _, w := range report.WouldFit {
			f.WayOut += " --set " + strings.Join(w.Settings, " --set ") + ";"
		}
	}
	return f
}
