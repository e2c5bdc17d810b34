package launch

import (
	"fmt"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// Kinds of what a Kubernetes target makes.
const (
	WorkloadJob      = "job"
	WorkloadJobSet   = "jobset"
	WorkloadTrainJob = "trainjob"
)

// Kubernetes are the resources of a cluster that a run gets. The cluster's own words are used where it has some.
type Kubernetes struct {
	// Kubeconfig and Context say which cluster; left out, kubectl's rules apply.
	Kubeconfig string `yaml:"kubeconfig"`
	Context    string `yaml:"context"`
	Namespace  string `yaml:"namespace"`

	// Workload is job, jobset or trainjob; left out: a job for one pod, a jobset for several.
	Workload string `yaml:"workload"`
	Pods     int    `yaml:"pods"`
	// Runtime is the TrainingRuntime of a trainjob; RuntimeKind is TrainingRuntime or ClusterTrainingRuntime.
	Runtime     string `yaml:"runtime"`
	RuntimeKind string `yaml:"runtime_kind"`
	// SSHSecret has the keys by which mpirun reaches the other pods of a jobset.
	SSHSecret string `yaml:"ssh_secret"`

	Image       string   `yaml:"image"`
	PullPolicy  string   `yaml:"pull_policy"`
	PullSecrets []string `yaml:"pull_secrets"`

	// CPU, Memory and Scratch (space for temporary files) are Kubernetes quantities; GPUs are nvidia.com/gpu of one pod.
	CPU     string `yaml:"cpu"`
	Memory  string `yaml:"memory"`
	Scratch string `yaml:"scratch"`
	GPUs    int    `yaml:"gpus"`

	// Volumes are claims that the pods mount.
	Volumes []KubernetesVolume `yaml:"volumes"`
	// SecretEnv are variables whose values the pod takes from keys of Secrets; SecretEnvFrom are Secrets of which all keys are.
	SecretEnv     map[string]SecretKey `yaml:"secret_env"`
	SecretEnvFrom []string             `yaml:"secret_env_from"`

	NodeSelector   map[string]string `yaml:"node_selector"`
	Tolerations    []Toleration      `yaml:"tolerations"`
	PriorityClass  string            `yaml:"priority_class"`
	RuntimeClass   string            `yaml:"runtime_class"`
	ServiceAccount string            `yaml:"service_account"`
	RunAs          int64             `yaml:"run_as"`
	// Grace is how many seconds a pod that must go has for its checkpoint.
	Grace int64 `yaml:"grace"`
}

// KubernetesVolume is a claim and where it is mounted.
type KubernetesVolume struct {
	Claim    string `yaml:"claim"`
	Path     string `yaml:"path"`
	ReadOnly bool   `yaml:"read_only"`
}

// SecretKey is a key of a Secret, by name.
type SecretKey struct {
	Secret string `yaml:"secret"`
	Key    string `yaml:"key"`
}

// Toleration lets pods run on nodes with a taint.
type Toleration struct {
	Key      string `yaml:"key"`
	Operator string `yaml:"operator"`
	Value    string `yaml:"value"`
	Effect   string `yaml:"effect"`
	Seconds  *int64 `yaml:"seconds"`
}

// Paths in the pods.
const (
	// KubernetesConfigDir has what the ConfigMap holds.
	KubernetesConfigDir = "/etc/cftune"
	// KubernetesKeyDir has the keys of ssh_secret.
	KubernetesKeyDir = "/etc/cftune-ssh"
	// kubernetesScratch is for runs whose checkpoints are kept elsewhere.
	kubernetesScratch = "/work"
	defaultRunAs      = 1000
	defaultGrace      = 120
	maxPods           = 1024
)

// KubernetesName is what names in a cluster may be; as a label it has at most 63 characters.
var KubernetesName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

var (
	kubernetesObject   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	kubernetesQuantity = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$`)
	kubernetesImage    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:/@-]*$`)
	secretKeyName      = regexp.MustCompile(`^[-._A-Za-z0-9]+$`)
	// secretWords are in names of variables whose values are secrets.
	secretWords = regexp.MustCompile(`(?i)(secret|(^|_)tokens?($|_)|password|passwd|credential|(api|access|private)_?key)`)
	// pathWords are in those that say where one is.
	pathWords = regexp.MustCompile(`(?i)_(path|file)$`)
)

// Replicas is the number of pods.
func (k Kubernetes) Replicas() int { return max(1, k.Pods) }

// Form is what is made: job, jobset or trainjob.
func (k Kubernetes) Form() string {
	switch {
	case k.Workload != "":
		return k.Workload
	case k.Replicas() > 1:
		return WorkloadJobSet
	}
	return WorkloadJob
}

// Processes is how many train in a pod: one for each of its devices.
func (k Kubernetes) Processes() int { return max(1, k.GPUs) }

// User is the number that the pods' processes run under.
func (k Kubernetes) User() int64 {
	if k.RunAs == 0 {
		return defaultRunAs
	}
	return k.RunAs
}

// GraceSeconds is the time that a pod has to save.
func (k Kubernetes) GraceSeconds() int64 {
	if k.Grace == 0 {
		return defaultGrace
	}
	return k.Grace
}

// KubernetesFolder is where runs are kept in the pods, and whether it outlives them, on a claim.
func (t TargetConfig) KubernetesFolder() (folder string, kept bool) {
	folder = t.Folder
	for _, v := range t.Kubernetes.Volumes {
		if v.ReadOnly {
			continue
		}
		if folder == "" {
			return path.Join(v.Path, "cftune"), true
		}
		if within(folder, v.Path) {
			return path.Clean(folder), true
		}
	}
	if folder == "" {
		folder = kubernetesScratch
	}
	return path.Clean(folder), false
}

func within(p, dir string) bool {
	p, dir = path.Clean(p), path.Clean(dir)
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

func (k Kubernetes) problems(t TargetConfig) []error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	match := func(key, value string, want *regexp.Regexp, like string) {
		if value != "" && !want.MatchString(value) {
			add("%s: %q is not like %s", key, value, like)
		}
	}
	match("namespace", k.Namespace, KubernetesName, "training")
	match("image", k.Image, kubernetesImage, "registry.example.org/cftune:1.0")
	match("cpu", k.CPU, kubernetesQuantity, "8 or 500m")
	match("memory", k.Memory, kubernetesQuantity, "32Gi")
	match("scratch", k.Scratch, kubernetesQuantity, "20Gi")
	for key, value := range map[string]string{"runtime": k.Runtime, "ssh_secret": k.SSHSecret, "priority_class": k.PriorityClass,
		"runtime_class": k.RuntimeClass, "service_account": k.ServiceAccount} {
		match(key, value, kubernetesObject, "a name in the cluster (small letters, digits, dashes)")
	}
	for _, name := range k.PullSecrets {
		match("pull_secrets", name, kubernetesObject, "the name of a Secret")
	}
	if k.Image == "" {
		add("image: missing; configs/docker has Dockerfiles")
	}
	if !slices.Contains([]string{"", "Always", "IfNotPresent", "Never"}, k.PullPolicy) {
		add("pull_policy: %q is not Always, IfNotPresent or Never", k.PullPolicy)
	}
	if k.RunAs < 0 || k.Grace < 0 || k.GPUs < 0 || k.Pods < 0 || k.Pods > maxPods {
		add("run_as, grace, gpus and pods must not be negative, and pods at most %d", maxPods)
	}
	problems = append(problems, k.formProblems(t)...)
	problems = append(problems, k.volumeProblems(t)...)
	problems = append(problems, k.secretProblems(t)...)
	for i, o := range k.Tolerations {
		if !slices.Contains([]string{"", "Exists", "Equal"}, o.Operator) || !slices.Contains([]string{"", "NoSchedule", "PreferNoSchedule", "NoExecute"}, o.Effect) {
			add("tolerations[%d]: operator is Exists or Equal, effect NoSchedule, PreferNoSchedule or NoExecute", i)
		}
		if o.Seconds != nil && o.Effect != "NoExecute" {
			add("tolerations[%d].seconds: only with effect NoExecute", i)
		}
	}
	return problems
}

func (k Kubernetes) formProblems(t TargetConfig) []error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	switch form := k.Form(); {
	case !slices.Contains([]string{WorkloadJob, WorkloadJobSet, WorkloadTrainJob}, form):
		add("workload: %q is not job, jobset or trainjob", k.Workload)
	case form == WorkloadJob && k.Replicas() > 1:
		add("pods: a job has one; workload jobset or trainjob has several")
	case form == WorkloadTrainJob && k.Runtime == "":
		add("runtime: missing; it names the TrainingRuntime of a trainjob")
	case form != WorkloadTrainJob && k.Runtime+k.RuntimeKind != "":
		add("runtime: only a trainjob has one")
	}
	if k.Form() == WorkloadTrainJob {
		// What a TrainJob has no place for is said, not dropped.
		for key, given := range map[string]bool{"pull_secrets": len(k.PullSecrets) > 0, "secret_env_from": len(k.SecretEnvFrom) > 0,
			"priority_class": k.PriorityClass != "", "runtime_class": k.RuntimeClass != "", "run_as": k.RunAs != 0, "grace": k.Grace != 0,
			"pull_policy": k.PullPolicy != "", "retries of the target": t.Retries != nil} {
			if given {
				add("%s: a trainjob cannot say it: it belongs into the runtime %s", key, k.Runtime)
			}
		}
	}
	if k.Form() == WorkloadJobSet && k.Replicas() > 1 && k.SSHSecret == "" {
		add("ssh_secret: missing; mpirun reaches the other pods by ssh, with keys of a Secret (docs/launch.md says how it is made)")
	}
	if k.SSHSecret != "" && !(k.Form() == WorkloadJobSet && k.Replicas() > 1) {
		add("ssh_secret: only a jobset of several pods needs one")
	}
	if !slices.Contains([]string{"", "TrainingRuntime", "ClusterTrainingRuntime"}, k.RuntimeKind) {
		add("runtime_kind: %q is not TrainingRuntime or ClusterTrainingRuntime", k.RuntimeKind)
	}
	if k.GPUs > 1 && k.Form() == WorkloadTrainJob {
		add("gpus: a pod of a trainjob trains on one device, got %d; pods: %d trains on as many", k.GPUs, k.GPUs)
	}
	if t.Processes != 0 {
		add("processes: in Kubernetes they are pods times gpus of each")
	}
	return problems
}

func (k Kubernetes) volumeProblems(t TargetConfig) []error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	seen := map[string]bool{}
	for i, v := range k.Volumes {
		if !kubernetesObject.MatchString(v.Claim) {
			add("volumes[%d].claim: %q names no claim", i, v.Claim)
		}
		p := path.Clean(v.Path)
		if !path.IsAbs(v.Path) || p == "/" || strings.ContainsRune(v.Path, ':') || checkPath(v.Path) != nil {
			add("volumes[%d].path: %q is no absolute path of a folder", i, v.Path)
		} else if within(p, KubernetesConfigDir) || within(KubernetesConfigDir, p) || within(p, KubernetesKeyDir) || p == "/tmp" || seen[p] {
			add("volumes[%d].path: %s is taken", i, p)
		}
		seen[p] = true
	}
	if t.Folder != "" && (!path.IsAbs(t.Folder) || path.Clean(t.Folder) == "/") {
		add("folder: %q must be an absolute path in the pods, below a volume's path", t.Folder)
	}
	return problems
}

func (k Kubernetes) secretProblems(t TargetConfig) []error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	for _, name := range sortedKeys(k.SecretEnv) {
		s := k.SecretEnv[name]
		if !variableName.MatchString(name) || !kubernetesObject.MatchString(s.Secret) || !secretKeyName.MatchString(s.Key) {
			add("secret_env.%s: must be a variable with the name of a secret and of its key", name)
		}
		if _, both := t.Env[name]; both {
			add("secret_env.%s: it is in env as well", name)
		}
	}
	for _, name := range k.SecretEnvFrom {
		if !kubernetesObject.MatchString(name) {
			add("secret_env_from: %q names no Secret", name)
		}
	}
	for _, name := range sortedKeys(t.Env) {
		if secretWords.MatchString(name) && !pathWords.MatchString(name) {
			add("env.%s: by its name it is a secret, and env stands in the manifest: put it into a Secret and name that in secret_env", name)
		}
	}
	return problems
}

// kubernetesProblems are those of a target of kind kubernetes beside the section of that name.
func (t TargetConfig) kubernetesProblems() []error {
	var problems []error
	if len(t.Secrets) > 0 {
		problems = append(problems, fmt.Errorf("secrets: they stay in the cluster: kubernetes.secret_env and secret_env_from name them there"))
	}
	for key, given := range map[string]bool{"host": t.Host != "", "user": t.User != "", "port": t.Port != 0, "jump": len(t.Jump) > 0,
		"identity": len(t.Identity) > 0, "known_hosts": t.KnownHosts != "", "ssh_config": t.SSHConfig != "",
		"build": t.Build != "", "backoff": t.Backoff != ""} {
		if given {
			problems = append(problems, fmt.Errorf("%s: a target of kind kubernetes has none", key))
		}
	}
	for _, err := range t.Kubernetes.problems(t) {
		problems = append(problems, fmt.Errorf("kubernetes.%w", err))
	}
	return problems
}

// isZero reports whether nothing is set.
func (k Kubernetes) isZero() bool { return reflect.ValueOf(k).IsZero() }
