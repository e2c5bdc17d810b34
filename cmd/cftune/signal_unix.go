//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"cftune/trainer/launch"
)

// ownStderr is standard error under another number: Go ends a process that writes to a standard error without a reader, and says so of no other
// file.
func ownStderr() *os.File {
	fd, err := unix.FcntlInt(uintptr(syscall.Stderr), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return os.Stderr // it is closed
	}
	return os.NewFile(uintptr(fd), os.Stderr.Name())
}

// askForCheckpoints returns a channel that gets SIGUSR1, at most one at a time, and a function that ends it.
func askForCheckpoints() (<-chan struct{}, func()) {
	signals := make(chan os.Signal, 1)
	asked := make(chan struct{}, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-signals:
				select {
				case asked <- struct{}{}:
				default: // one that was not served yet is enough
				}
			}
		}
	}()
	return asked, func() {
		signal.Stop(signals)
		close(done)
	}
}

// askSupervisor returns what signals ask the supervisor of a job for: SIGTERM and Ctrl-C to save and end, SIGUSR1, which
// Slurm sends before the time is up, to save and take another turn.
func askSupervisor() (<-chan launch.Ask, func()) {
	signals := make(chan os.Signal, 2)
	asks := make(chan launch.Ask)
	// The supervisor takes as many signals as come; the program's own handler would end it at the second.
	signal.Reset(syscall.SIGTERM, os.Interrupt)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt, syscall.SIGUSR1)
	// A connection that ends must not end the supervisor.
	signal.Ignore(syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				ask := launch.AskStop
				if s == syscall.SIGUSR1 {
					ask = launch.AskRequeue
				}
				select {
				case asks <- ask:
				case <-done:
					return
				}
			}
		}
	}()
	return asks, func() {
		signal.Stop(signals)
		close(done)
	}
}

// keepPrivate makes what this process and its children write the owner's alone.
func keepPrivate() { syscall.Umask(0o077) }
