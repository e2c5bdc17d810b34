package study

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/durable"
	"cftune/trainer/shard"
)

// onlyWrites is an engine for studies of a base model alone.
type onlyWrites struct{ Engine }

func (onlyWrites) Model(context.Context, Spec) (Model, error) { return Model{File: "m.gguf"}, nil }

func (onlyWrites) OpenWriter(context.Context, Spec, string) (Writer, error) { return scripted{}, nil }

func baseOnly(t *testing.T) Spec {
	t.Helper()
	return mustLoad(t, smallFile, "output="+t.TempDir(), "arms=[{name: base}]", "claims=[]")
}

func TestEveryModelFallsToOneShard(t *testing.T) {
	spec := mustLoad(t, smallFile)
	all := Models(spec)
	assert.Equal(t, []string{"base", "sft-s1"}, all[:2], "the base model is the first")
	require.Len(t, all, 1+4*2)
	for of := 1; of <= len(all); of++ {
		var together []string
		for number := 1; number <= of; number++ {
			share, err := shareOf(spec, shard.Shard{Number: number, Of: of})
			require.NoError(t, err)
			require.NotEmpty(t, share)
			together = append(together, share...)
		}
		assert.ElementsMatch(t, all, together)
	}
	_, err := shareOf(spec, shard.Shard{Number: 10, Of: 10})
	assert.ErrorIs(t, err, ErrNoShare)
	assert.ErrorContains(t, err, "shard 10/10: the study has 9 models")
}

// A share that is being made, or a model, is another process's: who comes second is told.
func TestAShareIsMadeByOneProcess(t *testing.T) {
	spec := baseOnly(t)
	o := Options{Engine: onlyWrites{}, Shard: shard.Shard{Number: 1, Of: 1}}
	locks := filepath.Join(spec.Output, locksName)
	require.NoError(t, os.Mkdir(locks, 0o700))
	for _, name := range []string{"shard-1-of-1", "base.model"} {
		lock, err := durable.Acquire(filepath.Join(locks, name))
		require.NoError(t, err)
		_, err = Do(t.Context(), spec, o)
		var held *durable.HeldError
		require.ErrorAs(t, err, &held, name)
		assert.Equal(t, filepath.Join(locks, name), held.Path)
		assert.Contains(t, held.Holder, "pid ")
		assert.NoFileExists(t, progressPath(spec.Output, "base"))
		require.NoError(t, lock.Release())
	}
	s, err := Do(t.Context(), spec, o)
	require.NoError(t, err)
	assert.Empty(t, s.Missing())
	assert.FileExists(t, progressPath(spec.Output, "base"))
}

// Who comes while the study is being begun waits, and can be told to end.
func TestTheBeginningIsWaitedFor(t *testing.T) {
	spec := baseOnly(t)
	lock, err := durable.Acquire(filepath.Join(spec.Output, lockName))
	require.NoError(t, err)
	waits := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	do := func() {
		_, err := Do(ctx, spec, Options{Engine: onlyWrites{}, Note: func(text string) {
			if strings.HasPrefix(text, "waiting: ") {
				waits <- text
			}
		}})
		done <- err
	}
	go do()
	assert.Contains(t, <-waits, "LOCK is held by pid ")
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	assert.NoFileExists(t, filepath.Join(spec.Output, StateName))

	ctx = t.Context()
	go do()
	<-waits
	require.NoError(t, lock.Release())
	require.NoError(t, <-done)
	assert.FileExists(t, filepath.Join(spec.Output, StateName))
}

// Texts lie in one order when they are complete, in whatever order they came.
func TestTextsAreSettled(t *testing.T) {
	dir := t.TempDir()
	places := []place{{"b", kindAnswer, 0}, {"a", kindSelf, 1}, {"a", kindAnswer, 10}, {"a", kindAnswer, 9}}
	var files []string
	for _, name := range []string{"one.jsonl", "other.jsonl"} {
		f, _, err := openTexts(filepath.Join(dir, name), "digest")
		require.NoError(t, err)
		for _, at := range places {
			require.NoError(t, f.add(at, Completion{Text: at.set}))
		}
		require.NoError(t, f.close())
		require.NoError(t, f.settle("digest"))
		text, err := os.ReadFile(f.path)
		require.NoError(t, err)
		files = append(files, string(text))
		slices.Reverse(places)
	}
	assert.Equal(t, files[0], files[1])
	assert.Equal(t, 5, strings.Count(files[0], "\n"))
	assert.Less(t, strings.Index(files[0], `"item":9`), strings.Index(files[0], `"item":10`))
}

// asVersionOne writes a study's record as the version before had it, with the progress within.
func asVersionOne(t *testing.T, dir string) State {
	t.Helper()
	s, err := ReadState(dir)
	require.NoError(t, err)
	s.Format = formatWithProgress
	text, err := json.MarshalIndent(s, "", " ")
	require.NoError(t, err)
	require.Contains(t, string(text), `"done": true`)
	require.NoError(t, os.WriteFile(filepath.Join(dir, StateName), append(text, '\n'), 0o600))
	require.NoError(t, os.RemoveAll(filepath.Join(dir, progressName)))
	return s
}

func TestRecordsOfVersionOneAreReadAndGoneOnWith(t *testing.T) {
	made, err := os.ReadFile("testdata/study-v1.json") // by the program of commit 707f217, killed in its second run
	require.NoError(t, err)
	s, err := parseState(made)
	require.NoError(t, err)
	assert.Equal(t, []string{"sft-s2", "cft-s1", "cft-s2"}, s.Missing())
	require.Len(t, s.Runs, 4)
	assert.True(t, s.Runs[0].Done && s.Runs[1].Done && !s.Runs[2].Done)
	assert.Equal(t, s.Runs[1].Run, s.Record.Runs[1])

	dir := scriptedStudy(t, "sft-s2")
	before, err := MakeReport(dir)
	require.NoError(t, err)
	was := asVersionOne(t, dir)
	old, err := ReadState(dir)
	require.NoError(t, err)
	assert.Equal(t, was.Runs, old.Runs)
	assert.Equal(t, was.Scored, old.Scored)
	report, err := MakeReport(dir)
	require.NoError(t, err)
	assert.Equal(t, before, report)

	require.NoError(t, old.save(dir), "as begin does")
	text, err := os.ReadFile(filepath.Join(dir, StateName))
	require.NoError(t, err)
	assert.NotContains(t, string(text), `"done"`)
	now, err := ReadState(dir)
	require.NoError(t, err)
	assert.Equal(t, FormatVersion, now.Format)
	assert.Equal(t, []string{"sft-s2"}, now.Missing())
	report, err = MakeReport(dir)
	require.NoError(t, err)
	assert.Equal(t, before, report)

	require.NoError(t, os.WriteFile(filepath.Join(dir, StateName), []byte(`{"format": 3, "more": 1}`), 0o600))
	_, err = ReadState(dir)
	assert.ErrorContains(t, err, "format 3 is not 1 or 2, the ones this version reads")
}

// What is left of a study whose record is gone is no progress of the one that begins in its place.
func TestProgressOfAnotherStudyDoesNotCount(t *testing.T) {
	dir := scriptedStudy(t, "")
	s, err := ReadState(dir)
	require.NoError(t, err)
	require.Empty(t, s.Missing())
	s.Started = s.Started.AddDate(0, 0, 1)
	text, err := s.Record.text()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, StateName), text, 0o600))
	s, err = ReadState(dir)
	require.NoError(t, err)
	assert.Equal(t, Models(s.Spec), s.Missing())

	require.NoError(t, os.WriteFile(progressPath(dir, "base"), []byte(`{"format": 2}`), 0o600))
	_, err = ReadState(dir)
	assert.ErrorContains(t, err, "base.json: format 2 is not 1, the one this version reads")
}

func TestCheckTellsWhatIsNotTheStudys(t *testing.T) {
	spec := baseOnly(t)
	_, err := Do(t.Context(), spec, Options{Engine: onlyWrites{}})
	require.NoError(t, err)
	_, problems, err := Check(spec.Output)
	require.NoError(t, err)
	assert.Empty(t, problems)
	texts := scoresPath(spec.Output, "base")
	require.NoError(t, os.WriteFile(texts, []byte("{}\n"), 0o600))
	require.NoError(t, os.Remove(filepath.Join(spec.Output, "data", testFile("words"))))
	_, problems, err = Check(spec.Output)
	require.NoError(t, err)
	require.Len(t, problems, 2)
	assert.Contains(t, problems[0], "words.test.jsonl: no such file")
	assert.Contains(t, problems[1], "scores/base.jsonl has sha256 ")
}
