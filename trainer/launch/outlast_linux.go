package launch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// ended is a child that has.
type ended struct {
	pid    int
	status syscall.WaitStatus
}

// Outlast runs a server of processes (sshd) and returns its exit code. When stop is closed, the server is asked to end, and its processes,
// which its end leaves behind, are waited for. A pod's first process must do that: with it everything in the pod is killed, and processes that
// train together could not end together.
//
// It waits for all children of this process, which must have no others.
func Outlast(words []string, stop <-chan struct{}) (int, error) {
	// Who has lost its parent becomes this process's child, as it does anyway where this is the first of its namespace.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("wait for the processes of %s: %w", words[0], err)
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", words[0], err)
	}
	all := make(chan ended)
	go reap(all)
	code, stopped := 0, false
	for {
		select {
		case e, more := <-all:
			if !more {
				return code, nil
			}
			if e.pid != cmd.Process.Pid {
				continue
			}
			code = codeOf(e.status)
			if !stopped {
				go func() { // what is left ends with this process
					for range all {
					}
				}()
				return code, nil
			}
		case <-stop:
			stop, stopped = nil, true
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		}
	}
}

// reap tells of each child that ends, and closes the channel when there is none.
func reap(all chan<- ended) {
	defer close(all)
	for {
		var e ended
		var err error
		e.pid, err = syscall.Wait4(-1, &e.status, 0, nil)
		switch {
		case err == nil:
			all <- e
		case !errors.Is(err, syscall.EINTR):
			return // there is none
		}
	}
}
