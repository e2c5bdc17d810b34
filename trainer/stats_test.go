package trainer

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
)

func TestDescribe(t *testing.T) {
	lengths := make([]int, 0, 110)
	for n := range 101 {
		lengths = append(lengths, 100-n) // one of them 0, which is no example
	}
	l := describe(lengths)
	assert.EqualValues(t, 5050, l.Sum)
	assert.InDelta(t, 50.5, l.Mean, 1e-12)
	assert.Equal(t, []int{1, 51, 90, 99, 100}, []int{l.Min, l.P50, l.P90, l.P99, l.Max})
	count := 0
	for i, b := range l.Histogram {
		count += b.Count
		assert.LessOrEqual(t, b.From, b.To)
		if i > 0 {
			assert.Equal(t, l.Histogram[i-1].To+1, b.From)
		}
	}
	assert.Equal(t, 100, count)
	assert.LessOrEqual(t, 100, l.Histogram[len(l.Histogram)-1].To)
	assert.Zero(t, describe([]int{0, 0}))
}

func TestPromptKeys(t *testing.T) {
	base := dataset.Record{Query: "What is 2 + 2?", Response: "5", Critique: "no"}
	same := func(f func(*dataset.Record)) bool {
		other := base
		f(&other)
		return promptKey(other) == promptKey(base)
	}
	assert.True(t, same(func(r *dataset.Record) { r.Query = " what  is 2 +\n2?" }), "white space and letter case")
	assert.True(t, same(func(r *dataset.Record) { r.Critique, r.ID = "yes", "other" }), "what is learned is no part")
	assert.False(t, same(func(r *dataset.Record) { r.Response = "4" }))
	assert.False(t, same(func(r *dataset.Record) { r.Query, r.Response = "What is 2 + 2? 5", "" }), "parts do not run together")
	assert.NotEqual(t, recordKey(base), recordKey(dataset.Record{Query: base.Query, Response: "5", Critique: "yes"}))
	turns := func(text string) dataset.Record {
		return dataset.Record{Messages: []dataset.Message{{Role: "user", Content: "a"}, {Role: "assistant", Content: text}}}
	}
	assert.Equal(t, promptKey(turns("x")), promptKey(turns("y")))
	assert.NotEqual(t, recordKey(turns("x")), recordKey(turns("y")))
	assert.NotEqual(t, promptKey(dataset.Record{InputIDs: []int32{1, 2}, Labels: []int32{-100, 2}}),
		promptKey(dataset.Record{InputIDs: []int32{1, 3}, Labels: []int32{-100, 3}}))
}

func TestAuditRefusesHeldOutRowsAndDoubledBOS(t *testing.T) {
	s := newSite(t)
	held, err := os.ReadFile(s.run.Data.Validation.Path)
	require.NoError(t, err)
	train, err := os.ReadFile(s.run.Data.Sources[0].Path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.run.Data.Sources[0].Path, append(train, held...), 0o600))
	_, err = s.prepare(t)
	var data *DataError
	require.ErrorAs(t, err, &data)
	assert.True(t, data.Overlap)
	assert.ErrorContains(t, err, "5 of 28 records ask what a held-out record asks")
	s.run.Data.Audit = false
	tr, err := s.prepare(t)
	require.NoError(t, err)
	closeTrainer(t, tr)

	s = newSite(t)
	s.write(t, `{"input_ids": [9, 9, 5], "labels": [-100, -100, 5]}`, `{"input_ids": [9, 5, 9, 9], "labels": [-100, -100, -100, 9]}`)
	s.run.Data.Validation = config.Validation{EverySteps: 1}
	o := s.options()
	o.Text.BOS = 9
	_, err = Prepare(t.Context(), o)
	assert.ErrorContains(t, err, "train.jsonl:1: begins with two BOS tokens (9)")
	assert.ErrorContains(t, err, "1 of 2 records cannot be used")
}

// Labels of which each is the next token would teach the token after the next. What repeats itself, or is another token on purpose, is no mistake.
func TestAuditRefusesShiftedLabels(t *testing.T) {
	for _, c := range []struct {
		name, row string
		refused   bool
	}{
		{"shifted", `{"input_ids": [1, 2, 3, 4], "labels": [2, 3, 4, -100]}`, true},
		{"shifted, prompt masked, an end put behind", `{"input_ids": [1, 2, 3, 4], "labels": [-100, 3, 4, 9]}`, true},
		{"one, shifted", `{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 4, -100]}`, true},
		{"as they are", `{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}`, false},
		{"all the same", `{"input_ids": [5, 5, 5, 5], "labels": [-100, 5, 5, 5]}`, false},
		{"one is another", `{"input_ids": [1, 2, 3, 4], "labels": [-100, 3, 3, 4]}`, false},
		{"the last is another", `{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 9]}`, false},
	} {
		s := newSite(t)
		s.write(t, c.row)
		s.run.Data.Validation = config.Validation{EverySteps: 1}
		tr, err := s.prepare(t)
		if !c.refused {
			require.NoError(t, err, c.name)
			closeTrainer(t, tr)
			continue
		}
		assert.ErrorContains(t, err, "train.jsonl:1: labels are shifted already", c.name)
		s.run.Data.Audit = false
		tr, err = s.prepare(t)
		require.NoError(t, err, c.name)
		closeTrainer(t, tr)
	}
}

func TestStatsGoOnAfterFaults(t *testing.T) {
	s := newSite(t)
	s.write(t, row(5, 2, 1), row(5, 2, 1), "no JSON", row(40, 2, 2), row(6, 0, 3), row(9, 4, 4))
	stats, err := Stats(t.Context(), s.options())
	require.NoError(t, err)
	assert.Equal(t, 6, stats.Records)
	assert.Equal(t, 5, stats.HeldOut)
	assert.Equal(t, 1, stats.Repeats.Count)
	require.Len(t, stats.Objectives, 1)
	o := stats.Objectives[0]
	assert.Equal(t, []int{4, 2, 1, 1}, []int{o.Examples, o.Refused, o.OverLong, o.AllMasked})
	assert.EqualValues(t, 4+4+39+8, o.Tokens.Sum)
	assert.EqualValues(t, 2+2+2+4, o.Targets.Sum)
	assert.Len(t, stats.Problems, 4)
}
