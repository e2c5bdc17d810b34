package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cftune/trainer/chat"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/critic"
	"cftune/trainer/dataset"
	"cftune/trainer/dataset/source"
	"cftune/trainer/shard"
)

// shardHelp tells of the flag --shard.
const shardHelp = "take every OF-th row, as 2/4: the second of four processes; auto: as mpirun, srun or an indexed Job started this one"

// askFlags are what `sample` and `critique` have in common.
type askFlags struct {
	format      string
	fields      map[string]string
	rows        int
	output      string
	perRow      int
	maxTokens   int
	temperature float64
	topP        float64
	stops       []string
	seed        uint64
	concurrency int
	budget      string
	attempts    int
	parallel    int
	context     int
	threads     int
	gpuLayers   int
	shard       string
	thoughts    bool
	asJSON      bool
	quiet       bool
}

func (f *askFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", "cft", "format of DATA, as in a configuration's data.sources, or query for questions alone")
	flags.StringToStringVar(&f.fields, "fields", nil, "where the format's fields come from: query=problem,gold=answer")
	flags.IntVar(&f.rows, "rows", 0, "take the first so many records (0 = all); a run may go on with more")
	flags.StringVar(&f.output, "output", "", "folder of the run, a new one or one to go on with (required)")
	flags.Float64Var(&f.temperature, "temperature", f.temperature, "randomness (0 = the most likely token)")
	flags.Float64Var(&f.topP, "top-p", f.topP, "draw from the best tokens that have this share of the probability (a local model: before --temperature)")
	flags.IntVar(&f.maxTokens, "max-tokens", f.maxTokens, "most tokens of an answer")
	flags.StringArrayVar(&f.stops, "stop", nil, "end an answer where this text begins (repeatable)")
	flags.Uint64Var(&f.seed, "seed", 42, "seed of all draws; each request has one of its own made of it")
	flags.IntVar(&f.concurrency, "concurrency", 16, "requests at a time to an endpoint")
	flags.StringVar(&f.budget, "budget", "", "most money to spend, over all processes that work on the run; the run stops before it could be exceeded")
	flags.IntVar(&f.attempts, "attempts", 6, "how often a request is tried before it is given up")
	flags.IntVar(&f.parallel, "parallel", 8, "answers that a local model generates at once")
	flags.IntVar(&f.context, "context", 0, "tokens of a local model's cache for all answers at once (0 = what the prompts need)")
	flags.IntVar(&f.threads, "threads", 0, "CPU threads of a local model (0 = all that the process may use)")
	flags.IntVar(&f.gpuLayers, "gpu-layers", 0, "layers of a local model to put on a GPU")
	flags.StringVar(&f.shard, "shard", "", shardHelp)
	flags.BoolVar(&f.thoughts, "keep-thoughts", false, "write what a model thinks before </think> too (it is left out, counted, and stays in the journal)")
	flags.BoolVar(&f.asJSON, "json", false, "print the report as one JSON object")
	flags.BoolVar(&f.quiet, "quiet", false, "show no progress")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
}

func (f *askFlags) check() error {
	switch {
	case f.perRow < 1:
		return fmt.Errorf("-n: must be at least 1, got %d", f.perRow)
	case f.maxTokens < 1:
		return fmt.Errorf("--max-tokens: must be at least 1, got %d", f.maxTokens)
	case !(f.temperature >= 0) || math.IsInf(f.temperature, 0):
		return fmt.Errorf("--temperature: must be 0 or more, got %v", f.temperature)
	case !(f.topP > 0 && f.topP <= 1):
		return fmt.Errorf("--top-p: must be above 0 and at most 1, got %v", f.topP)
	case f.rows < 0:
		return fmt.Errorf("--rows: must be 0 or more, got %d", f.rows)
	case f.concurrency < 1:
		return fmt.Errorf("--concurrency: must be at least 1, got %d", f.concurrency)
	case f.attempts < 1:
		return fmt.Errorf("--attempts: must be at least 1, got %d", f.attempts)
	case f.parallel < 1:
		return fmt.Errorf("--parallel: must be at least 1, got %d", f.parallel)
	case f.context < 0:
		return fmt.Errorf("--context: must be 0 or more, got %d", f.context)
	case f.perRow > 1 && f.temperature == 0:
		return fmt.Errorf("-n %d: with --temperature 0 all answers to a record are the same", f.perRow)
	}
	for _, stop := range f.stops {
		if stop == "" {
			return errors.New("--stop: is empty")
		}
	}
	return nil
}

// firstRows are the first records of a set.
type firstRows struct {
	*dataset.Set
	rows int
}

func (r firstRows) Len() int {
	if r.rows > 0 {
		return min(r.rows, r.Set.Len())
	}
	return r.Set.Len()
}

// asking is an opened run of a command, with what must be closed after it.
type asking struct {
	run     *critic.Run
	plan    critic.Plan
	display *askDisplay
	bill    bill
	cleanup []func()
}

// bill knows which answers have a price: those of a local model have none.
type bill struct {
	priced   bool
	unpriced []string // endpoints whose prices are not told
}

func newBill(specs []teacherSpec) bill {
	var b bill
	for _, s := range specs {
		switch {
		case s.price.In > 0 || s.price.Out > 0:
			b.priced = true
		case s.gguf == "":
			b.unpriced = append(b.unpriced, s.name)
		}
	}
	return b
}

// text is what was spent, as the end of a list; empty where nothing costs money.
func (b bill) text(spent critic.Money) string {
	text := ""
	if b.priced || spent > 0 {
		text = fmt.Sprintf("; %s spent", spent)
	}
	if len(b.unpriced) > 0 {
		text += fmt.Sprintf("; what %s cost is not known (no price_in, price_out)", strings.Join(b.unpriced, ", "))
	}
	return text
}

func (a *asking) close() {
	for i := len(a.cleanup) - 1; i >= 0; i-- {
		a.cleanup[i]()
	}
}

// open checks everything and opens the run. kind is the command's name; fixed has its own settings.
func (f *askFlags) open(cmd *cobra.Command, kind string, data []string, specs []teacherSpec, fixed map[string]any,
	messages func(dataset.Record) ([]dataset.Message, error)) (_ *asking, err error) {
	budget, err := f.money(specs)
	if err != nil {
		return nil, codedError{err, codeUsage}
	}
	a := &asking{bill: newBill(specs)}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	part, err := shard.Parse(f.shard, os.Getenv)
	if err != nil {
		return nil, codedError{fmt.Errorf("--%w", err), codeUsage}
	}
	records, err := f.openData(cmd.Context(), data, a)
	if err != nil {
		return nil, err
	}
	a.plan = critic.Plan{
		Records: records, Messages: messages, PerRow: f.perRow, Seed: f.seed, Shard: part,
		MaxTokens: f.maxTokens, Temperature: f.temperature, TopP: f.topP, Stop: f.stops,
	}
	repeated, err := checkMessages(records, messages)
	if err != nil {
		return nil, err
	}
	teachers, session := map[string]any{}, map[string]any{}
	for _, s := range specs {
		if s.gguf, err = findModel(cmd.Context(), s.gguf, cmd.ErrOrStderr()); err != nil {
			return nil, err
		}
		t, err := f.teacher(s, a)
		if err != nil {
			return nil, err
		}
		a.plan.Teachers = append(a.plan.Teachers, t)
		teachers[s.name] = t.Describe
		session[s.name] = map[string]any{"price": t.Price, "concurrency": t.Concurrency, "rpm": t.RequestsPerMinute, "tpm": t.TokensPerMinute, "batch": s.batch, "reached": t.Describe}
	}
	fixed["command"], fixed["teachers"], fixed["per_row"], fixed["seed"] = kind, teachers, f.perRow, f.seed
	fixed["max_tokens"], fixed["temperature"], fixed["top_p"], fixed["stop"] = f.maxTokens, f.temperature, f.topP, f.stops
	fixed["data"] = map[string]any{"sha256": records.Digest(), "format": f.format, "fields": f.fields, "records": records.Len()}
	if !part.All() {
		fixed["shard"] = part
		f.output = filepath.Join(f.output, part.Folder())
		if part.Len(records.Len()) == 0 {
			return nil, codedError{fmt.Errorf("--shard %s: of %d records none falls to it", f.shard, records.Len()), codeUsage}
		}
	}
	if err := apart(data, f.output); err != nil {
		return nil, err
	}
	a.display = newAskDisplay(cmd.ErrOrStderr(), kind, budget, a.bill, f.quiet)
	if repeated > 0 {
		a.display.note(fmt.Sprintf("%d of %d rows ask what an earlier one asks; each is asked all the same", repeated, records.Len()))
	}
	o := critic.Options{
		Dir: f.output, Budget: budget, Attempts: f.attempts, Backoff: critic.Backoff{First: time.Second, Most: time.Minute}, Drain: 30 * time.Second,
		KeepThoughts: f.thoughts,
		Observe:      a.display.observe, Note: a.display.note,
	}
	a.run, err = critic.Open(a.plan, o, critic.Settings{
		Fixed: fixed, Versions: map[string]any{"cftune": newVersionReport()},
		Session: map[string]any{"data": data, "teachers": session, "budget": f.budget, "attempts": f.attempts},
	})
	if err != nil {
		return nil, askError(err)
	}
	a.cleanup = append(a.cleanup, func() {
		if closeErr := a.run.Close(); closeErr != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "cftune: error: %v\n", closeErr)
		}
	})
	return a, nil
}

// apart reports that a run's own files would be data when it goes on, which are not the data that it began with then.
func apart(data []string, output string) error {
	if err := notOfARun(output); err != nil {
		return err
	}
	for _, path := range data {
		for _, name := range []string{critic.JournalName, critic.CritiquesName, critic.SamplesName} {
			file := filepath.Join(output, name)
			switch taken, err := source.Takes(path, file); {
			case err != nil:
				return err
			case taken:
				return &usageError{fmt.Errorf("--output %s: %s names %s as data, and the run may write it", output, path, file), "--output must lie apart from the data"}
			}
		}
	}
	return nil
}

// money reads --budget, for which every endpoint must have its prices.
func (f *askFlags) money(specs []teacherSpec) (critic.Money, error) {
	if f.budget == "" {
		return 0, nil
	}
	budget, err := critic.ParseMoney(f.budget)
	if err != nil || budget == 0 {
		return 0, fmt.Errorf("--budget: must be an amount above 0, got %q", f.budget)
	}
	for _, s := range specs {
		if s.gguf == "" && (s.price.In == 0 || s.price.Out == 0) {
			return 0, fmt.Errorf("--budget: teacher %s has no price_in and price_out", s.name)
		}
	}
	return budget, nil
}

func (f *askFlags) openData(ctx context.Context, data []string, a *asking) (firstRows, error) {
	var sources []config.Source
	for _, path := range data {
		sources = append(sources, config.Source{Path: path, Format: f.format, Weight: 1, Fields: f.fields})
	}
	set, err := dataset.Open(ctx, sources, dataset.Options{})
	if err != nil {
		var fault *dataset.Error
		if errors.As(err, &fault) {
			return firstRows{}, err
		}
		return firstRows{}, codedError{err, codeUsage}
	}
	a.cleanup = append(a.cleanup, func() { _ = set.Close() }) // only read from
	if set.Len() == 0 {
		return firstRows{}, codedError{fmt.Errorf("%s: has no records", strings.Join(data, ", ")), codeData}
	}
	return firstRows{set, f.rows}, nil
}

// mostFaults is how many faults of the data are spelled out.
const mostFaults = 20

// checkMessages makes all prompts once, before anything is asked or paid: faults are told together. repeated is how many rows
// ask what an earlier one asks, and are paid as it is.
func checkMessages(records firstRows, messages func(dataset.Record) ([]dataset.Message, error)) (repeated int, err error) {
	var errs []error
	faults := 0
	asked, seed := map[uint64]bool{}, maphash.MakeSeed()
	for i := range records.Len() {
		r, err := records.Record(i)
		if err == nil {
			var prompt []dataset.Message
			if prompt, err = messages(r); err == nil {
				var h maphash.Hash
				h.SetSeed(seed)
				for _, m := range prompt {
					_, _ = h.WriteString(m.Role + "\x00" + m.Content + "\x00") // never fails
				}
				if asked[h.Sum64()] {
					repeated++
				}
				asked[h.Sum64()] = true
			}
		}
		if err != nil {
			if faults++; faults <= mostFaults {
				errs = append(errs, err)
			}
		}
	}
	if more := faults - mostFaults; more > 0 {
		errs = append(errs, fmt.Errorf("and %d more of %d records", more, records.Len()))
	}
	if len(errs) > 0 {
		return 0, codedError{errors.Join(errs...), codeData}
	}
	return repeated, nil
}

// teacher opens a teacher.
func (f *askFlags) teacher(s teacherSpec, a *asking) (critic.Teacher, error) {
	if s.gguf != "" {
		return f.localTeacher(s, a)
	}
	concurrency := s.concurrency
	if concurrency == 0 {
		concurrency = f.concurrency
	}
	e, err := s.endpoint(concurrency)
	if err != nil {
		return critic.Teacher{}, codedError{err, codeUsage}
	}
	a.cleanup = append(a.cleanup, e.Close)
	t := critic.Teacher{
		Name: s.name, Backend: e, Price: s.price, Concurrency: concurrency, RequestsPerMinute: s.requests, TokensPerMinute: s.tokens, Describe: e.Describe(),
	}
	if s.batch > 0 {
		t.Batch = &critic.BatchOptions{Requests: s.batch, Poll: s.poll}
	}
	return t, nil
}

// localTeacher opens a GGUF with a cache for the longest prompts.
func (f *askFlags) localTeacher(s teacherSpec, a *asking) (critic.Teacher, error) {
	vocab, template, err := openChat(s.gguf, s.templateFile, "")
	if err != nil {
		return critic.Teacher{}, err
	}
	if s.adapter, err = adapterFile(s.adapter); err != nil {
		vocab.Close()
		return critic.Teacher{}, err
	}
	describe := map[string]any{"gguf": fileName(s.gguf), "parallel": f.parallel}
	for key, path := range map[string]string{"sha256": s.gguf, "adapter_sha256": s.adapter, "template_sha256": s.templateFile} {
		if path != "" {
			if describe[key], err = fileDigest(path); err != nil {
				vocab.Close()
				return critic.Teacher{}, codedError{err, codeUsage}
			}
		}
	}
	size := f.context
	if size == 0 {
		longest, err := longestPrompt(a.plan, template)
		if err != nil {
			vocab.Close()
			return critic.Teacher{}, codedError{err, codeData}
		}
		size = f.parallel * (longest + f.maxTokens)
	}
	local, err := openLocalTeacher(localOptions{
		model: s.gguf, adapter: s.adapter, adapterScale: 1, parallel: f.parallel, context: size, threads: f.threads, gpuLayers: f.gpuLayers,
	}, vocab, template)
	if err != nil {
		vocab.Close()
		return critic.Teacher{}, err
	}
	a.cleanup = append(a.cleanup, local.Close)
	return critic.Teacher{Name: s.name, Backend: local, Concurrency: localTogether * f.parallel, Describe: describe}, nil
}

func longestPrompt(p critic.Plan, template *chat.Template) (int, error) {
	longest := 0
	for i := range p.Records.Len() {
		r, err := p.Records.Record(i)
		if err != nil {
			return 0, err
		}
		messages, err := p.Messages(r)
		if err != nil {
			return 0, err
		}
		prompt, err := template.EncodePrompt(messages)
		if err != nil {
			return 0, fmt.Errorf("record %s: %w", r.ID, err)
		}
		longest = max(longest, len(prompt))
	}
	return longest, nil
}

func fileName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// askError gives an error of trainer/critic its exit code.
func askError(err error) error {
	var (
		settings *critic.SettingsError
		held     *checkpoint.HeldError
	)
	switch {
	case errors.As(err, &settings), errors.As(err, &held), errors.Is(err, critic.ErrCorrupt):
		return codedError{err, codeCheckpoint}
	}
	return err
}

// work asks for everything; what was answered is there for writing whatever the outcome.
func (a *asking) work(ctx context.Context) (critic.Result, error) {
	a.display.begin(a.run.Tally())
	result, err := a.run.Work(ctx)
	a.display.end()
	if err != nil {
		var fault *dataset.Error
		if errors.As(err, &fault) {
			return result, codedError{err, codeData}
		}
		return result, askError(err)
	}
	return result, nil
}
