package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cftune/trainer/launch"
	"cftune/trainer/study"
)

// studyRequest loads a study's file and names what is launched.
func studyRequest(ctx context.Context, path string, sets []string, name string, shards int) (launch.Request, error) {
	spec, err := loadStudy(ctx, path, sets)
	if err != nil {
		return launch.Request{}, fmt.Errorf("%s: %w", path, err)
	}
	if n := len(study.Models(spec)); shards < 1 || shards > n {
		return launch.Request{}, codedError{fmt.Errorf("launch: --shards must be 1 to %d, the number of the study's models, got %d", n, shards), codeUsage}
	}
	if name == "" {
		name = filepath.Base(filepath.Clean(spec.Output))
	}
	return launch.Request{Name: name, Study: &launch.Study{
		Output: spec.Output, Device: spec.Device, Shards: shards,
		Relocate: func(output string, place func(key, path string) (string, error)) ([]byte, error) {
			moved, err := spec.Relocate(place)
			if err != nil {
				return nil, err
			}
			moved.Output = output
			return moved.File()
		},
	}}, nil
}

// studyOnHost is a study in the job folders of its parts.
type studyOnHost struct {
	onHost
	parts []launch.Placed
}

func (h studyOnHost) Status(ctx context.Context) (launch.State, error) {
	return launch.StatusOf(ctx, h.target, h.parts)
}

func (h studyOnHost) Stop(ctx context.Context) (launch.State, error) {
	return launch.StopParts(ctx, h.target, h.parts)
}

func (h studyOnHost) Remove(ctx context.Context) error {
	return launch.RemoveParts(ctx, h.target, h.parts)
}

func (h studyOnHost) Resume(ctx context.Context) error {
	return launch.ResumeParts(ctx, h.l.config, h.target, h.parts, os.Getenv)
}

func (h studyOnHost) Follow(ctx context.Context, tail bool) (launch.State, error) {
	var names []string
	if len(h.parts) > 1 {
		for _, p := range h.parts {
			names = append(names, p.Job.Name)
		}
	}
	return h.follower(tail, names).Follow(ctx)
}

func (h studyOnHost) Outcome(_ context.Context, s launch.State) error {
	return launch.OutcomeOf(h.target, h.name, h.l.config.Name(), h.parts, s)
}

// Fetch brings the study's folder, less the runs' checkpoints unless all is wanted, and makes the report of what is here then.
func (h studyOnHost) Fetch(ctx context.Context, output string, all bool) error {
	made, err := launch.FetchStudy(ctx, h.target, h.parts, output, all, h.l.say)
	if err != nil {
		return err
	}
	state, problems, err := study.Check(output)
	if err != nil {
		return err
	}
	if err := h.l.sound(output, problems); err != nil {
		return err
	}
	total := len(study.Models(state.Spec))
	h.l.say("%s: %d of %d models are here, verified", output, total-len(state.Missing()), total)
	if made && len(state.Missing()) == 0 {
		return nil // with its report
	}
	report, err := study.MakeReport(output)
	if err != nil {
		return err
	}
	_, err = study.WriteReport(ctx, output, report)
	return err
}

// sound tells what is wrong with what was fetched, and is an error if anything is.
func (l launcher) sound(output string, problems []string) error {
	for _, problem := range problems {
		l.say("%s", problem)
	}
	if len(problems) > 0 {
		return codedError{fmt.Errorf("launch fetch: %s: problems found: %d; what is removed here is fetched again", output, len(problems)), codeCheckpoint}
	}
	return nil
}

// oneKind refuses a launch of both a study and runs, and parts of what has none.
func oneKind(configs []string, studyFile string, shards int) error {
	switch {
	case studyFile != "" && len(configs) > 0:
		return codedError{errors.New("launch: --config or --study, not both"), codeUsage}
	case studyFile == "" && shards != 1:
		return codedError{errors.New("launch: --shards is of a --study"), codeUsage}
	}
	return nil
}
