package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/faultteacher"
	"cftune/internal/testfiles"
	"cftune/trainer/critic"
)

// writeAnswers makes a file of so many rows to be judged.
func writeAnswers(t *testing.T, rows int) string {
	t.Helper()
	var b strings.Builder
	for i := range rows {
		fmt.Fprintf(&b, `{"id":"r%d","query":"What is %d + 1?","response":"%d","gold":%d,"label":"right","weight":0.5}`+"\n", i, i, i+1, i+1)
	}
	path := filepath.Join(t.TempDir(), "answers.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
	return path
}

// cli runs the program, and returns what it printed.
func cli(args ...string) (code int, stdout, stderr string) {
	var out, notes bytes.Buffer
	code = run(args, &out, &notes)
	return code, out.String(), notes.String()
}

func readReport(t *testing.T, dir string) askReport {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, critic.ReportName))
	require.NoError(t, err)
	var r askReport
	require.NoError(t, json.Unmarshal(text, &r))
	return r
}

// requireSecret looks for a key in everything that a run leaves.
func requireSecret(t *testing.T, key string, dir string, printed ...string) {
	t.Helper()
	for _, text := range printed {
		require.NotContains(t, text, key)
	}
	files := 0
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NotContains(t, string(text), key, path)
		return nil
	}))
	require.Greater(t, files, 3)
}

// The key is in no file, log or command line, even where an endpoint repeats it in its errors and answers.
func TestCritiqueKeepsTheKeyToItself(t *testing.T) {
	const key = "sk-test-0123456789"
	s := faultteacher.New(faultteacher.Options{
		Key: key, Faults: faultteacher.Faults{Internal: 0.1, Malformed: 0.1},
		Answer: func(prompt string) string { return "Your key is " + key + ".\nConclusion: right [END]" },
	})
	defer s.Close()
	data, dir := writeAnswers(t, 20), filepath.Join(t.TempDir(), "out")
	args := []string{"critique", data, "--output", dir, "--teacher", "model=m,key_env=CFTUNE_TEST_KEY,url=" + s.URL}
	t.Setenv("CFTUNE_TEST_KEY", "sk-of-somebody-else")
	code, out, notes := cli(args...)
	assert.Equal(t, codeShort, code)
	assert.Contains(t, notes, "denied (HTTP 401): Incorrect API key provided: [key]")
	requireSecret(t, "sk-of-somebody-else", dir, out, notes)
	t.Setenv("CFTUNE_TEST_KEY", key)
	code, out, notes = cli(args...)
	require.Zero(t, code, notes)
	requireSecret(t, key, dir, append(args, out, notes)...)
	rows, err := os.ReadFile(filepath.Join(dir, critic.CritiquesName))
	require.NoError(t, err)
	assert.Equal(t, 20, strings.Count(string(rows), "Your key is [key]."))
}

func TestCritiqueStopsAtItsBudgetAndGoesOn(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{})
	defer s.Close()
	data, dir := writeAnswers(t, 40), filepath.Join(t.TempDir(), "out")
	args := []string{"critique", data, "--output", dir, "--max-tokens", "100", "--concurrency", "4", "--teacher", "name=t,model=m,price_in=2.5,price_out=10,url=" + s.URL}
	code, out, notes := cli(append(args, "--budget", "0.02")...)
	require.Equal(t, codeShort, code, notes)
	assert.Contains(t, notes, "the budget is reached: of $0.0200, $0.0")
	assert.Contains(t, notes, "cftune: hint: the same command goes on with what is missing; a higher --budget")
	first := readReport(t, dir)
	assert.Positive(t, first.Tally.Answered)
	assert.Less(t, first.Tally.Answered, 40)
	assert.Contains(t, out, fmt.Sprintf("%d of 40 requests answered", first.Tally.Answered))
	assert.LessOrEqual(t, first.Tally.Spent.String(), "$0.0200")

	code, out, notes = cli(append(args, "--budget", "1", "--json")...)
	require.Zero(t, code, notes)
	assert.Contains(t, notes, fmt.Sprintf("goes on: %d requests are answered already", first.Tally.Answered))
	var printed askReport
	require.NoError(t, json.Unmarshal([]byte(out), &printed))
	assert.Equal(t, printed, readReport(t, dir))
	assert.Equal(t, 40, printed.Tally.Answered)
	assert.Equal(t, 40, printed.Critique["t"].Written)
	charged, _ := s.Charged()
	assert.Equal(t, 40, charged.Answers, "nothing is asked twice")

	code, _, notes = cli(append(args, "--budget", "1")...)
	require.Zero(t, code, notes)
	charged, _ = s.Charged()
	assert.Equal(t, 40, charged.Answers, "a run that is done asks nothing")

	code, _, notes = cli(append(args, "--prompt", "oneshot")...)
	assert.Equal(t, codeCheckpoint, code)
	assert.Contains(t, notes, `prompt.name: has "paper", not "oneshot"`)
}

// What a run's record says is enough to make the same requests again: here, they are compared by the texts of a server that
// answers with what it was asked.
func TestCritiqueByBatchesAndFromItsRecord(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{})
	defer s.Close()
	data, dir := writeAnswers(t, 30), filepath.Join(t.TempDir(), "out")
	code, out, notes := cli("critique", data, "--output", dir, "--teacher", "name=t,model=m,batch=8,poll=5ms,url="+s.URL, "-n", "2", "--quiet")
	require.Zero(t, code, notes)
	assert.Contains(t, out, "60 of 60 requests answered")
	assert.Equal(t, 8, s.Counts()["batches"])
	var record struct {
		Settings struct {
			Prompt   critic.Prompt  `json:"prompt"`
			Seed     uint64         `json:"seed"`
			PerRow   int            `json:"per_row"`
			Teachers map[string]any `json:"teachers"`
			Data     map[string]any `json:"data"`
		} `json:"settings"`
		Sessions []map[string]any `json:"sessions"`
	}
	text, err := os.ReadFile(filepath.Join(dir, critic.RecordName))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &record))
	assert.Len(t, record.Sessions, 1)
	assert.Contains(t, record.Sessions[0], "versions")
	assert.Equal(t, s.URL, record.Settings.Teachers["t"].(map[string]any)["url"])
	assert.Len(t, record.Settings.Data["sha256"], 64)

	prompt := filepath.Join(t.TempDir(), "again.tmpl")
	require.NoError(t, os.WriteFile(prompt, []byte(record.Settings.Prompt.Text), 0o600))
	again := filepath.Join(t.TempDir(), "again")
	code, _, notes = cli("critique", data, "--output", again, "--prompt", prompt, "--seed", fmt.Sprint(record.Settings.Seed), "-n", fmt.Sprint(record.Settings.PerRow),
		"--teacher", "name=t,model=m,url="+s.URL, "--quiet")
	require.Zero(t, code, notes)
	read := func(dir string) (texts []string, seeds []uint64) {
		text, err := os.ReadFile(filepath.Join(dir, critic.CritiquesName))
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			var row critic.Row
			require.NoError(t, json.Unmarshal([]byte(line), &row))
			assert.Equal(t, float32(0.5), row.Weight)
			texts, seeds = append(texts, row.Critique), append(seeds, row.Source.Seed)
		}
		return texts, seeds
	}
	texts, seeds := read(dir)
	textsAgain, seedsAgain := read(again)
	require.Len(t, texts, 60)
	assert.Equal(t, texts, textsAgain)
	assert.Equal(t, seeds, seedsAgain)
}

func TestSampleFromAnEndpoint(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{Answer: func(prompt string) string {
		if strings.Contains(prompt, "is 3 +") {
			return "I think the answer is 4."
		}
		return `So we get \boxed{7}.`
	}})
	defer s.Close()
	data, dir := writeAnswers(t, 8), filepath.Join(t.TempDir(), "out")
	args := []string{"sample", data, "--output", dir, "--endpoint", "model=m,url=" + s.URL}
	for keep, want := range map[string]int{"all": 8, "right": 2, "wrong": 6, "mix=0.5": 4} {
		code, out, notes := cli(append(args, "--keep", keep)...)
		require.Zero(t, code, notes)
		assert.Contains(t, out, fmt.Sprintf("8 answers: 2 right, 6 wrong, 0 without a gold answer; 0 repeat another, 0 cut off, 0 empty; %d written, %d left out", want, 8-want), keep)
	}
	charged, _ := s.Charged()
	assert.Equal(t, 8, charged.Answers, "another --keep asks nothing again")
}

// TestShardsOfSampling: what shards write is together what one process writes, seeds included.
func TestShardsOfSampling(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{})
	defer s.Close()
	data, dir := writeAnswers(t, 7), t.TempDir()
	rows := func(output string, more ...string) []string {
		t.Helper()
		code, _, notes := cli(append([]string{"sample", data, "--output", filepath.Join(dir, output), "-n", "2", "--endpoint", "model=m,url=" + s.URL}, more...)...)
		require.Zero(t, code, notes)
		files, err := filepath.Glob(filepath.Join(dir, output, "shard-*", critic.SamplesName))
		require.NoError(t, err)
		if len(more) == 0 {
			files = []string{filepath.Join(dir, output, critic.SamplesName)}
		}
		var all []string
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			for line := range strings.Lines(string(text)) {
				var row critic.Row
				require.NoError(t, json.Unmarshal([]byte(line), &row))
				all = append(all, fmt.Sprintf("%s %d %d", row.Query, row.Source.Number, row.Source.Seed))
			}
		}
		slices.Sort(all)
		return all
	}
	whole := rows("whole")
	require.Len(t, whole, 14)
	require.Len(t, rows("parts", "--shard", "1/3"), 6)
	rows("parts", "--shard", "3/3")
	require.Equal(t, whole, rows("parts", "--shard", "2/3"))

	code, _, notes := cli("sample", data, "--output", filepath.Join(dir, "none"), "--endpoint", "model=m,url="+s.URL, "--shard", "9/9")
	require.Equal(t, codeUsage, code)
	require.Contains(t, notes, "of 7 records none falls to it")
	require.NoDirExists(t, filepath.Join(dir, "none"))
}

func TestGradeSample(t *testing.T) {
	for _, tt := range []struct {
		answer, gold string
		want         bool
	}{
		{"The answer is 42.", "42", true},
		{"6 x 7 = 42, so 42", "6 x 7 = 42\n#### 42", true},
		{"41", "42", false},
		{`"Carried."`, "carried", true},
		{"It is not carried but carry", "carried", false},
		{"The past tense is carried.", "carried", true},
	} {
		assert.Equal(t, tt.want, gradeSample(tt.answer, tt.gold), tt.answer)
	}
}

// TestCritiqueLoop goes the whole way with the real model as its own teacher: sample, critique, verify, train. What it says is
// of no use; that each step takes what the one before wrote is the point.
func TestCritiqueLoop(t *testing.T) {
	model := testfiles.Model(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	questions := `{"query":"What is the capital of France?","gold":"Paris"}` + "\n" + `{"query":"What is 6 times 7?","gold":42}` + "\n"
	require.NoError(t, os.WriteFile(at("questions.jsonl"), []byte(questions), 0o600))
	local := []string{"--threads", "1", "--parallel", "2", "--quiet"}
	must := func(args ...string) string {
		t.Helper()
		code, out, notes := cli(args...)
		require.Zero(t, code, "%v: %s", args, notes)
		return out
	}
	must(append([]string{"sample", at("questions.jsonl"), "--model", model, "-n", "2", "--max-tokens", "16", "--output", at("samples")}, local...)...)
	must(append([]string{"critique", at("samples/samples.jsonl"), "--teacher", "name=self,gguf=" + model, "--max-tokens", "24", "--output", at("critiques")}, local...)...)
	rows := must("verify", at("critiques/critiques.jsonl"), "--output", at("verified.jsonl"), "--policy", "no_verdict=keep", "--policy", "truncated=keep",
		"--policy", "mismatch=keep", "--policy", "repetition=keep")
	require.Contains(t, rows, "4 rows: 4 kept")
	require.Contains(t, rows, "self")
	config := fmt.Sprintf("model: %s\noutput: %s\nthreads: 1\ndata: {sources: [{path: %s, format: cft}]}\nadapter: {rank: 4, alpha: 8}\n"+
		"train: {seq_len: 256, global_batch: {examples: 2}, max_steps: 2}\n", model, at("run"), at("verified.jsonl"))
	require.NoError(t, os.WriteFile(at("cft.yaml"), []byte(config), 0o600))
	assert.Contains(t, must("train", "--config", at("cft.yaml")), "step-00000002")

	// The same seeds give the same texts.
	must(append([]string{"sample", at("questions.jsonl"), "--model", model, "-n", "2", "--max-tokens", "16", "--output", at("again")}, local...)...)
	first, err := os.ReadFile(at("samples/samples.jsonl"))
	require.NoError(t, err)
	second, err := os.ReadFile(at("again/samples.jsonl"))
	require.NoError(t, err)
	runID := func(text []byte) string {
		var row critic.Row
		require.NoError(t, json.Unmarshal(text[:bytes.IndexByte(text, '\n')], &row))
		return row.Source.Run
	}
	assert.Equal(t, strings.ReplaceAll(string(first), runID(first), ""), strings.ReplaceAll(string(second), runID(second), ""))
}
