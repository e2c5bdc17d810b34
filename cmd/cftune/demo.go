package main

import (
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

	"cftune/internal/regular"
	"cftune/trainer/wordforms"
)

const demoLong = `Compare critique fine-tuning (CFT) with supervised fine-tuning (SFT) on a task that a very small model can learn in
minutes.

Makes questions about English word forms with right and flawed answers and critiques of them; trains an adapter on the
critiques, one on clean answers, one on the unchecked answers and one on a mix; and scores these and the base model on
words that were in no training row: their own answers, and their verdicts on others' answers.

Everything lies under --output: data, configs, runs, adapters, scores, summary.json and report.html. Runs are ordinary
runs (cftune check, resume, export). What is finished is not done again, so a demo that was interrupted goes on when it
is started again. docs/demo.md tells how the recipe was chosen.

`

// demoArm is one way of training.
type demoArm struct {
	name, description string
	mix               string // objective.stages
	data              string // which file it learns from
}

// The names of arms that the report speaks of by themselves.
const (
	armBase  = "base"
	armCFT   = "CFT"
	armSFT   = "SFT"
	armNoisy = "SFT-unchecked"
	armMixed = "mixed"
)

// demoArms are trained on the same questions, with the same number of rows; the base model comes before them in reports.
var demoArms = []demoArm{
	{armCFT, "learned critiques of right and flawed answers, and no answer of its own", "{cft: 1}", "train"},
	{armSFT, "learned clean answers", "{sft: 1}", "train"},
	{armNoisy, "learned the answers that CFT criticized, half of them flawed", "{sft: 1}", "train-unchecked"},
	{armMixed, "learned a critique for half of the questions, a clean answer for the others", "{cft: 1, sft: 1}", "train"},
}

// demoSize says how much is trained and scored.
type demoSize struct{ train, dev, test int }

var (
	demoFull  = demoSize{train: 400, dev: 40, test: 240}
	demoQuick = demoSize{train: 32, dev: 8, test: 16}
)

// demoDataSeed divides the words. The recipe was chosen on development words of another seed.
const demoDataSeed = 2026

// demoSystem is the system message in training and scoring. The base model answers better with it than with the one
// that its template has (docs/demo.md), and it is shorter.
const demoSystem = "You are a helpful AI assistant."

type demo struct {
	model, output string
	threads       int
	size          demoSize
	out, notes    io.Writer
	data          wordforms.Data
	began         time.Time
}

func newDemoCommand() *cobra.Command {
	d := demo{size: demoFull}
	var quick bool
	cmd := &cobra.Command{
		Use:   "demo --model MODEL.gguf",
		Short: "Compare CFT and SFT on a small model, with a report to look at",
		Long:  demoLong + exitCodesHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out, d.notes = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if d.threads < 0 {
				return codedError{fmt.Errorf("--threads: must be at least 0, got %d", d.threads), codeUsage}
			}
			if quick {
				d.size = demoQuick
			}
			if err := d.run(cmd.Context()); err != nil {
				return goesOn(fmt.Errorf("demo: %w", err))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&d.model, "model", "", "base model, a GGUF file with a chat template (required)")
	cmd.Flags().StringVar(&d.output, "output", "demo", "folder for everything that is made")
	cmd.Flags().IntVar(&d.threads, "threads", 0, "CPU threads (0 = all that the process may use)")
	cmd.Flags().BoolVar(&quick, "quick", false, "a tenth of the data: shows that everything runs; its scores mean nothing")
	if err := cmd.MarkFlagRequired("model"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (d *demo) run(ctx context.Context) error {
	d.began = time.Now()
	var err error
	if d.model, err = findModel(ctx, d.model, d.notes); err != nil {
		return err
	}
	if err := ownFolder(d.output, filepath.Join("data", "train.jsonl"), "report.html", "summary.json"); err != nil {
		return err
	}
	if err := d.makeData(); err != nil {
		return err
	}
	scores := []armScore{{Name: armBase, Description: "the model as it came"}}
	for _, arm := range demoArms {
		if err := d.train(ctx, arm); err != nil {
			return fmt.Errorf("train %s: %w", arm.name, err)
		}
		scores = append(scores, armScore{Name: arm.name, Description: arm.description})
	}
	for i := range scores {
		if err := d.score(ctx, &scores[i]); err != nil {
			return fmt.Errorf("score %s: %w", scores[i].Name, err)
		}
	}
	return d.report(scores)
}

// note tells people what happens, and when since the start.
func (d *demo) note(format string, args ...any) {
	fmt.Fprintf(d.notes, "[%6s] %s\n", time.Since(d.began).Round(time.Second), fmt.Sprintf(format, args...))
}

func (d *demo) path(parts ...string) string {
	return filepath.Join(append([]string{d.output}, parts...)...)
}

// demoRow is a line of a data file, in the format cft. Its solution is what SFT learns.
type demoRow struct {
	Query    string `json:"query"`
	Response string `json:"response"`
	Critique string `json:"critique"`
	Solution string `json:"solution"`
	Label    string `json:"label"`
	Gold     string `json:"gold"`
}

// makeData writes the parts as JSONL; of the training part a second file, with unchecked answers as solutions. Files of that
// name with something else, those of another demo say, are left as they are, and all others too.
func (d *demo) makeData() error {
	var err error
	if d.data, err = wordforms.Build(wordforms.Options{Seed: demoDataSeed, Train: d.size.train, Dev: d.size.dev, Test: d.size.test}); err != nil {
		return err
	}
	files := map[string][]byte{}
	for _, part := range []struct {
		name     string
		items    []wordforms.Item
		solution func(wordforms.Item) string
	}{
		{"train", d.data.Train, wordforms.Item.Solution},
		{"train-unchecked", d.data.Train, wordforms.Item.NoisySolution},
		{"dev", d.data.Dev, wordforms.Item.Solution},
		{"test", d.data.Test, wordforms.Item.Solution},
	} {
		var text []byte
		for _, i := range part.items {
			row, err := json.Marshal(demoRow{i.Query(), i.Answer(), i.Critique(), part.solution(i), i.Label(), i.Gold})
			if err != nil {
				return err
			}
			text = append(append(text, row...), '\n')
		}
		path := d.path("data", part.name+".jsonl")
		if old, err := regular.ReadFile(path); err == nil && string(old) != string(text) {
			return &usageError{
				fmt.Errorf("%s is there already with other rows than this demo's: another demo's (with or without --quick), or not a demo's", path),
				"--output names another folder",
			}
		}
		files[path] = text
	}
	for _, path := range sortedKeys(files) {
		if err := writeWhole(path, files[path]); err != nil {
			return err
		}
	}
	d.note("data: %d training, %d development and %d test questions, all about different words, in %s",
		len(d.data.Train), len(d.data.Dev), len(d.data.Test), d.path("data"))
	return nil
}

// writeWhole writes a file aside and renames it, so that an interrupt leaves no half of it. A file that has the text
// already stays as it is.
func writeWhole(path string, text []byte) error {
	switch old, err := regular.ReadFile(path); {
	case err == nil && string(old) == string(text):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + ".tmp"
	if err := os.WriteFile(temp, text, 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
