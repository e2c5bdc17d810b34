package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cftune/trainer/checkpoint"
	"cftune/trainer/dataset/source"
)

// notOfARun reports that an output would change what a run has written for itself: checkpoints never change, and one that did is damaged.
func notOfARun(output string) error {
	if run := checkpoint.OwnedBy(output); run != "" {
		return &usageError{fmt.Errorf("%s is of the run %s, which alone writes there", output, run), "a name in the run's folder, or anywhere else, can be taken"}
	}
	return nil
}

// notItsData reports that a file that is written would be, now or the next time, among the data that it is made of.
func notItsData(output string, data ...string) error {
	for _, path := range data {
		switch taken, err := source.Takes(path, output); {
		case err != nil:
			return err
		case taken:
			return &usageError{fmt.Errorf("%s names %s as data, which is to be written", path, output), "an output must lie apart from the data"}
		}
	}
	return nil
}

// writable reports, before any work, that a file or folder cannot be put where it is to be: a usage error.
func writable(output string) error {
	if err := notOfARun(output); err != nil {
		return err
	}
	dir := filepath.Dir(output)
	remove, err := probe(dir)
	if errors.Is(err, os.ErrNotExist) {
		return codedError{fmt.Errorf("%s: there is no folder %s", output, dir), codeUsage}
	}
	if err != nil {
		return codedError{fmt.Errorf("%s: cannot write to %s: %w", output, dir, err), codeUsage}
	}
	return remove()
}

// probe makes a file in a folder, to see whether one can be made there, and returns how it goes again.
func probe(dir string) (remove func() error, err error) {
	file, err := os.CreateTemp(dir, ".cftune-*")
	if err != nil {
		if cause, ok := errors.AsType[*os.PathError](err); ok {
			err = cause.Err // the name of the file says nothing
		}
		return nil, err
	}
	return func() error { return errors.Join(file.Close(), os.Remove(file.Name())) }, nil
}

// ownFolder reports that a folder has files that a command would write over, though its own mark is not there: they are
// somebody else's.
func ownFolder(dir, mark string, files ...string) error {
	if err := notOfARun(dir); err != nil {
		return err
	}
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
