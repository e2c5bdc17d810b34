package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cftune/internal/spell"
	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/dataset"
	"cftune/trainer/score"
	"cftune/trainer/shard"
)

const evaluateLong = `Score models on test sets: their own answers, their critiques of others' answers, self-critique, loss, and how they follow
instructions about form.

A SUBJECT is one of these, with NAME= before it if reports should call it so:
  base             the model of --model, or of the runs that are named
  RUN              a run's newest checkpoint; --checkpoints all: every one
  RUN/checkpoints/step-00000050, or an adapter's GGUF (with --model), or a model's GGUF
The first subject is what the others are compared with, item by item.

A --set is ` + sourceHelp + `.
Reports name it by its path, or by a name that it is given: '{name: one, path: test.jsonl}'.

Tasks, by --tasks:
  answers    greedy answers to rows with query and gold (or a solution with a final answer), and --samples sampled ones each
  critiques  verdicts on the responses of rows with query, response, and label (or gold, by which the response is graded)
  self       single pass: solution, critique and final answer in one turn; two stages: drawn again until the model's own critique
             accepts the answer, at most --tries times
  loss       of the rows' targets under each objective that they have the texts for
  probes     built-in instructions whose form can be checked

Everything is kept under --output: texts.jsonl with every text and loss, report.json, report.md, report.html. Started again
with the same output, it goes on: what has been written once, by the same weights, prompt and settings, is not written again.
The same command writes the same texts; with another --parallel, --threads or other rows, a text may be another from the first place on where
two tokens are nearly as likely (quantized models: often). The intervals include that.

With --shard 2/4 this process scores every fourth row, from the second on, in a folder of its own under --output; when all shards
are done, the same command without --shard writes nothing anew and reports on all rows.

With --choose the best checkpoint of a run is recorded in the run (chosen.json): pruning keeps it, and
cftune export --checkpoint best takes it.`

// evaluateFlags are the flags of `evaluate`.
type evaluateFlags struct {
	model, output string
	system        string
	systemGiven   bool
	sets          []string
	checkpoints   string
	choose        string
	rows          int
	shard         string
	part          shard.Shard
	asJSON        bool
	served        servedOptions
	o             score.Options
	held          map[string]*trainer.HeldModel // the models, by their paths
}

func newEvaluateCommand() *cobra.Command {
	f := evaluateFlags{o: score.DefaultOptions(), held: map[string]*trainer.HeldModel{}}
	cmd := &cobra.Command{
		Use:   "evaluate SUBJECT... --set FILE --output FOLDER",
		Short: "Score models, adapters and checkpoints on test sets",
		Long:  evaluateLong,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.systemGiven = cmd.Flags().Changed("system")
			if err := f.check(); err != nil {
				return codedError{fmt.Errorf("evaluate: %w", err), codeUsage}
			}
			return goesOn(f.run(cmd, args))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.output, "output", "", "folder for texts and reports (required)")
	flags.StringArrayVar(&f.sets, "set", nil, "a test set (repeatable)")
	flags.StringVar(&f.model, "model", "", "the base model (default: the runs')")
	flags.StringVar(&f.system, "system", "", "system prompt of all conversations (default: of a run's, what it was trained with)")
	flags.StringSliceVar(&f.o.Tasks, "tasks", f.o.Tasks, "what is scored: "+strings.Join(score.Tasks(), ", "))
	flags.StringVar(&f.checkpoints, "checkpoints", "latest", "of runs: latest, all, best, or steps (50,100)")
	flags.StringVar(&f.choose, "choose", "", "record the run's best checkpoint, by: answers, verdicts, loss")
	flags.IntVar(&f.rows, "rows", 0, "score the first rows of each set only (0 = all)")
	flags.IntVar(&f.o.Samples, "samples", 0, "sampled passes over the queries, each with its own seed; pass@k comes from them")
	flags.Float64Var(&f.o.Sampling.Temperature, "temperature", f.o.Sampling.Temperature, "of sampled answers and of two-stage self-critique")
	flags.Float64Var(&f.o.Sampling.TopP, "top-p", f.o.Sampling.TopP, "of sampled answers: a share of the probability before --temperature, as in llama.cpp (vLLM and transformers: after it)")
	flags.Uint64Var(&f.o.Sampling.Seed, "seed", f.o.Sampling.Seed, "of the first sampled pass; the others follow")
	flags.IntVar(&f.o.AnswerTokens, "answer-tokens", f.o.AnswerTokens, "most tokens of an answer")
	flags.IntVar(&f.o.CritiqueTokens, "critique-tokens", f.o.CritiqueTokens, "most tokens of a critique")
	flags.IntVar(&f.o.Tries, "tries", f.o.Tries, "of two-stage self-critique")
	flags.IntVar(&f.served.parallel, "parallel", 16, "texts generated at once")
	flags.IntVar(&f.served.threads, "threads", 0, "CPU threads (0 = all that the process may use)")
	flags.IntVar(&f.served.gpuLayers, "gpu-layers", 0, "layers to put on a GPU")
	flags.IntVar(&f.served.lossContext, "loss-context", 4096, "longest example whose loss is measured, in tokens")
	flags.StringVar(&f.shard, "shard", "", shardHelp)
	flags.BoolVar(&f.asJSON, "json", false, "print the report as JSON")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (f *evaluateFlags) check() error {
	o := f.o
	for _, task := range o.Tasks {
		if !slices.Contains(score.Tasks(), task) {
			return fmt.Errorf("--tasks: must be of %s, got %q", strings.Join(score.Tasks(), ", "), task)
		}
	}
	for name, n := range map[string]int{
		"--answer-tokens": o.AnswerTokens, "--critique-tokens": o.CritiqueTokens, "--tries": o.Tries, "--parallel": f.served.parallel, "--loss-context": f.served.lossContext,
	} {
		if n < 1 {
			return fmt.Errorf("%s: must be at least 1, got %d", name, n)
		}
	}
	needs := map[string]string{score.ByAnswers: score.TaskAnswers, score.ByVerdicts: score.TaskCritiques, score.ByLoss: score.TaskLoss}
	switch {
	case len(o.Tasks) == 0:
		return errors.New("--tasks: nothing is to be scored")
	case len(f.sets) == 0 && !slices.Equal(o.Tasks, []string{score.TaskProbes}):
		return errors.New("--set: missing: all tasks but probes need a test set")
	case o.Samples < 0 || f.rows < 0 || f.served.threads < 0 || f.served.gpuLayers < 0:
		return errors.New("--samples, --rows, --threads and --gpu-layers must not be negative")
	case !(o.Sampling.Temperature > 0):
		return fmt.Errorf("--temperature: must be above 0 (greedy answers are always scored), got %v", o.Sampling.Temperature)
	case !(o.Sampling.TopP > 0 && o.Sampling.TopP <= 1):
		return fmt.Errorf("--top-p: must be above 0 and at most 1, got %v", o.Sampling.TopP)
	case f.choose != "" && needs[f.choose] == "":
		return fmt.Errorf("--choose: must be answers, verdicts or loss, got %q", f.choose)
	case f.choose != "" && !slices.Contains(o.Tasks, needs[f.choose]):
		return fmt.Errorf("--choose %s needs the task %s", f.choose, needs[f.choose])
	}
	return nil
}

func (f *evaluateFlags) run(cmd *cobra.Command, args []string) error {
	ctx, notes := cmd.Context(), cmd.ErrOrStderr()
	var err error
	if f.part, err = shard.Parse(f.shard, os.Getenv); err != nil {
		return codedError{fmt.Errorf("evaluate: --%w", err), codeUsage}
	}
	if !f.part.All() {
		f.output = filepath.Join(f.output, f.part.Folder())
		if f.choose != "" {
			return codedError{errors.New("evaluate: --choose needs all rows: choose once all shards are done, without --shard"), codeUsage}
		}
	}
	defer func() {
		for _, held := range f.held {
			held.Close()
		}
	}()
	subjects, run, err := f.subjects(ctx, args, notes)
	if err != nil {
		return err
	}
	if f.choose != "" && run == "" {
		return codedError{fmt.Errorf("evaluate: --choose %s: the checkpoints must be of one run", f.choose), codeUsage}
	}
	var sets []score.Set
	for _, text := range f.sets {
		set, err := f.readSet(cmd, text)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(sets, func(other score.Set) bool { return other.Name == set.Name }) {
			return codedError{fmt.Errorf("evaluate: two sets are called %s; --set '{path: FILE, name: NAME}' names one otherwise", set.Name), codeUsage}
		}
		sets = append(sets, set)
	}
	if err := ownFolder(f.output, score.TextsName, "report.md", "report.html", "report.json"); err != nil {
		return fmt.Errorf("evaluate: %w", err)
	}
	store, err := score.OpenStore(f.output)
	if err != nil {
		return codedError{err, codeUsage}
	}
	defer store.Close()
	f.o.Note = func(format string, args ...any) { fmt.Fprintf(notes, "cftune: "+format+"\n", args...) }
	if n := store.Unchecked(); n > 0 {
		f.o.Note("%s: %d lines have no checksum, being an earlier version's; whether they are as they were written is not known", score.TextsName, n)
	}
	report, err := score.Run(ctx, store, subjects, sets, f.o)
	if err != nil {
		return err
	}
	if f.choose != "" {
		if err := report.Choose(f.choose); err != nil {
			return codedError{fmt.Errorf("evaluate: %w", err), codeData}
		}
	}
	if report.Empty() && f.part.All() { // another shard's rows may have it
		return codedError{fmt.Errorf("evaluate: nothing can be scored: %s", strings.Join(report.Notes(), "; ")), codeData}
	}
	if err := f.write(report); err != nil {
		return err
	}
	fmt.Fprintf(notes, "cftune: the report as a page: %s\n", filepath.Join(f.output, "report.html"))
	if f.choose != "" {
		if err := recordChoice(run, report); err != nil {
			return err
		}
	}
	if f.asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(report)
	}
	return report.Markdown(cmd.OutOrStdout())
}

// readSet reads a test set; --rows takes its first rows.
func (f *evaluateFlags) readSet(cmd *cobra.Command, text string) (score.Set, error) {
	source, err := parseSource(text)
	if err != nil {
		return score.Set{}, err
	}
	set, err := openSources(cmd.Context(), source)
	if err != nil {
		return score.Set{}, err
	}
	defer set.Close()
	s := score.Set{Name: source.Name, Digest: set.Digest(), Of: set.Len()}
	if source.Name == source.Path {
		s.Name = filepath.Base(source.Path)
	}
	s.Name = spell.Line(s.Name)
	n := set.Len()
	if f.rows > 0 {
		n = min(n, f.rows)
	}
	if n == 0 {
		return s, &dataset.Error{File: source.Path, Err: errors.New("it has no rows to score")}
	}
	s.Shard = f.part
	for i := range f.part.Len(n) {
		record, err := set.Record(f.part.Row(i))
		if err != nil {
			return s, err
		}
		s.Records = append(s.Records, record)
	}
	if len(s.Records) == 0 {
		return s, codedError{fmt.Errorf("evaluate: --shard %s: of the %d rows of %s none falls to it", f.shard, n, source.Path), codeUsage}
	}
	return s, nil
}

func (f *evaluateFlags) write(report score.Report) error {
	for name, write := range map[string]func(io.Writer) error{
		"report.md":   report.Markdown,
		"report.html": report.Page,
		"report.json": func(w io.Writer) error {
			encoder := json.NewEncoder(w)
			encoder.SetIndent("", " ")
			return encoder.Encode(report)
		},
	} {
		if err := writeAside(filepath.Join(f.output, name), write); err != nil {
			return err
		}
	}
	return nil
}

// recordChoice keeps the chosen checkpoint, with what it was chosen from.
func recordChoice(run string, report score.Report) error {
	detail, err := json.Marshal(map[string]any{"candidates": report.Chosen.Candidates, "sets": report.Sets, "options": report.Options})
	if err != nil {
		return err
	}
	best := report.Chosen.Best
	return checkpoint.Choose(run, checkpoint.Choice{Step: best.Step, By: report.Chosen.By, Value: best.Value, Detail: detail})
}
