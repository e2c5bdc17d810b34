package trainer

import (
	"errors"
	"os"
	"path/filepath"

	"cftune/trainer/checkpoint"
)

// Began reports whether a run directory holds a checkpoint to go on from, sound or not.
func Began(dir string) (bool, error) {
	steps, err := checkpoint.List(dir)
	if errors.Is(err, checkpoint.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return len(steps) > 0, err
}

// ClearUnbegun removes what a run left that ended before its first checkpoint, so that it can begin anew. A folder that
// holds no run stays as it is. It fails with a *checkpoint.HeldError while another process has the run, and does nothing
// to a run with checkpoints.
func ClearUnbegun(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, checkpoint.ConfigName)); isMissing(err) {
		return nil
	}
	run, err := checkpoint.OpenRun(nil, dir)
	if err != nil {
		return err
	}
	if began, err := Began(dir); began || err != nil {
		return errors.Join(err, run.Close())
	}
	if err := errors.Join(run.RemoveUnbegun(), run.Clear()); err != nil {
		return errors.Join(err, run.Close())
	}
	run.Abandon()
	return nil
}
