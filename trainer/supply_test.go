package trainer

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSupplyIsThePlan(t *testing.T) {
	s := newSite(t)
	tr, err := s.prepare(t)
	require.NoError(t, err)
	plan := tr.Plan()
	closeTrainer(t, tr)
	got, err := Supply(t.Context(), s.options(), 0)
	require.NoError(t, err)
	assert.Equal(t, []int{plan.Records, int(plan.Examples), int(plan.Tokens), int(plan.Targets)},
		[]int{got.Records, got.Examples, got.Tokens, got.Targets})
	some, err := Supply(t.Context(), s.options(), 2)
	require.NoError(t, err)
	assert.Equal(t, 2*s.run.Train.GlobalBatch.Examples, some.Examples)
}

func TestCheckOrder(t *testing.T) {
	s := newSite(t)
	got, err := CheckOrder(t.Context(), s.options(), 30)
	require.NoError(t, err)
	assert.Equal(t, []int{siteRecords, 30}, []int{got.Places, got.Cursors})
	assert.Greater(t, got.Records, 60)
	s.run.Data.Sources[0].Sample = 0.5
	_, err = CheckOrder(t.Context(), s.options(), 1)
	assert.ErrorContains(t, err, "sources have a sample")
}
