package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testfiles"
	"cftune/trainer/gguf"
	"cftune/trainer/metrics"
)

// parallelConfig makes steps of four packs, with dropout, so that each pack has its own masks.
const parallelConfig = `model: %s
output: run
seed: 5
threads: 1
data:
  sources: [{path: train.jsonl, format: cft}]
  validation: {path: held.jsonl, format: cft, every_steps: 3}
adapter: {rank: 4, alpha: 8, dropout: 0.1, targets: "attn_q,attn_v,ffn_down"}
train: {seq_len: 96, max_steps: %d, epochs: 1000, global_batch: {packs: 4}}
optimizer: {lr: 1e-3, warmup_steps: 3}
checkpoint: {every_steps: 1, keep_last: 3}
`

func newParallelSite(t *testing.T, steps int) *killSite {
	t.Helper()
	if _, err := exec.LookPath("mpirun"); err != nil {
		t.Skip("no mpirun: scripts/install-deps installs openmpi-bin and libopenmpi-dev")
	}
	s := newKillSite(t, steps)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "run.yaml"), []byte(fmt.Sprintf(parallelConfig, testfiles.Model(t), steps)), 0o600))
	return s
}

// mpirun makes a command of so many processes, as mpirun starts them.
func (s *killSite) mpirun(processes int, args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd, said := s.command([]string{"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "OMPI_MCA_rmaps_base_oversubscribe=1"})
	mpirun, err := exec.LookPath("mpirun")
	if err != nil {
		panic(err) // newParallelSite looked
	}
	cmd.Path, cmd.Args = mpirun, append([]string{"mpirun", "-np", strconv.Itoa(processes), s.program}, args...)
	return cmd, said
}

func steps(t *testing.T, dir, run string) []metrics.Step {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, run, "metrics.jsonl"))
	require.NoError(t, err)
	var all []metrics.Step
	for line := range bytes.Lines(text) {
		var m metrics.Step
		require.NoError(t, json.Unmarshal(line, &m))
		if m.Targets > 0 && m.Packs > 0 {
			all = append(all, m)
		}
	}
	return all
}

// near fails where two runs differ by more than the order of sums makes: 1e-5 of losses and of the adapter as a whole.
func (s *killSite) near(t *testing.T, a, b string) {
	t.Helper()
	const tolerance = 1e-5
	was, is := steps(t, s.dir, a), steps(t, s.dir, b)
	require.Equal(t, len(was), len(is))
	for i := range was {
		assert.InEpsilon(t, was[i].Loss, is[i].Loss, tolerance, "loss of step %d", i+1)
		assert.Equal(t, [4]int{was[i].Examples, was[i].Tokens, was[i].Targets, was[i].Packs}, [4]int{is[i].Examples, is[i].Tokens, is[i].Targets, is[i].Packs},
			"step %d has the same records", i+1)
	}
	last := fmt.Sprintf("checkpoints/step-%08d/adapter.gguf", len(was))
	x, err := gguf.ReadAdapter(filepath.Join(s.dir, a, last), nil)
	require.NoError(t, err)
	y, err := gguf.ReadAdapter(filepath.Join(s.dir, b, last), nil)
	require.NoError(t, err)
	require.Equal(t, len(x.Tensors), len(y.Tensors))
	var difference, size float64
	for i := range x.Tensors {
		require.Equal(t, x.Tensors[i].Name, y.Tensors[i].Name)
		for j, v := range x.Tensors[i].Data {
			d := float64(v) - float64(y.Tensors[i].Data[j])
			difference += d * d
			size += float64(v) * float64(v)
		}
	}
	relative := math.Sqrt(difference / size)
	t.Logf("%s and %s: adapters differ by %.1e of their size", a, b, relative)
	assert.Less(t, relative, tolerance)
}

func TestProcessesTrainWhatOneWould(t *testing.T) {
	s := newParallelSite(t, 4)
	s.do(t, "train", "--config", "run.yaml", "--output", "alone")
	for _, c := range []struct {
		output    string
		processes int
	}{{"two", 2}, {"again", 2}, {"three", 3}} {
		cmd, said := s.mpirun(c.processes, "train", "--config", "run.yaml", "--output", c.output, "--parallel", "mpi")
		require.NoError(t, cmd.Run(), "%s", said)
		s.near(t, "alone", c.output)
		s.do(t, "check", c.output)
	}
	s.same(t, s.ends(t, "two"), "again")

	// Stopped on two, gone on with on one: the same records in the same order.
	cmd, said := s.mpirun(2, "train", "--config", "run.yaml", "--output", "fewer", "--parallel", "mpi", "--stop-after", "2")
	require.NoError(t, cmd.Run(), "%s", said)
	assert.Contains(t, s.do(t, "resume", "fewer"), "the order of the data is the same")
	s.near(t, "alone", "fewer")
}

func TestADeadRankEndsAllAndTheRunGoesOnWithFewer(t *testing.T) {
	s := newParallelSite(t, 40)
	cmd, said := s.mpirun(2, "train", "--config", "run.yaml", "--parallel", "mpi")
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		found, err := filepath.Glob(filepath.Join(s.dir, "run", "checkpoints", "step-????????"))
		return err == nil && len(found) > 0
	}, time.Minute, 10*time.Millisecond)
	victim := rankOf(t, cmd.Process.Pid, 1)
	require.NoError(t, syscall.Kill(victim, syscall.SIGKILL))
	require.Error(t, cmd.Wait(), "%s", said)
	require.Less(t, len(steps(t, s.dir, "run")), 40)
	s.do(t, "check", "run")
	s.do(t, "resume", "run", "--stop-after", "2")
	s.do(t, "check", "run")
}

func TestRanksTakeDevicesInTurns(t *testing.T) {
	for _, tt := range []struct {
		device, rank string
		devices      int
		want         string
	}{
		{"auto", "5", 4, "cuda:1"},
		{"cuda", "0", 4, "cuda:0"},
		{"cuda:3", "0", 4, "cuda:3"},
		{"cpu", "1", 4, "cpu"},
		{"auto", "1", 0, "auto"},
		{"cuda", "1", 0, "cuda"},
		{"auto", "", 4, "auto"},
	} {
		rank := func(name string) string {
			if name == "SLURM_LOCALID" {
				return tt.rank
			}
			return ""
		}
		require.Equal(t, tt.want, deviceOfRank(tt.device, rank, func() int { return tt.devices }), "%+v", tt)
	}
}

func TestAnInterruptOfAllIsRankZerosToDecide(t *testing.T) {
	s := newParallelSite(t, 40)
	cmd, said := s.mpirun(2, "train", "--config", "run.yaml", "--parallel", "mpi")
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		found, err := filepath.Glob(filepath.Join(s.dir, "run", "checkpoints", "step-????????"))
		return err == nil && len(found) > 0
	}, time.Minute, 10*time.Millisecond)
	for _, rank := range []int{1, 0} {
		require.NoError(t, syscall.Kill(rankOf(t, cmd.Process.Pid, rank), syscall.SIGINT))
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", said)
	assert.Equal(t, codeInterrupted, exit.ExitCode(), "%s", said)
	assert.Contains(t, said.String(), "interrupted: saving step")
	s.do(t, "check", "run")
}

// The program starts the processes itself. It alone gets the interrupt, as from a terminal, and the run is saved by as many; mpirun would have
// killed them.
func TestProcessesOfOneCommandSaveWhenItIsInterrupted(t *testing.T) {
	s := newParallelSite(t, 4000)
	metrics := filepath.Join(s.dir, "run", "metrics.jsonl")
	for i, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, said := s.command(nil, "train", "--config", "run.yaml", "--or-resume", "--processes", "2", "--set", "checkpoint.every_steps=1000000")
		require.NoError(t, cmd.Start())
		require.NoError(t, awaitLines(metrics, 8*(i+1), nil), "%s", said)
		require.NoError(t, cmd.Process.Signal(signal))
		err := cmd.Wait()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, "%s", said)
		assert.Equal(t, codeInterrupted, exit.ExitCode(), "%s", said)
		assert.Contains(t, said.String(), "2 processes train together")
		assert.Contains(t, said.String(), "interrupted: saving step")
		assert.NotContains(t, said.String(), "exit code 130\ncftune", "what the processes have said is said once")
		s.do(t, "check", "run")
	}
	cmd, said := s.command(nil, "resume", "run", "--processes", "2", "--parallel", "mpi")
	require.Error(t, cmd.Run())
	assert.Contains(t, said.String(), "give one of them")
}

func TestProcessesThatWereNotToldToWorkTogetherRefuse(t *testing.T) {
	s := newParallelSite(t, 2)
	cmd, said := s.mpirun(2, "train", "--config", "run.yaml")
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &exit)
	assert.Equal(t, codeUsage, exit.ExitCode())
	assert.Contains(t, said.String(), "--parallel mpi lets them train together")

	cmd, said = s.mpirun(2, "train", "--config", "run.yaml", "--parallel", "mpi", "--set", "adapter.rank=0")
	require.ErrorAs(t, cmd.Run(), &exit)
	assert.Equal(t, codeUsage, exit.ExitCode())
	assert.Equal(t, 1, strings.Count(said.String(), "adapter.rank: must be"), "only rank 0 says it: %s", said)
	assert.NoDirExists(t, filepath.Join(s.dir, "run"))
}

// rankOf finds a rank's process among mpirun's children.
func rankOf(t *testing.T, mpirun, rank int) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("ranks are found by /proc")
	}
	for _, pid := range childrenOf(t, mpirun) {
		environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
		if err == nil && bytes.Contains(environ, []byte(fmt.Sprintf("\x00OMPI_COMM_WORLD_RANK=%d\x00", rank))) {
			return pid
		}
	}
	t.Fatalf("mpirun %d has no rank %d", mpirun, rank)
	return 0
}
