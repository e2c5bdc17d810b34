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

// ownFolder reports that a folder has files that a command would write over, though its own mark is not there: they are
// somebody else's.
func ownFolder(dir, mark string, files ...string) error {
	if _, err := os.Lstat(filepath.Join(dir, mark)); !errors.Is(err, os.ErrNotExist) {
		return nil // its own, or what opening it will tell of
	}
	for _, name := range files {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err == nil {
			return &usageError{fmt.Errorf("%s is there already, and there is no %s beside it, so it is not of this command", path, mark), "another output is a folder of its own, which need not be there"}
		}
	}
	return nil
}
