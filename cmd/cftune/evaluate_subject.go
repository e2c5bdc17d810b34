package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
	"cftune/trainer/score"
)

// subjectBase is the subject that is the base model alone.
const subjectBase = "base"

// served is what a subject is served by.
type served struct {
	name, model, adapter string
	run                  string // that it is a checkpoint of
	step                 int
	chat                 config.Chat // that the run was trained with
}

// subjects finds what the arguments name. run is the one that all checkpoints are of, empty if there are none or several.
func (f *evaluateFlags) subjects(ctx context.Context, args []string, notes io.Writer) (subjects []score.Subject, run string, err error) {
	var list []served
	for _, arg := range args {
		found, err := f.find(arg)
		if err != nil {
			return nil, "", err
		}
		list = append(list, found...)
	}
	base := f.model
	for _, s := range list {
		if base == "" {
			base = s.model // of a run
		}
	}
	digests := map[string]string{}
	digest := func(path string) (string, error) {
		if path == "" || digests[path] != "" {
			return digests[path], nil
		}
		sum, err := export.Digest(path)
		digests[path] = sum
		return sum, err
	}
	names, runs := map[string]bool{}, map[string]bool{}
	for _, s := range list {
		if s.run != "" {
			runs[s.run] = true
		}
		if f.model != "" && s.run != "" || s.model == "" {
			s.model = base
		}
		if s.model == "" {
			return nil, "", codedError{fmt.Errorf("evaluate %s: --model must name the base model", s.name), codeUsage}
		}
		if s.model, err = findModel(ctx, s.model, notes); err != nil {
			return nil, "", err
		}
		if names[s.name] {
			return nil, "", codedError{fmt.Errorf("evaluate: two subjects are called %s; NAME=SUBJECT names one otherwise", s.name), codeUsage}
		}
		names[s.name] = true
		held := f.held[s.model]
		if held == nil {
			if held, err = trainer.HoldModel(s.model); err != nil {
				return nil, "", err
			}
			f.held[s.model] = held
		}
		adapter, err := digest(s.adapter)
		if err != nil {
			return nil, "", err
		}
		if f.systemGiven || s.run == "" {
			s.chat.System = f.system
		}
		weight := []string{held.SHA256(), adapter, s.chat.System}
		if s.chat.TemplateFile != "" {
			layout, err := digest(s.chat.TemplateFile)
			if err != nil {
				return nil, "", err
			}
			weight = append(weight, layout)
		}
		subjects = append(subjects, score.Subject{
			Name: s.name, Model: filepath.Base(s.model), Step: s.step, Weight: strings.Join(weight, "/"),
			Open: func() (score.Model, error) { return openServed(held, s, f.served) },
		})
	}
	if len(runs) == 1 {
		for run = range runs {
			return subjects, run, nil
		}
	}
	return subjects, "", nil
}

// find says what one argument stands for.
func (f *evaluateFlags) find(arg string) ([]served, error) {
	name, path := "", arg
	if before, after, ok := strings.Cut(arg, "="); ok && before != "" && !strings.ContainsAny(before, `/\`) {
		name, path = before, after
	}
	if path == subjectBase {
		return []served{{name: orDefault(name, subjectBase)}}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, codedError{fmt.Errorf("evaluate: subject %s: %w", arg, err), codeUsage}
	}
	if info.IsDir() {
		return f.checkpointsOf(name, path)
	}
	file, err := gguf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("evaluate: subject %s: %w", arg, err)
	}
	s := served{name: orDefault(name, strings.TrimSuffix(filepath.Base(path), ".gguf")), adapter: path}
	if kind, ok := file.String("general.type"); !ok || kind != "adapter" {
		s.model, s.adapter = path, ""
	}
	return []served{s}, nil
}

func orDefault(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// checkpointsOf returns a run's checkpoints that are asked for, or the one that the path names.
func (f *evaluateFlags) checkpointsOf(name, path string) ([]served, error) {
	run, step, isStep := checkpoint.SplitStep(path)
	var steps []int
	switch {
	case isStep:
		steps = []int{step}
	case f.checkpoints == "all":
		run = path
		var err error
		if steps, err = checkpoint.List(run); err != nil {
			return nil, err
		}
	default:
		run = path
		for _, which := range strings.Split(f.checkpoints, ",") {
			if _, err := strconv.Atoi(which); err != nil && which != "latest" && which != "best" {
				return nil, codedError{fmt.Errorf("--checkpoints: must be latest, all, best or steps, got %q", f.checkpoints), codeUsage}
			}
			c, err := chooseCheckpoint(run, which)
			if err != nil {
				return nil, err
			}
			steps = append(steps, c.Step)
		}
	}
	if len(steps) == 0 {
		return nil, fmt.Errorf("evaluate %s: %w", path, checkpoint.ErrNotFound)
	}
	record, err := trainer.ReadRecord(run)
	if err != nil {
		return nil, err
	}
	if err := checkChat(record); err != nil {
		return nil, fmt.Errorf("evaluate %s: %w", path, err)
	}
	model := record.Model.Path
	if _, err := os.Stat(model); errors.Is(err, os.ErrNotExist) && f.model == "" {
		model = record.Config.Model
	}
	var list []served
	for _, step := range steps {
		c, err := checkpoint.Open(run, step)
		if err != nil {
			return nil, err
		}
		s := served{name: orDefault(name, filepath.Base(filepath.Clean(run))), model: model, adapter: export.AdapterOf(c), run: filepath.Clean(run), step: step, chat: record.Config.Chat}
		if len(steps) > 1 || f.checkpoints != "latest" || isStep && name == "" {
			s.name += fmt.Sprintf("@%d", step)
		}
		list = append(list, s)
	}
	return list, nil
}
