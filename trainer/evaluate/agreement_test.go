package evaluate

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestAgreement(t *testing.T) {
	const rounding = 1e-6 // logits are in 32 bits
	log := func(p ...float64) []float32 {
		var x []float32
		for _, v := range p {
			x = append(x, float32(math.Log(v))+3) // a shift of all logits means nothing
		}
		return x
	}
	var same Agreement
	same.Add(log(0.5, 0.25, 0.25), log(0.5, 0.25, 0.25), 1)
	mean, worst := same.KL()
	assert.InDelta(t, 0, mean, rounding)
	assert.InDelta(t, 0, worst, rounding)
	assert.Equal(t, 1.0, same.Top1())
	p, q := same.Losses()
	assert.InDelta(t, math.Log(4), p, rounding)
	assert.InDelta(t, math.Log(4), q, rounding)

	for _, broken := range [][2][]float32{{{float32(math.NaN()), 1}, {0, 1}}, {{0, 1}, {float32(math.NaN()), 1}}} {
		var none Agreement
		none.Add(broken[0], broken[1], 1)
		mean, worst := none.KL()
		assert.True(t, math.IsNaN(mean) && math.IsNaN(worst), "%v must not agree with %v", broken[0], broken[1])
	}

	var other Agreement
	other.Add(log(0.5, 0.25, 0.25), log(0.25, 0.5, 0.25), 0)
	other.Add(log(0.9, 0.1), log(0.9, 0.1), 0)
	mean, worst = other.KL()
	want := 0.5*math.Log(2) - 0.25*math.Log(2)
	assert.InDelta(t, want/2, mean, rounding)
	assert.InDelta(t, want, worst, rounding)
	assert.Equal(t, 0.5, other.Top1())
	p, q = other.Losses()
	assert.InDelta(t, (math.Log(2)-math.Log(0.9))/2, p, rounding)
	assert.InDelta(t, (math.Log(4)-math.Log(0.9))/2, q, rounding)
}
