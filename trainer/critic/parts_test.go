package critic

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/faultteacher"
	"cftune/trainer/dataset"
	"cftune/trainer/internal/durable"
)

func TestMoney(t *testing.T) {
	for text, want := range map[string]Money{"0": 0, "2.5": 2_500_000_000, "$0.075": 75_000_000, ".5": 500_000_000, "12.000000001": 12_000_000_001} {
		got, err := ParseMoney(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got)
		line, err := json.Marshal(got)
		require.NoError(t, err)
		var back Money
		require.NoError(t, json.Unmarshal(line, &back))
		assert.Equal(t, got, back)
	}
	for _, text := range []string{"", "-1", "1e3", "1.0000000001", "free", "99999999999", "1.2.3"} {
		_, err := ParseMoney(text)
		assert.Error(t, err, text)
	}
	price := Price{In: 2_500_000_000, Out: 10_000_000_000}
	assert.Equal(t, "$0.0345", price.Of(1000, 3200).String())
	assert.Equal(t, Money(1), Price{In: 1}.Of(1, 0), "rounded up")
	assert.Equal(t, "$12500.0000", price.Of(1e9, 1e9).String())
}

func TestPrompts(t *testing.T) {
	r := dataset.Record{ID: "d:1", Query: "What is {response}?", Response: "4"}
	paper, err := LoadPrompt("paper")
	require.NoError(t, err)
	messages, err := paper.Messages(r)
	require.NoError(t, err)
	assert.Equal(t, []dataset.Message{
		{Role: "system", Content: "You are a science expert. A student is trying to solve a question, please explain briefly whether his solution is correct or not. Finally, conclude your judgement with 'Conclusion: right/wrong [END]'."},
		{Role: "user", Content: "Question: What is {response}?\n\nSolution: 4"},
	}, messages)
	oneshot, err := LoadPrompt("oneshot")
	require.NoError(t, err)
	messages, err = oneshot.Messages(r)
	require.NoError(t, err)
	require.Len(t, messages, 1)
	assert.Contains(t, messages[0].Content, "putting your final answer within \\boxed{}.\nConclude with \"Conclusion: right/wrong [END]\"\n\nQuestion:\nWhat is {response}?\n\nStudent's Solution:\n4")
	_, err = paper.Messages(dataset.Record{ID: "d:2", Query: "q", Response: " "})
	assert.EqualError(t, err, "record d:2 has no response, which prompt paper needs")
	assert.Equal(t, []string{"oneshot", "paper"}, Prompts())
	marked, err := ParsePrompt("saved by an editor", "\uFEFF--- user\r\n{query}\r\n")
	require.NoError(t, err)
	messages, err = marked.Messages(r)
	require.NoError(t, err)
	assert.Equal(t, []dataset.Message{{Role: "user", Content: "What is {response}?"}}, messages)
	_, err = LoadPrompt("nowhere.tmpl")
	assert.EqualError(t, err, "prompt nowhere.tmpl: is neither a file nor one of oneshot, paper")
	for want, text := range map[string]string{
		"line 1: before the first turn":     "hello\n--- user\n{query}",
		"the last turn must be the user's":  "--- user\n{query}\n--- assistant\nyes",
		"turn 1 (system) is empty":          "--- system\n\n--- user\n{query}",
		"{question} is no text of a record": "--- user\n{question}",
		"{query} is in no turn":             "--- user\n{response}",
	} {
		_, err := ParsePrompt("p", text)
		assert.ErrorContains(t, err, want)
	}
}

func TestAJournalThatIsCutOff(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, JournalName)
	j, err := openJournal(durable.OS, dir, 3)
	require.NoError(t, err)
	require.NoError(t, j.append(Entry{Kind: kindIntent, Job: 1, Attempt: 1, Worst: 5}))
	require.NoError(t, j.append(Entry{Kind: kindAnswer, Job: 1, Attempt: 1, Text: "yes", Cost: 3}))
	require.NoError(t, j.append(Entry{Kind: kindIntent, Job: 2, Attempt: 1, Worst: 7}))
	require.NoError(t, j.close())
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	last := strings.LastIndex(strings.TrimSuffix(string(whole), "\n"), "\n") + 1
	// Cut at every byte of the last line, and again while that is being repaired.
	for cut := last; cut <= len(whole); cut++ {
		text := string(whole[:cut])
		for _, more := range []string{"", "\n", "\n{\"kind\":\"to"} {
			if more != "" && (cut == last || cut == len(whole)) {
				continue
			}
			require.NoError(t, os.WriteFile(path, []byte(text+more), 0o600))
			for range 2 {
				j, err := openJournal(durable.OS, dir, 3)
				require.NoError(t, err, "cut at %d, then %q", cut, more)
				tally := j.totals()
				assert.Equal(t, 1, tally.Answered)
				assert.Equal(t, Money(3), tally.Spent)
				if cut >= len(whole)-1 {
					assert.Equal(t, 1, tally.Unknown)
					assert.Equal(t, Money(7), tally.Possible)
				}
				require.NoError(t, j.answers(func(e Entry) error {
					assert.Equal(t, "yes", e.Text)
					return nil
				}))
				require.NoError(t, j.close())
			}
		}
	}
}

// Of an answer may be missing what of an intent may be missing: its line break alone as well.
func TestAnAnswerThatIsCutOffIsAskedForOnce(t *testing.T) {
	b := &gone{}
	plan := paperPlan(t, problems(2), Teacher{Name: "t", Backend: b, Concurrency: 1})
	dir := t.TempDir()
	require.True(t, work(t, t.Context(), plan, testOptions(dir)).Complete())
	path := filepath.Join(dir, JournalName)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	last := strings.LastIndex(strings.TrimSuffix(string(whole), "\n"), "\n") + 1
	for cut := last; cut <= len(whole); cut++ {
		require.NoError(t, os.WriteFile(path, whole[:cut], 0o600))
		b.asked = 0
		for range 3 {
			require.True(t, work(t, t.Context(), plan, testOptions(dir)).Complete(), "cut at %d", cut)
			require.Len(t, readRows(t, dir), 2)
		}
		want := 1
		if cut >= len(whole)-1 {
			want = 0
		}
		require.EqualValues(t, want, b.asked, "cut at %d", cut)
	}
}

func TestAJournalThatIsDamaged(t *testing.T) {
	for want, text := range map[string]string{
		"journal.jsonl:1: damaged":              "not a line\n{\"kind\":\"intent\",\"job\":0,\"time\":\"2026-01-01T00:00:00Z\"}\n",
		"request 9 of 3":                        "{\"kind\":\"intent\",\"job\":9,\"time\":\"2026-01-01T00:00:00Z\"}\n",
		"request 1 is answered twice":           strings.Repeat("{\"kind\":\"answer\",\"job\":1,\"time\":\"2026-01-01T00:00:00Z\"}\n", 2),
		"journal.jsonl:1: damaged: unknown kin": "{\"kind\":\"other\",\"job\":1,\"time\":\"2026-01-01T00:00:00Z\"}\n{\"kind\":\"intent\",\"job\":0,\"time\":\"2026-01-01T00:00:00Z\"}\n",
	} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, JournalName), []byte(text), 0o600))
		_, err := openJournal(durable.OS, dir, 3)
		assert.ErrorContains(t, err, want)
		assert.ErrorIs(t, err, ErrCorrupt)
	}
}

// full is a disk that takes so many writes.
type full struct {
	durable.FS
	left int
}

type fullFile struct {
	durable.File
	fs *full
}

func (f *full) Append(path string) (durable.File, error) {
	file, err := f.FS.Append(path)
	return &fullFile{file, f}, err
}

func (f *fullFile) Write(p []byte) (int, error) {
	if f.fs.left--; f.fs.left < 0 {
		return 0, os.ErrInvalid
	}
	return f.File.Write(p)
}

func TestAJournalThatCannotBeWrittenPromisesNothing(t *testing.T) {
	j, err := openJournal(&full{durable.OS, 1}, t.TempDir(), 2)
	require.NoError(t, err)
	require.NoError(t, j.append(Entry{Kind: kindIntent, Job: 0}))
	require.ErrorIs(t, j.append(Entry{Kind: kindAnswer, Job: 0}), os.ErrInvalid)
	require.ErrorIs(t, j.append(Entry{Kind: kindIntent, Job: 1}), os.ErrInvalid, "nothing after it either")
	assert.Zero(t, j.totals().Answered)
	require.NoError(t, j.close())
}

func TestEndpointsThatCannotBe(t *testing.T) {
	for want, o := range map[string]EndpointOptions{
		"want http://host/v1":                        {URL: "host/v1", Model: "m"},
		"must have neither user, password nor query": {URL: "https://me:secret@host/v1", Model: "m"},
		"the model is not named":                     {URL: "https://host/v1"},
	} {
		_, err := NewEndpoint(o)
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "secret")
	}
}

func TestRowsKeepWhatTheyCameWith(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{})
	defer s.Close()
	dir := t.TempDir()
	teacher := Teacher{Name: "t", Backend: endpoint(t, s.URL, "", nil), Price: testPrice, Concurrency: 1}
	r := openRun(t, paperPlan(t, problems(11), teacher), testOptions(dir))
	_, err := r.Work(t.Context())
	require.NoError(t, err)
	_, err = r.WriteCritiques()
	require.NoError(t, err)
	_, err = r.WriteSamples(Keep{Right: true, Wrong: true, Ungraded: true}, func(_, _ string) bool { return true })
	require.NoError(t, err)
	require.NoError(t, r.Close())
	for _, name := range []string{CritiquesName, SamplesName} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		require.Len(t, lines, 11)
		for i, line := range lines {
			assert.Contains(t, line, fmt.Sprintf(`,"row":{"book":"A < B"}},"topic":["sums",{"digits":%d}]}`, len(fmt.Sprint(i))))
			assert.Equal(t, name == CritiquesName, strings.Contains(line, `"critique":`), "a sample has no critique: the row's own is of another response")
			assert.NotContains(t, line, `"old"`)
		}
	}
}
