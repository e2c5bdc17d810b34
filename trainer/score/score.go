package score

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
	"cftune/trainer/objective"
	"cftune/trainer/shard"
)

// Sampling says how tokens are drawn. Temperature 0 takes the most likely one.
type Sampling struct {
	Temperature float64 `json:"temperature"`
	TopP        float64 `json:"top_p"`
	Seed        uint64  `json:"seed"`
}

// Request is a user's turn to be answered. Stream tells its random draws from those of other requests with the same
// seed.
type Request struct {
	Prompt string
	Stream uint32
}

// Text is what a model wrote.
type Text struct {
	Text   string
	Tokens int
	Ended  bool // by itself, not at the bound
}

// Model is one of the models that are scored.
type Model interface {
	// Write answers the requests, each in at most maxTokens tokens, ended at the first of the stop strings, and tells each
	// answer as it is done. The same requests and sampling give the same texts.
	Write(ctx context.Context, requests []Request, s Sampling, maxTokens int, done func(i int, t Text) error) error
	// Loss returns the summed loss of what is learned in a conversation, and of how many tokens. tooLong says that it does
	// not fit.
	Loss(ctx context.Context, c objective.Conversation) (sum float64, tokens int, tooLong bool, err error)
	Close()
}

// Subject is a model to be scored, opened when it is needed.
type Subject struct {
	Name   string                `json:"name"`
	Model  string                `json:"model"`
	Weight string                `json:"weights"`        // digest of everything that makes the model: weights, template, system prompt
	Step   int                   `json:"step,omitempty"` // of a checkpoint
	Open   func() (Model, error) `json:"-"`
}

// Set is a test set.
type Set struct {
	Name    string
	Digest  string
	Of      int // rows of the whole set
	Records []dataset.Record
	Shard   shard.Shard // which of the rows the records are
}

// The tasks.
const (
	TaskAnswers   = "answers"   // answer the queries
	TaskCritiques = "critiques" // criticize the responses
	TaskSelf      = "self"      // criticize one's own answers
	TaskLoss      = "loss"      // of the rows' targets, by objective
	TaskProbes    = "probes"    // follow instructions about form
)

// Tasks lists the tasks.
func Tasks() []string { return []string{TaskAnswers, TaskCritiques, TaskSelf, TaskLoss, TaskProbes} }

// Options decide what is scored.
type Options struct {
	Tasks          []string `json:"tasks"`
	Samples        int      `json:"samples"` // sampled passes over a set's queries, beside the greedy one
	Sampling       Sampling `json:"sampling"`
	AnswerTokens   int      `json:"answer_tokens"`
	CritiqueTokens int      `json:"critique_tokens"`
	Tries          int      `json:"tries"` // of two-stage self-critique
	Seed           uint64   `json:"seed"`  // of bootstraps
	// Note, if set, is told what is being done.
	Note func(format string, args ...any) `json:"-"`
}

// DefaultOptions are what the command has without flags: the paper's bounds are larger, and so are its models.
func DefaultOptions() Options {
	return Options{
		Tasks: []string{TaskAnswers, TaskCritiques, TaskLoss, TaskProbes}, Sampling: Sampling{Temperature: 0.6, TopP: 0.95, Seed: 42},
		AnswerTokens: 512, CritiqueTokens: 512, Tries: 8, Seed: 1,
	}
}

// scorer scores one subject.
type scorer struct {
	o       Options
	store   *Store
	subject Subject
	model   Model
	written int // texts and losses that were not in the store
	reused  int
}

// Run scores all subjects on all sets. The first subject is what the others are compared with.
func Run(ctx context.Context, store *Store, subjects []Subject, sets []Set, o Options) (Report, error) {
	report := Report{Options: o}
	for _, set := range sets {
		report.Sets = append(report.Sets, SetInfo{Name: set.Name, Digest: set.Digest, Rows: len(set.Records), Of: set.Of})
	}
	for _, subject := range subjects {
		s := &scorer{o: o, store: store, subject: subject}
		result, err := s.run(ctx, sets)
		if s.model != nil {
			s.model.Close()
		}
		if err != nil {
			return report, fmt.Errorf("evaluate %s: %w", subject.Name, err)
		}
		if o.Note != nil {
			o.Note("%s: %d texts and losses new, %d there already", subject.Name, s.written, s.reused)
		}
		report.Results = append(report.Results, result)
	}
	report.compare()
	return report, nil
}

func (s *scorer) run(ctx context.Context, sets []Set) (Result, error) {
	r := Result{Subject: s.subject}
	for _, set := range sets {
		one, err := s.set(ctx, set)
		if err != nil {
			return r, fmt.Errorf("set %s: %w", set.Name, err)
		}
		r.Sets = append(r.Sets, one)
	}
	if s.wants(TaskProbes) {
		p, err := s.probes(ctx)
		if err != nil {
			return r, fmt.Errorf("probes: %w", err)
		}
		r.Probes = p
	}
	return r, nil
}

func (s *scorer) wants(task string) bool { return slices.Contains(s.o.Tasks, task) }

func (s *scorer) open() (err error) {
	if s.model == nil {
		s.model, err = s.subject.Open()
	}
	return err
}

// ask is a request with the place that its text belongs to.
type ask struct {
	item   int
	prompt string
}

// write returns the model's texts, by the order of the asks: those of the store, and new ones.
func (s *scorer) write(ctx context.Context, set Set, task string, asks []ask, sampling Sampling, maxTokens int) ([]Text, error) {
	texts := make([]Text, len(asks))
	keys := make([]string, len(asks))
	var missing []int
	for i, a := range asks {
		keys[i] = keyOf("text", s.subject.Weight, a.prompt, sampling, maxTokens, set.Shard.Row(a.item))
		if l, ok := s.store.lines[keys[i]]; ok {
			texts[i] = Text{l.Text, l.Tokens, l.Ended}
			s.reused++
			continue
		}
		missing = append(missing, i)
	}
	if len(missing) == 0 {
		return texts, nil
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	if s.o.Note != nil {
		s.o.Note("%s: %s: %d texts to write", s.subject.Name, strings.TrimSpace(set.Name+" "+task), len(missing))
	}
	requests := make([]Request, len(missing))
	for k, i := range missing {
		requests[k] = Request{Prompt: asks[i].prompt, Stream: uint32(set.Shard.Row(asks[i].item))}
	}
	err := s.model.Write(ctx, requests, sampling, maxTokens, func(k int, t Text) error {
		i := missing[k]
		// A bound may cut a character in two: no prompt could have such a text, nor could the store.
		t.Text = strings.ToValidUTF8(t.Text, "\uFFFD")
		texts[i] = t
		s.written++
		return s.store.put(line{
			Key: keys[i], Subject: s.subject.Name, Set: set.Name, Task: task, Item: set.Shard.Row(asks[i].item), Text: t.Text, Tokens: t.Tokens, Ended: t.Ended,
		})
	})
	return texts, err
}

// set scores one test set. A task that no row can serve is left out, and Unserved says so.
func (s *scorer) set(ctx context.Context, set Set) (SetResult, error) {
	r := SetResult{Set: set.Name, Rows: len(set.Records), Unserved: map[string]int{}}
	if s.wants(TaskAnswers) || s.wants(TaskSelf) {
		if err := s.answers(ctx, set, &r); err != nil {
			return r, err
		}
	}
	if s.wants(TaskCritiques) {
		if err := s.critiques(ctx, set, &r); err != nil {
			return r, err
		}
	}
	if s.wants(TaskSelf) && r.Answers != nil {
		if err := s.self(ctx, set, &r); err != nil {
			return r, err
		}
	}
	if s.wants(TaskLoss) {
		if err := s.losses(ctx, set, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// greedy takes the most likely tokens.
var greedy = Sampling{TopP: 1}

// goldOf is a record's right answer: its gold field, or the final answer of its solution.
func goldOf(r dataset.Record) string {
	if r.Gold != "" {
		return evaluate.GoldAnswer(r.Gold)
	}
	return evaluate.ExtractAnswer(r.Solution).Text
}

// rightOf says whether a record's response is right, and false for known where nothing tells.
func rightOf(r dataset.Record) (right, known bool) {
	switch {
	case r.Response == "":
		return false, false
	case r.Label != "":
		return r.Label == string(evaluate.Right), true
	case goldOf(r) != "":
		return evaluate.GradeAnswer(r.Response, goldOf(r)).Right, true
	}
	return false, false
}

func (s *scorer) answers(ctx context.Context, set Set, r *SetResult) error {
	var asks []ask
	asked := map[[2]string]bool{} // several rows may ask the same, each with a response of its own to judge
	for i, record := range set.Records {
		if record.Query == "" || goldOf(record) == "" {
			r.Unserved[TaskAnswers]++
			continue
		}
		question := [2]string{record.Query, goldOf(record)}
		if asked[question] {
			r.Repeated++
			continue
		}
		asked[question] = true
		asks = append(asks, ask{i, objective.AnswerPrompt(record.Query)})
	}
	if len(asks) == 0 {
		return nil
	}
	texts, err := s.write(ctx, set, TaskAnswers, asks, greedy, s.o.AnswerTokens)
	if err != nil {
		return err
	}
	a := &Answers{Marks: map[string]int{}}
	for k, t := range texts {
		grade := evaluate.GradeAnswer(t.Text, goldOf(set.Records[asks[k].item]))
		a.right = append(a.right, grade.Right)
		a.items = append(a.items, asks[k].item)
		a.texts = append(a.texts, t)
		mark := grade.Mark
		if mark == "" {
			mark = "none"
		}
		a.Marks[mark]++
	}
	a.Greedy = evaluate.NewShare(a.right)
	a.Form = formOf(texts)
	perItem := make([]int, len(asks))
	for pass := range s.o.Samples {
		sampling := s.o.Sampling
		sampling.Seed += uint64(pass)
		texts, err := s.write(ctx, set, fmt.Sprintf("%s, seed %d", TaskAnswers, sampling.Seed), asks, sampling, s.o.AnswerTokens)
		if err != nil {
			return err
		}
		var right []bool
		for k, t := range texts {
			ok := evaluate.GradeAnswer(t.Text, goldOf(set.Records[asks[k].item])).Right
			right = append(right, ok)
			if ok {
				perItem[k]++
			}
		}
		a.Sampled = append(a.Sampled, Sampled{Seed: sampling.Seed, Right: evaluate.NewShare(right)})
	}
	a.passes(perItem, s.o)
	r.Answers = a
	return nil
}

// passes estimates pass@k for k = 1, 2, 4, ... and the number of samples.
func (a *Answers) passes(perItem []int, o Options) {
	var ks []int
	for k := 1; k < o.Samples; k *= 2 {
		ks = append(ks, k)
	}
	if o.Samples > 0 {
		ks = append(ks, o.Samples)
	}
	for _, k := range ks {
		values := make([]float64, len(perItem))
		for i, c := range perItem {
			values[i] = evaluate.PassAt(o.Samples, c, k)
		}
		a.PassAt = append(a.PassAt, PassAt{k, evaluate.Mean(values, o.Seed)})
	}
}

// formOf describes texts by their form alone.
func formOf(texts []Text) Form {
	var ended, drifted []bool
	var lengths []int
	sum := 0
	for _, t := range texts {
		ended, drifted = append(ended, t.Ended), append(drifted, evaluate.Drifted(t.Text))
		lengths = append(lengths, t.Tokens)
		sum += t.Tokens
	}
	slices.Sort(lengths)
	f := Form{Ended: evaluate.NewShare(ended), Drifted: evaluate.NewShare(drifted)}
	if n := len(lengths); n > 0 {
		f.MeanTokens, f.MedianTokens, f.MostTokens = float64(sum)/float64(n), lengths[n/2], lengths[n-1]
	}
	return f
}

func (s *scorer) critiques(ctx context.Context, set Set, r *SetResult) error {
	var asks []ask
	c := &Critiques{Confusion: map[string]int{}}
	for i, record := range set.Records {
		right, known := rightOf(record)
		if record.Query == "" || !known {
			r.Unserved[TaskCritiques]++
			continue
		}
		asks = append(asks, ask{i, objective.CritiquePrompt(record.Query, record.Response)})
		c.truth = append(c.truth, right)
	}
	if len(asks) == 0 {
		return nil
	}
	texts, err := s.write(ctx, set, TaskCritiques, asks, greedy, s.o.CritiqueTokens)
	if err != nil {
		return err
	}
	for k, t := range texts {
		c.verdicts = append(c.verdicts, evaluate.ParseVerdict(t.Text))
		c.items = append(c.items, asks[k].item)
	}
	c.Form = formOf(texts)
	c.count()
	r.Critiques = c
	return nil
}

// losses measures each objective on the rows that have what it needs.
func (s *scorer) losses(ctx context.Context, set Set, r *SetResult) error {
	for _, name := range []string{objective.SFT, objective.CFT, objective.Refine} {
		l := Loss{Objective: name}
		for i, record := range set.Records {
			conversation, err := objective.Layout(name, record)
			if err != nil {
				continue // the row has not what the objective needs
			}
			one, tooLong, err := s.loss(ctx, set, name, i, conversation)
			if err != nil {
				return err
			}
			if tooLong {
				l.TooLong++
				continue
			}
			l.rows = append(l.rows, one)
		}
		if len(l.rows)+l.TooLong == 0 {
			continue
		}
		l.count(s.o.Seed)
		r.Losses = append(r.Losses, l)
	}
	if len(r.Losses) == 0 {
		r.Unserved[TaskLoss] = len(set.Records)
	}
	return nil
}

func (s *scorer) loss(ctx context.Context, set Set, name string, item int, c objective.Conversation) (rowLoss, bool, error) {
	if err := ctx.Err(); err != nil {
		return rowLoss{}, false, err
	}
	key := keyOf("loss", s.subject.Weight, c, set.Shard.Row(item))
	// A row that was too long may not be now: nothing is kept of one, but by older versions, which kept it with no tokens.
	if l, ok := s.store.lines[key]; ok && l.Tokens > 0 {
		s.reused++
		return rowLoss{l.Loss, l.Tokens, item}, false, nil
	}
	if err := s.open(); err != nil {
		return rowLoss{}, false, err
	}
	sum, tokens, tooLong, err := s.model.Loss(ctx, c)
	if err != nil {
		return rowLoss{}, false, err
	}
	if tooLong {
		return rowLoss{}, true, nil
	}
	s.written++
	return rowLoss{sum, tokens, item}, false, s.store.put(line{Key: key, Subject: s.subject.Name, Set: set.Name, Task: "loss " + name, Item: set.Shard.Row(item), Tokens: tokens, Loss: sum})
}

func (s *scorer) probes(ctx context.Context) (*Probes, error) {
	var asks []ask
	list := evaluate.Probes()
	for i, p := range list {
		asks = append(asks, ask{i, p.Prompt})
	}
	const probeTokens = 128 // each wants a line or some
	texts, err := s.write(ctx, Set{}, TaskProbes, asks, greedy, probeTokens)
	if err != nil {
		return nil, err
	}
	p := &Probes{Form: formOf(texts)}
	for i, t := range texts {
		ok := list[i].Obeyed(t.Text)
		p.obeyed = append(p.obeyed, ok)
		p.Items = append(p.Items, ProbeItem{list[i].Name, ok, t.Text})
	}
	p.Obeyed = evaluate.NewShare(p.obeyed)
	return p, nil
}
