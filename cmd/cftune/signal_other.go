//go:build !unix

package main

import (
	"os"

	"cftune/trainer/launch"
)

// ownStderr: other systems do not end who writes to a pipe without a reader.
func ownStderr() *os.File { return os.Stderr }

// askForCheckpoints: there is no signal for it here.
func askForCheckpoints() (<-chan struct{}, func()) { return nil, func() {} }

// askSupervisor: what other systems have for signals is not mapped; a job there is ended by its process.
func askSupervisor() (<-chan launch.Ask, func()) { return nil, func() {} }

// keepPrivate: other systems have other ways.
func keepPrivate() {}
