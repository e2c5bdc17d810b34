package main

import (
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/spell"
)

// A terminal or a connection that goes away is an interrupt, unless nohup has it ignored.
func TestAHangupSaves(t *testing.T) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // the tests may run by nohup themselves; what is caught here is not ignored by what is started
	t.Cleanup(func() { signal.Stop(hangups) })
	p := newPlace(t)
	p.config("run", 3000)
	for _, begin := range []string{"exec ", "trap '' HUP; exec "} {
		name := map[bool]string{true: "plain", false: "nohup"}[begin == "exec "]
		output := filepath.Join(p.dir, "runs", name)
		cmd := exec.Command("sh", "-c", begin+spell.Quote(p.program)+" train --config run.yaml --output "+spell.Quote(output))
		cmd.Dir, cmd.Env = p.dir, p.env
		require.NoError(t, cmd.Start())
		metrics := filepath.Join(output, "metrics.jsonl")
		p.await(metrics, 10)
		require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
		if name == "nohup" {
			require.NoError(t, awaitLines(metrics, 400, nil), "it goes on")
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		}
		require.Error(t, cmd.Wait())
		assert.Equal(t, codeInterrupted, cmd.ProcessState.ExitCode(), name)
		p.must("check", output)
	}
}
