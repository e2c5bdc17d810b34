package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cftune/trainer/critic"
	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
	"cftune/trainer/objective"
)

const sampleLong = `Sample candidate answers to questions, as responses for critiques.

DATA are files, folders, patterns or URLs with a query in each row, in the format that --format names. A local model (--model,
with an --adapter if wanted) or an endpoint (--endpoint) gives -n answers to each. Where a row has a gold answer, each answer is
graded: the final answer is taken out of the text and compared as numbers, formulas or words. What --keep says is written
to samples.jsonl in the output folder, in format cft: query, response, gold, label, and where the answer comes from. What is
left out is counted.

  --keep all          everything but empty answers, graded or not
  --keep wrong        what is graded wrong; right likewise
  --keep mix=0.5      as many as there can be with this share of wrong ones; drawn with the seed

Whatever ends the command, the same command goes on; another --keep writes the file anew without asking again.

With --shard 2/4 this process asks about every fourth row, from the second on, in a folder of its own under --output (a budget is
then the shard's). Texts are those that one process would get; shard-*/samples.jsonl names them all.

An endpoint is written as in cftune critique --teacher: ` + "`cftune critique --help`" + ` tells.

Examples:
  cftune sample questions.jsonl --model base.gguf -n 4 --keep wrong --output samples
  cftune sample train.jsonl --fields query=question,gold=answer --endpoint model=qwen,url=http://localhost:8000/v1 --output samples`

func newSampleCommand() *cobra.Command {
	f := askFlags{temperature: 0.8, topP: 0.95, maxTokens: 512}
	var s sampleFlags
	cmd := &cobra.Command{
		Use:   "sample DATA... {--model MODEL | --endpoint ENDPOINT} --output FOLDER",
		Short: "Sample candidate answers to questions, graded where there is a gold answer",
		Long:  sampleLong,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := layOut(cmd, s.adapter, &s.templateFile, &s.system); err != nil {
				return fmt.Errorf("sample: %w", err)
			}
			if err := f.sample(cmd, args, s); err != nil {
				return fmt.Errorf("sample: %w", err)
			}
			return nil
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&s.model, "model", "", "a local model, a GGUF file")
	flags.StringVar(&s.adapter, "adapter", "", "LoRA adapter for --model: a GGUF file, a run (its newest checkpoint), or a checkpoint")
	flags.StringVar(&s.templateFile, "template-file", "", "chat template instead of the --model's own (or of what --adapter, a run, was trained with)")
	flags.StringVar(&s.endpoint, "endpoint", "", "an OpenAI-compatible endpoint instead of --model")
	flags.StringVar(&s.system, "system", "", "system message (default: what --adapter, a run, was trained with)")
	flags.IntVarP(&f.perRow, "answers", "n", 1, "answers to each question")
	flags.StringVar(&s.keep, "keep", "all", "what is written: all, wrong, right, or mix=SHARE of wrong ones")
	flags.BoolVar(&s.distinct, "distinct", false, "write each of a question's answers once")
	return cmd
}

// sampleFlags are the flags of `sample` alone.
type sampleFlags struct {
	model, adapter, templateFile, endpoint, system, keep string
	distinct                                             bool
}

// spec is who is asked.
func (s sampleFlags) spec() (teacherSpec, error) {
	switch {
	case (s.model == "") == (s.endpoint == ""):
		return teacherSpec{}, errors.New("want either --model or --endpoint")
	case s.endpoint != "" && (s.adapter != "" || s.templateFile != ""):
		return teacherSpec{}, errors.New("--adapter and --template-file are for a --model")
	case s.endpoint != "":
		spec, err := parseTeacher(s.endpoint)
		if err != nil {
			return spec, fmt.Errorf("--endpoint: %w", err)
		}
		return spec, nil
	}
	return teacherSpec{name: strings.TrimSuffix(fileName(s.model), ".gguf"), gguf: s.model, adapter: s.adapter, templateFile: s.templateFile}, nil
}

// parseKeep reads --keep.
func parseKeep(text string, distinct bool) (critic.Keep, error) {
	k := critic.Keep{Distinct: distinct}
	share, isMix := strings.CutPrefix(text, "mix=")
	switch {
	case text == "all":
		k.Right, k.Wrong, k.Ungraded = true, true, true
	case text == "wrong":
		k.Wrong = true
	case text == "right":
		k.Right = true
	case isMix:
		v, err := strconv.ParseFloat(share, 64)
		if err != nil || !(v >= 0 && v <= 1) {
			return k, fmt.Errorf("--keep mix=%s: the share must be from 0 to 1", share)
		}
		k.Some, k.Mix = true, v
	default:
		return k, fmt.Errorf("--keep: must be all, wrong, right or mix=SHARE, got %q", text)
	}
	return k, nil
}

func (f *askFlags) sample(cmd *cobra.Command, data []string, s sampleFlags) error {
	if err := f.check(); err != nil {
		return codedError{err, codeUsage}
	}
	keep, err := parseKeep(s.keep, s.distinct)
	if err != nil {
		return codedError{err, codeUsage}
	}
	spec, err := s.spec()
	if err != nil {
		return codedError{err, codeUsage}
	}
	prompt := map[string]any{"system": s.system, "user": objective.AnswerPrompt("{query}")}
	a, err := f.open(cmd, "sample", data, []teacherSpec{spec}, map[string]any{"prompt": prompt}, answerMessages(s.system))
	if err != nil {
		return err
	}
	defer a.close()
	result, err := a.work(cmd.Context())
	if err != nil {
		return err
	}
	counts, err := a.run.WriteSamples(keep, gradeSample)
	if err != nil {
		return err
	}
	report := askReport{Command: "sample", Output: filepath.Join(f.output, critic.SamplesName), Samples: &counts}
	if !keep.Ungraded && counts.Ungraded > 0 {
		a.display.note(fmt.Sprintf("%d answers have no gold answer to be graded with and are left out; --keep all writes them", counts.Ungraded))
	}
	return a.finish(cmd, result, report, f.asJSON)
}

// answerMessages lays a question out as in training.
func answerMessages(system string) func(dataset.Record) ([]dataset.Message, error) {
	return func(r dataset.Record) ([]dataset.Message, error) {
		if strings.TrimSpace(r.Query) == "" {
			return nil, fmt.Errorf("record %s has no query", r.ID)
		}
		messages := []dataset.Message{{Role: dataset.RoleUser, Content: objective.AnswerPrompt(r.Query)}}
		if system != "" {
			messages = append([]dataset.Message{{Role: dataset.RoleSystem, Content: system}}, messages...)
		}
		return messages, nil
	}
}

// gradeSample compares an answer with the gold one.
func gradeSample(answer, gold string) bool {
	return evaluate.GradeAnswer(answer, evaluate.GoldAnswer(gold)).Right
}
