package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
	"cftune/trainer/study"
)

// planOf is what a shipped study would do with a tiny model.
func planOf(t *testing.T, name string, sets ...string) study.Plan {
	t.Helper()
	model := filepath.Join(t.TempDir(), "tiny.gguf")
	require.NoError(t, testmodel.Write(model, testmodel.Options{Seed: 1, Type: testmodel.Q8_0, Context: 32768}))
	output := filepath.Join(t.TempDir(), "out")
	args := []string{"study", filepath.Join("..", "..", "configs", name), "--dry-run", "--json", "--set", "model=" + model, "--set", "output=" + output}
	for _, set := range sets {
		args = append(args, "--set", set)
	}
	var out, notes bytes.Buffer
	require.Zero(t, run(args, &out, &notes), notes.String())
	var plan study.Plan
	require.NoError(t, json.Unmarshal(out.Bytes(), &plan))
	assert.NoDirExists(t, output, "a dry run writes nothing")
	return plan
}

// The paper's setting is ready to run: with files that look like the published ones it plans all of its runs.
func TestStudyOfThePapersSettingPlans(t *testing.T) {
	dir := t.TempDir()
	var rows, math, gsm strings.Builder
	const numRows = 1100
	for i := range numRows {
		fmt.Fprintf(&rows, `{"instruction": "Please critique whether the following solution to the question is correct.\n\n", "input": "Question:\nWhat is %d + 1?\n\nSolution:\n%d\n\n", "output": "Critique:\nIt is %d.\nConclusion: right [END]"}`+"\n", i, i+1, i+1)
	}
	for i := range 3 {
		fmt.Fprintf(&math, `{"problem": "Solve x = %d.", "solution": "easy", "answer": "%d", "subject": "Algebra", "level": 1}`+"\n", i, i)
		fmt.Fprintf(&gsm, `{"question": "Tom has %d cats. How many?", "answer": "He has %d.\n#### %d"}`+"\n", i, i, i)
	}
	paths := map[string]string{}
	for name, text := range map[string]string{"webinstruct.train": rows.String(), "math500.test": math.String(), "gsm8k.test": gsm.String()} {
		paths[name] = filepath.Join(dir, name+".jsonl")
		require.NoError(t, os.WriteFile(paths[name], []byte(text), 0o600))
	}
	var sets []string
	for name, path := range paths {
		sets = append(sets, "sets."+name+".path="+path)
	}
	plan := planOf(t, "study-qwen2.5.yaml", sets...)
	assert.Len(t, plan.Runs, 7*3)
	assert.Equal(t, 7, plan.Claims)
	assert.Equal(t, []study.PlanSet{{Name: "webinstruct", Train: numRows}, {Name: "math500", Test: 3}, {Name: "gsm8k", Test: 3}}, plan.Sets)
	for _, r := range plan.Runs {
		assert.Equal(t, 3, r.Steps, "1,100 rows, 512 a step")
	}
	assert.Equal(t, 22, plan.Models)
	assert.Equal(t, 6+6, plan.Texts, "an answer, and a critique of it; there are no given answers to judge")
}

func TestStudyOfTheSmallModelPlans(t *testing.T) {
	plan := planOf(t, "study-smollm2.yaml")
	assert.Len(t, plan.Runs, 6*3)
	require.Len(t, plan.Sets, 1, "SVAMP is left out without a path")
	assert.Contains(t, plan.Notes[0], "svamp is left out: it has no path (--set sets.svamp.path=FILE gives it one)")

	svamp := filepath.Join("..", "..", "..", "shared", "data", "svamp", "SVAMP.json")
	if _, err := os.Stat(svamp); err != nil {
		t.Skipf("no data set at %s", svamp)
	}
	plan = planOf(t, "study-smollm2.yaml", "sets.svamp.path="+svamp)
	require.Len(t, plan.Sets, 2)
	assert.Equal(t, study.PlanSet{Name: "svamp", Train: 24, Test: 24}, plan.Sets[1])
	for _, r := range plan.Runs {
		assert.Equal(t, 46, r.Steps, r.Key)
	}
}
