package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Where one of several processes hangs, the others wait for it and cannot save. A second interrupt leaves none of them behind.
func TestASecondInterruptEndsProcessesThatHang(t *testing.T) {
	if _, err := exec.LookPath("mpirun"); err != nil {
		t.Skip("no mpirun: scripts/install-deps installs openmpi-bin and libopenmpi-dev")
	}
	p := newPlace(t)
	p.config("run", 3000)
	cmd := exec.Command(p.program, "train", "--config", filepath.Join(p.dir, "run.yaml"), "--processes", "2")
	cmd.Dir, cmd.Env = p.dir, p.env
	require.NoError(t, cmd.Start())
	ranks := func() (pids []int) {
		eachProcess(t, func(pid int, dir string) {
			line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
			if err == nil && bytes.Contains(line, []byte(p.dir)) && bytes.Contains(line, []byte("--parallel=mpi")) && !bytes.HasPrefix(line, []byte("mpirun")) {
				pids = append(pids, pid)
			}
		})
		return pids
	}
	p.await(filepath.Join(p.dir, "runs", "run", "metrics.jsonl"), 10)
	began := ranks()
	require.Len(t, began, 2)
	require.NoError(t, syscall.Kill(max(began[0], began[1]), syscall.SIGSTOP))
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	time.Sleep(oneSignal + oneSignal/4) // two within that count as one
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(launchTimeout):
		t.Error("it hangs")
		_ = cmd.Process.Kill()
		<-ended
	}
	assert.Equal(t, codeInterrupted, cmd.ProcessState.ExitCode())
	left := ranks()
	for _, pid := range left {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	assert.Empty(t, left)
}
