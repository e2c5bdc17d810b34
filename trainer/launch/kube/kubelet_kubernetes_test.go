//go:build kubernetes

package kube

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"

	"cftune/trainer/launch"
)

// kubelet is a node that the test plays, with its scheduler: pods become processes of this machine, ConfigMaps and Secrets
// are read from the server, logs are served to it. Without a network volumes are folders of the same path here; with one
// the pods are containers.
type kubelet struct {
	*servers
	program string
	network *podNetwork
	claims  map[string]string // folders of the containers' claims
	mutex   sync.Mutex
	pods    map[types.UID]*podProcess
	stuck   bool // images cannot be pulled
}

type podProcess struct {
	name   string
	dir    string
	cmd    *exec.Cmd
	ended  chan struct{}
	told   bool // to end
	killed bool
	ready  bool
	probed time.Time

	// Of containers.
	root, hosts     string
	user            int64
	host, subdomain string
	link            string
	address         netip.Addr
}

const nodeName = "n1"

func (p *podProcess) log() string { return filepath.Join(p.dir, "log") }

// startKubelet makes the node, and plays it until the test ends.
func startKubelet(s *servers, network *podNetwork, claims map[string]string) *kubelet {
	k := &kubelet{servers: s, program: os.Getenv("CFTUNE_PROGRAM"), network: network, claims: claims, pods: map[types.UID]*podProcess{}}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/exec/") {
			k.serveExec(w, r)
			return
		}
		k.serveLog(w, r)
	}))
	s.t.Cleanup(server.Close)
	port := server.Listener.Addr().(interface{ String() string }).String()
	port = port[strings.LastIndexByte(port, ':')+1:]
	require.NoError(s.t, s.create("v1", "nodes", `{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "`+nodeName+`"}}`))
	_, err := s.owner.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"}).Patch(s.t.Context(), nodeName, types.MergePatchType,
		[]byte(`{"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": `+port+`}}}}`), metav1.PatchOptions{}, "status")
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			k.round(ctx)
			time.Sleep(50 * time.Millisecond)
		}
	}()
	s.t.Cleanup(func() {
		cancel()
		<-done
		for _, p := range k.pods {
			_ = p.cmd.Process.Kill()
			<-p.ended
		}
	})
	return k
}

func (k *kubelet) all(ctx context.Context) []corev1.Pod {
	list, err := k.owner.Resource(podsOf).Namespace(namespaceHere).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil // the test is over, or looks again
	}
	pods := make([]corev1.Pod, len(list.Items))
	for i := range list.Items {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &pods[i]); err != nil {
			k.t.Errorf("pod: %v", err)
		}
	}
	return pods
}

// round looks at each pod once.
func (k *kubelet) round(ctx context.Context) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	for _, p := range k.all(ctx) {
		running := k.pods[p.UID]
		over := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		switch {
		case p.Spec.NodeName == "":
			k.bind(ctx, p)
		case running == nil && p.DeletionTimestamp != nil || over && p.DeletionTimestamp != nil:
			k.gone(ctx, p)
		case running == nil && !over && k.stuck:
			k.say(ctx, p, corev1.PodPending, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "Back-off pulling image " + p.Spec.Containers[0].Image}})
		case running == nil && !over:
			k.start(ctx, p)
		case running != nil && !over:
			select {
			case <-running.ended:
				k.ended(ctx, p, running)
			default:
				k.mind(ctx, p, running)
			}
		}
	}
}

// mind tells a pod that must go to end, kills it when its grace period is over, and looks whether others are ready.
func (k *kubelet) mind(ctx context.Context, p corev1.Pod, running *podProcess) {
	switch {
	case p.DeletionTimestamp == nil:
		k.ready(ctx, p, running)
	case !running.told:
		running.told = true
		_ = running.cmd.Process.Signal(syscall.SIGTERM)
	case !running.killed && time.Now().After(p.DeletionTimestamp.Time):
		running.killed = true
		k.t.Logf("kubelet: the grace period of pod %s is over", p.Name)
		_ = running.cmd.Process.Kill()
	}
}

// bind does the scheduler's part.
func (k *kubelet) bind(ctx context.Context, p corev1.Pod) {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Binding", "metadata": map[string]any{"name": p.Name, "namespace": p.Namespace},
		"target": map[string]any{"apiVersion": "v1", "kind": "Node", "name": nodeName}}}
	if _, err := k.owner.Resource(podsOf).Namespace(p.Namespace).Create(ctx, u, metav1.CreateOptions{}, "binding"); err != nil && ctx.Err() == nil {
		k.t.Logf("bind %s: %v", p.Name, err)
	}
}

// gone lets the server forget a pod that has ended here.
func (k *kubelet) gone(ctx context.Context, p corev1.Pod) {
	now := int64(0)
	_ = k.owner.Resource(podsOf).Namespace(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &p.UID}})
}

func (k *kubelet) say(ctx context.Context, p corev1.Pod, phase corev1.PodPhase, state corev1.ContainerState) {
	p.Status.Phase = phase
	proc := k.pods[p.UID]
	ready := phase == corev1.PodRunning && proc != nil && proc.ready
	setReady(&p, ready)
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: p.Spec.Containers[0].Name, Image: p.Spec.Containers[0].Image, State: state, Ready: ready}}
	if proc != nil && proc.address.IsValid() {
		p.Status.PodIP, p.Status.PodIPs = proc.address.String(), []corev1.PodIP{{IP: proc.address.String()}}
	}
	text, err := json.Marshal(map[string]any{"status": p.Status})
	require.NoError(k.t, err)
	if _, err := k.owner.Resource(podsOf).Namespace(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, text, metav1.PatchOptions{}, "status"); err != nil && ctx.Err() == nil {
		k.t.Logf("status of %s: %v", p.Name, err)
	}
}

// start makes a process of a pod's container.
func (k *kubelet) start(ctx context.Context, p corev1.Pod) {
	proc := &podProcess{name: p.Name, dir: filepath.Join(k.dir, "pods", string(p.UID)), ended: make(chan struct{})}
	require.NoError(k.t, os.MkdirAll(proc.dir, 0o700))
	if k.network != nil {
		k.contain(ctx, p, proc)
	} else if !k.process(ctx, p, proc) {
		return
	}
	k.pods[p.UID] = proc
	k.t.Logf("kubelet: pod %s is process %d", p.Name, proc.cmd.Process.Pid)
	k.say(ctx, p, corev1.PodRunning, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}})
}

// process makes a process of this machine.
func (k *kubelet) process(ctx context.Context, p corev1.Pod, proc *podProcess) bool {
	etc := filepath.Join(proc.dir, "etc")
	require.NoError(k.t, os.MkdirAll(etc, 0o700))
	config, err := k.owner.Resource(configMaps).Namespace(p.Namespace).Get(ctx, ObjectName(p.Labels[labelRun]), metav1.GetOptions{})
	if err != nil {
		k.t.Errorf("ConfigMap of %s: %v", p.Name, err)
		return false
	}
	data, _, _ := unstructured.NestedStringMap(config.Object, "data")
	for name, text := range data {
		require.NoError(k.t, os.WriteFile(filepath.Join(etc, name), []byte(strings.ReplaceAll(text, launch.KubernetesConfigDir, etc)), 0o600))
	}
	command := p.Spec.Containers[0].Command
	args := make([]string, len(command))
	for i, a := range command {
		args[i] = strings.ReplaceAll(a, launch.KubernetesConfigDir, etc)
	}
	if args[0] == "cftune" {
		args[0] = k.program
	}
	proc.cmd = exec.Command(args[0], args[1:]...)
	proc.cmd.Dir, proc.cmd.Env = proc.dir, append(k.environment(ctx, p), "PATH="+os.Getenv("PATH"))
	proc.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	k.run(proc)
	return true
}

// run starts a pod's process, with a log.
func (k *kubelet) run(proc *podProcess) {
	log, err := os.Create(proc.log())
	require.NoError(k.t, err)
	proc.cmd.Stdout = &stamped{file: log}
	proc.cmd.Stderr = proc.cmd.Stdout
	require.NoError(k.t, proc.cmd.Start())
	go func() { _ = proc.cmd.Wait(); log.Close(); close(proc.ended) }()
}

func (k *kubelet) environment(ctx context.Context, p corev1.Pod) []string {
	var list []string
	for _, e := range p.Spec.Containers[0].Env {
		list = append(list, e.Name+"="+k.value(ctx, p, e))
	}
	return list
}

func (k *kubelet) value(ctx context.Context, p corev1.Pod, e corev1.EnvVar) string {
	if e.ValueFrom == nil {
		return e.Value
	}
	if field := e.ValueFrom.FieldRef; field != nil { // the index that the Job's controller gives a pod
		kind, key, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(field.FieldPath, "metadata."), "']"), "['")
		return map[string]map[string]string{"annotations": p.Annotations, "labels": p.Labels}[kind][key]
	}
	ref := e.ValueFrom.SecretKeyRef
	value, ok := k.data(ctx, secrets, p.Namespace, ref.Name)[ref.Key]
	require.True(k.t, ok, "key %s of secret %s", ref.Key, ref.Name)
	return string(value)
}

// ended writes down how a pod's process ended.
func (k *kubelet) ended(ctx context.Context, p corev1.Pod, proc *podProcess) {
	code := proc.cmd.ProcessState.ExitCode()
	if status, ok := proc.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	phase, reason := corev1.PodSucceeded, "Completed"
	if code != 0 {
		phase, reason = corev1.PodFailed, "Error"
	}
	k.t.Logf("kubelet: pod %s ended with exit code %d", p.Name, code)
	k.say(ctx, p, phase, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(code), Reason: reason, StartedAt: metav1.Now(), FinishedAt: metav1.Now()}})
}

// lose is a node that fails: the process is gone without a word, and the server deletes the pod.
func (k *kubelet) lose(p corev1.Pod) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	proc := k.pods[p.UID]
	require.NotNil(k.t, proc)
	if k.network != nil {
		k.network.cut(proc.link)
	}
	require.NoError(k.t, proc.cmd.Process.Kill())
	<-proc.ended
	// What Kubernetes' collector of pods writes about those of a node that is gone.
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC", Message: "PodGC: node no longer exists", LastTransitionTime: metav1.Now()})
	k.say(k.t.Context(), p, corev1.PodFailed, corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
	k.gone(k.t.Context(), p)
	k.t.Logf("kubelet: pod %s is lost with its node", p.Name)
}

// kill ends a pod's process as the kernel does when memory is short.
func (k *kubelet) kill(p corev1.Pod) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	require.NoError(k.t, k.pods[p.UID].cmd.Process.Kill())
	k.t.Logf("kubelet: pod %s is killed", p.Name)
}

// remove is kubectl delete pod: the process is told to end, saves, and the pod goes.
func (k *kubelet) remove(p corev1.Pod) {
	require.NoError(k.t, k.owner.Resource(podsOf).Namespace(p.Namespace).Delete(k.t.Context(), p.Name, metav1.DeleteOptions{}))
	k.t.Logf("somebody deletes pod %s", p.Name)
}

// stamped writes lines with the time at which they came, as a container runtime does.
type stamped struct {
	file *os.File
	part []byte
}

func (s *stamped) Write(b []byte) (int, error) {
	s.part = append(s.part, b...)
	for {
		i := strings.IndexByte(string(s.part), '\n')
		if i < 0 {
			return len(b), nil
		}
		if _, err := fmt.Fprintf(s.file, "%s %s", time.Now().UTC().Format(time.RFC3339Nano), s.part[:i+1]); err != nil {
			return 0, err
		}
		s.part = s.part[i+1:]
	}
}

// asked is the pod that a request is about: its path has an action, the namespace, the pod and the container.
func (k *kubelet) asked(r *http.Request) *podProcess {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	k.mutex.Lock()
	defer k.mutex.Unlock()
	for _, p := range k.pods {
		if len(parts) == 4 && p.name == parts[2] {
			return p
		}
	}
	return nil
}

// serveLog answers the server when it is asked for a pod's log.
func (k *kubelet) serveLog(w http.ResponseWriter, r *http.Request) {
	proc := k.asked(r)
	if proc == nil {
		http.NotFound(w, r)
		return
	}
	q := r.URL.Query()
	f, err := os.Open(proc.log())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	since, _ := time.Parse(time.RFC3339, q.Get("sinceTime"))
	skip := 0
	if n, err := strconv.Atoi(q.Get("tailLines")); err == nil {
		text, _ := os.ReadFile(proc.log())
		skip = max(0, strings.Count(string(text), "\n")-n)
	}
	w.WriteHeader(http.StatusOK)
	reader, rest := bufio.NewReader(f), ""
	for over := false; ; {
		line, err := reader.ReadString('\n')
		rest += line
		if err == nil {
			stamp, text, _ := strings.Cut(rest, " ")
			at, _ := time.Parse(time.RFC3339Nano, stamp)
			if skip--; skip < 0 && !at.Before(since) {
				if q.Get("timestamps") == "true" {
					text = rest
				}
				_, _ = w.Write([]byte(text))
				w.(http.Flusher).Flush()
			}
			rest = ""
			continue
		}
		if over || q.Get("follow") != "true" {
			return
		}
		select {
		case <-proc.ended:
			over = true // once more to the end
		case <-r.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// serveExec runs a command for the server, as in a pod's container.
func (k *kubelet) serveExec(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		k.t.Logf("exec: %v", err)
		return
	}
	streams := make(chan httpstream.Stream)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
		go func() { <-replied; streams <- s }()
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	cmd := k.asked(r).inContainer(q["command"])
	var failure httpstream.Stream
	for range 3 { // no command here reads its input
		s := <-streams
		switch s.Headers().Get(corev1.StreamType) {
		case corev1.StreamTypeError:
			failure = s
		case corev1.StreamTypeStdout:
			cmd.Stdout = s
		case corev1.StreamTypeStderr:
			cmd.Stderr = s
		}
	}
	status := metav1.Status{Status: metav1.StatusSuccess}
	if err := cmd.Run(); err != nil {
		status = metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Message: err.Error(), Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: "ExitCode", Message: strconv.Itoa(cmd.ProcessState.ExitCode())}}}}
	}
	_ = json.NewEncoder(failure).Encode(status)
}

var errNotYet = errors.New("not yet")
