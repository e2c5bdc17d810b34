package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cftune/internal/spell"
)

// Slurm are the resources that are asked for.
type Slurm struct {
	Partition  string `yaml:"partition"`
	Account    string `yaml:"account"`
	QOS        string `yaml:"qos"`
	Constraint string `yaml:"constraint"`
	// Nodes is on how many the processes are spread; 0 is one.
	Nodes int `yaml:"nodes"`
	// GPUs are those of all processes, CPUs those of each, and Mem is of a node.
	GPUs int    `yaml:"gpus"`
	CPUs int    `yaml:"cpus"`
	Mem  string `yaml:"mem"`
	Time string `yaml:"time"`
	// MPI is srun's word for the way its processes find each other; "pmix" if left out.
	MPI string `yaml:"mpi"`
	// Requeue lets Slurm run the job again after preemption and failures of nodes, and asks for another turn when the time is
	// up. True if left out.
	Requeue *bool `yaml:"requeue"`
	// StopBefore is how many seconds before the time is up the run saves and ends.
	StopBefore int `yaml:"stop_before"`
	// ArrayLimit is how many of an array run at once; 0 = as many as there is room for.
	ArrayLimit int `yaml:"array_limit"`
}

// defaultStopBefore is time for a step and a checkpoint, in seconds.
const defaultStopBefore = 120

func (s Slurm) isZero() bool { return s == Slurm{} }

func (s Slurm) requeue() bool { return s.Requeue == nil || *s.Requeue }

func (s Slurm) stopBefore() int {
	if s.StopBefore == 0 {
		return defaultStopBefore
	}
	return s.StopBefore
}

var (
	slurmWord       = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.,:@+=-]*$`)
	slurmConstraint = regexp.MustCompile(`^[A-Za-z0-9_\[(][A-Za-z0-9_.,:@+=&|*()\[\]-]*$`)
	slurmMem        = regexp.MustCompile(`^[0-9]+[KMGT]?$`)
	slurmTime       = regexp.MustCompile(`^([0-9]+|[0-9]+:[0-9]{2}|[0-9]+:[0-9]{2}:[0-9]{2}|[0-9]+-[0-9]{1,2}(:[0-9]{2}){0,2})$`)
)

// memory is Mem in bytes, 0 if none is asked for. Slurm counts in MiB where no unit is given.
func (s Slurm) memory() uint64 {
	shift, ok := map[string]uint{"K": 10, "M": 20, "G": 30, "T": 40}[strings.TrimLeft(s.Mem, "0123456789")]
	if !ok {
		shift = 20
	}
	n, err := strconv.ParseUint(strings.TrimRight(s.Mem, "KMGT"), 10, 64-int(shift))
	if err != nil {
		return 0 // none, or more than any machine has
	}
	return n << shift
}

// problems are those of resources for so many processes.
func (s Slurm) problems(processes int) []error {
	var problems []error
	match := func(key, value string, want *regexp.Regexp, like string) {
		if value != "" && !want.MatchString(value) {
			problems = append(problems, fmt.Errorf("%s: %q is not like %s", key, value, like))
		}
	}
	match("partition", s.Partition, slurmWord, "gpu")
	match("account", s.Account, slurmWord, "lab-1")
	match("qos", s.QOS, slurmWord, "normal")
	match("constraint", s.Constraint, slurmConstraint, "a100&nvlink")
	match("mem", s.Mem, slurmMem, "32G")
	match("time", s.Time, slurmTime, "12:00:00")
	match("mpi", s.MPI, slurmWord, defaultMPI)
	for key, n := range map[string]int{"nodes": s.Nodes, "gpus": s.GPUs, "cpus": s.CPUs, "stop_before": s.StopBefore, "array_limit": s.ArrayLimit} {
		if n < 0 {
			problems = append(problems, fmt.Errorf("%s: must be at least 0, got %d", key, n))
		}
	}
	if s.Nodes > processes {
		problems = append(problems, fmt.Errorf("nodes: %d are too many for %d processes: processes of the target says how many train together", s.Nodes, processes))
	}
	if s.GPUs != 0 && s.GPUs != processes {
		problems = append(problems, fmt.Errorf("gpus: each process trains on one device, got %d for %d: processes of the target says how many train together", s.GPUs, processes))
	}
	return problems
}

// defaultMPI is what Open MPI's processes understand.
const defaultMPI = "pmix"

// srun starts so many processes in the job's allocation. It passes all of the supervisor's variables on, and ends all where one fails.
func (s Slurm) srun(processes int) []string {
	words := []string{"srun", "--ntasks=" + strconv.Itoa(processes), "--mpi=" + cmp.Or(s.MPI, defaultMPI), "--export=ALL", "--kill-on-bad-exit=1"}
	if s.CPUs > 0 {
		words = append(words, "--cpus-per-task="+strconv.Itoa(s.CPUs))
	}
	return words
}

// slurm is a cluster: job folders lie on a file system that its login host and its nodes share.
type slurm struct {
	*direct
}

// Script renders the batch script of one job, or of an array of several.
func (c *slurm) Script(jobs []Placed) (string, error) {
	if len(jobs) == 0 {
		return "", errors.New("no job")
	}
	s := c.config.Slurm
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	option := func(name, value string) { fmt.Fprintf(&b, "#SBATCH --%s=%s\n", name, value) }
	optional := func(name, value string) {
		if value != "" {
			option(name, value)
		}
	}
	count := func(name string, n int) {
		if n > 0 {
			option(name, strconv.Itoa(n))
		}
	}
	option("job-name", "cftune-"+jobs[0].Job.Name)
	option("nodes", strconv.Itoa(max(1, s.Nodes)))
	option("ntasks", strconv.Itoa(max(1, c.config.Processes)))
	optional("partition", s.Partition)
	optional("account", s.Account)
	optional("qos", s.QOS)
	optional("constraint", s.Constraint)
	count("gpus", s.GPUs)
	count("cpus-per-task", s.CPUs)
	optional("mem", s.Mem)
	optional("time", s.Time)
	if s.Time != "" {
		option("signal", fmt.Sprintf("B:USR1@%d", s.stopBefore()))
	}
	if s.requeue() {
		b.WriteString("#SBATCH --requeue\n")
	} else {
		b.WriteString("#SBATCH --no-requeue\n")
	}
	b.WriteString("#SBATCH --open-mode=append\n")
	if len(jobs) == 1 {
		fmt.Fprintf(&b, "umask 077\ndir=%s\nprogram=%s\n", spell.Quote(jobs[0].Dir), spell.Quote(jobs[0].Job.Program))
	} else {
		spec := fmt.Sprintf("0-%d", len(jobs)-1)
		if s.ArrayLimit > 0 {
			spec += fmt.Sprintf("%%%d", s.ArrayLimit)
		}
		option("array", spec)
		b.WriteString("umask 077\ncase $SLURM_ARRAY_TASK_ID in\n")
		for i, j := range jobs {
			fmt.Fprintf(&b, "%d) dir=%s program=%s ;;\n", i, spell.Quote(j.Dir), spell.Quote(j.Job.Program))
		}
		b.WriteString("*) echo \"no element $SLURM_ARRAY_TASK_ID\" >&2; exit 2 ;;\nesac\n")
	}
	// exec: the supervisor is the process that Slurm's signals come to.
	b.WriteString("cd -- \"$dir\" && exec \"$program\" launch job \"$dir\"\n")
	return b.String(), nil
}

// passedOn are the variables of the login that a job gets beside its secrets; all others stay there.
var passedOn = []string{"HOME", "USER", "LOGNAME", "PATH", "LANG"}

// sbatch is the command line that submits a script, less the script.
func (c *slurm) sbatch(jobs []Placed, more ...string) string {
	names := slices.Concat(passedOn, c.config.Secrets)
	words := []string{"sbatch", "--parsable", "--export=" + strings.Join(names, ","), "--output=" + c.outputPattern(jobs)}
	return quoteAll(append(words, more...)...)
}

// outputPattern is where Slurm writes what comes before the log: a program that cannot be started.
func (c *slurm) outputPattern(jobs []Placed) string {
	if len(jobs) == 1 {
		return path.Join(jobs[0].Dir, "slurm-%j.out")
	}
	return path.Join(c.root, "runs", "slurm-"+jobs[0].Job.Name+"-%A_%a.out")
}

func (c *slurm) scriptPath(jobs []Placed) string { return path.Join(jobs[0].Dir, scriptName) }

// Check asks Slurm whether it would take the job.
func (c *slurm) Check(ctx context.Context, jobs []Placed) []Finding {
	out, err := c.host.Run(ctx, "sinfo --version && "+c.sbatch(jobs, "--test-only", c.scriptPath(jobs))+" 2>&1", nil, nil)
	f := Finding{What: "Slurm", Level: LevelOK, Found: strings.Join(strings.Fields(string(out)), " ")}
	if err != nil {
		f.Level, f.Found = LevelFail, strings.Join(strings.Fields(string(out)+" "+err.Error()), " ")
		f.WayOut = "slurm in the file of targets must ask for what sinfo and your account have; Slurm says the same while all such nodes are drained"
	}
	return []Finding{f}
}

// Start submits the jobs that do not run or wait already. Their numbers are kept by the same command on the far side, so
// that a connection that ends meanwhile leaves no unknown job.
func (c *slurm) Start(ctx context.Context, jobs []Placed, secrets map[string]string) error {
	for _, j := range jobs {
		s, err := c.Status(ctx, j.Dir)
		if err != nil {
			return err
		}
		if !s.Resumable() {
			if len(jobs) == 1 {
				return nil
			}
			return usage("%s is %s already: leave it out of the array", j.Job.Name, s.Phase)
		}
	}
	script, err := c.Script(jobs)
	if err != nil {
		return err
	}
	if err := putText(c.host, c.scriptPath(jobs), []byte(script), privateFile); err != nil {
		return err
	}
	var submit strings.Builder
	fmt.Fprintf(&submit, "umask 077\nid=$(%s) || exit\nid=${id%%%%;*}\n", c.sbatch(jobs, c.scriptPath(jobs)))
	for i, j := range jobs {
		element := ""
		if len(jobs) > 1 {
			element = fmt.Sprintf("_%d", i)
		}
		file := path.Join(j.Dir, slurmName)
		fmt.Fprintf(&submit, "echo \"$id\"%s >%s && mv %s %s || exit\n", element, spell.Quote(file+".tmp"), spell.Quote(file+".tmp"), spell.Quote(file))
	}
	submit.WriteString("echo \"$id\"\n")
	if _, err := c.host.Run(ctx, submit.String(), nil, secrets); err != nil {
		return fmt.Errorf("submit to Slurm: %w", err)
	}
	return nil
}

var slurmJobNumber = regexp.MustCompile(`^[0-9]+(_[0-9]+)?$`)

// jobID is that of a job folder; empty if it was never submitted.
func (c *slurm) jobID(dir string) (string, error) {
	text, err := readSmall(c.host, path.Join(dir, slurmName), maxJobBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	id := strings.TrimSpace(string(text))
	if err == nil && !slurmJobNumber.MatchString(id) {
		err = fmt.Errorf("%s on %s: %q is no job", slurmName, c.host.Name(), id)
	}
	return id, err
}

// slurmState is what Slurm knows of a job.
type slurmState struct {
	known                bool
	state, reason, nodes string
	exit                 string
}

func (c *slurm) ask(ctx context.Context, id string) (slurmState, error) {
	out, err := c.host.Run(ctx, "LC_ALL=C "+quoteAll("scontrol", "--oneliner", "show", "job", id), nil, nil)
	var exit *ExitError
	if errors.As(err, &exit) && strings.Contains(exit.Stderr, "Invalid job id") {
		return slurmState{}, nil // over for so long that Slurm has forgotten it
	}
	if err != nil {
		return slurmState{}, fmt.Errorf("ask Slurm about job %s: %w", id, err)
	}
	return parseSlurmJob(string(out)), nil
}

// parseSlurmJob reads the line that scontrol prints about a job.
func parseSlurmJob(line string) slurmState {
	line, _, _ = strings.Cut(line, "\n")
	s := slurmState{known: true}
	for field := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "JobState":
			s.state = value
		case "Reason":
			s.reason = value
		case "NodeList":
			s.nodes = value
		case "ExitCode":
			s.exit = value
		}
	}
	return s
}

// Status lays what Slurm says over what the supervisor wrote down.
func (c *slurm) Status(ctx context.Context, dir string) (State, error) {
	id, err := c.jobID(dir)
	if err != nil {
		return State{}, err
	}
	var job slurmState
	if id != "" {
		if job, err = c.ask(ctx, id); err != nil {
			return State{}, err
		}
	}
	// Read after Slurm was asked: of a job that is over the supervisor has written its last.
	s := State{Phase: PhaseNew}
	text, err := readSmall(c.host, path.Join(dir, stateName), maxJobBytes)
	if err == nil {
		s, err = parseState(text)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if id == "" || err != nil {
		return s, err
	}
	s.SlurmJob = id
	return layOver(s, job), nil
}

// endsOfSlurm are the states in which a job is over, with what they mean for the run.
var endsOfSlurm = map[string]struct{ phase, words string }{
	"COMPLETED":     {PhaseDone, "the job completed"},
	"CANCELLED":     {PhaseStopped, "the job was cancelled"},
	"PREEMPTED":     {PhaseStopped, "the job was preempted, and is not queued again"},
	"TIMEOUT":       {PhaseFailed, "the time was up before the run had saved and ended: raise slurm.stop_before or slurm.time"},
	"DEADLINE":      {PhaseFailed, "the job's deadline passed"},
	"NODE_FAIL":     {PhaseFailed, "the node failed"},
	"BOOT_FAIL":     {PhaseFailed, "the node did not boot"},
	"OUT_OF_MEMORY": {PhaseFailed, "the job took more memory than slurm.mem: raise it, or let the run take less (cftune doctor)"},
	"FAILED":        {PhaseFailed, "the job failed"},
}

// layOver says how a run stands by what the supervisor wrote (s) and what Slurm knows.
func layOver(s State, job slurmState) State {
	at := func(words string) string { return fmt.Sprintf("job %s: %s", s.SlurmJob, words) }
	end, over := endsOfSlurm[job.state]
	switch {
	case !job.known && Over(s.Phase) && s.Phase != PhaseNew:
	case !job.known:
		s.Phase, s.Message = PhaseLost, at("Slurm does not know it any more, and nobody wrote down how it ended")
	case over && Over(s.Phase) && s.Phase != PhaseNew:
		// The supervisor knows better, unless it was interrupted by what Slurm did.
		if s.Phase == PhaseStopped && job.state != "FAILED" && job.state != "COMPLETED" {
			s.Message = at(end.words) + "; " + s.Message
		}
	case over:
		s.Phase, s.Message = end.phase, fmt.Sprintf("%s (%s, exit code %s, on %s)", at(end.words), job.state, job.exit, job.nodes)
		if end.phase == PhaseDone {
			s.Phase, s.Message = PhaseLost, at("it is over, and the run's supervisor never began: see slurm-*.out in the job folder")
		}
	case job.state == "PENDING" || strings.HasPrefix(job.state, "REQUEUE") || job.state == "SPECIAL_EXIT":
		s.Phase, s.Message = PhasePending, at(strings.ToLower(job.state)+": "+job.reason)
	case job.state == "COMPLETING" && s.Phase == PhaseStopped:
		s.Phase = PhaseEnding // preempted jobs are queued again after this
	case job.state == "COMPLETING" && Over(s.Phase) && s.Phase != PhaseNew:
	case s.Phase != PhaseRetrying && s.Phase != PhaseRequeued:
		s.Phase, s.Message = PhaseRunning, at(strings.ToLower(job.state)+" on "+job.nodes)
	}
	return s
}

// Stop cancels a job that waits; one that runs is told to save and end, and is waited for.
func (c *slurm) Stop(ctx context.Context, dir string) (State, error) {
	told := ""
	for deadline := time.Now().Add(stopTimeout); ; {
		s, err := c.Status(ctx, dir)
		if err != nil || Over(s.Phase) {
			return s, err
		}
		words := []string{"scancel", s.SlurmJob}
		if s.Phase == PhaseRunning || s.Phase == PhaseRetrying {
			words = []string{"scancel", "--batch", "--signal=TERM", s.SlurmJob}
		}
		if time.Now().After(deadline) {
			return s, fmt.Errorf("job %s was told to end %v ago and has not: cftune launch stop, given again, ends it without another checkpoint", s.SlurmJob, stopTimeout)
		}
		if command := quoteAll(words...); command != told && s.Phase != PhaseEnding {
			if _, err := c.host.Run(ctx, command, nil, nil); err != nil {
				return s, fmt.Errorf("stop job %s: %w", s.SlurmJob, err)
			}
			told = command
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-time.After(pollSlow):
		}
	}
}

// Remove removes a job folder whose job is over.
func (c *slurm) Remove(ctx context.Context, dir string) error {
	s, err := c.Status(ctx, dir)
	if err != nil {
		return err
	}
	if !Over(s.Phase) {
		return fmt.Errorf("it is %s: cftune launch stop ends it first", s.Phase)
	}
	if _, err := c.job(dir); err != nil {
		return fmt.Errorf("%s holds no job: %w", dir, err)
	}
	_, err = c.host.Run(ctx, "rm -rf -- "+spell.Quote(dir), nil, nil)
	return err
}
