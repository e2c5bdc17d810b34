package objective

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
)

func mix(name string) map[string]float64 { return map[string]float64{name: 1} }

func TestCourseEndsStages(t *testing.T) {
	stages := []config.Stage{
		{Until: config.Until{Steps: 10}},
		{Until: config.Until{Epochs: 2}},
		{Until: config.Until{Tokens: 5000}},
		{},
	}
	tests := []struct {
		name string
		at   At
		want int
	}{
		{"the first step", At{1, 0, 0}, 0},
		{"the last step of the first stage", At{10, 0, 0}, 0},
		{"the step after it", At{11, 0, 0}, 1},
		{"the last epoch of the second stage", At{90, 1, 0}, 1},
		{"the epoch after it", At{90, 2, 0}, 2},
		{"an end by epochs waits for the end by steps before it", At{5, 3, 0}, 0},
		{"before the last token", At{90, 2, 4999}, 2},
		{"after it", At{90, 2, 5000}, 3},
		{"the last stage goes on", At{1000, 99, 1 << 40}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := NewCourse(stages)
			c.Advance(tt.at)
			assert.Equal(t, tt.want, c.State().Stage)
			assert.Equal(t, tt.want, c.Number())
		})
	}
}

func TestCourseEndsAStageOnAPlateau(t *testing.T) {
	c := NewCourse([]config.Stage{{Mix: mix("sft"), Until: config.Until{Plateau: 2}}, {Mix: mix("cft"), Until: config.Until{Plateau: 1}}, {Mix: mix("sft")}})
	for i, v := range []struct {
		loss  float64
		stage int
	}{
		{3, 0}, {2, 0}, {2, 0}, // not below the best: the first
		{1.5, 0}, {1.6, 0},
		{1.5, 1},         // the second in a row
		{9, 1}, {9.5, 2}, // a stage has its own best
		{99, 2}, {99, 2},
	} {
		c.Validated(v.loss)
		c.Advance(At{Step: i + 1})
		assert.Equal(t, v.stage, c.State().Stage, "after validation %d", i)
	}
}

func TestCourseFollowsChanges(t *testing.T) {
	c := NewCourse([]config.Stage{{Mix: mix("sft"), Until: config.Until{Steps: 5}}, {Mix: mix("cft")}})
	c.Advance(At{Step: 6})
	assert.Equal(t, "cft", c.Pick(1, 1))
	c.Add(Change{Step: 9, Stages: []config.Stage{{Mix: mix("refine"), Until: config.Until{Steps: 10}}, {Mix: mix("sft")}}})
	names := ""
	for step := 7; step <= 12; step++ {
		c.Advance(At{Step: step})
		names += c.Pick(1, uint64(step))[:1]
	}
	assert.Equal(t, "ccrrss", names)
	assert.Equal(t, 3, c.Number(), "the fourth stage that there is")

	c.Add(Change{Step: 13, Stages: []config.Stage{{Mix: mix("cft")}}})
	c.Add(Change{Step: 11, Stages: []config.Stage{{Mix: mix("refine")}}})
	for _, step := range []int{11, 13, 20} {
		c.Advance(At{Step: step})
		assert.Equal(t, "refine", c.Pick(1, 1), "what was added last counts")
	}
}

func TestCourseRestores(t *testing.T) {
	stages := []config.Stage{{Mix: mix("sft"), Until: config.Until{Plateau: 3}}, {Mix: mix("cft")}}
	a := NewCourse(stages)
	a.Validated(1)
	a.Validated(2)
	b := NewCourse(stages)
	require.NoError(t, b.Restore(a.State()))
	for range 2 {
		a.Validated(2)
		b.Validated(2)
		a.Advance(At{Step: 9})
		b.Advance(At{Step: 9})
		assert.Equal(t, a.State(), b.State())
	}
	assert.Equal(t, 1, b.State().Stage)
	for _, bad := range []State{{Change: 1}, {Stage: 2}, {Stage: -1}, {Change: -1}, {Stale: -1}} {
		assert.Error(t, b.Restore(bad), bad)
	}
}

func TestCloneGoesItsOwnWay(t *testing.T) {
	a := NewCourse([]config.Stage{{Mix: mix("sft")}})
	b := a.Clone()
	b.Add(Change{Step: 1, Stages: []config.Stage{{Mix: mix("cft")}}})
	b.Advance(At{Step: 1})
	a.Advance(At{Step: 1})
	assert.Equal(t, "sft", a.Pick(1, 1))
	assert.Equal(t, "cft", b.Pick(1, 1))
	assert.Len(t, b.Changes(), 1)
	assert.Empty(t, a.Changes())
}

func TestObjectives(t *testing.T) {
	assert.Equal(t, []string{"cft", "sft"}, Objectives(config.Stage{Mix: map[string]float64{"sft": 1, "refine": 0}}, config.Stage{Mix: mix("cft")}))
}
