package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// HostsName is the file of targets, in the working directory or in cftune's folder among the user's configurations.
const HostsName = "hosts.yaml"

// maxHostsBytes bounds the file; a larger one is something else.
const maxHostsBytes = 1 << 20

// The kinds of targets.
const (
	KindLocal = "local"
	KindSSH   = "ssh"
	KindSlurm = "slurm"
	// KindKubernetes is a cluster whose API the program itself speaks; package kube does.
	KindKubernetes = "kubernetes"
)

// TargetConfig describes one target. Keys are the YAML names.
type TargetConfig struct {
	// Kind is local, ssh, slurm or kubernetes.
	Kind string `yaml:"kind"`
	// Host is a name of ssh's configuration or of the network. Of slurm it is the login host; empty is this machine.
	Host string `yaml:"host"`
	User string `yaml:"user"`
	Port int    `yaml:"port"`
	// Jump are the hosts on the way, first to last: user@host:port.
	Jump []string `yaml:"jump"`
	// Identity are private key files; the agent is asked as well.
	Identity   []string `yaml:"identity"`
	KnownHosts string   `yaml:"known_hosts"`
	SSHConfig  string   `yaml:"ssh_config"`

	// Folder is where runs, builds and files are kept there; a relative one is below the home folder.
	Folder string `yaml:"folder"`
	// Build is a build folder (bin/cftune, native/lib) for machines of the target's kind; empty is this program's own.
	Build string `yaml:"build"`
	// Paths says what is there already: a path, or a beginning that ends in /, as the configuration has it, and where it is.
	Paths map[string]string `yaml:"paths"`
	// Env are variables for the run. Secrets are names of variables whose values are passed on.
	Env     map[string]string `yaml:"env"`
	Secrets []string          `yaml:"secrets"`

	// Processes is how many train together, each on a device of its own; 0 and 1 are one. mpirun starts them, on Slurm srun.
	Processes int `yaml:"processes"`

	// Retries is how often a run that failed in a way that may pass is started again; Backoff is the first pause, doubled
	// each time.
	Retries *int   `yaml:"retries"`
	Backoff string `yaml:"backoff"`

	Slurm      Slurm      `yaml:"slurm"`
	Kubernetes Kubernetes `yaml:"kubernetes"`

	name string
}

// Name is the target's.
func (t TargetConfig) Name() string { return t.name }

// Defaults of a target.
const (
	defaultFolder  = "cftune-launch"
	defaultRetries = 3
	defaultBackoff = 30 * time.Second
	maxRetries     = 1000
	maxProcesses   = 1 << 16
)

// FindHosts returns the file of targets: path if it is given, else the first that exists of ./hosts.yaml and the one in
// folder (may be empty).
func FindHosts(path, folder string) (string, error) {
	if path != "" {
		return path, nil
	}
	candidates := []string{HostsName}
	if folder != "" {
		candidates = append(candidates, filepath.Join(folder, HostsName))
	}
	for _, c := range candidates {
		if _, err := os.Stat(c); err == nil {
			return c, nil
		}
	}
	return "", &UsageError{fmt.Errorf("no file of targets: neither %s exists; configs/launch/hosts.example.yaml is one to begin with; targets: {local: {kind: local}} is one that has this machine", strings.Join(candidates, " nor "))}
}

// UsageError is a mistake in what the user wrote: the file of targets, names, or a run that cannot be launched as it is.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

func usage(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// LoadTarget reads one target of the file at path. All of the file is checked.
func LoadTarget(path, name string) (TargetConfig, error) {
	f, err := os.Open(path)
	if err != nil {
		return TargetConfig{}, &UsageError{fmt.Errorf("read targets: %w", err)}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHostsBytes+1))
	if err != nil {
		return TargetConfig{}, fmt.Errorf("read targets: %w", err)
	}
	if len(text) > maxHostsBytes {
		return TargetConfig{}, usage("read targets: %s: larger than %d bytes", path, maxHostsBytes)
	}
	targets, err := ParseHosts(text)
	if err != nil {
		return TargetConfig{}, &UsageError{fmt.Errorf("read targets: %s: %w", path, err)}
	}
	t, ok := targets[name]
	if !ok {
		return TargetConfig{}, usage("%s: no target %q; there are: %s", path, name, strings.Join(sortedKeys(targets), ", "))
	}
	t.settle(filepath.Dir(path))
	return t, nil
}

// settle makes the paths of this machine absolute: relative ones are beside the file of targets, wherever a later command is
// given.
func (t *TargetConfig) settle(folder string) {
	absolute := func(p string) string {
		if p = expandHome(p); p == "" || filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(folder, p)
	}
	t.Build, t.KnownHosts, t.SSHConfig = absolute(t.Build), absolute(t.KnownHosts), absolute(t.SSHConfig)
	t.Kubernetes.Kubeconfig = absolute(t.Kubernetes.Kubeconfig)
	identity := make([]string, len(t.Identity))
	for i, p := range t.Identity {
		identity[i] = absolute(p)
	}
	t.Identity = identity
}

// ParseHosts reads a file of targets, strictly: an unknown key is an error, and all problems are told at once.
func ParseHosts(text []byte) (map[string]TargetConfig, error) {
	var file struct {
		Targets map[string]TargetConfig `yaml:"targets"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, plainWords(err)
	}
	if err := d.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("it must be one YAML document")
	}
	if len(file.Targets) == 0 {
		return nil, errors.New("targets: there are none")
	}
	var problems []error
	for _, name := range sortedKeys(file.Targets) {
		t := file.Targets[name]
		t.name = name
		file.Targets[name] = t
		for _, err := range t.problems() {
			problems = append(problems, fmt.Errorf("targets.%s.%w", name, err))
		}
		if err := CheckName(name); err != nil {
			problems = append(problems, fmt.Errorf("targets: %w", err))
		}
	}
	return file.Targets, errors.Join(problems...)
}

var unknownField = regexp.MustCompile(`field (\S+) not found in type \S+`)

// plainWords takes the names of Go's types out of what the YAML library says.
func plainWords(err error) error {
	return errors.New(unknownField.ReplaceAllString(strings.TrimPrefix(err.Error(), "yaml: "), "unknown key $1"))
}

// hostWords are what may stand in a host's or user's name. A leading dash would be an option to the programs that get it.
var hostWords = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@%:\[\]-]*$`)

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (t TargetConfig) problems() []error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	switch t.Kind {
	case KindLocal, KindSSH, KindSlurm, KindKubernetes:
	case "":
		add("kind: missing; it is local, ssh, slurm or kubernetes")
	default:
		add("kind: %q is not local, ssh, slurm or kubernetes", t.Kind)
	}
	if t.Kind == KindSSH && t.Host == "" {
		add("host: missing")
	}
	if t.Kind == KindLocal && t.Host != "" {
		add("host: a local target has none")
	}
	for key, value := range map[string]string{"host": t.Host, "user": t.User} {
		if value != "" && !hostWords.MatchString(value) {
			add("%s: %q is no name of one", key, value)
		}
	}
	for _, jump := range t.Jump {
		if !hostWords.MatchString(jump) {
			add("jump: %q is no user@host:port", jump)
		}
	}
	if t.Port < 0 || t.Port > 65535 {
		add("port: %d is none", t.Port)
	}
	for _, path := range append([]string{t.Folder, t.Build, t.KnownHosts, t.SSHConfig}, t.Identity...) {
		if err := checkPath(path); err != nil {
			add("folder, build and other paths: %w", err)
		}
	}
	for from, to := range t.Paths {
		if err := errors.Join(checkPath(from), checkPath(to)); err != nil || from == "" || to == "" {
			add("paths: %q: %q must name two paths", from, to)
		} else if strings.HasSuffix(from, "/") != strings.HasSuffix(to, "/") {
			add("paths: %q: %q: where one ends in /, so must the other", from, to)
		}
	}
	problems = append(problems, t.variableProblems()...)
	if t.Retries != nil && (*t.Retries < 0 || *t.Retries > maxRetries) {
		add("retries: must be 0 to %d, got %d", maxRetries, *t.Retries)
	}
	if t.Backoff != "" {
		if d, err := time.ParseDuration(t.Backoff); err != nil || d < 0 {
			add("backoff: %q is no time such as 30s", t.Backoff)
		}
	}
	if t.Processes < 0 || t.Processes > maxProcesses {
		add("processes: must be 0 to %d, got %d", maxProcesses, t.Processes)
	}
	if t.Kind == KindSlurm {
		for _, err := range t.Slurm.problems(max(1, t.Processes)) {
			add("slurm.%w", err)
		}
	} else if !t.Slurm.isZero() {
		add("slurm: only a target of kind slurm has it")
	}
	if t.Kind == KindKubernetes {
		problems = append(problems, t.kubernetesProblems()...)
	} else if !t.Kubernetes.isZero() {
		add("kubernetes: only a target of kind kubernetes has it")
	}
	return problems
}

func (t TargetConfig) variableProblems() []error {
	var problems []error
	for _, name := range slices.Concat(sortedKeys(t.Env), t.Secrets) {
		if !variableName.MatchString(name) {
			problems = append(problems, fmt.Errorf("env, secrets: %q is no name of a variable", name))
		}
	}
	for _, name := range t.Secrets {
		if _, both := t.Env[name]; both {
			problems = append(problems, fmt.Errorf("env.%s: it is among the secrets, whose values do not stand in files", name))
		}
	}
	for _, name := range sortedKeys(t.Env) {
		if strings.ContainsAny(t.Env[name], "\x00\n\r") {
			problems = append(problems, fmt.Errorf("env.%s: a line break cannot be passed on", name))
		}
	}
	return problems
}

// launcher are the words that start the processes of a run there; none for one process.
func (t TargetConfig) launcher() []string {
	switch {
	case t.Processes <= 1:
		return nil
	case t.Kind == KindSlurm:
		return t.Slurm.srun(t.Processes)
	}
	return Mpirun(t.Processes)
}

// Attempts is how often a run that failed in a way that may pass is started again.
func (t TargetConfig) Attempts() int { return t.retries() }

func (t TargetConfig) retries() int {
	if t.Retries == nil {
		return defaultRetries
	}
	return *t.Retries
}

func (t TargetConfig) backoff() time.Duration {
	if t.Backoff == "" {
		return defaultBackoff
	}
	d, err := time.ParseDuration(t.Backoff)
	if err != nil {
		panic(err) // problems has parsed it
	}
	return d
}

// sortedKeys returns a map's keys in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
