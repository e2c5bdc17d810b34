package verify

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
)

// open writes lines to a file and opens it.
func open(t *testing.T, format string, fields config.Fields, lines ...string) *dataset.Set {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rows.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644))
	return openPath(t, path, format, fields)
}

func openPath(t *testing.T, path, format string, fields config.Fields) *dataset.Set {
	t.Helper()
	set, err := dataset.Open(t.Context(), []config.Source{Source(path, format, fields)}, dataset.Options{Cache: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { set.Close() })
	return set
}

func run(t *testing.T, set *dataset.Set, o Options) *Verifier {
	t.Helper()
	v, err := Run(t.Context(), set, o)
	require.NoError(t, err)
	return v
}

// written returns the rows that Write gives, decoded.
func written(t *testing.T, v *Verifier) (kept, dropped []map[string]any) {
	t.Helper()
	var a, b strings.Builder
	require.NoError(t, v.Write(&a, &b))
	decode := func(text string) (rows []map[string]any) {
		for line := range strings.Lines(text) {
			var row map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &row))
			rows = append(rows, row)
		}
		return rows
	}
	return decode(a.String()), decode(b.String())
}

func count(r Report, c Check) int {
	for _, each := range r.Checks {
		if each.Check == c {
			return each.Rows
		}
	}
	return -1
}

func line(fields ...string) string {
	row := map[string]any{"query": "What is 2 + 2?", "response": "It is 5.", "critique": "2 + 2 is 4, not 5. Conclusion: wrong [END]"}
	for i := 0; i < len(fields); i += 2 {
		row[fields[i]] = fields[i+1]
	}
	text, err := json.Marshal(row)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func TestChecksOfForm(t *testing.T) {
	sound := "The sum is right as it stands here. Conclusion: right [END]"
	for name, tt := range map[string]struct {
		critique string
		want     []Check
	}{
		"sound":                   {sound, nil},
		"empty":                   {" \n", []Check{Empty}},
		"broken off":              {"The first step of the solution takes the", []Check{Truncated}},
		"whole without verdict":   {"The first step of the solution is well done.", []Check{Unended}},
		"a verdict, no end mark":  {"The sum is right as it stands here. Conclusion: right", []Check{Unended}},
		"short":                   {"Conclusion: right [END]", []Check{Short}},
		"a loop":                  {strings.Repeat("a b c d e f g h i j k l ", 5) + sound, []Check{Repetition}},
		"the same three times":    {strings.Repeat("a b c d e f g h i j k l ", 3) + sound, nil},
		"a loop of a word":        {strings.Repeat("so ", 60) + sound, []Check{Repetition}},
		"steps that begin alike":  {"Step 1 is correct. Step 2 is correct. Step 3 is correct. Step 4 is correct. " + sound, nil},
		"long":                    {strings.Repeat("x", 250) + sound, []Check{Long}},
		"ends in a bold sentence": {"**The solution has no fault that I could find.**", []Check{Unended}},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tt.want, form(tt.critique, evaluate.ParseVerdict(tt.critique), Limits{Short: 30, Long: 250}))
		})
	}
}

func TestPoliciesAndReport(t *testing.T) {
	set := open(t, "cft", nil,
		line("label", "wrong", "teacher", "a", "note", "kept as it is"),
		line("label", "right", "teacher", "a", "critique", "2 + 2 is 5 I think, so no. Conclusion: wrong [END]", "response", "4"),
		line("label", "wrong", "teacher", "b", "critique", "I cannot say much about this. [END]"),
		line("label", "wrong", "teacher", "a"), // the first again
		line("gold", "4", "teacher", "b", "response", "The answer is 4.", "critique", "That is what it is. Conclusion: right [END]"),
		line("query", "Janet has three ducks and each of them lays four eggs a day; how many is that?", "teacher", "b"),
	)
	test := open(t, "cft", config.Fields{"query": "question", "gold": "answer"},
		`{"question": "JANET has three ducks, and each of them lays four eggs a day. How many is that?", "answer": 12}`)
	o := DefaultOptions()
	o.Tests = []Test{{"ducks", test}}
	v := run(t, set, o)
	r := v.Report
	assert.Equal(t, []int{6, 2, 4, 0, 0}, []int{r.Rows, r.Kept, r.Dropped, r.Lowered, r.Relabelled})
	for c, want := range map[Check]int{Mismatch: 1, NoVerdict: 1, Duplicate: 1, Leak: 1, Disagree: 0, Empty: 0, Truncated: 0} {
		assert.Equal(t, want, count(r, c), c)
	}
	assert.Equal(t, Labels{Given: 4, Graded: 1, None: 1}, r.Labels)
	assert.Equal(t, []Leaks{{Test: "ducks", Queries: 1, Exact: 1}}, r.Tests)
	assert.Equal(t, map[string]int{"no conclusion": 1}, r.Unjudged)
	assert.Equal(t, evaluate.NewShare([]bool{false, true, false, false}), r.All.Errors)
	assert.Equal(t, evaluate.NewShare([]bool{true, false}), r.All.OnRight)
	require.Len(t, r.Teachers, 2)
	assert.Equal(t, evaluate.NewShare([]bool{false, true, false}), r.Teachers[0].Errors)
	assert.Equal(t, map[string]int{"right/right": 1, "wrong/none": 1, "none/wrong": 1}, r.Teachers[1].SaidWhat)

	kept, dropped := written(t, v)
	require.Len(t, kept, 2)
	require.Len(t, dropped, 4)
	assert.Equal(t, "kept as it is", kept[0]["note"])
	assert.NotContains(t, kept[0], "checks")
	assert.NotContains(t, kept[0], "weight")
	assert.Equal(t, []any{"mismatch"}, dropped[0]["checks"])
	var text strings.Builder
	require.NoError(t, r.Print(&text))
	assert.Contains(t, text.String(), "6 rows: 2 kept (0 of them with weight x 0.5), 4 dropped, 0 relabelled")
	assert.Contains(t, text.String(), "25.0 % [4.6, 69.9] of 4")
}

func TestSeveralTeachers(t *testing.T) {
	right := "It adds up as it should. Conclusion: right [END]"
	lines := []string{
		line("teacher", "a", "weight_note", "x"), line("teacher", "b", "critique", "No: it is 4. Conclusion: wrong [END]"), line("teacher", "c", "critique", right),
		line("query", "1 + 1?", "response", "2", "teacher", "a", "critique", right), line("query", "1 + 1?", "response", "2", "teacher", "b"),
	}
	t.Run("down-weight", func(t *testing.T) {
		lines := append(lines, strings.Replace(line("query", "1 + 1?", "response", "2", "teacher", "d", "critique", "So it is, as can be seen. Conclusion: right [END]"), "{", `{"weight": 3, `, 1))
		v := run(t, open(t, "cft", nil, lines...), DefaultOptions())
		assert.Equal(t, Groups{Several: 2, Disagree: 2}, v.Report.Groups)
		assert.Equal(t, 6, v.Report.Lowered)
		kept, _ := written(t, v)
		require.Len(t, kept, 6)
		assert.Equal(t, 0.5, kept[0]["weight"])
		assert.Equal(t, 1.5, kept[5]["weight"], "the row's own weight counts")
	})
	t.Run("relabel", func(t *testing.T) {
		o := DefaultOptions()
		o.Policies[Disagree] = Relabel
		v := run(t, open(t, "cft", nil, lines...), o)
		assert.Equal(t, Groups{Several: 2, Disagree: 2, Tied: 1}, v.Report.Groups)
		assert.Equal(t, 3, v.Report.Relabelled)
		assert.Equal(t, 1, count(v.Report, Mismatch), "who is against the majority")
		assert.Zero(t, v.Report.All.Errors.N, "a majority is no gold label")
		kept, dropped := written(t, v)
		require.Len(t, kept, 4)
		require.Len(t, dropped, 1)
		assert.Equal(t, "wrong", kept[0]["label"])
		assert.Equal(t, "wrong", dropped[0]["label"])
		assert.NotContains(t, kept[2], "label", "a tie is no majority")
	})
	t.Run("who concludes nothing disagrees with nobody", func(t *testing.T) {
		lines := append(lines, line("teacher", "d", "critique", "Hard to say, and longer than it looks. [END]"))
		v := run(t, open(t, "cft", nil, lines...), DefaultOptions())
		assert.Equal(t, 5, count(v.Report, Disagree))
		assert.Equal(t, 1, count(v.Report, NoVerdict))
	})
	t.Run("gold comes before the majority", func(t *testing.T) {
		o := DefaultOptions()
		o.Policies[Disagree] = Relabel
		v := run(t, open(t, "cft", nil, line("label", "right", "teacher", "a"), line("label", "right", "teacher", "b", "critique", "No. It is 4, not 5. Conclusion: wrong [END]"),
			line("label", "right", "teacher", "c", "critique", right)), o)
		assert.Zero(t, v.Report.Relabelled)
		assert.Equal(t, 2, count(v.Report, Mismatch))
	})
}

// What is written is read again as it was, whatever format it came in.
func TestWebInstructBecomesCFT(t *testing.T) {
	set := open(t, "webinstruct-cft", nil, `{"instruction": "Please critique whether the following solution to the question is correct.\n\n", "input": "Question:\n1 + 1?\n\nSolution:\n2\n\n", "output": "Critique:\nThat is what it comes to. Conclusion: right [END]"}`)
	v := run(t, set, DefaultOptions())
	var kept, dropped strings.Builder
	require.NoError(t, v.Write(&kept, &dropped))
	again := open(t, "cft", nil, strings.TrimSpace(kept.String()))
	record, err := again.Record(0)
	require.NoError(t, err)
	assert.Equal(t, []string{"1 + 1?", "2", "That is what it comes to. Conclusion: right [END]"}, []string{record.Query, record.Response, record.Critique})
	assert.NotContains(t, kept.String(), "instruction")
}

func TestFaultyRowsAreAnError(t *testing.T) {
	_, err := Run(context.Background(), open(t, "cft", nil, line(), `{"query": 3}`), DefaultOptions())
	var fault *dataset.Error
	require.ErrorAs(t, err, &fault)
	assert.Equal(t, 2, fault.Line)
}

// MR-GSM8K's questions are GSM8K's test questions: 370 of the 499 word for word, as its source notes say, and the others
// are rewritten ones.
func TestFindsRealLeaks(t *testing.T) {
	folder := filepath.Join("..", "..", "..", "shared", "data")
	if _, err := os.Stat(folder); os.IsNotExist(err) {
		t.Skipf("no data sets in %s", folder)
	}
	asTest := config.Fields{"query": "question", "gold": "answer"}
	rows := 0
	exact, overlap := 0, 0
	for name, output := range map[string]string{"Claude": "claude2_eval_output", "GPT3_5": "gpt3_5_eval_output"} {
		set := openPath(t, filepath.Join(folder, "mr_gsm8k", name+"_eval_results.json"), "cft", config.Fields{
			"query": "question", "response": "{model_output_steps}", "critique": output + ".response", "label": "model_output_solution_correctness",
		})
		o := DefaultOptions()
		o.Tests = []Test{
			{"test", openPath(t, filepath.Join(folder, "gsm8k", "test.jsonl"), "cft", asTest)},
			{"train", openPath(t, filepath.Join(folder, "gsm8k", "train.jsonl"), "cft", asTest)},
		}
		v := run(t, set, o)
		r := v.Report
		rows, exact, overlap = rows+r.Rows, exact+r.Tests[0].Exact, overlap+r.Tests[0].Overlap
		assert.Zero(t, r.Tests[1].Exact, "the training half is another")
		t.Logf("%s: %+v", name, r.Tests)
		var text strings.Builder
		require.NoError(t, r.Print(&text))
		t.Log(text.String())
	}
	assert.Equal(t, 499, rows)
	assert.Equal(t, 370, exact)
	t.Logf("%d of %d rows ask what the test set asks, %d nearly", exact, rows, overlap)
}

func TestChecksAreThoseOfThisVerification(t *testing.T) {
	set := open(t, "cft", nil, `{"query":"q","response":"r","critique":"It is as it should be.\nConclusion: right [END]","label":"right","checks":["mismatch"],"other":1}`)
	kept, _ := written(t, run(t, set, DefaultOptions()))
	require.Len(t, kept, 1)
	assert.NotContains(t, kept[0], "checks")
	assert.Contains(t, kept[0], "other")
}

func TestColumnsThatTheFormatDoesNotReadStay(t *testing.T) {
	fields := config.Fields{"query": "question"}
	set := open(t, "cft", fields, `{"question":"q","response":"r","critique":"It is as it should be.\nConclusion: right [END]","output":"mine"}`)
	kept, _ := written(t, run(t, set, DefaultOptions()))
	require.Len(t, kept, 1)
	assert.Equal(t, "mine", kept[0]["output"])
	assert.Equal(t, "q", kept[0]["query"])
}
