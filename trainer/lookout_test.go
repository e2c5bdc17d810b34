package trainer

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
)

// A look at millions of records takes minutes: it is told how far it is, and it ends when it is asked to.
func TestALookAtManyRecordsIsToldAndEnds(t *testing.T) {
	before := lookingEvery
	lookingEvery = 0
	defer func() { lookingEvery = before }()
	s := newSite(t)
	const n = 3 * lookedRecords
	rows := make([]string, n)
	for i := range rows {
		rows[i] = row(4, 1, i)
	}
	s.write(t, rows...)
	s.run.Data.Validation = config.Validation{EverySteps: 1}
	s.run.Train.Epochs, s.run.Train.MaxSteps = 2, 0

	o := s.options()
	last := 0
	o.Looking = func(done, total int, left time.Duration) {
		assert.Greater(t, done, last)
		assert.Equal(t, 2*n, total)
		assert.Equal(t, done == total, left == 0)
		last = done
	}
	tr, err := Prepare(t.Context(), o)
	require.NoError(t, err)
	closeTrainer(t, tr)
	assert.Equal(t, 2*n, last)

	ctx, cancel := context.WithCancel(t.Context())
	looks := 0
	o.Looking = func(done, total int, _ time.Duration) {
		assert.Equal(t, []int{lookedRecords, n}, []int{done, total})
		looks++
		cancel()
	}
	_, err = Stats(ctx, o)
	assert.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, 1, looks)
}
