package kube

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	jobsetv1alpha2 "sigs.k8s.io/jobset/api/jobset/v1alpha2"

	"cftune/trainer/config"
	"cftune/trainer/launch"
)

var update = flag.Bool("update", false, "write the golden manifests anew")

const runText = `model: models/tiny.gguf
output: runs/first
data: {sources: [{path: train.jsonl, format: cft}]}
checkpoint: {mirror: 's3://bucket/runs/first'}
`

// targetsText has a target of each form; secrets are named, and their values stand in the environment of the tests.
const targetsText = `targets:
  job:
    kind: kubernetes
    paths: {models/: /models/}
    env: {AWS_REGION: eu-central-1}
    retries: 5
    kubernetes:
      image: registry.example.org/cftune:1.0
      pull_secrets: [registry]
      cpu: 7500m
      memory: 32Gi
      gpus: 1
      scratch: 20Gi
      volumes: [{claim: models, path: /models, read_only: true}, {claim: runs, path: /data}]
      secret_env: {AWS_SECRET_ACCESS_KEY: {secret: bucket, key: secret}}
      secret_env_from: [hub]
      node_selector: {gpu: h100}
      tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}, {key: spot, operator: Equal, value: "yes", effect: NoExecute, seconds: 60}]
      priority_class: low
      grace: 300
  jobset:
    kind: kubernetes
    paths: {models/: /models/}
    kubernetes: {image: 'registry.example.org/cftune:1.0', pods: 3, gpus: 4, ssh_secret: mpi-keys, cpu: "8", memory: 32Gi, volumes: [{claim: models, path: /models, read_only: true}]}
  trainjob:
    kind: kubernetes
    paths: {models/: /models/}
    kubernetes: {image: 'registry.example.org/cftune:1.0', workload: trainjob, runtime: cftune, gpus: 1, volumes: [{claim: models, path: /models, read_only: true}]}
`

// parsed are the targets of a text.
func parsed(t *testing.T, text, name string) launch.TargetConfig {
	t.Helper()
	path := filepath.Join(t.TempDir(), launch.HostsName)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	target, err := launch.LoadTarget(path, name)
	require.NoError(t, err)
	return target
}

// inFolder makes a folder with a data file the working directory, and returns the run of the texts above.
func inFolder(t *testing.T, text string) config.Run {
	t.Helper()
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("train.jsonl", []byte(`{"query": "1 + 1?", "response": "3", "critique": "wrong"}`+"\n"), 0o600))
	run, err := config.Parse([]byte(text), nil, nil)
	require.NoError(t, err)
	return run
}

func rendered(t *testing.T, form string) *Manifests {
	t.Helper()
	m, err := Render(parsed(t, targetsText, form), "training", "first", inFolder(t, runText))
	require.NoError(t, err)
	return m
}

func TestAPodWithSeveralDevicesTrainsInAsManyProcesses(t *testing.T) {
	target := parsed(t, targetsText, "job")
	target.Kubernetes.GPUs = 8
	m, err := Render(target, "training", "first", inFolder(t, runText))
	require.NoError(t, err)
	job, ok := m.Workload.(*batchv1.Job)
	require.True(t, ok)
	command := strings.Join(job.Spec.Template.Spec.Containers[0].Command, " ")
	assert.Equal(t, "cftune launch together -- mpirun -np 8 --bind-to none cftune train --config /etc/cftune/run.json --or-resume --parallel mpi", command)
}

func TestManifestsAreGoldenAndValid(t *testing.T) {
	here, err := os.Getwd()
	require.NoError(t, err)
	for _, form := range []string{"job", "jobset", "trainjob"} {
		t.Run(form, func(t *testing.T) {
			text, err := rendered(t, form).YAML()
			require.NoError(t, err)
			t.Chdir(here)
			validateAll(t, text)
			// The configuration has the defaults of all keys, which are others' to test.
			text = withoutConfiguration(t, text)
			golden := filepath.Join("testdata", form+".yaml")
			if *update {
				require.NoError(t, os.WriteFile(golden, text, 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.Equal(t, string(want), string(text))
		})
	}
}

// A run that answers other machines is announced by the pod that trains, and by no other.
func TestPodsThatAnswerPrometheusSaySo(t *testing.T) {
	for listen, port := range map[string]int32{"0.0.0.0:9464": 9464, "'[::]:80'": 80, "0.0.0.0:0": 0, "127.0.0.1:9464": 0, "':9464'": 0, "localhost:9464": 0, "''": 0} {
		m, err := Render(parsed(t, targetsText, "jobset"), "training", "first", inFolder(t, runText+"metrics: {listen: "+listen+"}\n"))
		require.NoError(t, err)
		text, err := m.YAML()
		require.NoError(t, err)
		assert.Equal(t, port > 0, strings.Contains(string(text), "prometheus.io/"), listen)
		for _, j := range m.Workload.(*jobsetv1alpha2.JobSet).Spec.ReplicatedJobs {
			p := j.Template.Spec.Template
			if j.Name != launcherJob || port == 0 {
				assert.Empty(t, p.Spec.Containers[0].Ports, listen)
				continue
			}
			assert.Equal(t, []corev1.ContainerPort{{Name: "metrics", ContainerPort: port}}, p.Spec.Containers[0].Ports)
			assert.Equal(t, "true", p.Annotations["prometheus.io/scrape"])
			assert.Equal(t, strconv.Itoa(int(port)), p.Annotations["prometheus.io/port"])
			assert.Contains(t, p.Annotations, containerNote)
		}
	}
}

// withoutConfiguration takes run.json and the digest that depends on it out of manifests.
func withoutConfiguration(t *testing.T, text []byte) []byte {
	t.Helper()
	var out []string
	in := false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "  run.json: ") {
			in = true
			out = append(out, "  run.json: ...\n")
			continue
		}
		if in && strings.HasPrefix(line, "    ") || strings.Contains(line, digestNote) {
			continue
		}
		in = in && strings.TrimSpace(line) == ""
		if !in {
			out = append(out, line)
		}
	}
	return []byte(strings.Join(out, ""))
}

func TestPodsHaveNoMoreRightsThanTheyNeed(t *testing.T) {
	pods := []corev1.PodTemplateSpec{rendered(t, "job").Workload.(*batchv1.Job).Spec.Template}
	for _, j := range rendered(t, "jobset").Workload.(*jobsetv1alpha2.JobSet).Spec.ReplicatedJobs {
		pods = append(pods, j.Template.Spec.Template)
	}
	require.Len(t, pods, 3)
	for _, p := range pods {
		assert.True(t, *p.Spec.SecurityContext.RunAsNonRoot)
		assert.Positive(t, *p.Spec.SecurityContext.RunAsUser)
		assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, p.Spec.SecurityContext.SeccompProfile.Type)
		assert.False(t, *p.Spec.AutomountServiceAccountToken)
		assert.False(t, p.Spec.HostNetwork || p.Spec.HostPID || p.Spec.HostIPC)
		for _, c := range p.Spec.Containers {
			assert.False(t, *c.SecurityContext.AllowPrivilegeEscalation)
			assert.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
			assert.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop)
			assert.Empty(t, c.SecurityContext.Capabilities.Add)
		}
		for _, v := range p.Spec.Volumes {
			assert.Nil(t, v.HostPath, v.Name)
		}
	}
}

// Secrets are in the environment of the program that renders, as they often are; none of it is to come into manifests.
func TestManifestsHoldNoSecrets(t *testing.T) {
	const value = "hunter2-do-not-print"
	for _, name := range []string{"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "KUBECONFIG_TOKEN", "OPENAI_API_KEY"} {
		t.Setenv(name, value)
	}
	for _, form := range []string{"job", "jobset", "trainjob"} {
		text, err := rendered(t, form).YAML()
		require.NoError(t, err)
		assert.NotContains(t, string(text), value)
		for _, o := range documents(t, text) {
			assert.NotEqual(t, "Secret", o["kind"])
		}
	}
	text, err := rendered(t, "job").YAML()
	require.NoError(t, err)
	assert.Contains(t, string(text), "secretKeyRef", "it is named")
}

func TestTargetsInKubernetesAreStrict(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no image", "{gpus: 1}", "kubernetes.image: missing"},
		{"unknown key", "{image: x, gpu: 1}", "unknown key gpu"},
		{"wrong quantity", "{image: x, memory: 32GB}", `kubernetes.memory: "32GB" is not like 32Gi`},
		{"several pods need keys", "{image: x, pods: 2}", "kubernetes.ssh_secret: missing"},
		{"a job is one pod", "{image: x, pods: 2, workload: job}", "kubernetes.pods: a job has one"},
		{"a trainjob needs a runtime", "{image: x, workload: trainjob}", "kubernetes.runtime: missing"},
		{"what a trainjob cannot say", "{image: x, workload: trainjob, runtime: r, grace: 3}", "kubernetes.grace: a trainjob cannot say it"},
		{"several devices in a pod of a trainjob", "{image: x, workload: trainjob, runtime: r, gpus: 2}", "kubernetes.gpus: a pod of a trainjob trains on one device"},
		{"a volume over the configuration", "{image: x, volumes: [{claim: a, path: /etc}]}", "/etc is taken"},
		{"an image that is an option", "{image: -x}", "kubernetes.image"},
		{"a hostile secret", `{image: x, secret_env: {A: {secret: "a b", key: k}}}`, "kubernetes.secret_env.A"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := launch.ParseHosts([]byte("targets: {a: {kind: kubernetes, kubernetes: " + c.text + "}}"))
			assert.ErrorContains(t, err, c.want)
		})
	}
	_, err := launch.ParseHosts([]byte("targets: {a: {kind: kubernetes, secrets: [HF_TOKEN], env: {HF_TOKEN_2: x}, host: h, kubernetes: {image: x}}}"))
	assert.ErrorContains(t, err, "secrets: they stay in the cluster")
	assert.ErrorContains(t, err, "env.HF_TOKEN_2: by its name it is a secret")
	assert.ErrorContains(t, err, "host: a target of kind kubernetes has none")
	_, err = launch.ParseHosts([]byte("targets: {a: {kind: kubernetes, env: {TOKENIZERS_PARALLELISM: x, HF_TOKEN_PATH: /x}, kubernetes: {image: x}}}"))
	assert.NoError(t, err, "which are no secrets")
	_, err = launch.ParseHosts([]byte("targets: {a: {kind: kubernetes, retries: 2, kubernetes: {image: x, workload: trainjob, runtime: r}}}"))
	assert.ErrorContains(t, err, "retries of the target: a trainjob cannot say it")
	_, err = launch.ParseHosts([]byte("targets: {a: {kind: local, kubernetes: {image: x}}}"))
	assert.ErrorContains(t, err, "kubernetes: only a target of kind kubernetes has it")
}

func TestRunsThatCannotGoIntoPods(t *testing.T) {
	const target = "targets: {a: {kind: kubernetes, kubernetes: {image: x}}}"
	const other = "model: s3://b/m.gguf\noutput: o\ndata: {sources: [{path: train.jsonl, format: cft}]}\n"
	_, err := Render(parsed(t, target, "a"), "n", "first", inFolder(t, other))
	assert.ErrorContains(t, err, "checkpoints in /work would go with the pod")
	_, err = Render(parsed(t, target, "a"), "n", "First", inFolder(t, runText))
	assert.ErrorContains(t, err, "--name gives the run another")
	_, err = Render(parsed(t, target, "a"), "n", "first", inFolder(t, runText))
	assert.ErrorContains(t, err, "model: models/tiny.gguf is not here")

	run := inFolder(t, other+"checkpoint: {mirror: 's3://bucket/o'}\n")
	require.NoError(t, os.WriteFile("train.jsonl", make([]byte, maxShipped+1), 0o600))
	_, err = Render(parsed(t, target, "a"), "n", "first", run)
	assert.ErrorContains(t, err, "train.jsonl does not travel with the manifests")

	// What is not text is carried as bytes; the same inputs give the same manifests.
	require.NoError(t, os.WriteFile("train.jsonl", []byte{'{', 0xff, 0}, 0o600))
	m, err := Render(parsed(t, target, "a"), "n", "first", run)
	require.NoError(t, err)
	assert.Len(t, m.ConfigMap.BinaryData, 1)
	again, err := Render(parsed(t, target, "a"), "n", "first", run)
	require.NoError(t, err)
	assert.Equal(t, m, again)
	again, err = Render(parsed(t, strings.Replace(target, "image: x", "image: y", 1), "a"), "n", "first", run)
	require.NoError(t, err)
	assert.NotEqual(t, m.Digest, again.Digest)
}
