package evaluate

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPassAt(t *testing.T) {
	// By counting: of 5 answers 2 are right; of the 10 pairs 3 have none of them.
	assert.InDelta(t, 0.7, PassAt(5, 2, 2), 1e-12)
	assert.InDelta(t, 0.4, PassAt(5, 2, 1), 1e-12)
	assert.Equal(t, 1.0, PassAt(5, 2, 4), "there are but 3 wrong ones")
	assert.Equal(t, 0.0, PassAt(5, 0, 3))
	assert.Equal(t, 1.0, PassAt(1, 1, 1))
	assert.Panics(t, func() { PassAt(2, 1, 3) })
}

func TestMean(t *testing.T) {
	values := make([]float64, 400)
	for i := range values {
		values[i] = float64(i % 2)
	}
	e := Mean(values, 1)
	assert.Equal(t, 0.5, e.Value)
	// The normal approximation: 1.96 * 0.5 / 20.
	assert.InDelta(t, 0.5-0.049, e.Low, 0.01)
	assert.InDelta(t, 0.5+0.049, e.High, 0.01)
	assert.Equal(t, e, Mean(values, 1), "the same seed gives the same interval")
	assert.Equal(t, Estimate{}, Mean(nil, 1))
}

func TestBalanced(t *testing.T) {
	truth := []bool{true, true, true, false}
	always := []Verdict{Right, Right, Right, Right}
	assert.Equal(t, 0.5, Balanced(always, truth).Value)
	assert.Equal(t, 1.0, Balanced([]Verdict{Right, Right, Right, Wrong}, truth).Value)
	assert.InDelta(t, (2.0/3+0)/2, Balanced([]Verdict{Right, NoVerdict, Right, NoVerdict}, truth).Value, 1e-12)
	assert.Equal(t, Estimate{1, Wilson(3, 3)}, Balanced(always[:3], truth[:3]), "of one kind only")
	assert.Equal(t, Estimate{}, Balanced(nil, nil))
}

// Few rows that are all alike are no certainty.
func TestTheIntervalOfABalancedShareHasAWidth(t *testing.T) {
	truth := []bool{true, true, true, true, true, false, false, false, false, false}
	silent := make([]Verdict, len(truth))
	e := Balanced(silent, truth)
	assert.Equal(t, 0.0, e.Value)
	assert.Equal(t, 0.0, e.Low)
	assert.InDelta(t, Wilson(0, 5).High/math.Sqrt2, e.High, 1e-12)
	// The intervals hold the truth in about 95 of 100 sets of 40 rows; near 1 in 90, where those of a bootstrap do in 75.
	rng := rand.New(rand.NewPCG(1, 2))
	for _, p := range [][2]float64{{0.5, 0.5}, {0.9, 0.2}, {0.97, 0.97}} {
		held := 0
		const sets = 2000
		for range sets {
			var verdicts []Verdict
			var right []bool
			for i := range 40 {
				kind := i % 2
				right = append(right, kind == 1)
				verdicts = append(verdicts, Of((rng.Float64() < p[kind]) == (kind == 1)))
			}
			if e, mean := Balanced(verdicts, right), (p[0]+p[1])/2; e.Low <= mean && mean <= e.High {
				held++
			}
		}
		assert.InDelta(t, 0.94, float64(held)/sets, 0.04, "%v", p)
	}
}

func TestProbes(t *testing.T) {
	good := map[string]string{
		"one word": "Paris", "a number only": "7", "yes or no": "Yes.", "capital letters": "THE SUN IS WARM", "small letters": "cat, dog, bird",
		"separated by commas": "red, green, blue", "three bullets": "- a\n- b\n- c", "numbered": "1. Fill a pot\n2. Heat it", "JSON": `{"name": "Ada", "age": 36}`,
		"begins as told": "Rain is water.", "ends as told": "Snow is frozen rain. That is all.", "one sentence": "A tree is a tall plant.", "few words": "Wide and blue.",
		"in quotes": `"hello"`, "without a word": "A small animal that purrs.", "a greeting": "Hello there!",
	}
	chatter := "Sure! Here is what you asked for.\n\nThe Cat said: one, two, three and four, and then it went on with nothing else for a long while. More follows."
	for _, p := range Probes() {
		assert.True(t, p.Obeyed(good[p.Name]), p.Name)
		assert.False(t, p.Obeyed(chatter), p.Name)
		assert.False(t, p.Obeyed(""), "%s: nothing obeys nothing", p.Name)
	}
	assert.Len(t, good, len(Probes()))
}

func TestGradesWords(t *testing.T) {
	assert.True(t, GradeAnswer(`The past tense of "carry" is "carried".`, "carried").Right)
	assert.False(t, GradeAnswer(`The past tense of "carry" is "carryed".`, "carried").Right)
	assert.True(t, GradeAnswer(`So the answer is east.`, "east").Right)
}
