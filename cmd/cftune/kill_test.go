package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cftune/internal/testfiles"
)

// The kill tests train the real model in a child process and end that with SIGKILL. After every death the run must be
// whole and go on, and in the end it must be, byte for byte, the run that nobody disturbed. SOAK_KILLS asks for
// more random deaths (make soak); with the build tag crashpoints and SOAK_POINTS the child also dies at each point
// of its writing.
const shortKills = 6

const killConfig = `model: %s
output: run
seed: 5
threads: 2
data:
  sources: [{path: train.jsonl, format: cft}]
  validation: {path: held.jsonl, format: cft, every_steps: 7}
adapter: {rank: 4, alpha: 8, dropout: 0.1, targets: "attn_q,attn_v"}
train: {seq_len: 96, max_steps: %d, epochs: 1000, global_batch: {examples: 2}}
optimizer: {lr: 1e-3, warmup_steps: 3}
checkpoint: {every_steps: 1, keep_last: 2}
`

// killSite is a folder with the program, data and a configuration.
type killSite struct {
	dir, program string
}

func newKillSite(t *testing.T, steps int) *killSite {
	t.Helper()
	s := &killSite{dir: t.TempDir()}
	self, err := os.Executable()
	require.NoError(t, err)
	s.program = filepath.Join(s.dir, "cftune") // under this name the test program is cftune (TestMain)
	require.NoError(t, os.Symlink(self, s.program))
	var rows, held strings.Builder
	for i := range 9 {
		fmt.Fprintf(&rows, `{"query": "%d + %d?", "response": "%d", "critique": "The sum is %d: right or wrong?"}`+"\n", i, i+1, 2*i, 2*i+1)
	}
	held.WriteString(`{"query": "40 + 2?", "response": "42", "critique": "right"}` + "\n")
	for name, text := range map[string]string{
		"train.jsonl": rows.String(), "held.jsonl": held.String(), "run.yaml": fmt.Sprintf(killConfig, testfiles.Model(t), steps),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
	}
	return s
}

func (s *killSite) command(env []string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.Command(s.program, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), env...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	return cmd, &said
}

func (s *killSite) do(t *testing.T, args ...string) string {
	t.Helper()
	cmd, said := s.command(nil, args...)
	require.NoError(t, cmd.Run(), "%v: %s", args, said)
	return said.String()
}

// killed reports whether a command was ended by SIGKILL, rather than having come to its end.
func killed(t *testing.T, err error, said *bytes.Buffer) bool {
	t.Helper()
	if err == nil {
		return false
	}
	exit, ok := err.(*exec.ExitError)
	require.True(t, ok, "%v", err)
	status := exit.Sys().(syscall.WaitStatus)
	require.True(t, status.Signaled() && status.Signal() == syscall.SIGKILL, "it failed: %v\n%s", err, said)
	return true
}

// start begins the run, or goes on with it where it has a checkpoint.
func (s *killSite) start(t *testing.T) []string {
	t.Helper()
	visible, err := filepath.Glob(filepath.Join(s.dir, "run", "checkpoints", "step-????????"))
	require.NoError(t, err)
	if len(visible) > 0 {
		s.do(t, "check", "run") // fails if anything is damaged
		return []string{"resume", "run"}
	}
	require.NoError(t, os.RemoveAll(filepath.Join(s.dir, "run")))
	return []string{"train", "--config", "run.yaml"}
}

// ends are the files of the newest checkpoint, and the metrics without times.
func (s *killSite) ends(t *testing.T, run string) map[string]string {
	t.Helper()
	found := map[string]string{}
	dirs, err := filepath.Glob(filepath.Join(s.dir, run, "checkpoints", "step-????????"))
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	newest := dirs[len(dirs)-1]
	for _, name := range []string{"adapter.gguf", "optimizer.bin", "manifest.json"} {
		text, err := os.ReadFile(filepath.Join(newest, name))
		require.NoError(t, err)
		found[name] = filepath.Base(newest) + string(text)
	}
	text, err := os.ReadFile(filepath.Join(s.dir, run, "metrics.jsonl"))
	require.NoError(t, err)
	var lines []string
	for line := range bytes.Lines(text) {
		var m map[string]any
		require.NoError(t, json.Unmarshal(line, &m))
		for _, key := range []string{"time", "seconds", "tokens_per_s", "target_tokens_per_s", "memory_bytes"} {
			delete(m, key)
		}
		text, err := json.Marshal(m)
		require.NoError(t, err)
		lines = append(lines, string(text))
	}
	found["metrics.jsonl"] = strings.Join(lines, "\n")
	return found
}

func (s *killSite) same(t *testing.T, want map[string]string, run string) {
	t.Helper()
	got := s.ends(t, run)
	for name, text := range want {
		require.True(t, text == got[name], "%s differs from the undisturbed run's", name)
	}
}

func soakCount(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

func TestKilledAtRandom(t *testing.T) {
	kills := soakCount(t, "SOAK_KILLS", shortKills)
	steps := 12 + kills/2
	s := newKillSite(t, steps)
	s.do(t, "train", "--config", "run.yaml", "--output", "straight")
	want := s.ends(t, "straight")
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	deaths, rounds := 0, 0
	for deaths < kills {
		args := s.start(t)
		cmd, said := s.command(nil, args...)
		require.NoError(t, cmd.Start())
		timer := time.AfterFunc(time.Duration(rng.IntN(2000))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		dead := killed(t, cmd.Wait(), said)
		timer.Stop()
		if dead {
			deaths++
			continue
		}
		rounds++
		s.same(t, want, "run")
		require.NoError(t, os.RemoveAll(filepath.Join(s.dir, "run")))
	}
	s.do(t, s.start(t)...)
	s.same(t, want, "run")
	s.do(t, "check", "run")
	t.Logf("seed %d: %d deaths over %d runs of %d steps; each ended as the undisturbed run", seed, deaths, rounds+1, steps)
}

func TestKilledAtEveryPoint(t *testing.T) {
	if soakCount(t, "SOAK_POINTS", 0) == 0 {
		t.Skip("SOAK_POINTS is not set: make soak sets it and builds with the tag crashpoints")
	}
	const steps = 3
	s := newKillSite(t, steps)
	s.do(t, "train", "--config", "run.yaml", "--output", "straight")
	want := s.ends(t, "straight")
	points := map[string]int{}
	for at := 1; ; at++ {
		require.NoError(t, os.RemoveAll(filepath.Join(s.dir, "run")))
		cmd, said := s.command([]string{fmt.Sprintf("DURABLE_KILL_AT=%d", at)}, "train", "--config", "run.yaml")
		dead := killed(t, cmd.Run(), said)
		if dead {
			_, point, found := strings.Cut(said.String(), "killed before: ")
			require.True(t, found, "%s", said)
			what, path, _ := strings.Cut(strings.TrimSpace(point), "run")
			points[strings.TrimSpace(what)+" "+filepath.Base(path)]++
			s.do(t, s.start(t)...)
		}
		s.same(t, want, "run")
		s.do(t, "check", "run")
		if !dead {
			require.Greater(t, at, 50, "few points: was it built with the tag crashpoints?")
			break
		}
	}
	deaths := 0
	for point, n := range points {
		deaths += n
		t.Logf("%3d times before: %s", n, point)
	}
	t.Logf("%d deaths, one at each point of writing of a run of %d steps; each ended as the undisturbed run", deaths, steps)
}
