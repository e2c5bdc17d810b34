//go:build kubernetes

package kube

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"cftune/internal/testfiles"
	"cftune/internal/testmodel"
	"cftune/trainer/launch"
)

const secretValue = "hunter2-do-not-print"

// userFolder is what a user has: a model, which lies on a claim as well, data, configurations and targets.
func userFolder(s *servers, claim string) string {
	s.t.Helper()
	dir := s.t.TempDir()
	write := func(name, text string) {
		require.NoError(s.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	require.NoError(s.t, testmodel.Write(filepath.Join(claim, "tiny.gguf"), testmodel.Options{Seed: 1, Type: testmodel.Q8_0}))
	require.NoError(s.t, os.Mkdir(filepath.Join(dir, "models"), 0o700))
	require.NoError(s.t, os.Symlink(filepath.Join(claim, "tiny.gguf"), filepath.Join(dir, "models", "tiny.gguf")))
	var rows strings.Builder
	for i := range 40 {
		fmt.Fprintf(&rows, `{"query": "What is %d + %d?", "response": "%d", "critique": "Conclusion: right [END]"}`+"\n", i, i+1, 2*i+1)
	}
	write("train.jsonl", rows.String())
	for _, run := range []struct {
		name   string
		epochs int
		more   string
	}{{"straight", 960, ""}, {"first", 960, fmt.Sprintf(", mirror: 'file://%s/mirror/first'", claim)}, {"wrong", 1, ""}, {"pulled", 1, ""}} {
		write(run.name+".yaml", fmt.Sprintf(`model: models/tiny.gguf
output: runs/%s
threads: 1
data: {sources: [{path: train.jsonl, format: cft}]}
adapter: {rank: 4, alpha: 8}
train: {seq_len: 256, global_batch: {examples: 4}, epochs: %d}
checkpoint: {every_steps: 100%s}
`, run.name, run.epochs, run.more))
	}
	config := s.kubeconfig("launcher", launcherToken)
	write("hosts.yaml", fmt.Sprintf(`targets:
  cloud:
    kind: kubernetes
    paths: {models/: %s/}
    retries: 3
    kubernetes:
      kubeconfig: %s
      image: registry.example.org/cftune:1.0
      cpu: "1"
      memory: 1Gi
      volumes: [{claim: runs, path: %s}]
      secret_env: {AWS_SECRET_ACCESS_KEY: {secret: bucket, key: secret}}
      grace: 30
  small:
    kind: kubernetes
    paths: {models/: %s/}
    kubernetes: {kubeconfig: %s, image: 'registry.example.org/cftune:1.0', memory: 2Mi, volumes: [{claim: runs, path: %s}]}
  one:
    kind: kubernetes
    paths: {models/: %s/}
    kubernetes: {kubeconfig: %s, image: 'registry.example.org/cftune:1.0', workload: jobset, memory: 1Gi, volumes: [{claim: runs, path: %s}]}
  several:
    kind: kubernetes
    paths: {models/: %s/}
    kubernetes: {kubeconfig: %s, image: 'registry.example.org/cftune:1.0', pods: 3, ssh_secret: keys, cpu: 500m, volumes: [{claim: runs, path: %s}]}
`, claim, config, claim, claim, config, claim, claim, config, claim, claim, config, claim))
	return dir
}

// jobSets teaches the server what JobSets are, from the module whose types are used.
func (s *servers) jobSets() {
	s.t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/jobset").Output()
	require.NoError(s.t, err)
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config", "components", "crd", "bases", "jobset.x-k8s.io_jobsets.yaml"))
	require.NoError(s.t, err)
	require.NoError(s.t, s.create("apiextensions.k8s.io/v1", "customresourcedefinitions", string(text)))
	s.until("the server knows JobSets", func() error {
		_, err := s.owner.Resource(resources[launch.WorkloadJobSet]).Namespace(namespaceHere).List(s.t.Context(), metav1.ListOptions{})
		return err
	})
}

// newest is the pod of a run that was made last.
func (k *kubelet) newest(run string) (corev1.Pod, error) {
	var newest *corev1.Pod
	for _, p := range k.all(k.t.Context()) {
		if p.Labels[labelRun] == run && (newest == nil || p.CreationTimestamp.After(newest.CreationTimestamp.Time)) {
			newest = &p
		}
	}
	if newest == nil {
		return corev1.Pod{}, errNotYet
	}
	return *newest, nil
}

// says waits until the program has said something.
func (s *servers) says(l *launched, words string, times int) {
	s.t.Helper()
	s.until(fmt.Sprintf("it says %q %d times", words, times), func() error {
		if n := strings.Count(l.text(), words); n < times {
			return fmt.Errorf("%d times in:\n%s", n, l.text())
		}
		return nil
	})
}

// clusterUser is somebody who launches runs in the servers' cluster, and what the program has said to them.
type clusterUser struct {
	*servers
	k          *kubelet
	claim, dir string
	env, said  []string
}

func newClusterUser(t *testing.T) *clusterUser {
	u := &clusterUser{servers: startServers(t), claim: t.TempDir()}
	u.k = startKubelet(u.servers, nil, nil)
	u.dir = userFolder(u.servers, u.claim)
	require.NoError(t, u.create("v1", "secrets", `{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket", "namespace": "training"}, "stringData": {"secret": "`+secretValue+`"}}`))
	u.env = []string{"AWS_SECRET_ACCESS_KEY=" + secretValue, "HF_TOKEN=" + secretValue}
	return u
}

// begin starts the program, and ended waits for it.
func (u *clusterUser) begin(args ...string) *launched { return u.user(u.dir, u.env, args...) }

func (u *clusterUser) ended(want int, l *launched) string {
	u.t.Helper()
	text, code := u.wait(l)
	require.Equal(u.t, want, code, "exit code")
	u.said = append(u.said, text)
	return text
}

func (u *clusterUser) run(want int, args ...string) string {
	u.t.Helper()
	return u.ended(want, u.begin(args...))
}

// adapter is what a run here has come to.
func (u *clusterUser) adapter(run string) string {
	u.t.Helper()
	text, err := os.ReadFile(filepath.Join(u.dir, "runs", run, "checkpoints", "step-00009600", "adapter.gguf"))
	require.NoError(u.t, err)
	return string(text)
}

// A run against a real server and Kubernetes' own controller of jobs: applied, followed, lost, resumed, stopped, gone on with,
// fetched; it ends with the bits of an unbroken run.
func TestARunInAServersCluster(t *testing.T) {
	u := newClusterUser(t)
	u.run(0, "train", "--config", "straight.yaml", "--set", "model="+u.claim+"/tiny.gguf")
	// What does not fit into a pod is not started.
	assert.Contains(t, u.run(5, "launch", "-c", "first.yaml", "--on", "small"), "of buffers, a pod has 2Mi")
	u.losesPods()
	u.fetches()
	u.failures()
	u.jobSet()
	assert.Empty(t, u.k.all(t.Context()), "nothing runs unknown")
	for _, secret := range []string{secretValue, launcherToken, ownerToken} {
		assert.NotContains(t, strings.Join(u.said, ""), secret)
		testfiles.AssertNowhere(t, secret, filepath.Join(u.dir, "runs"), filepath.Join(u.dir, "state"), u.claim, filepath.Join(u.servers.dir, "pods"))
	}
}

// losesPods follows a run whose pods go, that is launched again, stopped, and resumed to its end.
func (u *clusterUser) losesPods() {
	t := u.t
	follow := u.begin("launch", "-c", "first.yaml", "--on", "cloud")
	u.says(follow, "of buffers, a pod has 1Gi", 1)
	u.says(follow, "step 150/", 1)
	lost, err := u.k.newest("first")
	require.NoError(t, err)
	u.k.lose(lost)
	u.says(follow, "going on after step", 1)
	second, err := u.k.newest("first")
	require.NoError(t, err)
	assert.NotEqual(t, lost.UID, second.UID, "another pod took its place")
	u.k.remove(second)
	u.says(follow, "going on after step", 2)

	// Given again, it is followed and not started beside itself.
	again := u.begin("launch", "-c", "first.yaml", "--on", "cloud")
	u.says(again, "first is running already", 1)
	_ = again.cmd.Process.Signal(os.Interrupt)
	assert.Contains(t, u.ended(0, again), "the run goes on without being shown")
	assert.Contains(t, u.run(2, "launch", "-c", "first.yaml", "--on", "cloud", "--set", "train.epochs=250"), "with another configuration")

	assert.Contains(t, u.run(0, "launch", "stop", "first"), "stopped")
	assert.Contains(t, u.ended(1, follow), "first on cloud: stopped", "following a run that was stopped")
	text := u.run(0, "launch", "resume", "first")
	assert.Contains(t, text, "step 9600/9600")
	assert.Contains(t, text, "first is done")
	assert.Contains(t, u.run(0, "launch", "-c", "first.yaml", "--on", "cloud"), "first is done already")
	assert.Contains(t, u.run(0, "launch", "status", "first"), "done")
}

// fetches brings the run from its mirror, and from the claim.
func (u *clusterUser) fetches() {
	t := u.t
	u.run(0, "launch", "fetch", "first")
	assert.True(t, u.adapter("straight") == u.adapter("first"), "the adapter is that of an unbroken run, to the bit")
	// The others lie on the claim: a pod is made that reads them, and removed.
	text := u.run(0, "launch", "fetch", "first", "--all")
	assert.Contains(t, text, "reads the claim")
	assert.Contains(t, text, "checkpoints are here, verified")
	steps, err := os.ReadDir(filepath.Join(u.dir, "runs", "first", "checkpoints"))
	require.NoError(t, err)
	assert.Greater(t, len(steps), 1)
	require.NoError(t, os.RemoveAll(filepath.Join(u.dir, "runs", "first")))
	u.run(0, "launch", "fetch", "first", "--all")
	assert.True(t, u.adapter("straight") == u.adapter("first"), "from the claim as well")
}

// failures wants that what goes wrong there is told here.
func (u *clusterUser) failures() {
	text := u.run(1, "launch", "-c", "wrong.yaml", "--on", "cloud", "--set", "model=models/missing.gguf")
	assert.Contains(u.t, text, "ended with exit code 3")
	assert.Contains(u.t, text, "missing.gguf", "the last lines of the log")
	u.k.stick(true)
	assert.Contains(u.t, u.run(1, "launch", "-c", "pulled.yaml", "--on", "cloud"), "cannot start: ImagePullBackOff: Back-off pulling image registry.example.org/cftune:1.0")
	u.run(0, "launch", "stop", "pulled")
	u.k.stick(false)
}

// stick has pods wait for their image, or no longer.
func (k *kubelet) stick(stuck bool) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.stuck = stuck
}

// jobSet launches a JobSet, first without its controller.
func (u *clusterUser) jobSet() {
	t := u.t
	// It is taken by the server with JobSet's own definition; its controller does not run yet, so no pod begins.
	u.jobSets()
	assert.Contains(t, u.run(0, "launch", "-c", "wrong.yaml", "--name", "set", "--on", "several", "--detach"), "takes them")
	assert.Contains(t, u.run(0, "launch", "status", "set"), "the controller of JobSet has not made one")
	assert.Contains(t, u.run(0, "launch", "stop", "set"), "stopped")
	assert.Contains(t, u.run(0, "launch", "resume", "set", "--detach"), "set")
	assert.Contains(t, u.run(0, "launch", "status", "set"), "pending")
	u.run(0, "launch", "stop", "set")
	for _, name := range []string{"first", "wrong", "pulled", "set"} {
		u.run(0, "launch", "remove", name)
	}

	// With it, a JobSet is started again as a whole when its pod fails, and goes on from the checkpoint.
	u.program("jobsets", filepath.Join(os.Getenv("CFTUNE_KUBERNETES"), "jobsets"), nil, u.kubeconfig("owner", ownerToken))
	follow := u.begin("launch", "-c", "straight.yaml", "--name", "again", "--on", "one")
	u.says(follow, "step 150/", 1)
	killed, err := u.k.newest("again")
	require.NoError(t, err)
	u.k.kill(killed)
	u.says(follow, "going on after step", 1)
	assert.Contains(t, u.run(0, "launch", "stop", "again"), "stopped")
	u.ended(1, follow) // it was stopped
	assert.Contains(t, u.run(0, "launch", "resume", "again"), "again is done")
	require.NoError(t, os.RemoveAll(filepath.Join(u.dir, "runs", "straight")))
	u.run(0, "launch", "fetch", "again")
	assert.True(t, u.adapter("straight") == u.adapter("first"), "to the bit, too")
	u.run(0, "launch", "remove", "again")
}
