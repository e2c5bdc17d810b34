package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// writable reports, before any work, that a file or folder cannot be put where it is to be: a usage error.
func writable(output string) error {
	dir := filepath.Dir(output)
	probe, err := os.CreateTemp(dir, ".cftune-*")
	if errors.Is(err, os.ErrNotExist) {
		return codedError{fmt.Errorf("%s: there is no folder %s", output, dir), codeUsage}
	}
	if err != nil {
		if cause, ok := errors.AsType[*os.PathError](err); ok {
			err = cause.Err // the name of the probe says nothing
		}
		return codedError{fmt.Errorf("%s: cannot write to %s: %w", output, dir, err), codeUsage}
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}
