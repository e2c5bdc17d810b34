package main

import (
	"fmt"
	"runtime"
	"syscall"
)

// peakRSSMB returns the most memory that this process has had in RAM so far, in MiB. Pages of mapped files count.
func peakRSSMB() (int64, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	if runtime.GOOS == "darwin" {
		return usage.Maxrss >> 20, nil // bytes there, KiB elsewhere
	}
	return usage.Maxrss >> 10, nil
}
