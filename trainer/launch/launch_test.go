package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/spell"
	"cftune/trainer/config"
	"cftune/trainer/internal/durable"
)

func TestExampleOfTargetsIsRead(t *testing.T) {
	text, err := os.ReadFile("../../configs/launch/hosts.example.yaml")
	require.NoError(t, err)
	targets, err := ParseHosts(text)
	require.NoError(t, err)
	assert.Equal(t, []string{"cloud", "cluster", "gpu1", "here"}, sortedKeys(targets))
	assert.Equal(t, 120, targets["cluster"].Slurm.stopBefore())
}

func TestTargetsAreStrict(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "targets: {a: {kind: local, foldr: x}}", "unknown key foldr"},
		{"no kind", "targets: {a: {folder: x}}", "targets.a.kind: missing"},
		{"wrong kind", "targets: {a: {kind: docker}}", `kind: "docker" is not local, ssh, slurm or kubernetes`},
		{"ssh without host", "targets: {a: {kind: ssh}}", "host: missing"},
		{"a host that is an option", "targets: {a: {kind: ssh, host: -oProxyCommand=x}}", "is no name of one"},
		{"a line break in a path", `targets: {a: {kind: local, folder: "x\ny"}}`, "line break"},
		{"a secret's value in the file", "targets: {a: {kind: local, env: {TOKEN: x}, secrets: [TOKEN]}}", "env.TOKEN: it is among the secrets"},
		{"a variable that is none", "targets: {a: {kind: local, secrets: ['A; rm']}}", "is no name of a variable"},
		{"a partition that is a line", `targets: {a: {kind: slurm, slurm: {partition: "p\n#SBATCH --uid=0"}}}`, "partition"},
		{"more nodes than processes", "targets: {a: {kind: slurm, slurm: {nodes: 2}}}", "nodes: 2 are too many for 1 processes"},
		{"more devices than processes", "targets: {a: {kind: slurm, processes: 2, slurm: {gpus: 4}}}", "gpus: each process trains on one device, got 4 for 2"},
		{"processes of nothing", "targets: {a: {kind: ssh, host: b, processes: -1}}", "processes: must be 0 to"},
		{"processes of pods", "targets: {a: {kind: kubernetes, processes: 2, kubernetes: {image: i}}}", "processes: in Kubernetes they are pods times gpus"},
		{"slurm elsewhere", "targets: {a: {kind: local, slurm: {gpus: 1}}}", "only a target of kind slurm"},
		{"a name that is a path", "targets: {../a: {kind: local}}", "is no name"},
		{"a target twice", "targets: {a: {kind: local}, a: {kind: local}}", "already defined"},
		{"two documents", "targets: {a: {kind: local}}\n---\n{}", "one YAML document"},
		{"nothing", "", "there are none"},
		{"all at once", "targets: {a: {kind: ssh, port: 70000}}", "host: missing\ntargets.a.port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseHosts([]byte(c.text))
			assert.ErrorContains(t, err, c.want)
		})
	}
}

func TestControlCharactersInPaths(t *testing.T) {
	for _, path := range []string{"a\nb", "a\rb", "a\x00b", "a\x7fb"} {
		assert.Error(t, checkPath(path), "%q", path)
	}
}

func TestEnvironmentComesAheadOfInput(t *testing.T) {
	script, input := withEnvironment(`printf '%s|' "$B" "$A"; cat`, []byte("the input\n"), map[string]string{"A": `x 'y" $(z)\`, "B": " padded "})
	out, err := localHost{}.Run(t.Context(), script, input, nil)
	require.NoError(t, err)
	assert.Equal(t, ` padded |x 'y" $(z)\|the input`+"\n", string(out))
	assert.NotContains(t, script, "x 'y")
}

func TestSSHConfigBasics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(path, []byte("# mine\nHost gpu !gpu9 gpu?\n  HostName %h.example.org\n  Port=2222\n  IdentityFile \"~/my key\"\nMatch all\n  User nobody\nHost *\n  User me\n  Port 1\n  ProxyJump bastion\n"), 0o600))
	s, err := readSSHConfig(path, "gpu1")
	require.NoError(t, err)
	assert.Equal(t, sshSettings{HostName: "gpu1.example.org", Port: 2222, User: "me", ProxyJump: "bastion", Identity: []string{"~/my key"}}, s)
	s, err = readSSHConfig(path, "gpu9")
	require.NoError(t, err)
	assert.Equal(t, "", s.HostName)
	s, err = readSSHConfig(path+".missing", "gpu1")
	require.NoError(t, err)
	assert.Equal(t, sshSettings{}, s)
}

// countingHost counts what is written and can fail in the middle.
type countingHost struct {
	localHost
	written int
	failAt  int // bytes of one call; 0 = never
}

type countingWriter struct {
	io.WriteCloser
	h    *countingHost
	here int
}

func (h *countingHost) WriteFrom(path string, offset int64) (io.WriteCloser, error) {
	w, err := h.localHost.WriteFrom(path, offset)
	return &countingWriter{WriteCloser: w, h: h}, err
}

func (w *countingWriter) Write(p []byte) (int, error) {
	if w.h.failAt > 0 && w.here+len(p) > w.h.failAt {
		return 0, errors.New("the line is cut")
	}
	n, err := w.WriteCloser.Write(p)
	w.here += n
	w.h.written += n
	return n, err
}

func TestAnInterruptedUploadGoesOn(t *testing.T) {
	dir := t.TempDir()
	const size = 24 << 20
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	local, remote := filepath.Join(dir, "file"), filepath.Join(dir, "far", "file")
	require.NoError(t, os.WriteFile(local, content, 0o600))
	want, err := durable.Digest(local)
	require.NoError(t, err)

	h := &countingHost{failAt: 16 << 20}
	require.ErrorContains(t, put(t.Context(), h, local, remote, want, privateFile), "the line is cut")
	assert.NoFileExists(t, remote, "a file has its name when it is whole")
	before := h.written
	require.Greater(t, before, stepBack)
	h.failAt = 0
	require.NoError(t, put(t.Context(), h, local, remote, want, privateFile))
	assert.Equal(t, size-before+stepBack, h.written-before, "what was there is not sent again, but for the last part")
	have, err := durable.Digest(remote)
	require.NoError(t, err)
	assert.Equal(t, want, have)

	// It is there: nothing is sent. Damaged, or a part of something else, it is sent anew.
	h.written = 0
	require.NoError(t, put(t.Context(), h, local, remote, want, privateFile))
	assert.Zero(t, h.written)
	require.NoError(t, os.Remove(remote))
	require.NoError(t, os.WriteFile(remote+partSuffix, make([]byte, size), 0o600))
	require.NoError(t, put(t.Context(), h, local, remote, want, privateFile))
	have, err = durable.Digest(remote)
	require.NoError(t, err)
	assert.Equal(t, want, have)
	assert.NoFileExists(t, remote+partSuffix)

	back := filepath.Join(dir, "back")
	require.NoError(t, os.WriteFile(back+partSuffix, content[:1000], 0o600))
	require.NoError(t, get(t.Context(), h, remote, back))
	have, err = durable.Digest(back)
	require.NoError(t, err)
	assert.Equal(t, want, have)
}

func TestPathsOfConfigurations(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"m.gguf", "d.jsonl"} {
		require.NoError(t, os.WriteFile(name, []byte(name), 0o600))
	}
	require.NoError(t, os.Mkdir("folder", 0o700))
	run, err := config.Parse([]byte("model: m.gguf\noutput: o\ndata: {sources: [{path: d.jsonl, format: cft}, {path: 's3://b/x.jsonl', format: cft}, {path: there/x/y.jsonl, format: cft}]}"), nil, nil)
	require.NoError(t, err)
	target := TargetConfig{Paths: map[string]string{"there/": "/data/", "there/x/": "/fast/"}, name: "far"}
	s, err := shipConfig(run, target, "/root", "/root/runs/o/run", false)
	require.NoError(t, err)
	assert.Len(t, s.uploads, 2)
	assert.Equal(t, s.uploads[0].remote, s.run.Model)
	assert.Equal(t, "s3://b/x.jsonl", s.run.Data.Sources[1].Path)
	assert.Equal(t, "/fast/y.jsonl", s.run.Data.Sources[2].Path, "the longest beginning counts")
	assert.Equal(t, "d.jsonl", run.Data.Sources[0].Path, "the caller's configuration stays")
	again, err := config.Parse(s.text, nil, nil)
	require.NoError(t, err, "what is sent is a configuration")
	assert.Equal(t, s.run, again)

	run.Model = "missing.gguf"
	run.Data.Sources[0].Path = "-"
	run.Data.Sources[1].Path = "folder"
	_, err = shipConfig(run, target, "/root", "/root/runs/o/run", false)
	assert.ErrorContains(t, err, "model: missing.gguf is not here")
	assert.ErrorContains(t, err, "data.sources[0].path: standard input")
	assert.ErrorContains(t, err, "data.sources[1].path: folder is no plain file")
}

func TestShardsAreSentTogether(t *testing.T) {
	t.Chdir(t.TempDir())
	run, err := config.Parse([]byte("model: m-00001-of-00002.gguf\noutput: o\ndata: {sources: [{path: 's3://b/x.jsonl', format: cft}]}"), nil, nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile("m-00001-of-00002.gguf", []byte("1"), 0o600))
	_, err = shipConfig(run, TargetConfig{}, "/root", "/out", false)
	assert.ErrorContains(t, err, "m-00002-of-00002.gguf")
	require.NoError(t, os.WriteFile("m-00002-of-00002.gguf", []byte("2"), 0o600))
	s, err := shipConfig(run, TargetConfig{}, "/root", "/out", false)
	require.NoError(t, err)
	require.Len(t, s.uploads, 2)
	assert.Equal(t, strings.Replace(s.run.Model, "00001-of", "00002-of", 1), s.uploads[1].remote)
	require.NoError(t, os.WriteFile("m-00002-of-00002.gguf", []byte("3"), 0o600))
	other, err := shipConfig(run, TargetConfig{}, "/root", "/out", false)
	require.NoError(t, err)
	assert.NotEqual(t, s.run.Model, other.run.Model, "a folder is of all its shards")
}

func TestPathsOfTargetsAreBesideTheirFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, HostsName)
	require.NoError(t, os.WriteFile(path, []byte("targets: {a: {kind: ssh, host: h, identity: [key, /abs], known_hosts: sub/known, folder: there}}"), 0o600))
	target, err := LoadTarget(path, "a")
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(dir, "key"), "/abs"}, target.Identity)
	assert.Equal(t, filepath.Join(dir, "sub", "known"), target.KnownHosts)
	assert.Equal(t, "there", target.Folder, "the folder is the far side's")
	_, err = LoadTarget(path, "b")
	assert.ErrorContains(t, err, `no target "b"; there are: a`)
}

// supervised runs a job whose program is a shell script.
func supervised(t *testing.T, script string, job Job, ask func(dir string, asks chan<- Ask)) (State, int) {
	t.Helper()
	return supervisedFor(t, patience, script, job, ask)
}

func supervisedFor(t *testing.T, patience time.Duration, script string, job Job, ask func(dir string, asks chan<- Ask)) (State, int) {
	t.Helper()
	dir := t.TempDir()
	job.Format, job.Name, job.Program = JobFormat, "test", filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(job.Program, []byte("#!/bin/sh\n"+script), 0o700))
	text, err := json.Marshal(job)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, jobName), text, 0o600))
	asks := make(chan Ask)
	if ask != nil {
		go ask(dir, asks)
	}
	code, err := supervise(dir, asks, patience)
	require.NoError(t, err)
	state, err := readState(dir)
	require.NoError(t, err)
	return state, code
}

func TestSupervisorTriesAgainWhatMayPass(t *testing.T) {
	again := Job{Retries: 2, Backoff: time.Millisecond}
	for _, c := range []struct {
		name, script string
		job          Job
		phase        string
		attempts     int
		code         int
	}{
		{"done at once", "exit 0", again, PhaseDone, 1, 0},
		{"done the second time", "[ -e once ] && exit 0; touch once; exit 5", again, PhaseDone, 2, 0},
		{"killed by somebody, then done", "[ -e once ] && exit 0; touch once; kill -9 $$", again, PhaseDone, 2, 0},
		{"a wrong configuration stays wrong", "exit 2", again, PhaseFailed, 1, 2},
		{"damaged checkpoints stay so", "exit 4", again, PhaseFailed, 1, 4},
		{"there is an end to it", "exit 1", again, PhaseFailed, 3, 1},
		{"no retries", "exit 1", Job{}, PhaseFailed, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, code := supervised(t, c.script, c.job, nil)
			assert.Equal(t, c.phase, s.Phase, s.Message)
			assert.Len(t, s.Attempts, c.attempts)
			assert.Equal(t, c.code, code)
		})
	}
}

// onceBegun asks when the job's program has made the file "began".
func onceBegun(ask Ask) func(dir string, asks chan<- Ask) {
	return func(dir string, asks chan<- Ask) {
		for {
			if _, err := os.Stat(filepath.Join(dir, "began")); err == nil {
				asks <- ask
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestSupervisorStopsWhenAsked(t *testing.T) {
	s, code := supervised(t, "trap 'exit 130' TERM; touch began; while :; do sleep 0.01; done", Job{Retries: 5}, onceBegun(AskStop))
	assert.Equal(t, PhaseStopped, s.Phase)
	assert.Equal(t, 130, code)
	assert.Len(t, s.Attempts, 1)

	s, _ = supervised(t, "exit 1", Job{Retries: 5, Backoff: time.Hour}, func(_ string, asks chan<- Ask) { asks <- AskStop })
	assert.Equal(t, PhaseStopped, s.Phase, "a pause is ended too")
}

// Asked twice, a run still saves; one that hangs is ended when it is asked again after a while.
func TestSupervisorEndsWhatHangs(t *testing.T) {
	twice := func(dir string, asks chan<- Ask) {
		onceBegun(AskStop)(dir, asks)
		asks <- AskStop
	}
	const saves = "n=0; trap 'n=$((n+1)); [ $n -gt 1 ] && exit 99; touch asked' TERM; touch began; while [ ! -e asked ]; do sleep 0.01; done; sleep 0.3; exit 130"
	s, code := supervised(t, saves, Job{}, twice)
	assert.Equal(t, PhaseStopped, s.Phase)
	assert.Equal(t, 130, code, "the second word came too soon to count")

	const hangs = "trap '' TERM; touch began; while :; do sleep 0.01; done"
	s, code = supervisedFor(t, 0, hangs, Job{}, twice)
	assert.Equal(t, PhaseStopped, s.Phase)
	assert.Equal(t, -1, code)
	assert.Equal(t, "killed", s.Attempts[0].Signal)
}

// A turn that saves nothing is not asked for again, or it would be for ever.
func TestSupervisorTakesAnotherTurnForProgressOnly(t *testing.T) {
	const begin, end = "trap 'exit 130' TERM; touch began; ", "while :; do sleep 0.01; done"
	run := filepath.Join(t.TempDir(), "run")
	s, code := supervised(t, begin+end, Job{Requeue: true, Run: run}, onceBegun(AskRequeue))
	assert.Equal(t, PhaseStopped, s.Phase)
	assert.Contains(t, s.Message, "before a step of this turn was saved")
	assert.Equal(t, 130, code)

	saves := "mkdir -p " + spell.Quote(run+"/checkpoints/step-00000005") + "; echo {} >" + spell.Quote(run+"/config.json") + "; "
	s, _ = supervised(t, saves+begin+end, Job{Requeue: true, Run: run}, onceBegun(AskRequeue))
	assert.Contains(t, s.Message, "Slurm gives no other turn", "it was asked for, where there is no job")
}

func TestALauncherIsMindedByTheProgram(t *testing.T) {
	job := Job{Program: "/far/cftune"}
	assert.Equal(t, "/far/cftune train --config c --dry-run", strings.Join(job.command("c", "--dry-run"), " "))
	job.Launcher = TargetConfig{Kind: KindSSH, Processes: 8}.launcher()
	assert.Equal(t, "/far/cftune launch together -- mpirun -np 8 --bind-to none /far/cftune train --config c --or-resume --parallel mpi",
		strings.Join(job.command("c", "--or-resume"), " "))
	job.Launcher = TargetConfig{Kind: KindSlurm, Processes: 8, Slurm: Slurm{CPUs: 4, MPI: "pmi2"}}.launcher()
	assert.Equal(t, "/far/cftune launch together -- srun --ntasks=8 --mpi=pmi2 --export=ALL --kill-on-bad-exit=1 --cpus-per-task=4 /far/cftune train --config c --parallel mpi",
		strings.Join(job.command("c"), " "))
	assert.Nil(t, TargetConfig{Kind: KindSSH, Processes: 1}.launcher())
}

// Asked to end, processes get the signal that launchers hand on, and their exit code is what comes back.
func TestProcessesOfALauncherAreAskedToSave(t *testing.T) {
	stop := make(chan struct{})
	began, in := io.Pipe()
	go func() {
		line := make([]byte, 1)
		_, _ = began.Read(line)
		close(stop)
	}()
	code, err := Together([]string{"sh", "-c", "trap 'exit 77' USR2; echo; while :; do sleep 0.01; done"}, stop, nil, nil, in, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, 77, code)
	code, err = Together([]string{"sleep", "60"}, stop, nil, nil, io.Discard, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, exitInterrupted, code, "asked before it knew the signal")
	code, err = Together([]string{"sh", "-c", fmt.Sprintf("kill -%d $$", SaveSignal)}, nil, nil, nil, io.Discard, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, 128+int(SaveSignal), code, "ended by it without being asked")
	code, err = Together([]string{"sh", "-c", "kill -9 $$"}, nil, nil, nil, io.Discard, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, 137, code)
	var out strings.Builder
	_, err = Together([]string{"sh", "-c", "echo $OMPI_MCA_rmaps_base_oversubscribe"}, nil, nil, nil, &out, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, "1\n", out.String(), "more processes than processors")
	out.Reset()
	t.Setenv("OMPI_MCA_rmaps_base_oversubscribe", "0")
	_, err = Together([]string{"sh", "-c", "echo $OMPI_MCA_rmaps_base_oversubscribe"}, nil, nil, nil, &out, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, "0\n", out.String(), "the user's own word counts")
	kill := make(chan struct{})
	began, in = io.Pipe()
	go func() {
		line := make([]byte, 1)
		_, _ = began.Read(line)
		close(kill)
	}()
	code, err = Together([]string{"sh", "-c", "trap '' USR2; trap 'exit 78' TERM; echo; while :; do sleep 0.01; done"}, nil, kill, nil, in, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, 78, code, "ended at once")
	_, err = Together([]string{"./none"}, nil, nil, nil, io.Discard, io.Discard)
	assert.ErrorContains(t, err, "start several processes")
}

func TestSupervisorWantsItsSecrets(t *testing.T) {
	dir := t.TempDir()
	text, err := json.Marshal(Job{Format: JobFormat, Name: "test", Program: "/bin/true", Secrets: []string{"NOT_SET_IN_TESTS"}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, jobName), text, 0o600))
	_, err = Supervise(dir, nil)
	require.ErrorContains(t, err, "NOT_SET_IN_TESTS")
	s, err := readState(dir)
	require.NoError(t, err)
	assert.Equal(t, PhaseFailed, s.Phase)
}

func TestASupervisorThatIsGoneMakesALostRun(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, jobName), []byte(`{"format": 1}`), 0o600))
	s := State{Phase: PhaseRunning}
	require.NoError(t, s.identify())
	require.NoError(t, writeState(dir, s))
	a, err := farStatus(dir)
	require.NoError(t, err)
	assert.Equal(t, PhaseRunning, a.State.Phase, "this process is alive")
	s.Began += "0" // the number was given to another process since
	require.NoError(t, writeState(dir, s))
	a, err = farStatus(dir)
	require.NoError(t, err)
	assert.Equal(t, PhaseLost, a.State.Phase)
	assert.Contains(t, a.State.Message, "gone without a word")
}

func TestSlurmScript(t *testing.T) {
	yes := true
	c := &slurm{&direct{root: "/far", config: TargetConfig{Kind: KindSlurm, Slurm: Slurm{
		Partition: "gpu", Account: "lab", QOS: "low", Constraint: "a100&nvlink", GPUs: 1, CPUs: 8, Mem: "32G", Time: "12:00:00", Requeue: &yes, ArrayLimit: 2,
	}}}}
	script, err := c.Script([]Placed{
		{Job: Job{Name: "a", Program: "/far/it's/cftune"}, Dir: "/far/runs/$(touch pwned)"}, {Job: Job{Name: "b", Program: "/far/cftune"}, Dir: "/far/runs/b"},
	})
	require.NoError(t, err)
	want, err := os.ReadFile(filepath.Join("testdata", "array.sh"))
	require.NoError(t, err)
	assert.Equal(t, string(want), script)
	// A shell reads it as it is meant.
	script = strings.ReplaceAll(script, "cd -- ", "echo ")
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env = []string{"SLURM_ARRAY_TASK_ID=0", "PATH=" + os.Getenv("PATH")}
	out, _ := cmd.CombinedOutput() // the program is not there
	assert.Contains(t, string(out), "/far/runs/$(touch pwned)\n")
	assert.NoFileExists(t, "pwned")
}

func TestARunMustFitIntoTheMemoryThatSlurmIsAskedFor(t *testing.T) {
	for _, c := range []struct {
		mem       string
		processes int
		nodes     int
		gpus      int
		want      string
	}{
		{"", 1, 1, 0, LevelWarn},
		{"32G", 1, 1, 1, LevelWarn},
		{"2048", 1, 1, 0, LevelOK},
		{"2G", 2, 1, 0, LevelOK},
		{"2G", 3, 1, 0, LevelFail},
		{"2G", 4, 2, 0, LevelOK},
		{"2G", 5, 2, 0, LevelFail},
		{"1023M", 1, 1, 0, LevelFail},
		{"1048576K", 1, 1, 0, LevelOK},
		{"99999999999999999T", 1, 1, 0, LevelWarn},
	} {
		p := &Plan{config: TargetConfig{Kind: KindSlurm, Processes: c.processes, Slurm: Slurm{Mem: c.mem, Nodes: c.nodes, GPUs: c.gpus}}}
		f := p.fitsNode(doctorRun{Buffers: 1 << 30, Available: 1})
		assert.Equal(t, c.want, f.Level, "%+v: %+v", c, f)
	}
}

func TestStatesOfSlurm(t *testing.T) {
	for _, c := range []struct {
		was, line, want, message string
	}{
		{PhaseNew, "JobId=7 JobState=PENDING Reason=Resources", PhasePending, "pending: Resources"},
		{PhaseNew, "JobId=7 JobState=RUNNING NodeList=n1", PhaseRunning, "running on n1"},
		{PhaseRetrying, "JobId=7 JobState=RUNNING NodeList=n1", PhaseRetrying, ""},
		{PhaseStopped, "JobId=7 JobState=PENDING Reason=BeginTime", PhasePending, "BeginTime"},
		{PhaseStopped, "JobId=7 JobState=COMPLETING", PhaseEnding, "own words"},
		{PhaseDone, "JobId=7 JobState=COMPLETING", PhaseDone, "own words"},
		{PhaseDone, "JobId=7 JobState=COMPLETED", PhaseDone, ""},
		{PhaseRunning, "JobId=7 JobState=TIMEOUT ExitCode=0:15 NodeList=n1", PhaseFailed, "time was up"},
		{PhaseRunning, "JobId=7 JobState=NODE_FAIL", PhaseFailed, "the node failed"},
		{PhaseRunning, "JobId=7 JobState=OUT_OF_MEMORY", PhaseFailed, "more memory than slurm.mem"},
		{PhaseStopped, "JobId=7 JobState=PREEMPTED", PhaseStopped, "preempted"},
		{PhaseNew, "JobId=7 JobState=COMPLETED", PhaseLost, "never began"},
		{PhaseNew, "JobId=7 JobState=FAILED ExitCode=127:0", PhaseFailed, "127:0"},
		{PhaseFailed, "JobId=7 JobState=FAILED", PhaseFailed, "own words"},
	} {
		got := layOver(State{Phase: c.was, SlurmJob: "7", Message: "own words"}, parseSlurmJob(c.line+"\n"))
		assert.Equal(t, c.want, got.Phase, c.line)
		assert.Contains(t, got.Message, c.message, c.line)
	}
	assert.Equal(t, PhaseLost, layOver(State{Phase: PhaseRunning}, slurmState{}).Phase)
	assert.Equal(t, PhaseDone, layOver(State{Phase: PhaseDone}, slurmState{}).Phase)
}

func TestFollowingNothingIsAnError(t *testing.T) {
	f := &Follower{Name: "none", Log: io.Discard, Say: t.Logf, Open: func(ctx context.Context) (Target, error) {
		return OpenTarget(ctx, TargetConfig{Kind: KindLocal, Folder: t.TempDir()})
	}}
	_, err := f.Follow(t.Context())
	assert.ErrorContains(t, err, "there is no run none")
}

// endingHost is one on which a job ends while Slurm is asked about it.
type endingHost struct {
	localHost
	end func()
}

func (h endingHost) Run(context.Context, string, []byte, map[string]string) ([]byte, error) {
	h.end()
	return []byte("JobId=7 JobState=COMPLETED ExitCode=0:0 NodeList=n1"), nil
}

func TestAJobThatEndsWhileSlurmIsAskedIsNotLost(t *testing.T) {
	dir := t.TempDir()
	write := func(phase string) { require.NoError(t, writeState(dir, State{Phase: phase})) }
	write(PhaseRunning)
	require.NoError(t, os.WriteFile(filepath.Join(dir, slurmName), []byte("7\n"), 0o600))
	c := &slurm{direct: &direct{host: endingHost{end: func() { write(PhaseDone) }}}}
	s, err := c.Status(t.Context(), dir)
	require.NoError(t, err)
	assert.Equal(t, PhaseDone, s.Phase)
}
