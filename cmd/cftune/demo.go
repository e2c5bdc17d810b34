package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/export"
	"cftune/trainer/metrics"
	"cftune/trainer/wordforms"
)

const demoLong = `Compare critique fine-tuning with supervised fine-tuning on a task that a very small model can learn in minutes.

Makes questions about English word forms with right and flawed answers and critiques of them, trains an adapter on the
critiques (CFT), on the right answers (SFT) and on a mix, and scores these and the base model on words that were in no
training row: their own answers, and their verdicts on others' answers. Everything lies under --output: data, runs,
adapters, scores and report.html. What is finished is not done again.`

// demoArm is one way of training.
type demoArm struct {
	name, description, mix string
}

// demoArms are trained on the same questions; the base model comes before them in the report.
var demoArms = []demoArm{
	{"cft", "trained on critiques of right and flawed answers, never on an answer of its own", "{cft: 1}"},
	{"sft", "trained on the right answers", "{sft: 1}"},
	{"mixed", "half of the questions as critiques, half as answers", "{cft: 1, sft: 1}"},
}

// demoSize says how much is trained and scored.
type demoSize struct{ train, dev, test int }

var (
	demoFull  = demoSize{train: 500, dev: 80, test: 200}
	demoQuick = demoSize{train: 40, dev: 10, test: 20}
)

const demoDataSeed = 7

type demo struct {
	model, output string
	threads       int
	size          demoSize
	out, notes    io.Writer
	data          wordforms.Data
}

func newDemoCommand() *cobra.Command {
	d := demo{size: demoFull}
	var quick bool
	cmd := &cobra.Command{
		Use:   "demo --model MODEL.gguf",
		Short: "Compare CFT and SFT on a small model, with a report to look at",
		Long:  demoLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out, d.notes = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if quick {
				d.size = demoQuick
			}
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&d.model, "model", "", "base model, a GGUF file with a chat template (required)")
	cmd.Flags().StringVar(&d.output, "output", "demo", "folder for everything that is made")
	cmd.Flags().IntVar(&d.threads, "threads", 0, "CPU threads (0 = all cores)")
	cmd.Flags().BoolVar(&quick, "quick", false, "a tenth of the data: shows that everything runs, the scores mean nothing")
	if err := cmd.MarkFlagRequired("model"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (d *demo) run(ctx context.Context) error {
	began := time.Now()
	var err error
	if d.data, err = wordforms.Build(wordforms.Options{Seed: demoDataSeed, Train: d.size.train, Dev: d.size.dev, Test: d.size.test}); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := d.writeData(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	arms := []scoredArm{{Name: "base", Description: "the model as it came"}}
	for _, arm := range demoArms {
		if err := d.train(ctx, arm); err != nil {
			return fmt.Errorf("demo: %s: %w", arm.name, err)
		}
		arms = append(arms, scoredArm{Name: arm.name, Description: arm.description})
	}
	for i := range arms {
		if err := d.score(ctx, &arms[i]); err != nil {
			return fmt.Errorf("demo: score %s: %w", arms[i].Name, err)
		}
	}
	page, err := d.page(arms)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	path := filepath.Join(d.output, "report.html")
	if err := d.writeReport(path, page); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d.note("demo: done in %s", time.Since(began).Round(time.Second))
	for _, line := range page.Reading {
		d.note("  %s", line)
	}
	_, err = fmt.Fprintln(d.out, path)
	return err
}

func (d *demo) note(format string, args ...any) { fmt.Fprintf(d.notes, format+"\n", args...) }

func (d *demo) path(parts ...string) string {
	return filepath.Join(append([]string{d.output}, parts...)...)
}

// writeData writes the three parts as JSONL in the format cft, which also carries the right answer for SFT.
func (d *demo) writeData() error {
	if err := os.MkdirAll(d.path("data"), 0o755); err != nil {
		return err
	}
	for name, items := range map[string][]wordforms.Item{"train": d.data.Train, "dev": d.data.Dev, "test": d.data.Test} {
		var text []byte
		for _, item := range items {
			row, err := json.Marshal(demoRow(item))
			if err != nil {
				return err
			}
			text = append(append(text, row...), '\n')
		}
		if err := os.WriteFile(d.path("data", name+".jsonl"), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func demoRow(item wordforms.Item) map[string]string {
	return map[string]string{
		"query": item.Query(), "response": item.Answer(), "critique": item.Critique(), "solution": item.Solution(),
		"label": item.Label(), "gold": item.Gold,
	}
}

// config is the run of an arm: an ordinary configuration, so that its folder can be looked at, resumed and exported.
func (d *demo) config(arm demoArm) (config.Run, error) {
	return config.Parse([]byte(fmt.Sprintf(`
model: %q
output: %q
threads: %d
data:
  sources: [{path: %q, format: cft}]
  validation: {path: %q, format: cft}
objective: {stages: [{mix: %s}]}
adapter: {rank: 16, alpha: 32}
train: {seq_len: 1024, global_batch: {examples: 8}, epochs: 1}
optimizer: {lr: 1e-3, schedule: cosine, warmup_steps: 5}
checkpoint: {every_steps: 25, keep_last: 2}
`, d.model, d.path("runs", arm.name), d.threads, d.path("data", "train.jsonl"), d.path("data", "dev.jsonl"), arm.mix)), nil, nil)
}

// train trains an arm, or goes on with it, and exports its adapter.
func (d *demo) train(ctx context.Context, arm demoArm) error {
	run, err := d.config(arm)
	if err != nil {
		return err
	}
	s := session{out: io.Discard, notes: d.notes}
	dir := run.Output
	began := time.Now()
	switch _, err := os.Stat(filepath.Join(dir, checkpoint.ConfigName)); {
	case errors.Is(err, fs.ErrNotExist):
		d.note("demo: training %s", arm.name)
		_, err = s.train(ctx, run)
		if err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if _, err := s.resume(ctx, dir, nil); err != nil {
			return err
		}
	}
	d.note("demo: %s is trained (%s)", arm.name, time.Since(began).Round(time.Second))
	c, _, err := checkpoint.Latest(dir, false)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.path("adapters"), 0o755); err != nil {
		return err
	}
	_, err = export.Adapter(c, d.adapter(arm.name), export.Options{Force: true})
	return err
}

// adapter is where an arm's exported adapter lies; the base model has none.
func (d *demo) adapter(arm string) string {
	if arm == "base" {
		return ""
	}
	return d.path("adapters", arm+".gguf")
}

// trained returns the steps of an arm's run.
func (d *demo) trained(arm string) ([]metrics.Step, error) {
	text, err := os.ReadFile(d.path("runs", arm, checkpoint.MetricsName))
	if err != nil {
		return nil, err
	}
	var steps []metrics.Step
	for line := range bytes.Lines(text) {
		var s metrics.Step
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, fmt.Errorf("%s: %w", arm, err)
		}
		if s.Targets > 0 { // validations have none of a step's fields
			steps = append(steps, s)
		}
	}
	return steps, nil
}
