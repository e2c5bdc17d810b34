package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/mirror"
)

// trainOrResume begins a run, or goes on with it where it has been begun: here, or in its mirror by a host that is gone.
func (s session) trainOrResume(ctx context.Context, run config.Run) (trainer.Result, error) {
	s.older = true // the newest that is whole; what is passed over is told
	began, err := trainer.Began(run.Output)
	if err != nil {
		return trainer.Result{}, err
	}
	if !began {
		return s.beginOrRestore(ctx, run)
	}
	result, err := s.goOn(ctx, run)
	if run.Checkpoint.Mirror == "" || !errors.Is(err, mirror.ErrAhead) && !errors.Is(err, checkpoint.ErrCorrupt) {
		return result, err
	}
	// The mirror has what this directory has not. Nothing is removed: it may be what somebody wants to look at.
	aside, asideErr := setAside(run.Output)
	if asideErr != nil {
		return trainer.Result{}, errors.Join(err, asideErr)
	}
	s.note("note: %v", err)
	s.note("note: %s is kept as %s; the mirror's checkpoint takes its place", run.Output, aside)
	if err := s.fromMirror(ctx, run); err != nil {
		return trainer.Result{}, err
	}
	return s.goOn(ctx, run)
}

// beginOrRestore begins a run that has no checkpoint here, unless its mirror has one.
func (s session) beginOrRestore(ctx context.Context, run config.Run) (trainer.Result, error) {
	if err := trainer.ClearUnbegun(run.Output); err != nil {
		return trainer.Result{}, err
	}
	if run.Checkpoint.Mirror == "" {
		return s.train(ctx, run)
	}
	switch err := s.fromMirror(ctx, run); {
	case errors.Is(err, checkpoint.ErrNotFound):
		return s.train(ctx, run)
	case err != nil:
		return trainer.Result{}, err
	}
	return s.goOn(ctx, run)
}

func (s session) fromMirror(ctx context.Context, run config.Run) error {
	r, err := trainer.Restore(ctx, run.Checkpoint.Mirror, run.Output, func(text string) { s.note("note: %s", text) })
	if err == nil {
		s.note("%s: step %d is restored from the mirror, verified", r.Dir, r.Step)
	}
	return err
}

// setAside renames a run directory that nobody has, and returns its new name.
func setAside(dir string) (string, error) {
	run, err := checkpoint.OpenRun(nil, dir)
	if err != nil {
		return "", err
	}
	defer run.Close()
	step := 0
	if steps, err := checkpoint.List(dir); err == nil && len(steps) > 0 {
		step = steps[len(steps)-1]
	}
	dir = filepath.Clean(dir)
	aside := fmt.Sprintf("%s.behind-%d", dir, step)
	if _, err := os.Lstat(aside); err == nil {
		aside += "." + time.Now().UTC().Format("20060102T150405")
	}
	return aside, os.Rename(dir, aside)
}
