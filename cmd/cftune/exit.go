package main

import (
	"context"
	"errors"
)

// The exit codes that engine.go does not have.
const (
	codeOther       = 1
	codeCheckpoint  = 4
	codeInterrupted = 130
)

const exitCodesHelp = `Exit codes:
  0    done
  1    another error
  2    wrong usage or configuration
  3    data or a model cannot be used: a row that is no JSON, too long or without anything to learn; a GGUF that is
       missing, cut off, or of an architecture that is not trained
  4    a checkpoint is missing, damaged, or does not fit the configuration; or another process has the run
  5    device or memory
  6    the loss is not finite
  130  interrupted; a training run has written a checkpoint and can be resumed`

// hinted is an error with advice for people.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

func hintFor(err error) string {
	var h hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// exitCode returns the process's exit code for an error.
func exitCode(err error) int {
	var coded interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.ExitCode()
	case errors.Is(err, context.Canceled):
		return codeInterrupted
	}
	return codeOther
}
