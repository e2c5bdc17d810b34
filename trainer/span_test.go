package trainer

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A run whose length was changed as it went is made again with the rates that each of its parts had, in one go or in several.
func TestARunOfSeveralLengthsIsMadeAgain(t *testing.T) {
	s := newSite(t)
	s.run.Data.Validation.EverySteps = 4
	length := func(epochs, most int) func(*Options) {
		return func(o *Options) { o.Config.Train.Epochs, o.Config.Train.MaxSteps = epochs, most }
	}
	s.train(t, "grown", length(1, 0)) // to its end, step 5, where it is validated
	s.resume(t, "grown", length(4, 0), stopAfter(4))
	s.resume(t, "grown", length(3, 12), stopAfter(1))
	s.resume(t, "grown", length(3, 12))
	grown := filepath.Join(s.dir, "grown")
	record, err := ReadRecord(grown)
	require.NoError(t, err)
	assert.Equal(t, []Span{{Step: 5, Steps: 5, Measured: true}, {Step: 9, Steps: 20}}, record.Spans)

	again := func(o *Options) { o.Started, o.Again = record.Started, &record }
	s.train(t, "straight", length(3, 12))
	s.train(t, "again", length(3, 12), again)
	sameEnd(t, grown, filepath.Join(s.dir, "again"))
	assert.NotEqual(t, curve(t, grown), curve(t, filepath.Join(s.dir, "straight")), "it matters")

	s.train(t, "in parts", length(3, 12), again, stopAfter(3))
	s.resume(t, "in parts", length(3, 12), stopAfter(4))
	s.resume(t, "in parts", length(3, 12))
	sameEnd(t, grown, filepath.Join(s.dir, "in parts"))
}
