package kube

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"cftune/trainer/config"
	"cftune/trainer/launch"
)

const (
	reconnectFirst = time.Second
	reconnectMost  = 30 * time.Second
	// tailLines are shown to who comes later.
	tailLines int64 = 20
	// maxLine bounds a line of a log; a longer one is shown in parts.
	maxLine = 64 << 10
)

// Follower shows what happens to a run in a cluster, pod after pod, over as many connections as it takes.
type Follower struct {
	Cluster *Cluster
	Name    string
	Log     io.Writer
	// Tail begins with the last lines of the pod that there is.
	Tail bool
	Say  func(format string, args ...any)

	shown map[types.UID]time.Time // the last line of each pod's log
	whole map[types.UID]bool      // pods whose logs are shown to their ends
	began bool
	phase string
}

// Follow shows the log until the run is over, or cannot begin as things are, and returns how it then stands. Ending it, by
// the context, does nothing to the run.
func (f *Follower) Follow(ctx context.Context) (launch.State, error) {
	f.shown, f.whole = map[types.UID]time.Time{}, map[types.UID]bool{}
	pause := reconnectFirst
	for {
		state, over, err := f.look(ctx)
		switch {
		case ctx.Err() != nil:
			return state, ctx.Err()
		case err != nil && !mayPass(err), over:
			return state, err
		case err != nil:
			f.Say("no connection to %s (%v); the run does not need it; again in %v", f.Cluster.Server, err, pause)
			select {
			case <-ctx.Done():
				return state, ctx.Err()
			case <-time.After(pause):
			}
			pause = min(2*pause, reconnectMost)
			continue
		}
		pause = reconnectFirst
		if err := f.Cluster.pause(ctx); err != nil {
			return state, err
		}
	}
}

// mayPass tells a network's and a server's faults from what another request would meet as well.
func mayPass(err error) bool {
	var wrong *launch.UsageError
	var run *launch.RunError
	return !errors.As(err, &wrong) && !errors.As(err, &run) && !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) &&
		!apierrors.IsNotFound(err) && !apierrors.IsBadRequest(err) && !apierrors.IsInvalid(err)
}

// look shows what is new.
func (f *Follower) look(ctx context.Context) (state launch.State, over bool, err error) {
	c := f.Cluster
	// The state first: what the logs have after a run is over is all.
	if state, err = c.Status(ctx, f.Name); err != nil {
		return state, false, err
	}
	if state.Phase == launch.PhaseNew {
		return state, true, &launch.UsageError{Err: fmt.Errorf("there is no run %s in namespace %s of %s", f.Name, c.Namespace, c.Server)}
	}
	if said := strings.TrimSuffix(state.Phase+": "+state.Message, ": "); said != f.phase {
		f.phase = said
		f.Say("%s is %s", f.Name, said)
	}
	pods, err := c.pods(ctx, f.Name)
	if err != nil {
		return state, false, err
	}
	trainers := c.trainers(pods)
	if f.Tail && !f.began && len(trainers) > 1 {
		trainers = trainers[len(trainers)-1:]
	}
	for _, p := range trainers {
		if err := f.showLog(ctx, p); err != nil {
			return state, false, err
		}
	}
	if launch.Over(state.Phase) {
		return state, true, nil
	}
	for _, p := range pods {
		if reason, message, is := stuckIn(p); is {
			state.Message = fmt.Sprintf("pod %s cannot start: %s: %s; it still waits there: cftune launch stop %s ends that, and launch remove %s lets it be launched otherwise", p.Name, reason, message, f.Name, f.Name)
			return state, true, &launch.RunError{Name: f.Name, Target: c.target.Name(), State: state}
		}
	}
	return state, false, nil
}

// showLog copies what a pod's log has gained, until the pod ends or the connection does.
func (f *Follower) showLog(ctx context.Context, p corev1.Pod) error {
	if f.whole[p.UID] || p.Status.Phase == corev1.PodPending || p.Status.Phase == "" {
		return nil
	}
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	o := &corev1.PodLogOptions{Container: logContainer(p), Follow: !ended, Timestamps: true}
	last, again := f.shown[p.UID]
	if again {
		since := metav1.NewTime(last) // in whole seconds: lines that were shown come again
		o.SinceTime = &since
	} else if f.Tail && !f.began {
		lines := tailLines
		o.TailLines = &lines
	}
	stream, err := f.Cluster.logs(ctx, p.Namespace, p.Name, o)
	if apierrors.IsNotFound(err) || apierrors.IsBadRequest(err) {
		f.whole[p.UID] = ended // the pod is gone with its log, or its container has not begun
		return nil
	}
	if err != nil {
		return fmt.Errorf("log of pod %s: %w", p.Name, err)
	}
	defer stream.Close()
	f.began = true
	if err := f.copyLines(stream, p.UID, last); err != nil {
		return fmt.Errorf("log of pod %s: %w", p.Name, err)
	}
	f.whole[p.UID] = ended
	return nil
}

// copyLines shows lines that begin with the time at which they were written, without it. Those up to shown were shown before.
func (f *Follower) copyLines(stream io.Reader, pod types.UID, shown time.Time) error {
	r := bufio.NewReaderSize(stream, maxLine)
	inLine, skip := false, false
	for {
		part, err := r.ReadSlice('\n')
		text := string(part)
		if stamp, rest, ok := strings.Cut(text, " "); ok && !inLine {
			if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
				f.shown[pod], text, skip = at, rest, !at.After(shown)
			}
		}
		if !skip {
			if _, err := io.WriteString(f.Log, text); err != nil {
				return err
			}
		}
		inLine = errors.Is(err, bufio.ErrBufferFull)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !inLine:
			return err
		}
	}
}

// logContainer is the container that trains.
func logContainer(p corev1.Pod) string {
	for _, c := range p.Spec.Containers {
		if c.Name == trainContainer || c.Name == runtimeContainer {
			return c.Name
		}
	}
	return ""
}

// Outcome is an error where a run is over and did not end well, with the last lines of the log there.
func (c *Cluster) Outcome(ctx context.Context, name string, s launch.State) error {
	switch s.Phase {
	case launch.PhaseFailed, launch.PhaseLost, launch.PhaseStopped:
		return &launch.RunError{Name: name, Target: c.target.Name(), State: s, Log: c.logTail(ctx, name)}
	}
	return nil
}

// logTail returns the last lines of a run's newest pod; empty if they are not to be had.
func (c *Cluster) logTail(ctx context.Context, name string) string {
	pods, err := c.pods(ctx, name)
	if err != nil {
		return ""
	}
	pods = c.trainers(pods)
	if len(pods) == 0 {
		return ""
	}
	p, lines := pods[len(pods)-1], tailLines
	text, err := within(ctx, "log", func(ctx context.Context) ([]byte, error) {
		stream, err := c.logs(ctx, p.Namespace, p.Name, &corev1.PodLogOptions{Container: logContainer(p), TailLines: &lines})
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		return io.ReadAll(io.LimitReader(stream, maxLine))
	})
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// RunOf returns a run's configuration as its ConfigMap has it, and the output that it was launched with.
func (c *Cluster) RunOf(ctx context.Context, name string) (run config.Run, output string, err error) {
	u, err := within(ctx, "read ConfigMap "+ObjectName(name), func(ctx context.Context) (*unstructured.Unstructured, error) {
		return c.of(configMaps).Get(ctx, ObjectName(name), metav1.GetOptions{})
	})
	if apierrors.IsNotFound(err) {
		return run, "", &launch.UsageError{Err: fmt.Errorf("there is no run %s in namespace %s of %s", name, c.Namespace, c.Server)}
	}
	if err != nil {
		return run, "", err
	}
	text, _, _ := unstructured.NestedString(u.Object, "data", runName)
	if err := json.Unmarshal([]byte(text), &run); err != nil {
		return run, "", fmt.Errorf("ConfigMap %s: %s: %w", u.GetName(), runName, err)
	}
	return run, u.GetAnnotations()[outputNote], nil
}
