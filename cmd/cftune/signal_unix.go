//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

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
