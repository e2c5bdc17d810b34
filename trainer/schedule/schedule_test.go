package schedule

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// exact bounds the rounding of a handful of float64 operations on numbers near 1.
const exact = 1e-12

func TestLR(t *testing.T) {
	half := math.Sqrt2 / 4 // cos(pi/4)/2
	tests := []struct {
		name          string
		kind          string
		warmup, total int
		minRatio      float64
		want          []float64 // of lr, steps 1, 2, ...
	}{
		{"cosine: the first step has the whole rate, no step has none", Cosine, 0, 4, 0, []float64{1, 0.5 + half, 0.5, 0.5 - half}},
		{"cosine after warm-up", Cosine, 2, 6, 0, []float64{0.5, 1, 1, 0.5 + half, 0.5, 0.5 - half, 0, 0}},
		{"cosine to a tenth", Cosine, 0, 2, 0.1, []float64{1, 0.55, 0.1, 0.1}},
		{"linear", Linear, 0, 4, 0, []float64{1, 0.75, 0.5, 0.25, 0}},
		{"linear after warm-up", Linear, 4, 6, 0, []float64{0.25, 0.5, 0.75, 1, 1, 0.5, 0}},
		{"linear to a half", Linear, 0, 2, 0.5, []float64{1, 0.75, 0.5}},
		{"constant", Constant, 0, 2, 0, []float64{1, 1, 1}},
		{"constant after warm-up", Constant, 4, 2, 0, []float64{0.25, 0.5, 0.75, 1, 1}},
		{"warm-up of one step changes nothing", Constant, 1, 3, 0, []float64{1, 1}},
		{"a run that is all warm-up", Cosine, 10, 3, 0, []float64{0.1, 0.2, 0.3}},
		{"warm-up as long as the run, then the minimum", Linear, 2, 2, 0.25, []float64{0.5, 1, 0.25}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const lr = 2e-4
			s, err := New(tt.kind, lr, tt.warmup, tt.total, tt.minRatio)
			require.NoError(t, err)
			for i, want := range tt.want {
				assert.InDelta(t, want, s.LR(i+1)/lr, exact, "step %d", i+1)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name          string
		kind          string
		lr            float64
		warmup, total int
		minRatio      float64
		want          string
	}{
		{"unknown kind", "cosin", 1, 0, 1, 0, `new schedule: kind "cosin" is not cosine, linear or constant`},
		{"negative rate", Cosine, -1, 0, 1, 0, "new schedule: lr must be a finite number of at least 0, got -1"},
		{"rate that is no number", Cosine, math.NaN(), 0, 1, 0, "new schedule: lr must be a finite number of at least 0, got NaN"},
		{"endless rate", Cosine, math.Inf(1), 0, 1, 0, "new schedule: lr must be a finite number of at least 0, got +Inf"},
		{"negative warm-up", Cosine, 1, -1, 1, 0, "new schedule: warm-up must be at least 0 steps, got -1"},
		{"no steps", Cosine, 1, 0, 0, 0, "new schedule: total must be at least 1 step, got 0"},
		{"minimum above the rate", Cosine, 1, 0, 1, 1.5, "new schedule: minimum ratio must be within 0..1, got 1.5"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.kind, tt.lr, tt.warmup, tt.total, tt.minRatio)
			assert.EqualError(t, err, tt.want)
		})
	}
	s, err := New(Linear, 1, 0, 1, 0)
	require.NoError(t, err)
	assert.Panics(t, func() { s.LR(0) }, "steps count from 1")
}
