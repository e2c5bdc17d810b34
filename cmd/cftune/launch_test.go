package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

// launchTimeout bounds each command of these tests; they take seconds.
const launchTimeout = 3 * time.Minute

// place is a user's machine: a home, a build, a model, data, and a file of targets.
type place struct {
	t       *testing.T
	dir     string
	program string
	env     []string
}

// newPlace makes one. The program is this test's binary under its proper name.
func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{t: t, dir: dir, program: filepath.Join(dir, "build", "bin", "cftune")}
	self, err := os.Executable()
	require.NoError(t, err)
	libraries, err := filepath.Abs(filepath.Join("..", "..", "build", "native", "lib"))
	require.NoError(t, err)
	for _, sub := range []string{"build/bin", "build/native", "home"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, sub), 0o700))
	}
	require.NoError(t, os.Link(self, p.program), "the test's binary and its folders must be on one disk")
	require.NoError(t, os.Symlink(libraries, filepath.Join(dir, "build", "native", "lib")))
	require.NoError(t, testmodel.Write(filepath.Join(dir, "tiny.gguf"), testmodel.Options{Seed: 1, Type: testmodel.Q8_0}))
	var rows strings.Builder
	for i := range 24 {
		fmt.Fprintf(&rows, `{"query": "What is %d + %d?", "response": "%d", "critique": "Conclusion: right [END]"}`+"\n", i, i+1, 2*i+1)
	}
	p.write("train.jsonl", rows.String())
	p.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(dir, "home"), "XDG_STATE_HOME=" + filepath.Join(dir, "state"), "LANG=C"}
	return p
}

func (p *place) write(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	require.NoError(p.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// config writes a run's configuration and returns its name.
func (p *place) config(name string, epochs int) string {
	p.write(name+".yaml", fmt.Sprintf(`model: tiny.gguf
output: runs/%s
threads: 1
data: {sources: [{path: train.jsonl, format: cft}]}
adapter: {rank: 4, alpha: 8}
train: {seq_len: 256, global_batch: {examples: 1}, epochs: %d}
checkpoint: {every_steps: 5}
`, name, epochs))
	return name + ".yaml"
}

// result is what a command said.
type result struct {
	out, err string
	code     int
}

func (p *place) run(args ...string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), launchTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.program, args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	require.NoError(p.t, ctx.Err(), "cftune %v takes longer than %v\n%s", args, launchTimeout, &errs)
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command that has to succeed.
func (p *place) must(args ...string) result {
	p.t.Helper()
	r := p.run(args...)
	require.Zero(p.t, r.code, "cftune %v\n%s%s", args, r.out, r.err)
	return r
}

// phase asks how a run stands.
func (p *place) phase(name string) (phase string, attempts int) {
	p.t.Helper()
	var s struct {
		Phase    string
		Attempts []struct{}
	}
	require.NoError(p.t, json.Unmarshal([]byte(p.must("launch", "status", name, "--json").out), &s))
	return s.Phase, len(s.Attempts)
}

// await waits until a file has so many lines.
func (p *place) await(path string, lines int) {
	p.t.Helper()
	require.NoError(p.t, awaitLines(path, lines, nil))
}

// checkpointOf returns a digest of what a checkpoint is: its manifest, which has the digests of all its files.
func (p *place) manifest(run string, step int) string {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.dir, run, "checkpoints", fmt.Sprintf("step-%08d", step), "manifest.json"))
	require.NoError(p.t, err)
	return string(text)
}

func TestLaunchHere(t *testing.T) {
	p := newPlace(t)
	p.write("hosts.yaml", "targets: {here: {kind: local, retries: 0}}\n")
	p.config("straight", 1)
	p.config("launched", 1)
	p.must("train", "--config", "straight.yaml")

	r := p.must("launch", "-c", "launched.yaml", "--on", "here", "--dry-run")
	require.Contains(t, r.out, "launch' 'job'")
	require.NoDirExists(t, filepath.Join(p.dir, "home", "cftune-launch"), "a dry run writes nothing")

	r = p.must("launch", "-c", "launched.yaml", "--on", "here")
	require.Contains(t, r.err, "launched is done")
	require.Equal(t, p.manifest("runs/straight", 24), p.manifest("runs/launched", 24))
	r = p.must("launch", "-c", "launched.yaml", "--on", "here")
	require.Contains(t, r.err, "launched is done already")
	_, attempts := p.phase("launched")
	require.Equal(t, 1, attempts, "a run that is done is not started again")
	require.Contains(t, p.must("launch", "fetch", "launched").err, "runs/launched: made here, so that there is nothing to fetch; verified")
}

// A limit ends a run well, with steps left; resumed by name it goes on, and launched again it does not.
func TestLaunchResumeAfterMaxTime(t *testing.T) {
	p := newPlace(t)
	p.write("hosts.yaml", "targets: {here: {kind: local, retries: 0}}\n")
	p.config("straight", 2000)
	p.config("limited", 2000)
	launch := []string{"launch", "-c", "limited.yaml", "--on", "here", "--set", "limits.max_time=500ms"}
	r := p.must(launch...)
	require.Contains(t, r.err, "limited is done: it ended with steps left (max_time); cftune launch resume limited goes on")
	r = p.must(launch...)
	require.Contains(t, r.err, "it ended with steps left (max_time)")
	phase, attempts := p.phase("limited")
	require.Equal(t, "done", phase)
	require.Equal(t, 1, attempts)
	var before, after struct {
		Step int
	}
	require.NoError(t, json.Unmarshal([]byte(p.must("runs", "show", "runs/limited", "--json").out), &before))
	r = p.must("launch", "resume", "limited")
	require.Contains(t, r.err, "steps left (max_time)")
	require.NoError(t, json.Unmarshal([]byte(p.must("runs", "show", "runs/limited", "--json").out), &after))
	require.Greater(t, after.Step, before.Step)
	_, attempts = p.phase("limited")
	require.Equal(t, 2, attempts)
}

// Builds are large, and somebody removes them: a run is found, goes on and is removed all the same.
func TestLaunchWhenTheBuildIsGone(t *testing.T) {
	p := newPlace(t)
	p.write("hosts.yaml", "targets: {here: {kind: local, retries: 0}}\n")
	p.config("run", 3000)
	builds := filepath.Join(p.dir, "home", "cftune-launch", "builds")
	launch := []string{"launch", "-c", "run.yaml", "--on", "here", "--detach"}
	p.must(launch...)
	p.await(filepath.Join(p.dir, "runs", "run", "metrics.jsonl"), 20)
	require.NoError(t, os.RemoveAll(builds))
	r := p.must("launch", "status", "run")
	require.Contains(t, r.out, "lost")
	require.Contains(t, r.out, "the build of run is gone from this machine")
	r = p.run("launch", "remove", "run")
	require.Equal(t, 1, r.code, "it may run")
	require.Contains(t, r.err, "the command that launched it, given again, sends a build and goes on")

	p.must(launch...)
	phase, attempts := p.phase("run")
	require.Equal(t, "running", phase)
	require.Equal(t, 1, attempts, "it has never stopped")
	p.must("launch", "stop", "run")
	require.NoError(t, os.RemoveAll(builds))
	phase, _ = p.phase("run")
	require.Equal(t, "stopped", phase)
	require.Equal(t, 1, p.run("launch", "resume", "run").code)
	p.must("launch", "remove", "run")
	require.NoDirExists(t, filepath.Join(filepath.Dir(builds), "runs", "run"))
}

func TestLaunchSeveralProcessesHere(t *testing.T) {
	if _, err := exec.LookPath("mpirun"); err != nil {
		t.Skip("no mpirun: scripts/install-deps installs openmpi-bin and libopenmpi-dev")
	}
	p := newPlace(t)
	p.write("hosts.yaml", "targets: {here: {kind: local, retries: 0, processes: 2}, without: {kind: local, processes: 2, env: {PATH: /nowhere}}}\n")
	p.config("straight", 1)
	p.config("launched", 1)
	p.must("train", "--config", "straight.yaml", "--processes", "2")
	r := p.must("launch", "-c", "launched.yaml", "--on", "here")
	require.Contains(t, r.err, "launched is done")
	require.Contains(t, r.err, ", for each of 2 processes")
	require.Contains(t, r.err, "2 processes train together")
	require.Equal(t, p.manifest("runs/straight", 24), p.manifest("runs/launched", 24))

	// A machine without mpirun: that shows before anything runs.
	p.config("other", 1)
	r = p.run("launch", "-c", "other.yaml", "--on", "without")
	require.Equal(t, codeDevice, r.code)
	require.Contains(t, r.err, `exec: "mpirun": executable file not found`)
	require.Contains(t, r.err, "without cannot take the run")
}

// lockedBuffer is written by a process's output and read meanwhile.
type lockedBuffer struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}
