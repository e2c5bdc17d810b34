//go:build kubernetes

package kube

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"cftune/internal/testmodel"
)

// yields lets ranks that wait leave the few processors here to the others.
const yields = "OMPI_MCA_mpi_yield_when_idle=1"

// severalFolder is what a user has who trains in several pods: a model, which lies on a claim, data, configurations, targets.
func severalFolder(s *servers, models string) string {
	s.t.Helper()
	dir := s.t.TempDir()
	write := func(name, text string) {
		require.NoError(s.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	require.NoError(s.t, testmodel.Write(filepath.Join(models, "tiny.gguf"), testmodel.Options{Seed: 1, Type: testmodel.Q8_0}))
	require.NoError(s.t, os.Chmod(filepath.Join(models, "tiny.gguf"), 0o644))
	require.NoError(s.t, os.Symlink(models, filepath.Join(dir, "models")))
	var rows strings.Builder
	for i := range 48 {
		fmt.Fprintf(&rows, `{"query": "What is %d + %d?", "response": "%d", "critique": "Conclusion: right [END]"}`+"\n", i, i+1, 2*i+1)
	}
	write("train.jsonl", rows.String())
	for _, name := range []string{"two", "three", "four", "whole", "set", "pairs", "pod"} {
		write(name+".yaml", fmt.Sprintf(`model: models/tiny.gguf
output: runs/%s
threads: 1
data: {sources: [{path: train.jsonl, format: cft}]}
adapter: {rank: 4, alpha: 8}
train: {seq_len: 256, global_batch: {examples: 12}, epochs: 120}
checkpoint: {every_steps: 10, keep_last: 20}
`, name))
	}
	config := s.kubeconfig("launcher", launcherToken)
	target := func(name, more string) string {
		return fmt.Sprintf(`  %s:
    kind: kubernetes
    paths: {models/: /models/}
    env: {OMPI_MCA_mpi_yield_when_idle: "1"}
    kubernetes:
      kubeconfig: %s
      image: registry.example.org/cftune:1.0
      memory: 1Gi
      grace: 20
      volumes: [{claim: models, path: /models, read_only: true}, {claim: runs, path: /data}]
      %s
`, name, config, more)
	}
	write("hosts.yaml", "targets:\n"+target("set", "pods: 3\n      ssh_secret: mpi-keys")+target("pairs", "pods: 2\n      gpus: 2\n      ssh_secret: mpi-keys")+
		target("pod", "gpus: 2"))
	return dir
}

// sshKeys makes the Secret as docs/launch.md says.
func (s *servers) sshKeys() {
	s.t.Helper()
	dir := s.t.TempDir()
	make := exec.Command("sh", "-ec", "ssh-keygen -q -t ed25519 -N '' -f key && (printf '* '; cat key.pub) > known_hosts")
	make.Dir = dir
	out, err := make.CombinedOutput()
	require.NoError(s.t, err, "%s", out)
	text := `{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mpi-keys", "namespace": "training"}, "data": {`
	for i, key := range [][2]string{{"ssh-privatekey", "key"}, {"authorized_keys", "key.pub"}, {"known_hosts", "known_hosts"}} {
		content, err := os.ReadFile(filepath.Join(dir, key[1]))
		require.NoError(s.t, err)
		text += fmt.Sprintf(`%s"%s": "%s"`, []string{"", ", ", ", "}[i], key[0], base64.StdEncoding.EncodeToString(content))
	}
	require.NoError(s.t, s.create("v1", "secrets", text+"}}"))
}

// podOf is the running pod of a part of a run's set.
func (k *kubelet) podOf(run, part string) corev1.Pod {
	k.t.Helper()
	var found corev1.Pod
	k.until("a "+part+" of "+run, func() error {
		for _, p := range k.all(k.t.Context()) {
			if p.Labels[labelRun] == run && p.Labels[labelPart] == part && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				found = p
				return nil
			}
		}
		return errNotYet
	})
	return found
}

// showLogs shows what pods said whose log is not the run's.
func (k *kubelet) showLogs() {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	for _, p := range k.pods {
		text, err := os.ReadFile(p.log())
		if err == nil && k.t.Failed() {
			k.t.Logf("log of %s:\n%s", p.name, text[max(0, len(text)-4000):])
		}
	}
}

// cluster is a user's side of a server whose pods are containers.
type cluster struct {
	*kubelet
	dir string
	env []string
}

// run is a command that ends with a certain exit code.
func (c *cluster) run(want int, args ...string) string {
	c.t.Helper()
	text, code := c.wait(c.begin(args...))
	require.Equal(c.t, want, code, "exit code")
	return text
}

func (c *cluster) begin(args ...string) *launched { return c.user(c.dir, c.env, args...) }

// isEqual fetches a run and wants it to be another one, to the bit.
func (c *cluster) isEqual(here, there string) {
	c.t.Helper()
	c.run(0, "launch", "fetch", there)
	for _, file := range []string{"adapter.gguf", "optimizer.bin"} {
		file = filepath.Join("checkpoints", "step-00000480", file)
		assert.True(c.t, bytes.Equal(read(c.t, c.dir, here, file), read(c.t, c.dir, there, file)), "%s of %s is that of %s, to the bit", file, there, here)
	}
	assert.Equal(c.t, losses(c.t, read(c.t, c.dir, here, "metrics.jsonl")), losses(c.t, read(c.t, c.dir, there, "metrics.jsonl")))
	c.run(0, "launch", "remove", there)
}

// stopAndResume stops a run that is followed, which saves, and resumes it, to the end.
func (c *cluster) stopAndResume(name string, follow *launched) {
	c.t.Helper()
	assert.Contains(c.t, c.run(0, "launch", "stop", name), "stopped")
	text, code := c.wait(follow)
	require.Equal(c.t, 1, code, "following a run that was stopped")
	assert.Contains(c.t, text, "interrupted: saving step")
	before := c.wentOn(name)
	assert.Contains(c.t, c.run(0, "launch", "resume", name), name+" is done")
	assert.Equal(c.t, before+1, c.wentOn(name), "pods that went on from a checkpoint")
}

// wentOn counts the pods of a run that went on from a checkpoint. Of a log that grows quickly, who follows later is shown the end only.
func (c *cluster) wentOn(name string) int {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	n := 0
	for _, p := range c.pods {
		if !strings.HasPrefix(p.name, ObjectName(name)+"-") {
			continue
		}
		text, err := os.ReadFile(p.log())
		require.NoError(c.t, err)
		if bytes.Contains(text, []byte("going on after step")) {
			n++
		}
	}
	return n
}

// Runs in several pods that train together, in containers on a network of their own: by mpirun over ssh, with a worker lost,
// stopped and gone on with, and with several processes in each pod. All end with the bits of as many processes on this machine.
func TestRunsOfSeveralPodsInAServersCluster(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	s := startServers(t)
	claims := map[string]string{"models": t.TempDir(), "runs": t.TempDir()}
	c := &cluster{startKubelet(s, startNetwork(t), claims), severalFolder(s, claims["models"]), []string{yields}}
	t.Cleanup(c.showLogs)
	s.sshKeys()
	s.jobSets()
	s.program("jobsets", filepath.Join(os.Getenv("CFTUNE_KUBERNETES"), "jobsets"), nil, s.kubeconfig("owner", ownerToken))
	for i, name := range []string{"two", "three", "four"} {
		c.run(0, "train", "--config", name+".yaml", "--processes", strconv.Itoa(2+i))
	}

	assert.Contains(t, c.run(0, "launch", "-c", "whole.yaml", "--on", "set"), "whole is done")
	c.isEqual("three", "whole")

	follow := c.begin("launch", "-c", "set.yaml", "--on", "set")
	c.says(follow, "step 25/", 1)
	for _, part := range []string{partTrainer, partHelper} {
		c.isConfined(c.podOf("set", part))
	}
	c.lose(c.podOf("set", partHelper))
	c.says(follow, "going on after step", 1)
	c.says(follow, "step 45/", 1)
	c.stopAndResume("set", follow)
	c.isEqual("three", "set")

	// Two processes in each of two pods; one of them is killed, as the kernel does when memory is short.
	follow = c.begin("launch", "-c", "pairs.yaml", "--on", "pairs")
	c.says(follow, "step 25/", 1)
	worker := c.podOf("pairs", partHelper)
	ranks := strings.Fields(c.in(worker, "pgrep -fx 'cftune train .*'"))
	require.Len(t, ranks, 2, "processes in a pod")
	c.in(worker, "kill -9 "+ranks[0])
	c.says(follow, "going on after step", 1)
	text, code := c.wait(follow)
	require.Zero(t, code)
	assert.Contains(t, text, "pairs is done")
	c.isEqual("four", "pairs")

	// Two processes in one pod.
	follow = c.begin("launch", "-c", "pod.yaml", "--on", "pod")
	c.says(follow, "step 25/", 1)
	c.stopAndResume("pod", follow)
	c.isEqual("two", "pod")
	c.until("no pod is left", func() error {
		if n := len(c.all(t.Context())); n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
}

func read(t *testing.T, dir, run, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "runs", run, file))
	require.NoError(t, err)
	return text
}

// losses are those of a run's steps.
func losses(t *testing.T, metrics []byte) map[int]float64 {
	t.Helper()
	all := map[int]float64{}
	for line := range bytes.Lines(metrics) {
		var m struct {
			Step int
			Loss *float64
		}
		require.NoError(t, json.Unmarshal(line, &m))
		if m.Loss != nil {
			all[m.Step] = *m.Loss
		}
	}
	require.Len(t, all, 480, "steps")
	return all
}

// in runs a shell's words in a pod, as its user.
func (k *kubelet) in(p corev1.Pod, words string) string {
	k.t.Helper()
	k.mutex.Lock()
	cmd := k.pods[p.UID].inContainer([]string{"sh", "-c", words})
	k.mutex.Unlock()
	out, err := cmd.CombinedOutput()
	require.NoError(k.t, err, "%s: %s", words, out)
	return string(out)
}

// isConfined looks whether the process that trains in a pod has the rights that the manifest gives it, and the launcher's variables.
func (k *kubelet) isConfined(p corev1.Pod) {
	k.t.Helper()
	text := k.in(p, `pid=$(pgrep -fx 'cftune train .*'); cat /proc/$pid/status; tr '\0' '\n' </proc/$pid/environ; touch /usr/x /etc/x /x 2>&1; ls -lL /etc/cftune-ssh; ls /sys/class/net`)
	for _, line := range []string{"Uid:\t1000\t1000\t1000\t1000\n", "Groups:\t1000", "NoNewPrivs:\t1\n", "CapBnd:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
		"HOME=/tmp\n", yields + "\n", "touch: cannot touch '/usr/x': Read-only", "touch: cannot touch '/etc/x': Read-only", "touch: cannot touch '/x': Read-only",
		"-r--r----- 1 root cftune", "eth0\nlo\n"} {
		assert.Contains(k.t, text, line, "%s", p.Name)
	}
}
