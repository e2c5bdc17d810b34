package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
	"cftune/trainer/evaluate"
	"cftune/trainer/report"
	"cftune/trainer/wordforms"
)

// tinyDemo shows that all parts work together; its scores mean nothing.
func tinyDemo(t *testing.T, output string, notes *bytes.Buffer) *demo {
	return &demo{
		model: realModel(t), output: output, threads: 2, size: demoSize{train: 16, dev: 2, test: 6}, out: new(bytes.Buffer), notes: notes,
	}
}

func TestDemoEndToEnd(t *testing.T) {
	var notes bytes.Buffer
	d := tinyDemo(t, filepath.Join(t.TempDir(), "demo"), &notes)
	require.NoError(t, d.run(t.Context()), notes.String())

	var summary struct {
		TestItems int `json:"test_items"`
		Models    []report.Arm
		Checks    []report.Check
	}
	text, err := os.ReadFile(d.path("summary.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &summary))
	assert.Equal(t, 6, summary.TestItems)
	require.Len(t, summary.Models, 1+len(demoArms))
	for i, m := range summary.Models {
		assert.Equal(t, 6, m.Judging.Verdicts.N, m.Name)
		assert.Equal(t, 3, m.Judging.Accepted.N, "half of the answers are right")
		assert.Equal(t, 6, m.Answering.Leading.N, m.Name)
		assert.Equal(t, i > 0, len(m.Training) == 2, "two steps of eight questions, but not of the base model")
	}
	assert.Len(t, summary.Checks, 2)
	page, err := os.ReadFile(d.path("report.html"))
	require.NoError(t, err)
	for _, arm := range demoArms {
		assert.Contains(t, string(page), arm.name)
		assert.FileExists(t, d.adapter(arm.name))
		_, warnings, err := checkpoint.Latest(d.runDir(arm.name), false)
		require.NoError(t, err)
		assert.Empty(t, warnings)
	}

	// Started again, it finds everything done.
	before, err := os.Stat(d.path("scores", armCFT+".json"))
	require.NoError(t, err)
	notes.Reset()
	require.NoError(t, tinyDemo(t, d.output, &notes).run(t.Context()), notes.String())
	assert.NotContains(t, notes.String(), ": training")
	assert.NotContains(t, notes.String(), "scored on")
	after, err := os.Stat(d.path("scores", armCFT+".json"))
	require.NoError(t, err)
	assert.Equal(t, before.ModTime(), after.ModTime())
}

func TestBeginsAnewWithoutACheckpoint(t *testing.T) {
	var notes bytes.Buffer
	note := func(text string) { notes.WriteString(text) }
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	begun, err := runBegun(run, note)
	require.NoError(t, err)
	assert.False(t, begun, "no folder")
	require.NoError(t, os.MkdirAll(run, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(run, checkpoint.ConfigName), []byte("{}"), 0o644))
	begun, err = runBegun(run, note)
	require.NoError(t, err)
	assert.False(t, begun, "no checkpoint")
	assert.NoDirExists(t, run)
	assert.Contains(t, notes.String(), "begins anew")
}

var demoItems = []wordforms.Item{
	{Word: "carry", Task: wordforms.Past, Class: wordforms.ConsY, Gold: "carried", Form: "carryed"},
	{Word: "walk", Task: wordforms.Past, Class: wordforms.Plain, Gold: "walked", Form: "walked"},
	{Word: "play", Task: wordforms.Past, Class: wordforms.VowelY, Gold: "played", Form: "plaid"},
}

func TestOutcomes(t *testing.T) {
	s := armScore{
		Critiques: []demoText{
			{Text: "Critique:\n" + demoItems[0].Critique()[:len(demoItems[0].Critique())-len("[END]")]},
			{Text: `The past tense of "walk" is "walkt". Conclusion: wrong`},
			{Text: `I see no problem.`},
		},
		Answers: []demoText{
			{Text: `The past tense of "carry" is "carried".`, Tokens: 12, Ended: true},
			{Text: `The past tense of "walk" is "walked": add ed. Conclusion: right`, Tokens: 32},
			{Text: "plaid", Tokens: 4, Ended: true},
		},
	}
	o := s.outcomes(demoItems)
	assert.Equal(t, []bool{true, false, false}, o.verdicts, "no verdict is no right one")
	assert.Equal(t, []bool{false, false, false}, o.saidRight)
	assert.Equal(t, []bool{false, false, true}, o.none)
	assert.Equal(t, []bool{true, false, false}, o.derived)
	assert.Equal(t, []bool{true, false, false}, o.sound)
	assert.Equal(t, []bool{true, true, false}, o.leading)
	assert.Equal(t, []bool{true, false, false}, o.exact)
	assert.Equal(t, []bool{true, true, false}, o.anywhere)
	assert.Equal(t, []bool{false, true, false}, o.drifted)
	assert.Equal(t, []bool{true, false, true}, o.ended)
	assert.Equal(t, 48, o.answerTokens)
	assert.Equal(t, []bool{true}, where(o.leading, demoItems, wordforms.Item.Right))
}

// arm has so many of 100 right.
func armWith(name string, verdicts, answers, baseAnswers int) report.Arm {
	firsts := func(n int) []bool {
		b := make([]bool, 100)
		for i := range n {
			b[i] = true
		}
		return b
	}
	leading := evaluate.Compare(firsts(answers), firsts(baseAnswers))
	return report.Arm{
		Name: name,
		Judging: report.Judging{
			Verdicts: evaluate.NewShare(firsts(verdicts)), None: evaluate.NewShare(firsts(0)), Accepted: evaluate.NewShare(firsts(verdicts)[:50]),
		},
		Answering: report.Answering{
			Leading: evaluate.NewShare(firsts(answers)), Ended: evaluate.NewShare(firsts(100)), VersusBase: &report.AnswerDifferences{Leading: leading},
		},
	}
}

func TestChecksAndReadingSayWhatTheNumbersDo(t *testing.T) {
	tests := []struct {
		name                                string
		verdicts, answers, base             int
		judges, improves                    bool
		readsOfVerdicts, readsOfImprovement string
	}{
		{"both", 80, 70, 30, true, true, "judges above chance", "answers better than"},
		{"an interval that has chance in it", 55, 32, 30, false, false, "does not judge above chance", "not measurably differently from"},
		{"worse", 20, 10, 50, false, false, "does not judge above chance", "answers worse than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			arm := armWith(armCFT, tt.verdicts, tt.answers, tt.base)
			got := checks(arm)
			require.Len(t, got, 2)
			assert.Equal(t, tt.judges, got[0].Met, got[0].Text)
			assert.Equal(t, tt.improves, got[1].Met, got[1].Text)
			lines := reading(arm)
			require.Len(t, lines, 2)
			assert.Contains(t, lines[0], tt.readsOfVerdicts)
			assert.Contains(t, lines[1], tt.readsOfImprovement)
		})
	}
	assert.Empty(t, checks(armWith(armSFT, 80, 70, 30)), "only CFT is checked")
	mute := armWith(armSFT, 0, 70, 30)
	mute.Judging.None = mute.Judging.Verdicts
	mute.Judging.None.Count = 100
	assert.Contains(t, reading(mute)[0], "a verdict on none of 100 answers")
}

func TestDemoLeavesOtherDataAlone(t *testing.T) {
	d := &demo{output: t.TempDir(), size: demoSize{train: 16, dev: 2, test: 6}, out: new(bytes.Buffer), notes: new(bytes.Buffer)}
	require.NoError(t, d.makeData())
	require.NoError(t, d.makeData(), "its own is there already")
	d.size.test = 4 // the last of the files, in the order of their making
	before, err := os.ReadFile(d.path("data", "test.jsonl"))
	require.NoError(t, err)
	train, err := os.ReadFile(d.path("data", "train.jsonl"))
	require.NoError(t, err)
	err = d.makeData()
	require.ErrorContains(t, err, "is there already with other rows than this demo's")
	assert.Equal(t, codeUsage, exitCode(err))
	for name, text := range map[string][]byte{"test.jsonl": before, "train.jsonl": train} {
		now, err := os.ReadFile(d.path("data", name))
		require.NoError(t, err)
		assert.Equal(t, string(text), string(now))
	}
}
