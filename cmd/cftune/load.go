package main

import (
	"context"
	"fmt"
	"os"

	"cftune/trainer/config"
	"cftune/trainer/dataset/source"
	"cftune/trainer/study"
)

// loadConfig reads a run's configuration. A named pipe is waited for until an interrupt comes.
func loadConfig(ctx context.Context, path string, sets []string) (config.Run, error) {
	run, err := source.Await(ctx, func() (config.Run, error) { return config.Load(path, sets, os.Environ()) })
	return run, readError(ctx, path, err)
}

// loadStudy does the same with a study's file.
func loadStudy(ctx context.Context, path string, sets []string) (study.Spec, error) {
	spec, err := source.Await(ctx, func() (study.Spec, error) { return study.Load(path, sets) })
	return spec, readError(ctx, path, err)
}

func readError(ctx context.Context, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("read %s: %w", path, err)
	}
	return codedError{err, codeUsage}
}
