package score

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
	"cftune/trainer/objective"
)

// fake answers by a function of the prompt and the sampling.
type fake struct {
	say    func(prompt string, s Sampling) string
	after  int // fails when it has written so many texts; 0 = never
	wrote  *int
	closed *int
	long   bool // what is too long for others is not for this one
}

var errKilled = errors.New("killed")

func (f fake) Write(_ context.Context, requests []Request, s Sampling, _ int, done func(int, Text) error) error {
	for i, r := range requests {
		if f.after > 0 && *f.wrote == f.after {
			return errKilled
		}
		*f.wrote++
		text := f.say(r.Prompt, s)
		if err := done(i, Text{text, len(strings.Fields(text)), true}); err != nil {
			return err
		}
	}
	return nil
}

func (f fake) Loss(_ context.Context, c objective.Conversation) (float64, int, bool, error) {
	last := c.Messages[len(c.Messages)-1].Content
	return float64(len(last)), 2, strings.Contains(last, "too long") && !f.long, nil
}

func (f fake) Close() { *f.closed++ }

func subject(name string, f fake) (Subject, *int) {
	opened := new(int)
	f.wrote, f.closed = new(int), new(int)
	return Subject{Name: name, Weight: name, Open: func() (Model, error) { *opened++; return f, nil }}, f.wrote
}

func score(t *testing.T, dir string, subjects []Subject, sets []Set, o Options) (Report, error) {
	t.Helper()
	store, err := OpenStore(dir)
	require.NoError(t, err)
	report, err := Run(t.Context(), store, subjects, sets, o)
	require.NoError(t, store.Close())
	return report, err
}

// sums are rows of which every second response is wrong.
func sums(n int) Set {
	set := Set{Name: "sums", Of: n}
	for i := range n {
		r := dataset.Record{Query: fmt.Sprintf("%d + 1?", i), Gold: fmt.Sprint(i + 1), Response: fmt.Sprintf("The answer is %d.", i+1+i%2), Solution: fmt.Sprint(i + 1)}
		r.Critique = "Conclusion: " + string(evaluate.Of(i%2 == 0))
		set.Records = append(set.Records, r)
	}
	return set
}

// adder answers right when the first number is below its bound, and finds every response right.
func adder(bound int) func(string, Sampling) string {
	return func(prompt string, s Sampling) string {
		if strings.Contains(prompt, "critique") {
			return "Conclusion: right"
		}
		n := 0
		if _, err := fmt.Sscanf(prompt, "%d", &n); err != nil {
			return "yes"
		}
		if n < bound || s.Temperature > 0 && s.Seed%2 == 0 {
			return fmt.Sprintf("The answer is %d.", n+1)
		}
		return "The answer is -1."
	}
}

func options(tasks ...string) Options {
	o := DefaultOptions()
	o.Tasks = tasks
	return o
}

func TestScores(t *testing.T) {
	good, _ := subject("good", fake{say: adder(8)})
	bad, _ := subject("bad", fake{say: adder(2)})
	o := options(Tasks()...)
	o.Samples, o.Tries = 3, 2
	report, err := score(t, t.TempDir(), []Subject{good, bad}, []Set{sums(10)}, o)
	require.NoError(t, err)
	a, b := report.Results[0].Sets[0], report.Results[1].Sets[0]
	assert.Equal(t, []int{8, 2}, []int{a.Answers.Greedy.Count, b.Answers.Greedy.Count})
	assert.Nil(t, a.Answers.Versus)
	assert.Equal(t, evaluate.Difference{Value: -0.6, Interval: b.Answers.Versus.Interval, OnlyB: 6, P: evaluate.McNemar(0, 6)}, *b.Answers.Versus)
	// Seeds 42 and 44 are even: there all answers are right, so one of three fails on the two that the bound leaves out.
	require.Len(t, a.Answers.Sampled, 3)
	assert.Equal(t, []int{10, 8, 10}, []int{a.Answers.Sampled[0].Right.Count, a.Answers.Sampled[1].Right.Count, a.Answers.Sampled[2].Right.Count})
	require.Len(t, a.Answers.PassAt, 3)
	assert.InDelta(t, (8+2*2.0/3)/10, a.Answers.PassAt[0].Value, 1e-12)
	assert.Equal(t, 1.0, a.Answers.PassAt[1].Value)
	assert.Equal(t, 3, a.Answers.PassAt[2].K)

	assert.Equal(t, map[string]int{"right/right": 5, "wrong/right": 5}, a.Critiques.Confusion)
	assert.Equal(t, 0.5, a.Critiques.Balanced.Value)
	assert.Equal(t, 10, a.Critiques.SaidRight.Count)
	assert.Equal(t, 1.0, a.Self.MeanTries, "the first try is accepted")
	assert.Equal(t, 10, a.Self.TwoStage.Count, "the first try's seed is even")
	assert.Equal(t, 8, a.Self.Single.Count)
	assert.Equal(t, map[string]int{"right/right": 8, "wrong/right": 2}, a.Self.Verdicts.Confusion)

	require.Len(t, a.Losses, 3, "all objectives have what they need")
	assert.Equal(t, "sft", a.Losses[0].Objective)
	assert.InDelta(t, (9*1+2)/20.0, a.Losses[0].Mean.Value, 1e-12, "one digit each, two in 10")
	assert.Zero(t, b.Losses[0].Versus.Value)
	assert.Len(t, report.Results[0].Probes.Items, len(evaluate.Probes()))

	var text, html strings.Builder
	require.NoError(t, report.Markdown(&text))
	assert.Contains(t, text.String(), "| bad | 20.0 % [5.7, 51.0] (2 of 10) | -60.0 [")
	require.NoError(t, report.Page(&html))
	assert.Contains(t, html.String(), "<h2>Answers on sums</h2>")
}

// What was written before a crash is not written again, and what comes out is the same.
func TestGoesOnAfterACrash(t *testing.T) {
	o := options(TaskAnswers, TaskCritiques)
	whole, _ := subject("m", fake{say: adder(4)})
	want, err := score(t, t.TempDir(), []Subject{whole}, []Set{sums(6)}, o)
	require.NoError(t, err)
	for k := 1; k < 12; k++ {
		dir := t.TempDir()
		dying, _ := subject("m", fake{say: adder(4), after: k})
		_, err := score(t, dir, []Subject{dying}, []Set{sums(6)}, o)
		require.ErrorIs(t, err, errKilled)
		tear(t, filepath.Join(dir, TextsName))
		again, wrote := subject("m", fake{say: adder(4)})
		got, err := score(t, dir, []Subject{again}, []Set{sums(6)}, o)
		require.NoError(t, err)
		assert.Equal(t, 12-k, *wrote, "after %d", k)
		assert.Equal(t, want.Tables(), got.Tables())
	}
}

// tear leaves half a line at the end, as a power cut does.
func tear(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"key": "half`)
	require.NoError(t, errors.Join(err, f.Close()))
}

func TestOtherWeightsPromptsAndSettingsAreWrittenAnew(t *testing.T) {
	dir := t.TempDir()
	o := options(TaskAnswers)
	one, wrote := subject("m", fake{say: adder(4)})
	for _, step := range []struct {
		name   string
		change func()
		want   int
	}{
		{"first", func() {}, 3}, {"the same", func() {}, 3}, {"longer answers", func() { o.AnswerTokens++ }, 6}, {"other weights", func() { one.Weight = "other" }, 9},
		{"another name only", func() { one.Name = "renamed" }, 9},
	} {
		step.change()
		_, err := score(t, dir, []Subject{one}, []Set{sums(3)}, o)
		require.NoError(t, err)
		assert.Equal(t, step.want, *wrote, step.name)
	}
}

// A model's text that is cut within a character can still be criticized, and is the same when it is read again.
func TestTextsAreUTF8(t *testing.T) {
	var prompts []string
	one, _ := subject("m", fake{say: func(prompt string, _ Sampling) string { prompts = append(prompts, prompt); return "caf\xc3" }})
	dir := t.TempDir()
	for range 2 {
		_, err := score(t, dir, []Subject{one}, []Set{sums(1)}, options(TaskSelf))
		require.NoError(t, err)
	}
	assert.Contains(t, strings.Join(prompts, ""), "caf\uFFFD")
	assert.NotContains(t, strings.Join(prompts, ""), "\xc3\n")
	assert.Len(t, prompts, 3+DefaultOptions().Tries, "direct, single pass, tries, and one critique: they are all of the same text")
}

func TestModelsAreOpenedOnlyWhenNeeded(t *testing.T) {
	dir := t.TempDir()
	opened := 0
	s := Subject{Name: "m", Weight: "m", Open: func() (Model, error) {
		opened++
		return fake{say: adder(4), wrote: new(int), closed: new(int)}, nil
	}}
	for range 2 {
		_, err := score(t, dir, []Subject{s}, []Set{sums(3)}, options(TaskAnswers, TaskLoss))
		require.NoError(t, err)
	}
	assert.Equal(t, 1, opened)
}

func TestDamageIsNotOverlooked(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, TextsName)
	one, _ := subject("m", fake{say: adder(4)})
	_, err := score(t, dir, []Subject{one}, []Set{sums(3)}, options(TaskAnswers, TaskLoss))
	require.NoError(t, err)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	lines := bytes.SplitAfter(whole, []byte("\n"))
	require.Len(t, lines, 3+3*3+1, "answers, a loss of each row under each objective, and what stands behind the last newline")

	// Any bit of any line but the last newline, behind which nothing is lost.
	for bit := range 8 * (len(lines[0]) + len(lines[1]) + len(lines[2])) {
		damaged := bytes.Clone(whole)
		damaged[bit/8] ^= 1 << (bit % 8)
		s := Store{lines: map[string]line{}}
		_, err := s.readLines(bytes.NewReader(damaged), "texts")
		require.ErrorIs(t, err, ErrCorrupt, "bit %d of byte %d, %q", bit%8, bit/8, whole[bit/8])
	}

	for _, c := range []struct {
		name, text, err string
	}{
		{"no key", "{}\n", "line 1 is damaged: it is not what was written"},
		{"another loss", strings.Replace(string(whole), `"loss":`, `"loss":1`, 1), "line 4 is damaged: its checksum is not that of the line"},
		{"four of them", strings.NewReplacer(`"item":0`, `"item":1`).Replace(string(whole)), "lines 1, 4, 7, 10 are damaged; of the first: its checksum is not that of the line"},
		{"a line without its checksum", string(lines[0]) + string(unchecked(lines[1])), "line 2 is damaged: it has no checksum, and lines before it have theirs"},
		{"two lines in one", string(unchecked(lines[0])[:len(unchecked(lines[0]))-1]) + string(unchecked(lines[1])), "line 1 is damaged: something stands behind it"},
		{"many", strings.Repeat("?\n", 12), "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 others are damaged"},
	} {
		require.NoError(t, os.WriteFile(path, []byte(c.text), 0o644))
		_, err := OpenStore(dir)
		assert.ErrorIs(t, err, ErrCorrupt, c.name)
		assert.ErrorContains(t, err, c.err, c.name)
		now, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, c.text, string(now), "%s: the file is as it was", c.name)
	}
}

// unchecked is a line as earlier versions wrote it.
func unchecked(text []byte) []byte {
	return append(bytes.Clone(text[:bytes.LastIndex(text, []byte(sumOpens))]), "}\n"...)
}

// What an earlier version wrote is taken, told, and gone on with.
func TestLinesWithoutChecksumsAreTaken(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, TextsName)
	one, wrote := subject("m", fake{say: adder(4)})
	report, err := score(t, dir, []Subject{one}, []Set{sums(3)}, options(TaskAnswers))
	require.NoError(t, err)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	var old []byte
	for text := range bytes.Lines(whole) {
		old = append(old, unchecked(text)...)
	}
	require.NoError(t, os.WriteFile(path, old, 0o644))

	again, err := score(t, dir, []Subject{one}, []Set{sums(3)}, options(TaskAnswers))
	require.NoError(t, err)
	assert.Equal(t, report.Results[0].Sets[0].Answers, again.Results[0].Sets[0].Answers)
	assert.Equal(t, 3, *wrote)
	_, err = score(t, dir, []Subject{one}, []Set{sums(4)}, options(TaskAnswers))
	require.NoError(t, err)
	assert.Equal(t, 4, *wrote)
	store, err := OpenStore(dir)
	require.NoError(t, err)
	assert.Equal(t, 3, store.Unchecked())
	assert.Len(t, store.lines, 4)
	require.NoError(t, store.Close())
}

func TestRowsThatATaskCannotUseAreTold(t *testing.T) {
	set := sums(4)
	set.Records[0].Gold, set.Records[0].Solution = "", ""
	set.Records[1].Solution = "too long"
	one, _ := subject("m", fake{say: adder(4)})
	report, err := score(t, t.TempDir(), []Subject{one}, []Set{set}, options(TaskAnswers, TaskCritiques, TaskLoss))
	require.NoError(t, err)
	r := report.Results[0].Sets[0]
	assert.Equal(t, map[string]int{TaskAnswers: 1, TaskCritiques: 1}, r.Unserved)
	assert.Equal(t, []string{"sums: 1 of 4 rows have not what answers needs", "sums: 1 of 4 rows have not what critiques needs"}, report.Notes())
	assert.Equal(t, 1, r.Losses[0].TooLong)
	assert.Equal(t, 2, r.Losses[0].Rows)
}

// A test set of several answers to each question says three times as much about verdicts as about answers.
func TestAQuestionThatSeveralRowsAskCountsOnce(t *testing.T) {
	set := sums(4)
	set.Records[2].Query, set.Records[2].Gold, set.Records[2].Solution = set.Records[0].Query, set.Records[0].Gold, set.Records[0].Solution
	one, wrote := subject("m", fake{say: adder(4)})
	report, err := score(t, t.TempDir(), []Subject{one}, []Set{set}, options(TaskAnswers, TaskCritiques))
	require.NoError(t, err)
	r := report.Results[0].Sets[0]
	assert.Equal(t, 3, r.Answers.Greedy.N)
	assert.Equal(t, 4, r.Critiques.Right.N)
	assert.Equal(t, 3+4, *wrote)
	assert.Equal(t, []string{"sums: 1 of 4 rows ask what an earlier row asks; a question is answered, and counts, once"}, report.Notes())
}

// With a larger bound, rows that were too long are measured, and those that were measured are not measured again.
func TestRowsThatWereTooLongAreMeasuredWhenTheyFit(t *testing.T) {
	dir := t.TempDir()
	set := sums(3)
	set.Records[1].Solution = "too long"
	o := DefaultOptions()
	o.Tasks = []string{TaskLoss}
	measure := func(long bool) Loss {
		one, _ := subject("base", fake{long: long})
		report, err := score(t, dir, []Subject{one}, []Set{set}, o)
		require.NoError(t, err)
		require.Equal(t, "sft", report.Results[0].Sets[0].Losses[0].Objective)
		return report.Results[0].Sets[0].Losses[0]
	}
	first := measure(false)
	assert.Equal(t, []int{2, 1}, []int{first.Rows, first.TooLong})
	second := measure(true)
	assert.Equal(t, []int{3, 0}, []int{second.Rows, second.TooLong})
}

func TestChoose(t *testing.T) {
	var subjects []Subject
	for i, bound := range []int{3, 7, 7, 5} {
		s, _ := subject(fmt.Sprint("run@", 10*(i+1)), fake{say: adder(bound)})
		s.Step = 10 * (i + 1)
		subjects = append(subjects, s)
	}
	base, _ := subject("base", fake{say: adder(10)})
	report, err := score(t, t.TempDir(), append([]Subject{base}, subjects...), []Set{sums(10)}, options(TaskAnswers))
	require.NoError(t, err)
	require.NoError(t, report.Choose(ByAnswers))
	assert.Equal(t, Candidate{"run@20", 20, 0.7}, report.Chosen.Best, "the base is no checkpoint; of equals the earliest")
	assert.Len(t, report.Chosen.Candidates, 4)
	tables := report.Tables()
	assert.Contains(t, tables[len(tables)-1].Note, "Others with the same figure: 1.")
	require.ErrorContains(t, report.Choose(ByLoss), "no set has rows for that")
	report.Results = report.Results[:1]
	require.ErrorContains(t, report.Choose(ByAnswers), "there is no checkpoint")
}

func TestChooseByLossTakesTheLowest(t *testing.T) {
	report := Report{}
	for i, loss := range []float64{0.9, 0.4, 0.6} {
		report.Results = append(report.Results, Result{
			Subject: Subject{Step: i + 1}, Sets: []SetResult{{Losses: []Loss{{Tokens: 10, Mean: evaluate.Estimate{Value: loss}}}}},
		})
	}
	require.NoError(t, report.Choose(ByLoss))
	assert.Equal(t, 2, report.Chosen.Best.Step)
}
