package evaluate

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestParseVerdict(t *testing.T) {
	tests := []struct {
		name, critique string
		want           Verdict
	}{
		{"right", "It is 4.\nConclusion: right [END]", Right},
		{"wrong", "It is 4.\nConclusion: wrong [END]", Wrong},
		{"without the end mark, which generation stops at", "Conclusion: wrong ", Wrong},
		{"correct", "Critique Conclusion: correct [END]", Right},
		{"bold", "**Conclusion: Correct [END]**", Right},
		{"bold heading", "**Conclusion:** incorrect", Wrong},
		{"bold word", "Conclusion: **wrong** [END]", Wrong},
		{"upper case", "CONCLUSION: RIGHT", Right},
		{"a sentence", "Conclusion: the solution is incorrect.", Wrong},
		{"on the next line", "Conclusion:\nright", Right},
		{"the last one counts", "Conclusion: right? No.\nConclusion: wrong [END]", Wrong},
		{"incorrect is not correct", "Conclusion: incorrect [END]", Wrong},
		{"the instruction repeated", "Conclusion: right/wrong [END]", NoVerdict},
		{"the instruction repeated before the verdict", "Conclusion: right/wrong\nConclusion: right", Right},
		{"cut off", "Conclusion: ", NoVerdict},
		{"a word that begins alike", "Conclusion: rightly so", NoVerdict},
		{"denied", "Conclusion: not right", Wrong},
		{"denied wrong", "Conclusion: the answer is not wrong.", Right},
		{"denied in short", "Conclusion: the solution isn't correct.", Wrong},
		{"denied in short, of it", "Conclusion: it isn’t wrong.", Right},
		{"a cross", "Conclusion: ❌ wrong [END]", Wrong},
		{"a tick", "Conclusion: ✔️ right [END]", Right},
		{"a right triangle", "Conclusion: right triangles have an angle of 90 degrees [END]", NoVerdict},
		{"right-angled", "Conclusion: right-angled, therefore 90 degrees [END]", NoVerdict},
		{"hedged", "Conclusion: partially correct [END]", NoVerdict},
		{"contradictory", "Conclusion: right\nConclusion: wrong [END]", NoVerdict},
		{"said twice", "Conclusion: right\nSo the final verdict: correct", Right},
		{"what comes behind the end does not count", "Conclusion: right [END]\nConclusion: wrong [END]", Right},
		{"an escaped end mark", "Conclusion: wrong \\[END\\] Conclusion: right", Wrong},
		{"another end mark", "Conclusion: right (END) Conclusion: wrong", Right},
		{"a bold end mark", "Conclusion: right **END** Conclusion: wrong", Right},
		{"a turn's end", "Conclusion: wrong<|im_end|>Conclusion: right", Wrong},
		{"bold critique conclusion", "**Critique Conclusion: Incorrect [END]**", Wrong},
		{"a judgement", "Final Judgement: wrong\nFirst Error Step: 2\nError Analysis: correct is 4", Wrong},
		{"a judgment, bold", "**Final judgment:** Correct", Right},
		{"a field", `{"correctness_pred": "wrong", "error_step_pred": "2"}`, Wrong},
		{"a heading", "### Conclusion\n\nThe student's solution is **incorrect**.", Wrong},
		{"in conclusion", "In conclusion, the student's solution is correct.", Right},
		{"boxed", `Conclusion: \boxed{wrong}`, Wrong},
		{"boxed text", `Conclusion: $\boxed{\text{right}}$`, Right},
		{"a conclusion that is spoken of", "The conclusion is drawn from correct steps.", NoVerdict},
		{"a part's conclusion", "The formula is right but the conclusion is incorrect.", NoVerdict},
		{"a score that it would be", "According to the rubric, this would be a Score 2, as it has an example.", Wrong},
		{"a good score", "It is helpful. [RESULT] 5", Right},
		{"a bad score", "Feedback: poor. Result: 1", Wrong},
		{"a middling score", "So so. [RESULT] 3", NoVerdict},
		{"a score in words", "so the overall score is 2.", Wrong},
		{"a score of ten", "Score: 9/10", Right},
		{"a score with its heading", "###Score: 4", Right},
		{"a rubric's score", "It does not meet the criteria for a score of 5.", NoVerdict},
		{"a score against the conclusion", "Conclusion: wrong. [RESULT] 5", NoVerdict},
		{"an opinion without a conclusion", "The answer is correct.", NoVerdict},
		{"a thought that is cut off has not concluded", "\n<think>Conclusion: wrong? Let me see", NoVerdict},
		{"what is thought does not count", "<think>Conclusion: right</think>\nConclusion: wrong [END]", Wrong},
		{"the right answer is named", "Conclusion: Correct answer is 42, and the solution says 32.", NoVerdict},
		{"the right answer is named behind a colon", "Conclusion: right answer: 42", NoVerdict},
		{"another number is said to be right", "Conclusion: The student answered 5 where 6 is correct.", NoVerdict},
		{"another one, after a but", "Conclusion: The solution says 32 but 42 is right.", NoVerdict},
		{"the answer that was wrong", "Conclusion: wrong answer.", Wrong},
		{"in short", "Conclusion: It's wrong", Wrong},
		{"not only", "Conclusion: not only correct but elegant", NoVerdict},
		{"a right answer by wrong reasoning", "Conclusion: The final answer is correct, but the reasoning is incorrect.", NoVerdict},
		{"the same the other way round", "Conclusion: the reasoning is flawed or wrong, but the final answer is correct", NoVerdict},
		{"a wrong answer by a right method", "Conclusion: the method is correct, but the answer is wrong. [END]", Wrong},
		{"the same with the answer first", "Conclusion: the answer is wrong although his approach is sound", Wrong},
		{"one that is not right", "Conclusion: the approach is right, but the result is not correct", Wrong},
		{"both are right", "Conclusion: the answer is correct, and the reasoning is sound.", Right},
		{"the next sentence does not count", "Conclusion: the answer is correct. The claim that 5 is odd was wrong.", Right},
		{"unless it objects", "Conclusion: the answer is correct. However, the reasoning is incorrect.", NoVerdict},
		{"what was asked is said first", "Conclusion: right, although the reasoning is flawed", Right},
		{"an answer that is not right, without the word", "Conclusion: the reasoning is correct but the answer is not", Wrong},
		{"the same in short", "Conclusion: the reasoning is correct, but the answer isn't.", Wrong},
		{"with the word", "Conclusion: the reasoning is correct but the answer isn't correct.", Wrong},
		{"reasoning that is not right, without the word", "Conclusion: the answer is correct but the reasoning is not [END]", NoVerdict},
		{"both words", "Conclusion: right and wrong", NoVerdict},
		{"both words, of parts", "Conclusion: The answer 5 is right for the first part and wrong for the second.", NoVerdict},
		{"not all wrong", "Conclusion: not entirely wrong", NoVerdict},
		{"not all right", "Conclusion: the solution is not fully correct", Wrong},
		{"not quite", "Conclusion: not quite right", Wrong},
		{"not for sure", "Conclusion: the answer is not necessarily right", NoVerdict},
		{"probably", "Conclusion: probably correct", NoVerdict},
		{"in part", "Conclusion: half right", NoVerdict},
		{"it cannot be", "Conclusion: the answer cannot be right", Wrong},
		{"it is far from it", "Conclusion: the answer is far from correct", Wrong},
		{"never", "Conclusion: The solution was never correct.", Wrong},
		{"clearly not", "Conclusion: The answer is clearly not correct.", Wrong},
		{"not the right one", "Conclusion: This is not the correct answer.", Wrong},
		{"a method is granted", "Conclusion: Although the approach is right, the answer is wrong.", Wrong},
		{"an answer is granted", "Conclusion: Although the answer is right, the approach is wrong.", NoVerdict},
		{"something else is granted", "Conclusion: While long, the solution is correct.", Right},
		{"a decimal in the sentence", "Conclusion: The proposed answer of $12.50 is wrong.", Wrong},
		{"with a yes", "Conclusion: Yes, the answer is correct.", Right},
		{"with a no", "Conclusion: No, the answer is not correct.", Wrong},
		{"all of it", "Conclusion: Everything is correct.", Right},
		{"a sentence that concludes", "So I conclude that the answer is wrong.", Wrong},
		{"in a tag", "<verdict>wrong</verdict>", Wrong},
		{"in a list", "Conclusion:\n\n- wrong", Wrong},
		{"in italics", "Conclusion: _wrong_", Wrong},
		{"the verdict is", "The final verdict is: wrong", Wrong},
		{"a question that is wrong", "Conclusion: the question is wrong", NoVerdict},
		{"a doubt", "Conclusion: the answer might be wrong", NoVerdict},
		{"a condition", "Conclusion: the answer would be right if x were 3", NoVerdict},
		{"in Chinese", "结论：错误", NoVerdict},
		{"in Chinese, headed in English", "Conclusion: 不正确", NoVerdict},
		{"in German", "Fazit: richtig", NoVerdict},
		{"in French", "Conclusion : la réponse est incorrecte", NoVerdict},
		{"what should be checked", "Conclusion: you should check whether every step is right", NoVerdict},
		{"what the student thinks", "Conclusion: The student thinks the answer is right.", NoVerdict},
		{"a list of steps", "Verdict:\n\nCorrect steps: 1, 2\nIncorrect steps: 3", NoVerdict},
		{"a step is granted", "In conclusion, although step 3 is wrong, the answer is correct.", NoVerdict},
		{"a bold not", "Conclusion: The answer is **not** correct.", Wrong},
		{"the claim is wrong", "Conclusion: The student's claim that the answer is 5 is wrong.", Wrong},
		{"empty", "", NoVerdict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { assert.Equal(t, tt.want, ParseVerdict(tt.critique)) })
	}
	assert.Equal(t, []Verdict{Right, Wrong}, []Verdict{Of(true), Of(false)})
}

func TestMatchAnswer(t *testing.T) {
	anywhere, leading, exact := Match{Anywhere: true}, Match{Anywhere: true, Leading: true}, Match{true, true, true}
	tests := []struct {
		name, answer string
		want         Match
	}{
		{"the bare form", "carried", exact},
		{"letter case, quotes and a full stop", "\"Carried.\"", exact},
		{"bold", "**carried**", exact},
		{"a statement", `The past tense of "carry" is "carried".`, exact},
		{"a statement in American quotes", `The past tense of "carry" is "carried."`, exact},
		{"a statement with a colon", "The past tense of carry is: carried", exact},
		{"announced", "Answer: carried", exact},
		{"something follows", `The past tense of "carry" is "carried". It ends in y.`, leading},
		{"something follows in the sentence", `The past tense of "carry" is "carried" (y becomes i).`, leading},
		{"the form comes first", `"Carried" is the past tense of "carry".`, leading},
		{"hedged: the second form is no lead", `The past tense of "carry" is "carryed" or "carried".`, anywhere},
		{"stated in the second sentence", "Let me think. The past tense is carried.", anywhere},
		{"described instead of stated", `The past tense of "carry" is a verb form: carried.`, anywhere},
		{"part of a word", "miscarried", Match{}},
		{"part of a hyphenated word", "carried-over", Match{}},
		{"another form", `The past tense of "carry" is "carryed".`, Match{}},
		{"empty", "", Match{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { assert.Equal(t, tt.want, MatchAnswer(tt.answer, "carried")) })
	}
}

func TestDrifted(t *testing.T) {
	for _, answer := range []string{"Critique:\ncarried", "carried\nConclusion: right", `The solution says "carryed"`, "The answer is wrong.", "carried [END]"} {
		assert.True(t, Drifted(answer), answer)
	}
	for _, answer := range []string{"carried", "The answer is carried.", `The past tense of "conclude" is "concluded".`} {
		assert.False(t, Drifted(answer), answer)
	}
}

// tolerance covers the digits that the published values are given with.
const tolerance = 5e-5

func TestWilson(t *testing.T) {
	// Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
	for _, tt := range []struct {
		k, n      int
		low, high float64
	}{
		{81, 263, 0.2553, 0.3662},
		{15, 148, 0.0624, 0.1605},
		{0, 20, 0, 0.1611},
		{1, 29, 0.0061, 0.1718},
	} {
		got := Wilson(tt.k, tt.n)
		assert.InDelta(t, tt.low, got.Low, tolerance)
		assert.InDelta(t, tt.high, got.High, tolerance)
	}
	assert.Equal(t, Interval{0, 1}, Wilson(0, 0))
}

func TestNewShare(t *testing.T) {
	s := NewShare([]bool{true, false, true, true})
	assert.Equal(t, Share{Count: 3, N: 4, Interval: Wilson(3, 4)}, s)
	assert.Equal(t, 0.75, s.Value())
	assert.Zero(t, NewShare(nil).Value())
}

func TestMcNemar(t *testing.T) {
	assert.Equal(t, 1.0, McNemar(0, 0))
	assert.InDelta(t, 1.0, McNemar(4, 4), 1e-12)
	assert.InDelta(t, 2.0/1024, McNemar(0, 10), 1e-12)          // only one way out of 2^10, on either side
	assert.InDelta(t, 2*(1+10+45)/1024.0, McNemar(8, 2), 1e-12) // tails of the binomial of 10
	assert.InDelta(t, McNemar(3, 9), McNemar(9, 3), 1e-15)
}

func TestCompare(t *testing.T) {
	a := make([]bool, 200)
	b := make([]bool, 200)
	for i := range a {
		a[i] = i < 120
		b[i] = i >= 110 && i < 160 // 110 only a, 10 both, 40 only b
	}
	d := Compare(a, b)
	assert.Equal(t, 110, d.OnlyA)
	assert.Equal(t, 40, d.OnlyB)
	assert.InDelta(t, 0.35, d.Value, 1e-12)
	// The normal approximation: standard error sqrt((150/200 - 0.35^2) / 200) = 0.056, so 0.35 -+ 0.11. The score interval lies within a
	// hundredth of it.
	assert.InDelta(t, 0.24, d.Low, 0.01)
	assert.InDelta(t, 0.46, d.High, 0.01)
	assert.Less(t, d.P, 1e-7)
	none := Compare(a, a)
	assert.Equal(t, Difference{P: 1, Interval: none.Interval}, none)
	assert.InDelta(t, z95*z95/(200+z95*z95), none.High, 1e-12, "without pairs that differ it is Wilson's bound of none in n")
	assert.InDelta(t, -none.High, none.Low, 1e-12)
	assert.Equal(t, Interval{-1, 1}, Compare(nil, nil).Interval)
	assert.Panics(t, func() { Compare(a, b[1:]) })
}

// At the ends of the interval the observed difference lies z95 standard errors off, where the variance is that of the likeliest table with such a
// difference, which is looked for here by its likelihood.
func TestTangoIsTheScoreInterval(t *testing.T) {
	for _, c := range []struct{ b, c, n int }{{0, 0, 10}, {3, 0, 10}, {0, 4, 9}, {2, 2, 12}, {110, 40, 200}, {1, 7, 1000}, {5, 5, 10}, {9, 0, 10}} {
		found := Tango(c.b, c.c, c.n)
		b, other, n := float64(c.b), float64(c.c), float64(c.n)
		assert.Less(t, found.Low, (b-other)/n)
		assert.Greater(t, found.High, (b-other)/n)
		for end, delta := range map[float64]float64{z95: found.Low, -z95: found.High} {
			term := func(k, p float64) float64 {
				if k == 0 {
					return 0
				}
				return k * math.Log(p)
			}
			likelihood := func(share float64) float64 {
				return term(b, share+delta) + term(other, share) + term(n-b-other, 1-2*share-delta)
			}
			low, high := max(0, -delta), (1-delta)/2
			for range 200 { // it has one peak
				one, two := low+(high-low)/3, high-(high-low)/3
				if likelihood(one) < likelihood(two) {
					low = one
				} else {
					high = two
				}
			}
			variance := (2*low + delta - delta*delta) / n
			assert.InDelta(t, end, ((b-other)/n-delta)/math.Sqrt(variance), 1e-5, "%v at %v", c, delta)
		}
		mirrored := Tango(c.c, c.b, c.n)
		assert.InDelta(t, -found.High, mirrored.Low, 1e-12)
		assert.InDelta(t, -found.Low, mirrored.High, 1e-12)
	}
	assert.Equal(t, 1.0, Tango(10, 0, 10).High)
	assert.Equal(t, -1.0, Tango(0, 10, 10).Low)
}

// The interval holds the true difference about as often as it says, of few pairs too. A bootstrap, which has no width where no pair differs, does so in
// 1 - 0.98^10 = 18 of 100 sets of ten pairs of which one in fifty differs.
func TestTangoHoldsTheTruth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{10, 40, 200} {
		for _, p := range [][2]float64{{0.02, 0}, {0.05, 0.02}, {0.1, 0.1}, {0.3, 0.05}, {0.6, 0.3}} {
			held := 0
			const sets = 2000
			for range sets {
				b, c := 0, 0
				for range n {
					switch u := rng.Float64(); {
					case u < p[0]:
						b++
					case u < p[0]+p[1]:
						c++
					}
				}
				if found := Tango(b, c, n); found.Low <= p[0]-p[1] && p[0]-p[1] <= found.High {
					held++
				}
			}
			// 0.95, but for what whole numbers allow (0.928 where four of 200 differ); 2,000 sets tell it to half a percent.
			assert.Greater(t, float64(held)/sets, 0.92, "%d pairs, %v", n, p)
		}
	}
}
