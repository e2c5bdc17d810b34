package kube

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/fake"
	ktesting "k8s.io/client-go/testing"

	"cftune/trainer/launch"
)

// testbed is a cluster of client-go's fake, with the test as scheduler, controller and kubelet.
type testbed struct {
	*Cluster
	t    *testing.T
	fake *fake.FakeDynamicClient
	logs map[string]string // by pod
	m    *Manifests
}

func newTestbed(t *testing.T, form string) *testbed {
	t.Helper()
	kinds := map[schema.GroupVersionResource]string{configMaps: "ConfigMapList", podsOf: "PodList", claims: "PersistentVolumeClaimList"}
	for form, r := range resources {
		kinds[r] = map[string]string{"job": "JobList", "jobset": "JobSetList", "trainjob": "TrainJobList"}[form]
	}
	b := &testbed{t: t, fake: fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds), logs: map[string]string{}, m: rendered(t, form)}
	b.Cluster = &Cluster{Namespace: "training", Server: "the fake", target: parsed(t, targetsText, form), client: b.fake, poll: time.Millisecond}
	b.Cluster.logs = func(_ context.Context, _, pod string, o *corev1.PodLogOptions) (io.ReadCloser, error) {
		text, ok := b.logs[pod]
		if !ok {
			return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, pod)
		}
		var out strings.Builder
		for line := range strings.Lines(text) {
			stamp, rest, _ := strings.Cut(line, " ")
			at, err := time.Parse(time.RFC3339Nano, stamp)
			require.NoError(t, err)
			if o.SinceTime != nil && at.Before(o.SinceTime.Truncate(time.Second)) {
				continue
			}
			if o.Timestamps {
				rest = line
			}
			out.WriteString(rest)
		}
		return io.NopCloser(strings.NewReader(out.String())), nil
	}
	return b
}

// pod puts a pod of the run there, in some state.
func (b *testbed) pod(name string, age int, status corev1.PodStatus) {
	b.t.Helper()
	p := corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: b.Namespace, UID: types.UID(name), CreationTimestamp: metav1.NewTime(time.Date(2026, 11, 26, 12, age, 0, 0, time.UTC)),
			Labels: map[string]string{jobNameLabel: "cftune-first", jobSetNameLabel: "cftune-first", labelPart: partTrainer}},
		Spec:   corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: trainContainer}}},
		Status: status,
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&p)
	require.NoError(b.t, err)
	u := &unstructured.Unstructured{Object: object}
	if _, err = b.of(podsOf).Create(b.t.Context(), u, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
		_, err = b.of(podsOf).Update(b.t.Context(), u, metav1.UpdateOptions{})
	}
	require.NoError(b.t, err)
}

func (b *testbed) losePod(name string) {
	b.t.Helper()
	require.NoError(b.t, b.of(podsOf).Delete(b.t.Context(), name, metav1.DeleteOptions{}))
}

// condition lets the workload's controller say something.
func (b *testbed) condition(kind, reason, message string) {
	b.t.Helper()
	u, err := b.workloads().Get(b.t.Context(), "cftune-first", metav1.GetOptions{})
	require.NoError(b.t, err)
	require.NoError(b.t, unstructured.SetNestedSlice(u.Object, []any{map[string]any{"type": kind, "status": "True", "reason": reason, "message": message}}, "status", "conditions"))
	_, err = b.workloads().Update(b.t.Context(), u, metav1.UpdateOptions{})
	require.NoError(b.t, err)
}

func (b *testbed) phase() (phase, message string) {
	b.t.Helper()
	s, err := b.Status(b.t.Context(), "first")
	require.NoError(b.t, err)
	return s.Phase, s.Message
}

func ended(code int32, reason string) corev1.PodStatus {
	phase := corev1.PodFailed
	if code == 0 {
		phase = corev1.PodSucceeded
	}
	return corev1.PodStatus{Phase: phase, ContainerStatuses: []corev1.ContainerStatus{{Name: trainContainer,
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, FinishedAt: metav1.NewTime(time.Date(2026, 11, 26, 13, 0, 0, 0, time.UTC))}}}}}
}

func waitingFor(reason, message string) corev1.PodStatus {
	return corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{Name: trainContainer,
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}}}
}

var running = corev1.PodStatus{Phase: corev1.PodRunning}

// What is applied is what --dry-run prints, and a second time nothing is.
func TestApplyingTwiceIsSafe(t *testing.T) {
	for _, form := range []string{"job", "jobset", "trainjob"} {
		t.Run(form, func(t *testing.T) {
			b := newTestbed(t, form)
			require.NoError(t, b.Apply(t.Context(), b.m))
			text, err := b.m.YAML()
			require.NoError(t, err)
			want := documents(t, text)
			c, err := b.of(configMaps).Get(t.Context(), "cftune-first", metav1.GetOptions{})
			require.NoError(t, err)
			w, err := b.workloads().Get(t.Context(), "cftune-first", metav1.GetOptions{})
			require.NoError(t, err)
			for i, u := range []*unstructured.Unstructured{c, w} {
				have, err := u.MarshalJSON()
				require.NoError(t, err)
				expected, err := (&unstructured.Unstructured{Object: want[i]}).MarshalJSON()
				require.NoError(t, err)
				assert.JSONEq(t, string(expected), string(have))
			}

			require.NoError(t, b.Apply(t.Context(), b.m), "the same is left as it is")
			other := *b.m
			other.Digest = "another"
			assert.ErrorContains(t, b.Apply(t.Context(), &other), "with another configuration")
			list, err := b.workloads().List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err)
			assert.Len(t, list.Items, 1)
		})
	}
}

func TestAConfigMapThatWasLeftIsReplaced(t *testing.T) {
	b := newTestbed(t, "job")
	require.NoError(t, b.Apply(t.Context(), b.m))
	require.NoError(t, b.workloads().Delete(t.Context(), "cftune-first", metav1.DeleteOptions{}))
	b.m.Digest = "another"
	b.m.ConfigMap.Annotations[digestNote] = "another"
	require.NoError(t, b.Apply(t.Context(), b.m))
	c, err := b.of(configMaps).Get(t.Context(), "cftune-first", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Equal(t, "another", c.GetAnnotations()[digestNote])
	assert.ErrorContains(t, b.Remove(t.Context(), "first"), "it is pending")
	b.condition("Complete", "", "")
	require.NoError(t, b.Remove(t.Context(), "first"))
	_, err = b.of(configMaps).Get(t.Context(), "cftune-first", metav1.GetOptions{})
	assert.True(t, apierrors.IsNotFound(err))
	phase, _ := b.phase()
	assert.Equal(t, launch.PhaseNew, phase)
}

func TestStatesOfPods(t *testing.T) {
	lost := corev1.PodStatus{Phase: corev1.PodFailed, Conditions: []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "PreemptionByScheduler", Message: "for another"}}}
	unscheduled := corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/3 nodes: insufficient nvidia.com/gpu"}}}
	for _, c := range []struct {
		name        string
		status      corev1.PodStatus
		phase, says string
	}{
		{"running", running, launch.PhaseRunning, "pod p on n1"},
		{"no node fits", unscheduled, launch.PhasePending, "Unschedulable: 0/3 nodes: insufficient nvidia.com/gpu"},
		{"the image is not to be had", waitingFor("ImagePullBackOff", "back-off pulling"), launch.PhasePending, "ImagePullBackOff: back-off pulling; kubernetes.image must exist"},
		{"a Secret is missing", waitingFor("CreateContainerConfigError", `secret "bucket" not found`), launch.PhasePending, `secret "bucket" not found; a Secret or a key of secret_env is missing`},
		{"starting", waitingFor("ContainerCreating", ""), launch.PhasePending, "pod p: ContainerCreating"},
		{"out of memory", ended(137, "OOMKilled"), launch.PhaseRetrying, "OOMKilled): raise kubernetes.memory"},
		{"an exit code", ended(5, "Error"), launch.PhaseRetrying, "exit code 5; another pod takes its place"},
		{"wrong data", ended(3, "Error"), launch.PhaseRetrying, "exit code 3, which does not pass by itself"},
		{"evicted", corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "the node was low on memory"}, launch.PhaseRetrying, "Evicted: the node was low on memory"},
		{"preempted", lost, launch.PhaseRetrying, "PreemptionByScheduler: for another"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTestbed(t, "job")
			require.NoError(t, b.Apply(t.Context(), b.m))
			phase, says := b.phase()
			assert.Equal(t, launch.PhasePending, phase)
			assert.Contains(t, says, "no pod yet")
			b.pod("p", 0, c.status)
			phase, says = b.phase()
			assert.Equal(t, c.phase, phase)
			assert.Contains(t, says, c.says)
		})
	}
}

func TestAFailedRunSaysWhy(t *testing.T) {
	b := newTestbed(t, "job")
	require.NoError(t, b.Apply(t.Context(), b.m))
	b.pod("p", 0, ended(3, "Error"))
	b.logs["p"] = "2026-11-26T12:00:01Z reading\n2026-11-26T12:00:02Z cftune: error: train.jsonl:7: no JSON\n"
	b.condition("Failed", "PodFailurePolicy", "Container train for pod training/p failed with exit code 3")
	s, err := b.Status(t.Context(), "first")
	require.NoError(t, err)
	assert.Equal(t, launch.PhaseFailed, s.Phase)
	assert.Equal(t, 3, s.ExitCode)
	err = b.Outcome(t.Context(), "first", s)
	require.ErrorContains(t, err, "pod p ended with exit code 3 (PodFailurePolicy")
	assert.ErrorContains(t, err, "the last lines of its log there:\n  reading\n  cftune: error: train.jsonl:7: no JSON")

	// Resumed, another workload with the same manifest takes its place.
	before, err := b.workloads().Get(t.Context(), "cftune-first", metav1.GetOptions{})
	require.NoError(t, err)
	require.NoError(t, b.Resume(t.Context(), "first"))
	after, err := b.workloads().Get(t.Context(), "cftune-first", metav1.GetOptions{})
	require.NoError(t, err)
	assert.NotContains(t, after.Object, "status")
	assert.Equal(t, before.Object["spec"], after.Object["spec"])
	require.NoError(t, b.Same(t.Context(), b.m))
	assert.ErrorContains(t, b.Resume(t.Context(), "other"), "there is no run other")
}

// The cluster does not know what ended a run well; one with a limit may have steps left.
func TestARunThatALimitHasEndedIsResumed(t *testing.T) {
	for _, limited := range []bool{true, false} {
		b := newTestbed(t, "job")
		text := runText
		if limited {
			text += "limits: {max_time: 1h}\n"
		}
		var err error
		b.m, err = Render(b.target, "training", "first", inFolder(t, text))
		require.NoError(t, err)
		require.NoError(t, b.Apply(t.Context(), b.m))
		b.condition("Complete", "", "")
		require.NoError(t, b.Resume(t.Context(), "first"))
		phase, _ := b.phase()
		assert.Equal(t, limited, phase == launch.PhasePending, phase)
	}
}

func TestStopSuspendsAndResumeGoesOn(t *testing.T) {
	for _, form := range []string{"job", "jobset", "trainjob"} {
		t.Run(form, func(t *testing.T) {
			b := newTestbed(t, form)
			require.NoError(t, b.Apply(t.Context(), b.m))
			b.pod("p", 0, running)
			go func() { // the controller takes the pod away, which saves and ends
				for t.Context().Err() == nil {
					u, err := b.workloads().Get(t.Context(), "cftune-first", metav1.GetOptions{})
					if err != nil {
						return
					}
					if suspended, _, _ := unstructured.NestedBool(u.Object, "spec", "suspend"); suspended {
						_ = b.of(podsOf).Delete(t.Context(), "p", metav1.DeleteOptions{})
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			s, err := b.Stop(t.Context(), "first")
			require.NoError(t, err)
			assert.Equal(t, launch.PhaseStopped, s.Phase)
			require.NoError(t, b.Resume(t.Context(), "first"))
			phase, _ := b.phase()
			assert.Equal(t, launch.PhasePending, phase)
		})
	}
}

// following starts a follower and returns what it has shown when it is over.
func following(b *testbed, ctx context.Context) (log, said *bytes.Buffer, wait func() (launch.State, error)) {
	log, said = &bytes.Buffer{}, &bytes.Buffer{}
	f := &Follower{Cluster: b.Cluster, Name: "first", Log: log, Say: func(format string, args ...any) { fmt.Fprintf(said, format+"\n", args...) }}
	return log, said, func() (launch.State, error) { return f.Follow(ctx) }
}

func TestFollowGoesFromPodToPod(t *testing.T) {
	b := newTestbed(t, "job")
	require.NoError(t, b.Apply(t.Context(), b.m))
	// The script is played by the log source: each look finds the next scene.
	scenes := []func(){
		func() {
			b.pod("a", 0, running)
			b.logs["a"] = "2026-11-26T12:00:01.25Z step 1\n"
		},
		func() {
			long := strings.Repeat("x", maxLine+1)
			b.logs["a"] += "2026-11-26T12:00:01.75Z step 2\n2026-11-26T12:00:01.75Z of the same time\n2026-11-26T12:00:01.8Z " + long + "\n"
		},
		func() { b.logs["a"] += "2026-11-26T12:00:01.9Z step 3\n" },
		func() { b.losePod("a"); delete(b.logs, "a") },
		func() { b.pod("b", 1, waitingFor("ContainerCreating", "")) },
		func() {
			b.pod("b", 1, running)
			b.logs["b"] = "2026-11-26T12:02:00Z going on after step 3\n2026-11-26T12:02:01Z step 4\n"
		},
		func() {
			b.pod("b", 1, ended(0, "Completed"))
			b.condition("Complete", "CompletionsReached", "")
		},
	}
	f := &Follower{Cluster: b.Cluster, Name: "first", Say: t.Logf, shown: map[types.UID]time.Time{}, whole: map[types.UID]bool{}}
	var log bytes.Buffer
	f.Log = &log
	over := false
	for _, scene := range scenes {
		require.False(t, over)
		scene()
		var err error
		_, over, err = f.look(t.Context())
		require.NoError(t, err)
	}
	assert.True(t, over)
	assert.Equal(t, "step 1\nstep 2\nof the same time\nX\nstep 3\ngoing on after step 3\nstep 4\n", strings.ReplaceAll(log.String(), strings.Repeat("x", maxLine+1), "X"), "each line once")
}

func TestFollowEndsWhereNothingCanBegin(t *testing.T) {
	b := newTestbed(t, "job")
	require.NoError(t, b.Apply(t.Context(), b.m))
	b.pod("p", 0, waitingFor("ImagePullBackOff", `Back-off pulling image "registry.example.org/cftune:1.0"`))
	_, said, wait := following(b, t.Context())
	_, err := wait()
	require.ErrorContains(t, err, "pod p cannot start: ImagePullBackOff: Back-off pulling image")
	assert.ErrorContains(t, err, "cftune launch stop first ends that")
	assert.Contains(t, said.String(), "first is pending")

	f := &Follower{Cluster: b.Cluster, Name: "other", Log: io.Discard, Say: t.Logf}
	_, err = f.Follow(t.Context())
	assert.ErrorContains(t, err, "there is no run other")
}

func TestFollowOutlivesTheServersFaults(t *testing.T) {
	b := newTestbed(t, "job")
	require.NoError(t, b.Apply(t.Context(), b.m))
	b.pod("p", 0, ended(0, "Completed"))
	b.logs["p"] = "2026-11-26T12:00:01Z step 1\n"
	b.condition("Complete", "", "")
	faults := 1
	b.fake.PrependReactor("list", "pods", func(ktesting.Action) (bool, runtime.Object, error) {
		if faults > 0 {
			faults--
			return true, nil, apierrors.NewServiceUnavailable("etcd is away")
		}
		return false, nil, nil
	})
	log, said, wait := following(b, t.Context())
	s, err := wait()
	require.NoError(t, err)
	assert.Equal(t, launch.PhaseDone, s.Phase)
	assert.Equal(t, "step 1\n", log.String())
	assert.Contains(t, said.String(), "etcd is away")
	assert.Contains(t, said.String(), "the run does not need it")

	b.fake.PrependReactor("list", "pods", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", nil)
	})
	_, _, wait = following(b, t.Context())
	_, err = wait()
	assert.ErrorContains(t, err, "forbidden", "which waiting does not change")
}

func TestCheckAsksTheServer(t *testing.T) {
	b := newTestbed(t, "job")
	var dry []string
	b.fake.PrependReactor("create", "*", func(a ktesting.Action) (bool, runtime.Object, error) {
		dry = append(dry, a.GetResource().Resource)
		return true, nil, nil
	})
	findings := b.Check(t.Context(), b.m)
	assert.Equal(t, []string{"configmaps", "jobs"}, dry)
	assert.ErrorContains(t, launch.Failed(b.target, findings), "claim models")
	b.fake.PrependReactor("get", "persistentvolumeclaims", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "persistentvolumeclaims"}, "models", nil)
	})
	require.NoError(t, launch.Failed(b.target, b.Check(t.Context(), b.m)), "what may not be looked at is no failure")
	b.fake.PrependReactor("create", "jobs", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Group: "batch", Resource: "jobs"}, "", nil)
	})
	assert.ErrorContains(t, launch.Failed(b.target, b.Check(t.Context(), b.m)), "create job cftune-first")
}

func TestRunsAreFoundAgain(t *testing.T) {
	b := newTestbed(t, "job")
	require.NoError(t, b.Apply(t.Context(), b.m))
	run, output, err := b.RunOf(t.Context(), "first")
	require.NoError(t, err)
	assert.Equal(t, "s3://bucket/runs/first", run.Checkpoint.Mirror)
	assert.Equal(t, "/data/cftune/runs/first/run", run.Output)
	assert.Zero(t, run.Threads, "the program sees its container's limit")
	assert.Equal(t, "runs/first", output)
	_, _, err = b.RunOf(t.Context(), "other")
	assert.ErrorContains(t, err, "there is no run other")
}
