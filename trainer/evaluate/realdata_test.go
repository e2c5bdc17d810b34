package evaluate

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sharedFile reads a file of the data sets that lie beside the checkout, and skips the test where they do not.
func sharedFile(t *testing.T, name ...string) []byte {
	t.Helper()
	folder := filepath.Join("..", "..", "..", "shared", "data")
	if _, err := os.Stat(folder); os.IsNotExist(err) {
		t.Skipf("no data sets in %s", folder)
	}
	text, err := os.ReadFile(filepath.Join(append([]string{folder}, name...)...))
	require.NoError(t, err)
	return text
}

func sharedRows[T any](t *testing.T, name ...string) []T {
	t.Helper()
	if testing.Short() {
		t.Skip("whole data sets")
	}
	var rows []T
	decoder := json.NewDecoder(strings.NewReader(string(sharedFile(t, name...))))
	for decoder.More() {
		var row T
		require.NoError(t, decoder.Decode(&row))
		rows = append(rows, row)
	}
	return rows
}

// realCritique is a critique that somebody or some model has written, with the score that came with it, if one did.
type realCritique struct {
	text  string
	score int
	label string
}

// realCritiques returns the sets by name; a critique is known by its index in the file.
func realCritiques(t *testing.T) map[string][]realCritique {
	t.Helper()
	sets := map[string][]realCritique{}
	for name, file := range map[string]string{"claude": "Claude", "gpt3.5": "GPT3_5"} {
		type output struct {
			Response string `json:"response"`
		}
		var rows []struct {
			Claude output `json:"claude2_eval_output"`
			GPT    output `json:"gpt3_5_eval_output"`
		}
		require.NoError(t, json.Unmarshal(sharedFile(t, "mr_gsm8k", file+"_eval_results.json"), &rows))
		for _, r := range rows {
			sets[name] = append(sets[name], realCritique{text: r.Claude.Response + r.GPT.Response, label: "wrong"})
		}
	}
	for name, file := range map[string]string{"mt_bench": "mt_bench_eval.json", "vicuna": "vicuna_eval.first160.json"} {
		var rows []struct {
			Feedback any `json:"gpt4_feedback"`
			Score    any `json:"gpt4_score"`
		}
		require.NoError(t, json.Unmarshal(sharedFile(t, "prometheus_eval", file), &rows))
		for i, r := range rows {
			texts, scores := r.Feedback.([]any), r.Score.([]any)
			for k := range texts {
				text, ok := texts[k].(string)
				require.True(t, ok, "%s %d", name, i)
				sets[name] = append(sets[name], realCritique{text: text, score: int(scores[k].(float64))})
			}
		}
	}
	for name, file := range map[string]string{"derived": "cft_ci_64.jsonl", "problems": "mwp_cft_train_2000.jsonl", "problems test": "mwp_cft_svamp_test_500.jsonl"} {
		for _, r := range sharedRows[struct{ Critique, Label string }](t, "derived", file) {
			sets[name] = append(sets[name], realCritique{text: r.Critique, label: r.Label})
		}
	}
	return sets
}

// handChecked are critiques that a person has read, by set and index (of the feedbacks: three to a row), and what that
// person found each to conclude: w wrong, r right, - nothing. "R" is right, but said so indirectly ("meets all
// requirements for a score of 5") that the parser is not expected to find it.
var handChecked = []struct {
	set         string
	first, step int
	verdicts    string
}{
	{"claude", 0, 10, "wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww"},
	{"gpt3.5", 0, 5, "wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww"},
	{"derived", 0, 2, "wwwwwwww------wwrwwrrwwwrrrrwwrw"},
	{"problems", 0, 100, "rrrrwrrrrwwrrrrwwwrw"},
	{"mt_bench", 0, 48, "-----w-----------R--"},
}

func TestVerdictsOfRealCritiques(t *testing.T) {
	sets := realCritiques(t)
	read := map[byte]Verdict{'w': Wrong, 'r': Right, '-': NoVerdict, 'R': NoVerdict}
	checked, found := 0, 0
	for _, h := range handChecked {
		for k := range h.verdicts {
			i := h.first + k*h.step
			want := read[h.verdicts[k]]
			assert.Equal(t, want, ParseVerdict(sets[h.set][i].text), "%s %d", h.set, i)
			if checked++; want != NoVerdict {
				found++
			}
		}
	}
	require.GreaterOrEqual(t, checked, 100)
	t.Logf("%d critiques read by hand, %d of them with a verdict", checked, found)
}

// TestParseRates prints how many critiques of each set have a verdict, and fails where one is against the set's label.
func TestParseRates(t *testing.T) {
	for name, critiques := range realCritiques(t) {
		counts, reasons := map[Verdict]int{}, map[string]int{}
		for i, c := range critiques {
			j := Judge(c.text, DefaultThresholds())
			counts[j.Verdict]++
			if j.Verdict == NoVerdict {
				reasons[j.Reason]++
			} else if c.label != "" {
				assert.Equal(t, Verdict(c.label), j.Verdict, "%s %d", name, i)
			}
		}
		t.Logf("%-13s %4d critiques: %4d right, %4d wrong, %4d without a verdict %v",
			name, len(critiques), counts[Right], counts[Wrong], counts[NoVerdict], reasons)
		if name != "mt_bench" && name != "vicuna" && name != "derived" { // Prometheus' feedback has no verdict; derived has some of it
			assert.Zero(t, counts[NoVerdict], name)
		}
	}
}

// Prometheus keeps its scores beside the feedback; its models write them behind it.
func TestScoresBehindRealFeedback(t *testing.T) {
	endings := []string{" [RESULT] %d", "\nResult: %d", " so the overall score is %d.", "\n### Score: %d"}
	want := map[int]Verdict{1: Wrong, 2: Wrong, 3: NoVerdict, 4: Right, 5: Right}
	n := 0
	sets := realCritiques(t)
	for _, name := range []string{"mt_bench", "vicuna"} {
		for i, c := range sets[name] {
			j := Judge(c.text+fmt.Sprintf(endings[i%len(endings)], c.score), DefaultThresholds())
			assert.Equal(t, want[c.score], j.Verdict, "%s %d: %s", name, i, j.Reason)
			if assert.NotNil(t, j.Score) {
				assert.Equal(t, float64(c.score), *j.Score, "%s %d", name, i)
			}
			n++
		}
	}
	assert.Equal(t, 1440, n)
}

// ways are those of stating an answer, and misstated of stating something else with it; the slot is for the answer.
var (
	ways = []string{
		"The answer is %s.", "**Answer:** %s", "#### %s", "Hence \\boxed{%s}. Check: 3 + 4 = 7.", "Final answer: %s\n\nCheck: 3 + 4 = 7", "### Final Answer\n%s",
		"#### Step 1\nAdd 3 and 4.\n#### Final answer\n%s", "The answer is %s because 3 + 4 = 7.", "The answer is not 8888 but %s.", "I get %s. The answer is %s. This answer is correct.",
		"答案是%s。检查：1 + 1 = 2", "Die Antwort ist %s. Probe: 1 + 1 = 2", "La réponse est %s.", "Ответ: %s", "答えは%sです。", "The answer is\n\\[\n%s\n\\]", "%s",
	}
	misstated = []string{
		"The answer is at least %s.", "The answer is not %s.", "The answer isn't %s, it's 99999.", "The answer is %s or 99999.", "The answer is %s to 99999.", "The answer is %s fewer than 99999.",
		"\\boxed{(%s, 99999)}", "\\boxed{%s + x}", "\\boxed{99999} (not \\boxed{%s})", "<think>The answer is %s.", "The answer is 99999.\n\nCheck: %s",
	}
)

func TestReferencesStated(t *testing.T) {
	references := map[string]bool{}
	for _, r := range sharedRows[struct{ Answer string }](t, "math500", "test.jsonl") {
		references[r.Answer] = true
	}
	for _, r := range sharedRows[struct{ Answer string }](t, "gsm8k", "test.jsonl") {
		references[GoldAnswer(r.Answer)] = true
	}
	n := 0
	for reference := range references {
		for k, form := range slices.Concat(ways, misstated) {
			if k >= len(ways) && !isNumber(reference) {
				continue
			}
			text := strings.ReplaceAll(form, "%s", reference)
			assert.Equal(t, k < len(ways), GradeAnswer(text, reference).Right, text)
			n++
		}
	}
	t.Logf("%d references, %d statements", len(references), n)
}
