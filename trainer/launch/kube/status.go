package kube

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"cftune/trainer/launch"
)

// Labels by which the workloads' controllers mark their pods.
const (
	jobNameLabel       = "batch.kubernetes.io/job-name"
	jobSetNameLabel    = "jobset.sigs.k8s.io/jobset-name"
	replicatedJobLabel = "jobset.sigs.k8s.io/replicatedjob-name"
)

// pods are those of a run that there are, oldest first.
func (c *Cluster) pods(ctx context.Context, name string) ([]corev1.Pod, error) {
	key := jobNameLabel
	if c.target.Kubernetes.Form() != launch.WorkloadJob {
		key = jobSetNameLabel // also of trainjobs, which become jobsets of the same name
	}
	list, err := within(ctx, "list pods", func(ctx context.Context) (*unstructured.UnstructuredList, error) {
		return c.of(podsOf).List(ctx, metav1.ListOptions{LabelSelector: labels.Set{key: ObjectName(name)}.String()})
	})
	if err != nil {
		return nil, err
	}
	pods := make([]corev1.Pod, len(list.Items))
	for i := range list.Items {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &pods[i]); err != nil {
			return nil, fmt.Errorf("pod %s: %w", list.Items[i].GetName(), err)
		}
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	return pods, nil
}

// trainers are the pods whose logs are the run's.
func (c *Cluster) trainers(pods []corev1.Pod) []corev1.Pod {
	several := c.target.Kubernetes.Replicas() > 1
	return slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		return p.Labels[labelPart] == partHelper || several && p.Labels[replicatedJobLabel] != "" && p.Labels[replicatedJobLabel] != launcherJob
	})
}

// active is the number of pods that have not ended.
func active(pods []corev1.Pod) int {
	n := 0
	for _, p := range pods {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			n++
		}
	}
	return n
}

// condition is one of a workload that is true.
type condition struct{ kind, reason, message string }

// conditions are the ones of a workload that are true; Job, JobSet and TrainJob write them alike.
func conditions(u *unstructured.Unstructured) map[string]condition {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	all := map[string]condition{}
	for _, item := range list {
		m, ok := item.(map[string]any)
		if !ok || fmt.Sprint(m["status"]) != "True" {
			continue
		}
		text := func(key string) string { s, _ := m[key].(string); return s }
		all[text("type")] = condition{text("type"), text("reason"), text("message")}
	}
	return all
}

// Status says how a run stands by its workload and its pods.
func (c *Cluster) Status(ctx context.Context, name string) (launch.State, error) {
	s := launch.State{Phase: launch.PhaseNew}
	u, err := c.workload(ctx, name)
	if err != nil || u == nil {
		return s, err
	}
	pods, err := c.pods(ctx, name)
	if err != nil {
		return s, err
	}
	all := conditions(u)
	s.Attempts = attempts(c.trainers(pods))
	for _, a := range s.Attempts {
		if !a.Ended.IsZero() {
			s.ExitCode = a.Code
		}
	}
	suspended, _, _ := unstructured.NestedBool(u.Object, "spec", "suspend")
	failed, isFailed := all["Failed"]
	_, complete := all["Complete"]
	_, completed := all["Completed"]
	trainers := c.trainers(pods)
	switch {
	case complete || completed:
		s.Phase = launch.PhaseDone
	case isFailed:
		s.Phase, s.Message = launch.PhaseFailed, failed.reason+": "+failed.message
		if why := lastEnd(trainers); why != "" {
			s.Message = why + " (" + s.Message + ")"
		}
	case suspended && active(pods) == 0:
		s.Phase, s.Message = launch.PhaseStopped, "suspended"
	case suspended:
		s.Phase, s.Message = launch.PhaseRunning, fmt.Sprintf("%d pods save and end", active(pods))
	default:
		s.Phase, s.Message = c.livePhase(u, trainers, pods)
	}
	return s, nil
}

// livePhase is that of a workload which is neither over nor suspended.
func (c *Cluster) livePhase(u *unstructured.Unstructured, trainers, pods []corev1.Pod) (phase, message string) {
	if n := len(trainers); n > 0 {
		last := trainers[n-1]
		switch {
		case last.DeletionTimestamp != nil && active([]corev1.Pod{last}) > 0:
			return launch.PhaseRetrying, "pod " + last.Name + " is taken away; another takes its place"
		case last.Status.Phase == corev1.PodRunning:
			return launch.PhaseRunning, fmt.Sprintf("pod %s on %s", last.Name, last.Spec.NodeName)
		case last.Status.Phase == corev1.PodPending || last.Status.Phase == "":
			return launch.PhasePending, "pod " + last.Name + ": " + waiting(last)
		case last.Status.Phase == corev1.PodFailed:
			if end := terminated(last); end != nil && slices.Contains(settled, end.ExitCode) {
				return launch.PhaseRetrying, lastEnd(trainers) + ", which does not pass by itself"
			}
			return launch.PhaseRetrying, lastEnd(trainers) + "; another pod takes its place"
		case last.Status.Phase == corev1.PodSucceeded:
			return launch.PhaseRunning, "pod " + last.Name + " has ended well"
		}
	}
	if n := len(pods); n > 0 {
		return launch.PhasePending, "pod " + pods[n-1].Name + ": " + waiting(pods[n-1])
	}
	return launch.PhasePending, "no pod yet: the controller of " + u.GetKind() + " has not made one"
}

// attempts are the pods that there are still.
func attempts(pods []corev1.Pod) []launch.Attempt {
	var list []launch.Attempt
	for _, p := range pods {
		a := launch.Attempt{Started: p.CreationTimestamp.Time}
		if end := terminated(p); end != nil {
			a.Ended, a.Code, a.Signal = end.FinishedAt.Time, int(end.ExitCode), end.Reason
			if end.Reason == "Error" || end.Reason == "Completed" {
				a.Signal = ""
			}
		}
		list = append(list, a)
	}
	return list
}

// terminated is how a pod's container ended, nil if it has not.
func terminated(p corev1.Pod) *corev1.ContainerStateTerminated {
	for _, s := range p.Status.ContainerStatuses {
		if s.State.Terminated != nil {
			return s.State.Terminated
		}
	}
	return nil
}

// lastEnd says how the newest pod that failed ended, and what can be done; empty if none did.
func lastEnd(pods []corev1.Pod) string {
	for _, p := range slices.Backward(pods) {
		if p.Status.Phase == corev1.PodFailed {
			return howEnded(p)
		}
	}
	return ""
}

func howEnded(p corev1.Pod) string {
	end := terminated(p)
	switch {
	case end != nil && end.Reason == "OOMKilled":
		return fmt.Sprintf("pod %s was killed for its memory (OOMKilled): raise kubernetes.memory, or let the run take less (cftune doctor)", p.Name)
	case p.Status.Reason != "": // Evicted, DeadlineExceeded, NodeLost, ...
		return fmt.Sprintf("pod %s: %s: %s", p.Name, p.Status.Reason, p.Status.Message)
	case end != nil && end.Signal != 0:
		return fmt.Sprintf("pod %s was ended by signal %d", p.Name, end.Signal)
	case end != nil && end.Reason != "" && end.Reason != "Error":
		return fmt.Sprintf("pod %s ended with exit code %d: %s: %s", p.Name, end.ExitCode, end.Reason, end.Message)
	case end != nil:
		return fmt.Sprintf("pod %s ended with exit code %d", p.Name, end.ExitCode)
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.DisruptionTarget && cond.Status == corev1.ConditionTrue {
			return fmt.Sprintf("pod %s was taken away: %s: %s", p.Name, cond.Reason, cond.Message)
		}
	}
	return fmt.Sprintf("pod %s failed", p.Name)
}

// ways out of what keeps a container from starting. They do not pass by themselves.
var stuck = map[string]string{
	"ImagePullBackOff":           "kubernetes.image must exist, and pull_secrets give access to it",
	"ErrImagePull":               "kubernetes.image must exist, and pull_secrets give access to it",
	"InvalidImageName":           "kubernetes.image is no name of an image",
	"ErrImageNeverPull":          "the node has no such image, and pull_policy is Never",
	"CreateContainerConfigError": "a Secret or a key of secret_env is missing, or the image wants to run as root",
	"CreateContainerError":       "",
	"RunContainerError":          "the image has no program cftune, or not where it is looked for",
}

// waiting says what a pod waits for.
func waiting(p corev1.Pod) string {
	if reason, message, ok := stuckIn(p); ok {
		return reason + ": " + message
	}
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason != "" {
			return strings.TrimSuffix(w.Reason+": "+w.Message, ": ")
		}
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			return cond.Reason + ": " + cond.Message
		}
	}
	return "waits to be started"
}

// stuckIn reports whether a pod's container cannot be started as things are.
func stuckIn(p corev1.Pod) (reason, message string, is bool) {
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil {
			if wayOut, bad := stuck[w.Reason]; bad {
				return w.Reason, strings.TrimSuffix(w.Message+"; "+wayOut, "; "), w.Reason != "ErrImagePull" // which is tried again at once
			}
		}
	}
	return "", "", false
}
