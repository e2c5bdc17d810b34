package trainer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
)

// plainOrder is a set of so many records.
type plainOrder int

func (n plainOrder) Order(seed uint64, epoch int, shuffle bool) func(int) int {
	return dataset.Order(seed, epoch, int(n), shuffle)
}

// Groups of records with the lengths 1 to 9, in their order, over two epochs.
func TestGroups(t *testing.T) {
	skip := func(records ...int) map[int]bool {
		m := map[int]bool{}
		for _, r := range records {
			m[r] = true
		}
		return m
	}
	tests := []struct {
		name    string
		batch   config.GlobalBatch
		skipped map[int]bool
		want    [][]int // lengths of an epoch's groups
	}{
		{"examples, the last group is smaller", config.GlobalBatch{Examples: 4}, nil, [][]int{{1, 2, 3, 4}, {5, 6, 7, 8}, {9}}},
		{"examples that divide the epoch", config.GlobalBatch{Examples: 3}, nil, [][]int{{1, 2, 3}, {4, 5, 6}, {7, 8, 9}}},
		{"skipped ones do not count", config.GlobalBatch{Examples: 4}, skip(0, 8), [][]int{{2, 3, 4, 5}, {6, 7, 8}}},
		{"skipped ones at the end make no group", config.GlobalBatch{Examples: 4}, skip(8), [][]int{{1, 2, 3, 4}, {5, 6, 7, 8}}},
		{"tokens: as many as fit", config.GlobalBatch{Tokens: 15}, nil, [][]int{{1, 2, 3, 4, 5}, {6, 7}, {8}, {9}}},
		{"tokens: one that is larger stands alone", config.GlobalBatch{Tokens: 3}, nil, [][]int{{1, 2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}}},
		{"packs of ten", config.GlobalBatch{Packs: 2}, nil, [][]int{{1, 2, 3, 4, 5}, {6, 7}, {8, 9}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run := config.Defaults()
			run.Data.Shuffle = false
			run.Train.SeqLen, run.Train.Epochs, run.Train.GlobalBatch = 10, 2, tt.batch
			g := &grouper{run: run, set: plainOrder(9), records: 9, course: objective.NewCourse(run.Objective.Stages), size: func(k pick) ([]int, error) {
				if tt.skipped[k.record] {
					return nil, nil
				}
				return []int{k.record + 1}, nil
			}}
			var at dataset.Cursor
			for epoch := range 2 {
				for i, want := range tt.want {
					p, err := g.group(at, epoch*len(tt.want)+i+1)
					require.NoError(t, err)
					assert.Equal(t, want, p.lengths)
					assert.Len(t, p.picks, len(want))
					assert.Equal(t, epoch, p.epoch)
					at = p.end
				}
			}
			p, err := g.group(at, 100)
			require.NoError(t, err)
			assert.Empty(t, p.picks, "there are only two epochs")
			assert.Equal(t, 2, p.end.Epoch)
		})
	}
}

// A stage that ends within the looked-at records changes what the next group's records are trained under.
func TestStagesBySteps(t *testing.T) {
	run := config.Defaults()
	run.Objective.Stages = []config.Stage{
		{Mix: map[string]float64{objective.SFT: 1}, Until: config.Until{Steps: 1}},
		{Mix: map[string]float64{objective.CFT: 1}},
	}
	run.Train.GlobalBatch = config.GlobalBatch{Tokens: 5}
	g := &grouper{run: run, set: plainOrder(4), records: 4, course: objective.NewCourse(run.Objective.Stages), size: func(k pick) ([]int, error) {
		return []int{map[string]int{objective.SFT: 2, objective.CFT: 5}[k.objective]}, nil
	}}
	first, err := g.group(dataset.Cursor{}, 1)
	require.NoError(t, err)
	assert.Equal(t, []int{2, 2}, first.lengths)
	second, err := g.group(first.end, 2)
	require.NoError(t, err)
	assert.Equal(t, []int{5}, second.lengths)
	assert.Equal(t, objective.SFT, first.picks[1].objective)
	assert.Equal(t, objective.CFT, second.picks[0].objective)
}

func (s *site) write(t *testing.T, rows ...string) {
	t.Helper()
	writeRows(t, s.run.Data.Sources[0].Path, rows)
}

func (s *site) prepare(t *testing.T) (*Trainer, error) {
	t.Helper()
	return Prepare(t.Context(), s.options())
}

// All kinds of problems come in one report, with their numbers.
func TestDataProblemsComeTogether(t *testing.T) {
	s := newSite(t)
	rows := []string{row(5, 2, 1), "no JSON"}
	for i := range 7 {
		rows = append(rows, row(40+i, 2, i))
	}
	rows = append(rows, row(5, 0, 1), `{"input_ids": [1, 2], "labels": [1]}`, row(33, 2, 1))
	s.write(t, rows...)
	_, err := s.begin(t)
	var data *DataError
	require.ErrorAs(t, err, &data)
	assert.True(t, data.TooLong)
	assert.False(t, data.Objective)
	file := s.run.Data.Sources[0].Path
	assert.Equal(t, []string{
		fmt.Sprintf("7 of 12 examples are longer than a pack of 32 tokens (train.seq_len), the longest has 45: "+
			"%[1]s:3, %[1]s:4, %[1]s:5, %[1]s:6, %[1]s:7 and 2 more", file),
		fmt.Sprintf("1 of 12 examples have no token that is learned: all are masked: %s:10", file),
		"2 of 12 records cannot be used:",
	}, data.Problems[:3])
	require.Len(t, data.Problems, 5)
	assert.Contains(t, data.Problems[3], file+":2: ")
	assert.Contains(t, data.Problems[4], file+":11: ")
	assert.NoDirExists(t, s.run.Output, "something was left behind")
}

func TestManyFaultsAreNamedInPart(t *testing.T) {
	s := newSite(t)
	s.write(t, strings.Split(strings.Repeat("no JSON\n", 9), "\n")[:9]...)
	_, err := s.prepare(t)
	var data *DataError
	require.ErrorAs(t, err, &data)
	require.Len(t, data.Problems, 1+maxNamed+1)
	assert.Equal(t, "9 of 9 records cannot be used:", data.Problems[0])
	assert.Equal(t, "  and 4 more", data.Problems[6])
}

func TestOverLongPolicies(t *testing.T) {
	long := []string{row(5, 2, 1), row(40, 3, 2), row(50, 3, 3), row(6, 2, 4)}
	for _, tt := range []struct {
		policy   string
		examples int64
		tokens   int64
	}{
		{"drop", 2, 4 + 5},
		{"truncate_prompt", 4, 4 + 32 + 32 + 5},
	} {
		t.Run(tt.policy, func(t *testing.T) {
			s := newSite(t)
			s.write(t, long...)
			s.run.Data.OverLong, s.run.Train.Epochs = tt.policy, 1
			e, _ := s.train(t, "run")
			record, err := ReadRecord(s.run.Output)
			require.NoError(t, err)
			assert.Equal(t, tt.examples, record.Plan.Examples)
			assert.Equal(t, tt.tokens, record.Plan.Tokens)
			file := s.run.Data.Sources[0].Path
			assert.Equal(t, OverLong{Policy: tt.policy, Count: 2, Longest: 49, First: []string{file + ":2", file + ":3"}}, record.Plan.OverLong)
			assert.Len(t, e.applied, 1)
			sound(t, s.run.Output)
		})
	}
	s := newSite(t)
	s.write(t, row(40, 38, 1))
	s.run.Data.OverLong = "truncate_prompt"
	_, err := s.prepare(t)
	var data *DataError
	require.ErrorAs(t, err, &data, "targets were cut")
}

func TestHeldOutProblems(t *testing.T) {
	s := newSite(t)
	writeRows(t, s.run.Data.Validation.Path, []string{row(40, 2, 1)})
	_, err := s.prepare(t)
	var data *DataError
	require.ErrorAs(t, err, &data)
	assert.ErrorContains(t, err, "validation data: 1 of 1 examples are longer")
	require.NoError(t, os.Remove(s.run.Data.Validation.Path))
	_, err = s.prepare(t)
	require.ErrorAs(t, err, &data)
}

func TestPlanCountsTargetsOfPacks(t *testing.T) {
	s := newSite(t)
	s.run.Train.GlobalBatch = config.GlobalBatch{Packs: 1}
	tr, err := s.prepare(t)
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	targets, steps := int64(0), 0
	for _, g := range fed(t, tr) {
		require.Len(t, g.batches, 1)
		targets += int64(g.batches[0].NumTargets())
		steps++
	}
	assert.Equal(t, tr.Plan().Steps, steps)
	assert.Equal(t, tr.Plan().Targets, targets)
	held := int64(0)
	for _, h := range tr.held {
		for _, b := range h.batches {
			held += int64(b.NumTargets())
		}
	}
	assert.Equal(t, tr.Plan().Validation.Targets, held)
}

// fed returns all groups of a run.
func fed(t *testing.T, tr *Trainer) []group {
	t.Helper()
	f := tr.startFeed(t.Context())
	defer f.stop()
	var groups []group
	for g := range f.groups {
		require.NoError(t, g.err)
		groups = append(groups, g)
	}
	return groups
}

// More records than are encoded ahead at once, and stages that change while they are.
func TestPlanOfManyRecords(t *testing.T) {
	s := newSite(t)
	var rows []string
	for i := range 3*aheadRecords + 17 {
		rows = append(rows, row(4+i%9, 1+i%3, i))
	}
	s.write(t, rows...)
	s.run.Data.Validation = config.Validation{EverySteps: 1}
	s.run.Train.GlobalBatch = config.GlobalBatch{Tokens: 400}
	s.run.Objective.Stages = []config.Stage{
		{Mix: map[string]float64{objective.SFT: 1}, Until: config.Until{Steps: 7}},
		{Mix: map[string]float64{objective.CFT: 1, objective.SFT: 1}},
	}
	tr, err := s.prepare(t)
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	plan := tr.Plan()
	assert.EqualValues(t, 2*len(rows), plan.Examples)
	var counted Plan
	for _, g := range fed(t, tr) {
		counted.Steps++
		counted.Examples += int64(g.examples)
		counted.Tokens += int64(g.tokens)
		for _, b := range g.batches {
			counted.Targets += int64(b.NumTargets())
		}
	}
	assert.Equal(t, plan.Steps, counted.Steps)
	assert.Equal(t, plan.Examples, counted.Examples)
	assert.Equal(t, plan.Tokens, counted.Tokens)
	assert.Equal(t, plan.Targets, counted.Targets)
}

func TestLongExamplesAreSplit(t *testing.T) {
	s := newSite(t)
	s.write(t, row(70, 50, 1), row(10, 4, 2), row(33, 3, 3))
	s.run.Data.OverLong = "split"
	s.run.Train.GlobalBatch = config.GlobalBatch{Examples: 2}
	s.run.Train.Epochs = 1
	tr, err := s.prepare(t)
	require.NoError(t, err)
	defer closeTrainer(t, tr)
	plan := tr.Plan()
	assert.Equal(t, []int{2, 3}, []int{plan.Steps, int(plan.Examples)})
	assert.EqualValues(t, 57, plan.Targets, "no target is lost")
	assert.Equal(t, OverLong{Policy: "split", Count: 1, Longest: 69, First: []string{s.run.Data.Sources[0].Path + ":1"}}, plan.OverLong)
	targets, tokens := 0, 0
	for _, g := range fed(t, tr) {
		for i, b := range g.batches {
			assert.LessOrEqual(t, len(b.Tokens), s.run.Train.SeqLen)
			targets += b.NumTargets()
			tokens += len(b.Tokens)
			assert.NotEmpty(t, g.ids[i])
		}
	}
	assert.Equal(t, 57, targets)
	assert.EqualValues(t, tokens, plan.Tokens)
}

func TestPrepareWritesNothing(t *testing.T) {
	s := newSite(t)
	before, err := filepath.Glob(filepath.Join(s.dir, "*"))
	require.NoError(t, err)
	tr, err := s.prepare(t)
	require.NoError(t, err)
	_, err = tr.Run(t.Context(), newFakeEngine())
	require.Error(t, err, "a run that was only prepared was run")
	require.NoError(t, tr.Close())
	after, err := filepath.Glob(filepath.Join(s.dir, "*"))
	require.NoError(t, err)
	assert.Equal(t, before, after)
}
