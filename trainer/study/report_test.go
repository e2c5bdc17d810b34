package study

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer"
	"cftune/trainer/config"
	"cftune/trainer/evaluate"
)

var update = flag.Bool("update", false, "write golden files anew")

// scripted answers by rule, so that what a report must say is known: sft answers everything rightly and judges nothing,
// cft judges everything rightly and answers every second question, the base model does neither.
type scripted struct{ arm string }

func (scripted) Close() error { return nil }

func (s scripted) Write(_ context.Context, prompts []string, _ int, done func(int, Completion) error) error {
	for i, p := range prompts {
		text := "I do not know."
		right := strings.Contains(p, "Solution:\ngood")
		switch critique := strings.HasPrefix(p, "Please critique"); {
		case critique && strings.HasPrefix(s.arm, "cft"):
			text = "Critique:\nConclusion: " + string(evaluate.Of(right))
		case critique:
		case strings.HasPrefix(s.arm, "sft") || s.arm != "" && i%2 == 0:
			text = "good"
		}
		if err := done(i, Completion{Text: text, Tokens: len(strings.Fields(text)), Ended: true}); err != nil {
			return err
		}
	}
	return nil
}

// scriptedStudy is a folder as Do leaves it, without the runs themselves.
func scriptedStudy(t *testing.T, skip string) string {
	t.Helper()
	dir := t.TempDir()
	spec := mustLoad(t, strings.Replace(smallFile, "generator: wordforms, seed: 3, split: {train: 8, validation: 2, test: 4}", "path: x, format: cft, grader: form, split: {train: 1, test: 1}", 1),
		"output="+dir, `claims=[
 {text: critiques beat answers, set: words, kind: better, arm: cft, than: sft, measure: answers},
 {text: critiques beat nothing, set: words, kind: better, arm: cft, than: base, measure: answers},
 {text: wrong ones do no harm, set: words, kind: not-worse, arm: cft-50, than: cft, measure: verdicts, margin: 0.05},
 {text: "others are easier", set: words, kind: others-over-self, arm: cft}]`)
	var test []Item
	for i := range 12 {
		item := Item{ID: fmt.Sprint(i), Query: fmt.Sprintf("q%d?", i), Gold: "good", Response: "good", Label: "right"}
		if i%2 == 1 {
			item.Response, item.Label = "bad", "wrong"
		}
		test = append(test, item)
	}
	text, err := lines(test, answersGold)
	require.NoError(t, err)
	require.NoError(t, writeWhole(filepath.Join(dir, "data", testFile("words")), text))
	s := State{Scored: map[string]Scored{}, Record: Record{
		Format: FormatVersion, Version: "test", Started: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC), Digest: spec.Digest(), Spec: spec,
		Model: Model{File: "m.gguf", SHA256: strings.Repeat("ab", 32)}, Prompts: prompts(spec), Rule: Rule,
		Data: map[string]DataFile{testFile("words"): {Rows: len(test), SHA256: digestOf(text)}},
	}}
	r := &runner{planner: planner{spec: spec, sets: []openSet{{spec.Sets[0], parts{test: test}}}}, dir: dir}
	for _, arm := range spec.Arms {
		keys := []string{arm.Name}
		if arm.Trained() {
			keys = nil
			for _, seed := range spec.Seeds {
				key := fmt.Sprintf("%s-s%d", arm.Name, seed)
				keys = append(keys, key)
				planned := Run{Key: key, Arm: arm.Name, Seed: seed, Steps: 4}
				s.Record.Runs = append(s.Record.Runs, planned)
				s.Runs = append(s.Runs, RunState{Run: planned, Done: true, Step: 4, Taken: 4, Targets: 40, Tokens: 90})
				run := filepath.Join(dir, "runs", key)
				require.NoError(t, os.MkdirAll(run, 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(run, "metrics.jsonl"), []byte(
					`{"step":1,"loss":2,"targets":20,"tokens":45,"seconds":1}
{"step":2,"loss":1,"targets":20,"tokens":45,"seconds":1}
{"step":2,"validation_loss":1.5,"validation_targets":3}
`), 0o600))
			}
		}
		for _, key := range keys {
			if key == skip {
				continue
			}
			f, again, err := openTexts(scoresPath(dir, key), "digest")
			require.NoError(t, err)
			require.False(t, again)
			w := scripted{arm: strings.TrimPrefix(key, "base")}
			for _, kind := range []string{kindAnswer, kindOthers, kindSelf} {
				require.NoError(t, r.writeKind(t.Context(), w, f, r.sets[0], kind))
			}
			require.NoError(t, f.close())
			s.Scored[key] = Scored{Texts: len(f.texts)}
		}
	}
	require.NoError(t, s.save(dir))
	return dir
}

// Rows may have answers of others' without labels: nothing is said of how many are right.
func TestReportOfAnswersWithoutLabels(t *testing.T) {
	dir := scriptedStudy(t, "")
	r, err := MakeReport(dir)
	require.NoError(t, err)
	require.NotEmpty(t, r.Samples)
	r.Sets[0].Right = Count{}
	for i := range r.Samples {
		r.Samples[i].Label = ""
	}
	paths, err := WriteReport(t.Context(), dir, r)
	require.NoError(t, err)
	for _, path := range paths[1:] {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Contains(t, string(text), "12 test items. Shares", path)
		assert.NotContains(t, string(text), "which is .", path)
	}
	page, err := os.ReadFile(paths[2])
	require.NoError(t, err)
	assert.Contains(t, string(page), "Given: “good”.</p>")
}

// A record that was begun by another version keeps the rule of that, and the report says that claims were decided by today's.
func TestARuleOfAnotherVersionIsSaid(t *testing.T) {
	dir := scriptedStudy(t, "")
	path := filepath.Join(dir, StateName)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(text), "Agresti and Coull")
	require.NoError(t, os.WriteFile(path, bytes.ReplaceAll(text, []byte("Agresti and Coull"), []byte("somebody")), 0o600))
	r, err := MakeReport(dir)
	require.NoError(t, err)
	assert.Contains(t, r.Rule, "somebody")
	assert.Contains(t, Markdown(r), "- the rule below was written down before the first run, by another version; this one decided by what")
}

func TestReportGolden(t *testing.T) {
	dir := scriptedStudy(t, "")
	r, err := MakeReport(dir)
	require.NoError(t, err)
	assert.True(t, r.Complete)
	assert.True(t, r.Budget.Met)
	assert.Equal(t, []string{WordNo, WordYes, WordNotShown, WordNotShown}, []string{r.Claims[0].Word, r.Claims[1].Word, r.Claims[2].Word, r.Claims[3].Word})
	require.NotNil(t, r.Sets[0].Learned)
	assert.True(t, *r.Sets[0].Learned)
	assert.NotContains(t, Markdown(r), "another version")

	got := strings.ReplaceAll(Markdown(r), r.Digest[:12], "DIGEST")
	const golden = "testdata/report.md"
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "go test ./trainer/study -update writes it anew")

	paths, err := WriteReport(t.Context(), dir, r)
	require.NoError(t, err)
	require.Len(t, paths, 3)
	page, err := os.ReadFile(paths[2])
	require.NoError(t, err)
	assert.NotContains(t, string(page), "ZgotmplZ", "the template engine refused something")
	assert.NotContains(t, string(page), "NaN")
	for _, want := range []string{"critiques beat answers", "<svg", "Wrong critiques", "It was kept"} {
		assert.Contains(t, string(page), want)
	}
	assert.NotContains(t, string(page), "src=", "nothing is fetched")
	var back Report
	text, err := os.ReadFile(paths[0])
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &back))
	assert.Equal(t, r.Claims, back.Claims)
	assert.NotContains(t, string(text), dir, "a report may be given to others")
}

func TestReportOfAPart(t *testing.T) {
	r, err := MakeReport(scriptedStudy(t, "sft-s2"))
	require.NoError(t, err)
	assert.False(t, r.Complete)
	assert.Equal(t, []string{"sft-s2"}, r.Missing)
	assert.Equal(t, WordNone, r.Claims[0].Word)
	assert.Contains(t, r.Claims[0].Because, "not scored yet: sft-s2")
	assert.Equal(t, WordYes, r.Claims[1].Word, "what is there is decided")
	assert.Nil(t, r.Sets[0].Learned)
	assert.Contains(t, Markdown(r), "**Partial: not trained or scored are sft-s2.**")
}

// A set on which no arm is better than the base model or than chance has taught nothing, and the report says so.
func TestNothingLearnedIsSaid(t *testing.T) {
	m := measuredSet{set: Set{Name: "hard"}, judged: true, arms: map[string]*measuredArm{}}
	spec := mustLoad(t, smallFile)
	for _, arm := range spec.Arms {
		a := &measuredArm{}
		for i := range spec.Seeds {
			answers, others := make([]cell, 20), make([]cell, 20)
			for k := range answers {
				answers[k].hit = (k+i)%10 == 0
				others[k] = cell{class: k%2 == 0, hit: k%2 == 0} // always "right"
			}
			a.answers, a.others = append(a.answers, answers), append(a.others, others)
		}
		m.arms[arm.Name] = a
	}
	learned, why := m.learned(spec)
	require.NotNil(t, learned)
	assert.False(t, *learned)
	assert.Contains(t, why, "in none of 8 comparisons, each at the 99.38 % level")
	lines := reading(Report{Complete: true, Budget: BudgetCheck{Met: true}, Sets: []SetReport{{Name: "hard", Learned: learned, Verdict: why}}})
	assert.Contains(t, lines[0], "From hard nothing was learned that shows")
}

func TestBudgetThatWasNotKept(t *testing.T) {
	s := State{Record: Record{Spec: mustLoad(t, strings.Replace(smallFile, "budget: {steps: 4}", "budget: {target_tokens: 100}", 1))}}
	s.Runs = []RunState{{Run: Run{Arm: "sft"}, Done: true, Taken: 10, Targets: 103}, {Run: Run{Arm: "cft"}, Done: true, Taken: 3, Targets: 98}}
	assert.True(t, checkBudget(s).Met, "within 5 %")
	s.Runs[1].Targets = 90
	b := checkBudget(s)
	assert.False(t, b.Met)
	assert.Contains(t, b.Text, "misses it by 10.0 %, 5.0 % are allowed")
	s.Spec = mustLoad(t, smallFile)
	assert.False(t, checkBudget(s).Met, "3 steps and 10")
}

func TestTextsSurviveATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scores", "a.jsonl")
	f, _, err := openTexts(path, "one")
	require.NoError(t, err)
	require.NoError(t, f.add(place{"s", kindAnswer, 0}, Completion{Text: "whole \xe2\x82"}))
	require.NoError(t, f.close())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(text, `{"set":"s","kind":"answer","item":1,"te`...), 0o600))

	f, again, err := openTexts(path, "one")
	require.NoError(t, err)
	assert.False(t, again)
	assert.Equal(t, texts{place{"s", kindAnswer, 0}: {Text: "whole \ufffd"}}, f.texts)
	require.NoError(t, f.add(place{"s", kindAnswer, 1}, Completion{Text: "second"}))
	require.NoError(t, f.close())
	read, digest, _, err := readTexts(path)
	require.NoError(t, err)
	assert.Equal(t, "one", digest)
	assert.Len(t, read, 2)

	f, again, err = openTexts(path, "two")
	require.NoError(t, err)
	assert.True(t, again, "another adapter's texts are not taken over")
	assert.Empty(t, f.texts)
	require.NoError(t, f.close())

	require.NoError(t, os.WriteFile(path, []byte("{\"digest\":\"two\"}\nnonsense\n"), 0o600))
	_, _, err = openTexts(path, "two")
	assert.ErrorContains(t, err, "line 2")
}

// planned is an engine that only plans: each objective has its own number of targets a step.
type planned struct{ Engine }

func (planned) Plan(_ context.Context, run config.Run) (trainer.Plan, error) {
	for name := range run.Objective.Stages[0].Mix {
		targets := map[string]int64{"sft": 100, "cft": 300}[name]
		if targets == 0 {
			return trainer.Plan{}, errors.New("unknown objective")
		}
		return trainer.Plan{Steps: 10, Targets: 10 * targets, Tokens: 20 * targets}, nil
	}
	return trainer.Plan{}, errors.New("no objective")
}

func TestPlansByHand(t *testing.T) {
	plan := func(budget string) map[string]Run {
		spec := mustLoad(t, strings.Replace(smallFile, "{steps: 4}", budget, 1))
		runs, err := planner{engine: planned{}, spec: spec}.runs(t.Context())
		require.NoError(t, err)
		require.Len(t, runs, 8, "four arms, two seeds")
		by := map[string]Run{}
		for _, r := range runs {
			by[r.Key] = r
		}
		return by
	}
	runs := plan("{steps: 24}")
	assert.Equal(t, 24, runs["sft-s1"].Steps)
	assert.Equal(t, 3, runs["sft-s2"].Epochs, "24 steps of 10 to a pass")
	assert.Equal(t, 6, runs["both-s1"].Stages[0].Until.Steps, "a quarter of the steps")
	assert.Zero(t, runs["both-s1"].Stages[1].Until)

	runs = plan("{epochs: 2}")
	assert.Equal(t, [2]int{20, 2}, [2]int{runs["cft-s1"].Steps, runs["cft-s1"].Epochs})

	runs = plan("{target_tokens: 6000}")
	assert.Equal(t, 60, runs["sft-s1"].Steps)
	assert.Equal(t, 20, runs["cft-s1"].Steps)
	assert.Equal(t, 40, runs["both-s1"].Steps, "150 a step: a quarter of 300 and three of 100")
	assert.Equal(t, int64(6000), runs["both-s1"].Targets)
}

func TestSetsFromFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	var rows strings.Builder
	for i := range 20 {
		fmt.Fprintf(&rows, `{"query": "What is %d?", "solution": "s", "gold": "%d"}`+"\n", i/2*2, i/2*2) // each twice
	}
	all := write("all.jsonl", rows.String())
	s := Set{Name: "n", Path: all, Format: "cft", Candidates: candidatesNumbers, Split: Split{Train: 5, Validation: 1, Test: 3}, Seed: 5}
	p, err := s.open(t.Context(), Options{}.reading())
	require.NoError(t, err)
	assert.Equal(t, [3]int{5, 1, 3}, [3]int{len(p.train), len(p.validation), len(p.test)})
	assert.Equal(t, []string{"10 rows ask what an earlier one asks and are left out", "1 rows are not used: split takes 9"}, p.notes)
	again, err := s.open(t.Context(), Options{}.reading())
	require.NoError(t, err)
	assert.Equal(t, p, again)
	s.Seed = 6
	other, err := s.open(t.Context(), Options{}.reading())
	require.NoError(t, err)
	assert.NotEqual(t, p.test, other.test)

	apartSet := Set{Name: "p", Train: Part{Path: all, Format: "cft", Rows: 2}, Test: Part{Path: write("t.jsonl", `{"query": "what is  0?", "gold": "0"}`), Format: "cft"}}
	sets := mustSets(t, apartSet)
	assert.ErrorContains(t, apart(sets), "set p: 1 of 1 test questions are among the training or validation rows, the first: row 1 asks what row p:2 asks")
	spec := mustLoad(t, smallFile)
	assert.ErrorContains(t, checkNeeds(spec, sets), "set p: 2 of 2 training rows have no critique, which arm cft needs; the first is row 1")
	assert.False(t, sets[0].judged())
}

func mustSets(t *testing.T, sets ...Set) []openSet {
	t.Helper()
	var opened []openSet
	for _, s := range sets {
		p, err := s.open(t.Context(), Options{}.reading())
		require.NoError(t, err)
		opened = append(opened, openSet{s, p})
	}
	return opened
}
