package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"cftune/trainer/critic"
)

const critiqueLong = `Ask teachers for critiques of answers.

DATA are files, folders, patterns or URLs with a query and a response in each row, in the format that --format names.
Every teacher writes -n critiques of every row. They are written to critiques.jsonl in the output folder, in format cft, with
the row's own fields and where the critique comes from; cftune verify weighs them, cftune train learns them.

` + teacherSpecHelp + `

The output folder also has journal.jsonl, to which everything that happens to a request is appended before and after it happens,
and run.json, from which the run can be made again. Whatever ends the command, the same command goes on: what has an answer
is not asked again. A request that was on its way when the process was killed may have been paid; it is counted as
unknown and asked again under the same idempotency key. An interrupt lets answers on their way arrive, for up to 30 seconds.

Examples:
  cftune critique answers.jsonl --output critiques --budget 5 \
    --teacher model=gpt-4o-2024-11-20,price_in=2.5,price_out=10,rpm=500
  cftune critique answers.jsonl --output critiques --teacher gguf=teacher.gguf --max-tokens 256`

func newCritiqueCommand() *cobra.Command {
	f := askFlags{temperature: 0.3, topP: 0.95, maxTokens: 3200}
	var (
		prompt   string
		teachers []string
	)
	cmd := &cobra.Command{
		Use:   "critique DATA... --teacher TEACHER --output FOLDER",
		Short: "Ask teachers for critiques of answers",
		Long:  critiqueLong,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.critique(cmd, args, prompt, teachers); err != nil {
				return fmt.Errorf("critique: %w", err)
			}
			return nil
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&teachers, "teacher", nil, "who is asked (required; repeatable): see above")
	flags.StringVar(&prompt, "prompt", "paper", "how: paper, oneshot, or a file like those in configs/teacher")
	flags.IntVarP(&f.perRow, "critiques", "n", 1, "critiques of each row by each teacher")
	if err := cmd.MarkFlagRequired("teacher"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (f *askFlags) critique(cmd *cobra.Command, data []string, promptName string, teachers []string) error {
	if err := f.check(); err != nil {
		return codedError{err, codeUsage}
	}
	prompt, err := critic.LoadPrompt(promptName)
	if err != nil {
		return codedError{err, codeUsage}
	}
	var specs []teacherSpec
	for _, text := range teachers {
		s, err := parseTeacher(text)
		if err != nil {
			return codedError{fmt.Errorf("--teacher: %w", err), codeUsage}
		}
		specs = append(specs, s)
	}
	a, err := f.open(cmd, "critique", data, specs, map[string]any{"prompt": prompt}, prompt.Messages)
	if err != nil {
		return err
	}
	defer a.close()
	result, err := a.work(cmd.Context())
	if err != nil {
		return err
	}
	counts, err := a.run.WriteCritiques()
	if err != nil {
		return err
	}
	report := askReport{Command: "critique", Output: filepath.Join(f.output, critic.CritiquesName), Critique: counts}
	return a.finish(cmd, result, report, f.asJSON)
}
