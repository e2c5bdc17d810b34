package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Mpirun is the launcher of so many processes on this machine, by itself: ranks are not bound to processors, which the program shares out.
func Mpirun(processes int) []string {
	return []string{"mpirun", "-np", strconv.Itoa(processes), "--bind-to", "none"}
}

// allowRoot lets Open MPI's mpirun start processes as root: where cftune is told to, that has been decided, and rented GPU hosts know no other user.
var allowRoot = []string{"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"}

// moreThanProcessors lets Open MPI's mpirun start more processes than this machine has processors, as GPU hosts may want it to: ranks that
// share processors share them out. (The second word is Open MPI 5's.)
var moreThanProcessors = []string{"OMPI_MCA_rmaps_base_oversubscribe=1", "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe"}

// killGrace is how long a launcher has to end its processes when it must at once. It lets those that do not listen be killed a second later.
const killGrace = 5 * time.Second

// Together runs a launcher of several processes to its end and returns its exit code, 128 and the number of a signal that killed it. When stop
// is closed, the processes are asked to save and end (SaveSignal); when kill is, they are ended at once, whatever they wait for. Processes that
// had not come as far as to know the signal are ended by it: that is an interrupt as well, and nothing was under way.
func Together(words []string, stop, kill <-chan struct{}, in io.Reader, out, errs io.Writer) (int, error) {
	// The launcher is told when the thread that started it ends (parentDeath), which must therefore stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, errs
	cmd.Env = slices.Concat(moreThanProcessors, os.Environ()) // the user's own words count
	if os.Geteuid() == 0 {
		cmd.Env = append(cmd.Env, allowRoot...)
	}
	cmd.SysProcAttr = ownGroup()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start several processes: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	asked := false
	for done := false; !done; {
		select {
		case err = <-ended:
			done = true
		case <-stop:
			stop, asked = nil, true
			_ = cmd.Process.Signal(SaveSignal) // it may have ended
		case <-kill:
			kill = nil
			_ = cmd.Process.Signal(syscall.SIGTERM)
			defer time.AfterFunc(killGrace, func() { _ = cmd.Process.Kill() }).Stop()
		}
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case !errors.As(err, &exit):
		return 0, fmt.Errorf("start several processes: %w", err)
	}
	code := exit.ExitCode()
	if status, ok := exit.Sys().(syscall.WaitStatus); ok {
		code = codeOf(status)
	}
	if asked && code == 128+int(SaveSignal) {
		code = exitInterrupted
	}
	return code, nil
}

// codeOf is a process's exit code, as a shell tells it: 128 and the number of a signal that killed it.
func codeOf(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
