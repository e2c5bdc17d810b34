package trainer

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/internal/durable"
	"cftune/trainer/objective"
)

func mix(name string) map[string]float64 { return map[string]float64{name: 1} }

// stagesOf returns the stage of each step.
func stagesOf(t *testing.T, dir string) []int {
	t.Helper()
	var stages []int
	for _, line := range readLines(t, filepath.Join(dir, "metrics.jsonl")) {
		if _, is := line["validation_loss"]; !is {
			stages = append(stages, int(line["stage"].(float64)))
		}
	}
	return stages
}

func TestStageEndsOnAPlateau(t *testing.T) {
	s := newSite(t)
	s.run.Optimizer.LR = 1e-12 // too little to change a float32: every validation is as the first
	s.run.Objective.Stages = []config.Stage{
		{Mix: mix("sft"), Until: config.Until{Plateau: 2}}, // measured at steps 0, 3, 6, 9
		{Mix: mix("cft")},
	}
	_, result := s.train(t, "straight")
	assert.Equal(t, []int{0, 0, 0, 0, 0, 0, 1, 1, 1, 1}, stagesOf(t, s.run.Output))
	assert.Equal(t, 10, result.Step)

	for _, after := range []int{3, 4, 6, 7} {
		name := "stopped" + string(rune('0'+after))
		s.train(t, name, stopAfter(after))
		s.resume(t, name)
		sameEnd(t, filepath.Join(s.dir, "straight"), filepath.Join(s.dir, name))
	}
}

func TestStageEndsByTokens(t *testing.T) {
	s := newSite(t)
	s.run.Objective.Stages = []config.Stage{{Mix: mix("sft"), Until: config.Until{Tokens: 120}}, {Mix: mix("cft")}}
	s.train(t, "straight")
	tokens, stages := 0.0, []int(nil)
	for _, line := range readLines(t, filepath.Join(s.run.Output, "metrics.jsonl")) {
		if n, is := line["tokens"]; is {
			stages = append(stages, map[bool]int{true: 1}[tokens >= 120])
			tokens += n.(float64)
		}
	}
	assert.Equal(t, stages, stagesOf(t, s.run.Output))
	assert.Contains(t, stages, 1)
	assert.Equal(t, 0, stages[1])

	s.train(t, "stopped", stopAfter(1))
	s.resume(t, "stopped")
	sameEnd(t, filepath.Join(s.dir, "straight"), filepath.Join(s.dir, "stopped"))
}

func TestRequestIsServedBetweenSteps(t *testing.T) {
	s := newSite(t)
	tr, err := s.begin(t)
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	answers := make(chan Answer, 1)
	e := newFakeEngine()
	e.before = func(call int) error {
		if call != 3 {
			return nil
		}
		go func() {
			answer, err := Ask(context.Background(), s.run.Output, []config.Stage{{Mix: mix("sft")}}, time.Minute)
			assert.NoError(t, err)
			answers <- answer
		}()
		// The step lasts until the request is there.
		return within(func() bool {
			found, _ := filepath.Glob(filepath.Join(s.run.Output, checkpoint.ControlName, "*"+requestEnding))
			return len(found) > 0
		})
	}
	_, err = tr.Run(t.Context(), e)
	require.NoError(t, err)
	answer := <-answers
	assert.Empty(t, answer.Refused)
	changes, torn, err := ReadJournal(s.run.Output)
	require.NoError(t, err)
	assert.False(t, torn)
	assert.Equal(t, []objective.Change{{Step: answer.Step, Stages: []config.Stage{{Mix: mix("sft")}}}}, changes)
	left, err := os.ReadDir(filepath.Join(s.run.Output, checkpoint.ControlName))
	require.NoError(t, err)
	assert.Empty(t, left)

	// Made again from the journal.
	s.train(t, "again", func(o *Options) { o.Changes = changes })
	sameEnd(t, filepath.Join(s.dir, "run"), filepath.Join(s.dir, "again"))
}

// within waits until something is so; a minute is too long.
func within(done func() bool) error {
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return context.DeadlineExceeded
		}
	}
	return nil
}

func TestRequestsThatAreNotServed(t *testing.T) {
	s := newSite(t)
	s.train(t, "run")
	_, err := Ask(t.Context(), s.run.Output, []config.Stage{{Mix: mix("sft")}}, time.Minute)
	require.ErrorIs(t, err, errNotRunning)

	// Somebody has the run but does not answer, and then goes away.
	lock, err := durable.Acquire(filepath.Join(s.run.Output, checkpoint.LockName))
	require.NoError(t, err)
	_, err = Ask(t.Context(), s.run.Output, []config.Stage{{Mix: mix("sft")}}, 2*pollInterval)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	gone := make(chan error, 1)
	go func() {
		_, err := Ask(context.Background(), s.run.Output, []config.Stage{{Mix: mix("sft")}}, time.Minute)
		gone <- err
	}()
	require.NoError(t, within(func() bool {
		found, _ := filepath.Glob(filepath.Join(s.run.Output, checkpoint.ControlName, "*"+requestEnding))
		return len(found) > 0
	}))
	require.NoError(t, lock.Release())
	require.ErrorIs(t, <-gone, errNotRunning)
	left, err := os.ReadDir(filepath.Join(s.run.Output, checkpoint.ControlName))
	require.NoError(t, err)
	assert.Empty(t, left, "a request was left behind")
}

func TestTakeRequest(t *testing.T) {
	dir := t.TempDir()
	next, err := takeRequest(dir)
	require.NoError(t, err)
	assert.Nil(t, next, "no folder")
	control := filepath.Join(dir, checkpoint.ControlName)
	require.NoError(t, os.Mkdir(control, 0o755))
	write := func(name string, r any) {
		text, err := json.Marshal(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(control, name), text, 0o600))
	}
	write("void"+requestEnding, request{Until: time.Now().Add(-time.Second)})
	write("other", 1)
	next, err = takeRequest(dir)
	require.NoError(t, err)
	assert.Nil(t, next, "nobody waits for it")
	assert.NoFileExists(t, filepath.Join(control, "void"+requestEnding))
	write("odd"+requestEnding, map[string]int{"stagse": 1})
	next, err = takeRequest(dir)
	require.NoError(t, err)
	require.Error(t, next.err)
	assert.Equal(t, filepath.Join(control, "odd"+answerEnding), next.answer)
	assert.FileExists(t, filepath.Join(control, "other"))
}

func TestJournalAppendsAfterATornLine(t *testing.T) {
	dir := t.TempDir()
	first := objective.Change{Step: 3, Stages: []config.Stage{{Mix: mix("sft")}}}
	require.NoError(t, appendJournal(durable.OS, dir, first))
	path := filepath.Join(dir, checkpoint.JournalName)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(text, `{"step":4`...), 0o600))
	changes, torn, err := ReadJournal(dir)
	require.NoError(t, err)
	assert.True(t, torn)
	assert.Equal(t, []objective.Change{first}, changes)

	second := objective.Change{Step: 9, Stages: []config.Stage{{Mix: mix("cft"), Until: config.Until{Steps: 12}}, {Mix: mix("sft")}}}
	require.NoError(t, appendJournal(durable.OS, dir, second))
	changes, torn, err = ReadJournal(dir)
	require.NoError(t, err)
	assert.False(t, torn)
	assert.Equal(t, []objective.Change{first, second}, changes)
	for _, bad := range []string{"{}", "no JSON", `{"step":1,"stages":[]}`, `{"step":1,"stages":[{"mix":{"rl":1}}]}`} {
		require.NoError(t, os.WriteFile(path, []byte(bad+"\n"), 0o600))
		_, _, err := ReadJournal(dir)
		assert.ErrorIs(t, err, checkpoint.ErrCorrupt, bad)
	}
	require.NoError(t, os.WriteFile(path, []byte(`{"step":1,"stages":[{"mix":{"sft":1}}],"more":1}`+"\n"), 0o600))
	_, _, err = ReadJournal(dir)
	assert.ErrorIs(t, err, checkpoint.ErrIncompatible)
	assert.ErrorContains(t, err, `unknown field "more", which a newer version of cftune may have written`)
}
