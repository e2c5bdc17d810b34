package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/spf13/cobra"

	"cftune/bindings/engine"
	"cftune/trainer/chat"
	"cftune/trainer/dataset"
)

// generateOptions are the flags of `generate`.
type generateOptions struct {
	model, adapter      string
	prompt, system      string
	templateFile        string
	maxTokens, parallel int
	context, threads    int
	gpuLayers           int
	adapterScale        float64
	sampling            engine.Sampling
	stops               []string
	jsonl, asJSON       bool
}

// question is what one answer is generated for: a prompt of the user's, or a whole conversation.
type question struct {
	ID       json.RawMessage `json:"id,omitempty"` // of the caller's, given back
	Prompt   string          `json:"prompt"`
	Messages []struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	} `json:"messages"`
}

// answerLine is an answer as JSON.
type answerLine struct {
	ID     json.RawMessage   `json:"id,omitempty"`
	Prompt string            `json:"prompt,omitempty"`
	Text   string            `json:"text"`
	Tokens int               `json:"tokens"`
	Reason engine.StopReason `json:"reason"`
}

const generateLong = `Generate answers with a base model and, if given, a LoRA adapter, through libllama.

The prompt is one user turn, laid out by the model's chat template. It comes from --prompt, or whole from standard
input. With --jsonl, standard input has one question per line, {"prompt": "..."} or {"messages": [{"role": "user",
"content": "..."}]}, with an optional "id"; answers are JSON lines in the same order.

The text is written to standard output as it comes. Without --temperature the most likely token is taken each time;
otherwise the same --seed gives the same answers, with the same --parallel, --threads and questions: rounding depends on what is generated
together, and may tip tokens that are nearly as likely.`

func newGenerateCommand() *cobra.Command {
	o := generateOptions{}
	cmd := &cobra.Command{
		Use:   "generate --model MODEL [--adapter ADAPTER] [--prompt TEXT | --jsonl]",
		Short: "Answer prompts with a model and an adapter",
		Long:  generateLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(cmd.Flags().Changed("prompt")); err != nil {
				return codedError{fmt.Errorf("generate: %w", err), codeUsage}
			}
			questions, err := o.questions(cmd.Flags().Changed("prompt"), standardInput(cmd))
			if err != nil {
				return fmt.Errorf("generate: %w", err)
			}
			if err := o.find(cmd); err != nil {
				return fmt.Errorf("generate: %w", err)
			}
			if err := o.run(cmd.Context(), questions, cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
				return engineError(fmt.Errorf("generate: %w", err))
			}
			return nil
		},
	}
	flags := cmd.Flags()
	o.commonFlags(cmd)
	flags.StringVar(&o.prompt, "prompt", "", "what the user says (default: standard input)")
	flags.BoolVar(&o.jsonl, "jsonl", false, "read questions from standard input, one JSON object per line")
	flags.BoolVar(&o.asJSON, "json", false, "print the answer as one JSON object")
	flags.IntVar(&o.maxTokens, "max-tokens", 256, "most tokens of an answer")
	flags.IntVar(&o.parallel, "parallel", 8, "answers generated at once with --jsonl")
	flags.IntVar(&o.context, "context", 0, "tokens of the cache for all answers at once (0 = what the questions need)")
	return cmd
}

// commonFlags are those of the model and of how its answers are drawn.
func (o *generateOptions) commonFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.model, "model", "", "base model: a GGUF file, hf:// or ollama:// (required)")
	flags.StringVar(&o.adapter, "adapter", "", "LoRA adapter: a GGUF file, a PEFT folder, a run (its newest checkpoint), or a checkpoint")
	flags.Float64Var(&o.adapterScale, "adapter-scale", 1, "factor of the adapter's effect")
	flags.StringVar(&o.system, "system", "", "system message (default: what --adapter, a run, was trained with)")
	flags.StringVar(&o.templateFile, "template-file", "", "chat template instead of the model's own (or of what --adapter, a run, was trained with)")
	flags.Float64Var(&o.sampling.Temperature, "temperature", 0, "randomness (0 = the most likely token)")
	flags.IntVar(&o.sampling.TopK, "top-k", 0, "draw from so many best tokens (0 = all)")
	flags.Float64Var(&o.sampling.TopP, "top-p", 1, "draw from the best tokens that have this share of the probability, before --temperature")
	flags.Float64Var(&o.sampling.MinP, "min-p", 0, "draw from tokens of at least this share of the best one's probability")
	flags.Uint64Var(&o.sampling.Seed, "seed", 42, "seed of the random draws")
	flags.StringArrayVar(&o.stops, "stop", nil, "end the answer where this text begins (repeatable)")
	flags.IntVar(&o.threads, "threads", 0, "CPU threads (0 = all that the process may use)")
	flags.IntVar(&o.gpuLayers, "gpu-layers", 0, "layers to put on a GPU")
	if err := cmd.MarkFlagRequired("model"); err != nil {
		panic(err) // the flag is defined above
	}
}

// find looks for the model, and for what the adapter's run was laid out with.
func (o *generateOptions) find(cmd *cobra.Command) (err error) {
	if o.model, err = findModel(cmd.Context(), o.model, cmd.ErrOrStderr()); err != nil {
		return err
	}
	return layOut(cmd, o.adapter, &o.templateFile, &o.system)
}

// check refuses what can be refused before anything is loaded.
func (o generateOptions) check(hasPrompt bool) error {
	s := o.sampling
	switch {
	case o.jsonl && hasPrompt:
		return errors.New("--jsonl and --prompt exclude each other")
	case o.maxTokens < 1:
		return fmt.Errorf("--max-tokens: must be at least 1, got %d", o.maxTokens)
	case o.parallel < 1:
		return fmt.Errorf("--parallel: must be at least 1, got %d", o.parallel)
	case !(s.Temperature >= 0) || math.IsInf(s.Temperature, 0):
		return fmt.Errorf("--temperature: must be 0 or more, got %v", s.Temperature)
	case s.TopK < 0:
		return fmt.Errorf("--top-k: must be 0 or more, got %d", s.TopK)
	case !(s.TopP > 0 && s.TopP <= 1):
		return fmt.Errorf("--top-p: must be above 0 and at most 1, got %v", s.TopP)
	case !(s.MinP >= 0 && s.MinP <= 1):
		return fmt.Errorf("--min-p: must be from 0 to 1, got %v", s.MinP)
	case s.Temperature == 0 && (s.TopK != 0 || s.TopP != 1 || s.MinP != 0):
		return errors.New("--top-k, --top-p and --min-p need a --temperature above 0")
	case math.IsNaN(o.adapterScale) || math.Abs(o.adapterScale) > math.MaxFloat32:
		return fmt.Errorf("--adapter-scale: must be a finite number of 32 bits, got %v", o.adapterScale)
	case o.adapter == "" && o.adapterScale != 1:
		return errors.New("--adapter-scale needs an --adapter")
	}
	for _, stop := range o.stops {
		if stop == "" {
			return errors.New("--stop: is empty")
		}
	}
	return nil
}

// questions reads what is asked.
func (o generateOptions) questions(hasPrompt bool, in io.Reader) ([]question, error) {
	if o.jsonl {
		return readQuestions(in)
	}
	prompt := o.prompt
	if !hasPrompt {
		text, err := io.ReadAll(in)
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		prompt = string(bytes.TrimSuffix(text, []byte("\n"))) // the newline that ends the last line is not meant
	}
	if prompt == "" {
		return nil, codedError{errors.New("the prompt is empty"), codeUsage}
	}
	return []question{{Prompt: prompt}}, nil
}

// readQuestions reads JSON lines; blank lines are passed over.
func readQuestions(in io.Reader) ([]question, error) {
	var questions []question
	lines := bufio.NewReader(in)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		if text := bytes.TrimSpace(line); len(text) > 0 {
			q, parseErr := parseQuestion(text)
			if parseErr != nil {
				return nil, codedError{fmt.Errorf("standard input: line %d: %w", number, parseErr), codeData}
			}
			questions = append(questions, q)
		}
		if err == io.EOF {
			return questions, nil
		}
	}
}

func parseQuestion(text []byte) (question, error) {
	var q question
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return q, plainJSON(err)
	}
	if d.More() {
		return q, errors.New("more than one value")
	}
	if (q.Prompt == "") == (len(q.Messages) == 0) {
		return q, errors.New(`want either "prompt" or "messages"`)
	}
	return q, nil
}

func (q question) conversation() []dataset.Message {
	if len(q.Messages) == 0 {
		return []dataset.Message{{Role: dataset.RoleUser, Content: q.Prompt}}
	}
	messages := make([]dataset.Message, len(q.Messages))
	for i, m := range q.Messages {
		messages[i] = dataset.Message{Role: m.Role, Content: m.Content}
	}
	return messages
}

// openChat reads a model's vocabulary and its chat template, or the one in templateFile unless that is empty. The caller
// closes the vocabulary when it is done with both.
func openChat(model, templateFile, system string) (*engine.Vocab, *chat.Template, error) {
	vocab, err := engine.OpenVocab(model)
	if err != nil {
		return nil, nil, engineError(err)
	}
	source := vocab.ChatTemplate()
	if templateFile != "" {
		if source, err = readTemplate(templateFile); err != nil {
			vocab.Close()
			return nil, nil, err
		}
	}
	template, err := chat.NewTemplate(source, vocab)
	if err != nil {
		vocab.Close()
		return nil, nil, codedError{err, codeData}
	}
	return vocab, template.WithSystem(system), nil
}

func (o generateOptions) run(ctx context.Context, questions []question, out, notes io.Writer) error {
	if len(questions) == 0 {
		return nil
	}
	vocab, template, err := openChat(o.model, o.templateFile, o.system)
	if err != nil {
		return err
	}
	defer vocab.Close()
	prompts := make([][]int32, len(questions))
	longest := 0
	for i, q := range questions {
		if prompts[i], err = template.EncodePrompt(q.conversation()); err != nil {
			return codedError{fmt.Errorf("question %d: %w", i+1, err), codeData}
		}
		longest = max(longest, len(prompts[i]))
	}
	if o.context != 0 && longest >= o.context {
		return codedError{fmt.Errorf("--context is %d, and the longest question has %d tokens", o.context, longest), codeUsage}
	}
	session, err := o.openSession(len(questions), longest)
	if err != nil {
		return err
	}
	defer session.Close()
	return o.answer(ctx, engine.NewGenerator(session, vocab), questions, prompts, out, notes)
}

// openSession makes room for as many whole answers at once as there may be.
func (o generateOptions) openSession(questions, longest int) (*engine.Session, error) {
	parallel := min(o.parallel, questions)
	size := o.context
	if size == 0 {
		size = parallel * (longest + o.maxTokens)
	}
	return o.newSession(size, parallel, min(size, longest+o.maxTokens))
}

// newSession has a cache of so many tokens for so many answers at a time, of which each takes as many as maxSequence.
func (o generateOptions) newSession(size, parallel, maxSequence int) (*engine.Session, error) {
	const batch = 512 // tokens of prompts read at once; more gains nothing
	return newSession(o.model, o.adapter, engine.SessionParams{
		NCtx:         size,
		NBatch:       min(batch, size),
		NSequences:   parallel,
		NThreads:     o.threads,
		NGPULayers:   o.gpuLayers,
		AdapterScale: o.adapterScale,
		MaxSequence:  maxSequence,
	})
}

// answer generates and prints. JSON lines are in the order of the questions, each as soon as those before it are out.
func (o generateOptions) answer(ctx context.Context, g *engine.Generator, questions []question, prompts [][]int32, out, notes io.Writer) error {
	var writeErr error
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wrote := func(err error) { // a reader that has gone away ends the work
		if err != nil && writeErr == nil {
			writeErr = err
			stop()
		}
	}
	options := engine.GenerateOptions{MaxTokens: o.maxTokens, Sampling: o.sampling, StopStrings: o.stops}
	if o.jsonl || o.asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetEscapeHTML(false)
		done := make([]*engine.Completion, len(questions))
		next := 0
		options.OnDone = func(i int, c engine.Completion) {
			for done[i] = &c; next < len(done) && done[next] != nil; next++ {
				q, a := questions[next], done[next]
				wrote(encoder.Encode(answerLine{q.ID, q.Prompt, a.Text, len(a.Tokens), a.Reason}))
			}
		}
	} else {
		options.OnText = func(_ int, text string) {
			_, err := io.WriteString(out, text)
			wrote(err)
		}
	}
	answers, err := g.Generate(ctx, prompts, options)
	if writeErr != nil {
		return writeErr
	}
	if !o.jsonl && !o.asJSON && len(answers) == 1 {
		_, writeErr = io.WriteString(out, "\n")
		if reason := answers[0].Reason; reason == engine.StopLength || reason == engine.StopContext {
			limit := fmt.Sprintf("--max-tokens is %d", o.maxTokens)
			if reason == engine.StopContext {
				limit = fmt.Sprintf("--context is %d", o.context)
			}
			fmt.Fprintf(notes, "cftune: note: the answer was cut off: %s\n", limit)
		}
	}
	return errors.Join(err, writeErr)
}
