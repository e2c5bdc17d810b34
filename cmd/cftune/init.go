package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"cftune/internal/spell"
	"cftune/trainer/config"
	"cftune/trainer/dataset"
)

const initLong = `Write a configuration to begin with: every key at its default, with a comment. FILE is run.yaml unless another is named; -
is standard output. A file that is there is left alone.

--model, --data, --format and --output fill in the four that a run needs; what is not given is to be filled in by hand. The
objective is cft for critiques (cft, webinstruct-cft), sft for answers.

`

// starter is what `init` fills in.
type starter struct{ model, data, format, output string }

func newInitCommand() *cobra.Command {
	var s starter
	cmd := &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a commented configuration to begin with",
		Long:  initLong + exitCodesHelp,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.check(); err != nil {
				return codedError{err, codeUsage}
			}
			text := s.fill(config.Example())
			path := "run.yaml"
			if len(args) > 0 {
				path = args[0]
			}
			if path == "-" {
				_, err := fmt.Fprint(cmd.OutOrStdout(), text)
				return err
			}
			if s.output != "" && filepath.Clean(path) == filepath.Clean(s.output) {
				return codedError{fmt.Errorf("init: --output %s is the run directory, and the configuration would have that name", spell.Word(s.output)), codeUsage}
			}
			if err := writable(path); err != nil {
				return fmt.Errorf("init: %w", err)
			}
			text = strings.Replace(text, "--config run.yaml", "--config "+spell.Line(spell.Word(path)), 1)
			if err := writeNew(path, text); err != nil {
				return codedError{fmt.Errorf("init: %w", err), codeUsage}
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is written; next: cftune train --config %s --dry-run\n", path, spell.Word(path))
			return nil
		},
	}
	cmd.Flags().StringVar(&s.model, "model", "", "the base model: a GGUF file, hf://owner/repo/file.gguf or ollama://name:tag")
	cmd.Flags().StringVar(&s.data, "data", "", "what to train on: a file, a folder, a pattern or a URL")
	cmd.Flags().StringVar(&s.format, "format", "cft", "its format: "+strings.Join(dataset.Formats(), ", "))
	cmd.Flags().StringVar(&s.output, "output", "", "the run directory")
	return cmd
}

func (s starter) check() error {
	if !slices.Contains(dataset.Formats(), s.format) {
		return fmt.Errorf("--format: there is no %q: one of %s", s.format, strings.Join(dataset.Formats(), ", "))
	}
	for flag, value := range map[string]string{"model": s.model, "data": s.data, "output": s.output} {
		if !utf8.ValidString(value) {
			return fmt.Errorf("--%s: a configuration is UTF-8, and %q is not", flag, value)
		}
	}
	return nil
}

// fill puts what is given in the example's places.
func (s starter) fill(example string) string {
	objective := "sft"
	if s.format == "cft" || s.format == "webinstruct-cft" {
		objective = "cft"
	}
	for _, place := range []struct{ key, was, now string }{
		{"model: ", "model.gguf", s.model},
		{"output: ", "runs/first", s.output},
		{"- {path: ", "data/train.jsonl", s.data},
		{", format: ", "cft", s.format},
		{"- mix: {", "cft", objective},
	} {
		if place.now != "" {
			example = strings.Replace(example, place.key+place.was, place.key+yamlWord(place.now), 1)
		}
	}
	return example
}

// yamlWord writes a string as YAML has it within braces, quoted where it must be.
func yamlWord(s string) string {
	if !strings.ContainsAny(s, ",[]{}") {
		if text, err := yaml.Marshal(s); err == nil && strings.Count(string(text), "\n") == 1 {
			return strings.TrimSuffix(string(text), "\n")
		}
	}
	return fmt.Sprintf("%q", s)
}

// writeNew writes a file that must not be there yet.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: name another file, or - to see it", path)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
