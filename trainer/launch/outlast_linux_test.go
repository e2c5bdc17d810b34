package launch

import (
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// outlastScript makes the test's program a pod's first process, with a server that a shell plays.
const outlastScript = "CFTUNE_TEST_OUTLAST"

func TestMain(m *testing.M) {
	if script := os.Getenv(outlastScript); script != "" {
		asked, stop := make(chan os.Signal, 1), make(chan struct{})
		signal.Notify(asked, syscall.SIGTERM)
		go func() { <-asked; close(stop) }()
		code, err := Outlast([]string{"sh", "-c", script}, stop)
		if err != nil {
			code = 99
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func TestAServerThatIsToldToEndIsOutlastedByItsProcesses(t *testing.T) {
	for _, c := range []struct {
		name, script string
		tell         bool
		code         int
		finished     bool
	}{
		{"told: its processes end first, though they have lost their parent", `(trap '' TERM; until [ -e go ]; do sleep 0.01; done; : >finished) & trap 'exit 3' TERM; : >begun; while :; do sleep 0.01; done`, true, 3, true},
		{"the server fails: nothing to wait for", `(sleep 600) & : >begun; exit 7`, false, 7, false},
		{"it is killed", `: >begun; kill -9 $$`, false, 137, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0])
			cmd.Dir, cmd.Env = dir, append(os.Environ(), outlastScript+"="+c.script)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			require.NoError(t, cmd.Start())
			t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
			there := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
			require.Eventually(t, func() bool { return there("begun") }, time.Minute, 10*time.Millisecond)
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }()
			if c.tell {
				require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
				select {
				case <-ended:
					t.Fatal("it has ended before its processes")
				case <-time.After(200 * time.Millisecond):
				}
				require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
			}
			<-ended
			assert.Equal(t, c.code, cmd.ProcessState.ExitCode())
			assert.Equal(t, c.finished, there("finished"))
		})
	}
}
