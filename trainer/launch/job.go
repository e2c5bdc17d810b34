package launch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/config"
	"cftune/trainer/internal/durable"
)

// JobFormat is the version of the job folder. One with a part of a study has the next: what reads the first only would train.
const (
	JobFormat  = 1
	partFormat = 2
)

// Names in a job folder.
const (
	jobName    = "job.json"
	configName = "run.json"
	stateName  = "state.json"
	logName    = "log.txt"
	runName    = "run"
	lockName   = "SUPERVISOR"
	scriptName = "job.sh"
	slurmName  = "slurm-job"
)

// Job is what a job folder says about its run.
type Job struct {
	Format  int    `json:"format"`
	Name    string `json:"name"`
	Program string `json:"program"` // of the build to use
	// Launcher starts the program as several processes that train together; empty: one process.
	Launcher []string `json:"launcher,omitempty"`
	// Part says that the job makes a part of a study, and its configuration is the study's file; nil: a training run.
	Part *Part `json:"part,omitempty"`
	// Run is the run directory, or the study's folder.
	Run    string    `json:"run"`
	Digest string    `json:"config_sha256"`
	Made   time.Time `json:"made"`

	Retries int               `json:"retries"`
	Backoff time.Duration     `json:"backoff"`
	Env     map[string]string `json:"env,omitempty"`
	// Secrets are names; the values come in the supervisor's environment.
	Secrets []string `json:"secrets,omitempty"`
	// Requeue asks Slurm for another turn when the time is up.
	Requeue bool `json:"requeue,omitempty"`
}

// orResume lets a run go on with what there is of it.
const orResume = "--or-resume"

// command is that of the run: the program alone, or a launcher of several that the program minds.
func (j Job) command(config string, more ...string) []string {
	if j.Part != nil {
		return j.Part.command(j.Program, config, more...)
	}
	train := append([]string{j.Program, "train", "--config", config}, more...)
	if len(j.Launcher) == 0 {
		return train
	}
	return slices.Concat([]string{j.Program, "launch", "together", "--"}, j.Launcher, train, []string{"--parallel", "mpi"})
}

// upload is a file of this machine that a run needs there.
type upload struct {
	key     string // of the configuration
	local   string
	remote  string
	written durable.Written
}

// shipped is a configuration as it is sent, with the files that it needs.
type shipped struct {
	run     config.Run
	text    []byte
	digest  string
	uploads []upload
}

// shipConfig says what the paths of a configuration are on a target. root is its folder there; here says that the target
// is this machine, where files stay where they are.
func shipConfig(run config.Run, t TargetConfig, root, output string, here bool) (*shipped, error) {
	s := &shipped{}
	var err error
	if s.run, err = Relocate(run, func(key, p string) (string, error) { return s.place(key, p, t, root, here) }); err != nil {
		return nil, err
	}
	s.run.Output = output
	if s.text, err = json.MarshalIndent(s.run, "", "  "); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	s.text = append(s.text, '\n')
	sum := sha256.Sum256(s.text)
	s.digest = hex.EncodeToString(sum[:])
	return s, nil
}

// Relocate returns a configuration whose paths are what place makes of them. All problems are told at once.
func Relocate(run config.Run, place func(key, path string) (string, error)) (config.Run, error) {
	paths := config.Relocation{Place: place}
	run.Data.Sources = slices.Clone(run.Data.Sources)
	paths.Move("model", &run.Model)
	for i := range run.Data.Sources {
		paths.Move(fmt.Sprintf("data.sources[%d].path", i), &run.Data.Sources[i].Path)
	}
	paths.Move("data.validation.path", &run.Data.Validation.Path)
	paths.Move("chat.template_file", &run.Chat.TemplateFile)
	paths.Move("adapter.init_from", &run.Adapter.InitFrom)
	if err := paths.Err(); err != nil {
		return run, &UsageError{err}
	}
	return run, nil
}

// place returns where a path of the configuration is on the target, and notes what must be sent.
func (s *shipped) place(key, p string, t TargetConfig, root string, here bool) (string, error) {
	if err := checkPath(p); err != nil {
		return "", err
	}
	if strings.Contains(p, "://") {
		return p, nil
	}
	if p == "-" {
		return "", errors.New("standard input does not outlive a connection: put the rows into a file")
	}
	if to, ok := t.Mapped(p); ok {
		return to, nil
	}
	if here {
		return filepath.Abs(p)
	}
	info, err := os.Stat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s is not here, and paths of target %s does not say where it is there", p, t.name)
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is no plain file, and only such are sent: put it there, and name it in paths of target %s", p, t.name)
	}
	files, err := withShards(p)
	if err != nil {
		return "", err
	}
	// The folder is named by all that is in it.
	all := sha256.New()
	var uploads []upload
	for _, file := range files {
		written, err := durable.Digest(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(all, written.SHA256)
		uploads = append(uploads, upload{key: key, local: file, written: written})
	}
	folder := path.Join(root, "files", hex.EncodeToString(all.Sum(nil))[:digestPrefix])
	for _, u := range uploads {
		u.remote = path.Join(folder, filepath.Base(u.local))
		if !slices.ContainsFunc(s.uploads, func(o upload) bool { return o.remote == u.remote }) {
			s.uploads = append(s.uploads, u)
		}
	}
	return path.Join(folder, filepath.Base(p)), nil
}

var firstShard = regexp.MustCompile(`^(.*)-00001-of-([0-9]{5})\.gguf$`)

// withShards returns a file and, where it is the first shard of a model, the others.
func withShards(p string) ([]string, error) {
	files := []string{p}
	parts := firstShard.FindStringSubmatch(p)
	if parts == nil {
		return files, nil
	}
	count, err := strconv.Atoi(parts[2])
	for i := 2; i <= count; i++ {
		files = append(files, fmt.Sprintf("%s-%05d-of-%s.gguf", parts[1], i, parts[2]))
	}
	return files, err
}

// Mapped says where a path of the configuration is on the target, if the target's paths say so.
func (t TargetConfig) Mapped(p string) (string, bool) { return mapped(p, t.Paths) }

// mapped finds a path, or the longest beginning of it, among those that are there already.
func mapped(p string, paths map[string]string) (string, bool) {
	if to, ok := paths[p]; ok {
		return to, true
	}
	best := ""
	for from := range paths {
		if strings.HasSuffix(from, "/") && strings.HasPrefix(p, from) && len(from) > len(best) {
			best = from
		}
	}
	if best == "" {
		return "", false
	}
	return paths[best] + p[len(best):], true
}

func parseJob(text []byte) (Job, error) {
	var j Job
	if err := json.Unmarshal(text, &j); err != nil {
		return j, fmt.Errorf("%s: %w", jobName, err)
	}
	if j.Format != JobFormat && j.Format != partFormat {
		return j, fmt.Errorf("%s: format %d is not %d or %d, the ones this version reads", jobName, j.Format, JobFormat, partFormat)
	}
	if (j.Format == partFormat) != (j.Part != nil) {
		return j, fmt.Errorf("%s: format %d has a part of a study, others have none", jobName, partFormat)
	}
	return j, nil
}

// ReadJob reads the job in a folder of this machine.
func ReadJob(dir string) (Job, error) {
	text, err := regular.ReadFile(filepath.Join(dir, jobName))
	if err != nil {
		return Job{}, fmt.Errorf("read job: %w", err)
	}
	return parseJob(text)
}
