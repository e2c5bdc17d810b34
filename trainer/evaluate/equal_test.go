package evaluate

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestExtractAnswer(t *testing.T) {
	tests := []struct{ name, text, want, mark string }{
		{"boxed", `So it is \boxed{42}.`, "42", MarkBoxed},
		{"nested braces", `\boxed{\frac{1}{\sqrt{2}}}`, `\frac{1}{\sqrt{2}}`, MarkBoxed},
		{"escaped braces", `\boxed{\{1, 2\}}`, `\{1, 2\}`, MarkBoxed},
		{"the last box", `\boxed{1}, no: $\boxed{2}$`, "2", MarkBoxed},
		{"a box without braces", `\boxed 7$`, "7", MarkBoxed},
		{"a box that never closes", "\\boxed{3 + 4\nand", "3 + 4", MarkBoxed},
		{"GSM8K", "16 - 3 = 13\n#### 1,300", "1,300", MarkHash},
		{"Minerva", `Final Answer: The final answer is $x^2$. I hope it is correct.`, "x^2", MarkStatement},
		{"a sentence", "The answer is 18 dollars. She is glad.", "18 dollars", MarkStatement},
		{"a decimal", "The answer is 1.5.", "1.5", MarkStatement},
		{"a heading", "**Answer:** 12", "12", MarkStatement},
		{"LaTeX in a sentence", `the answer is $\frac12$ of it.`, `\frac12`, MarkStatement},
		{"dollars in a sentence", `the answer is $18 a day`, `$18 a day`, MarkStatement},
		{"the last statement", "The answer is 3? No, the answer is 4.", "4", MarkStatement},
		{"a line of its own", "2 + 2 = 4\nA: 4", "4", MarkStatement},
		{"the last number", "She has 3, then 4 apples", "4", MarkNumber},
		{"a negative number", "it falls to -12.5", "-12.5", MarkNumber},
		{"before a critique", `\boxed{5} [END] Critique: \boxed{6}`, "5", MarkBoxed},
		{"a thought before", "<think>maybe \\boxed{5}</think>\nThe answer is 6.", "6", MarkStatement},
		{"a thought and nothing else", "<think>The answer is 5.</think>\n", "5", MarkStatement},
		{"a range's end is not negative", "some 3-5", "5", MarkNumber},
		{"a difference", "(a)-7 is 4−3", "3", MarkNumber},
		{"LaTeX's round signs", `the answer is \(x = 18\), since 3 are gone`, "x = 18", MarkStatement},
		{"LaTeX's square signs", `Answer: \[18\]`, "18", MarkStatement},
		{"the last number with separators", "She made $114,200 of 2,125.", "2,125", MarkNumber},
		{"with separators and decimals", "In all $1,234,567.50 are left", "$1,234,567.50", MarkNumber},
		{"a decimal without a whole part", "some .5 of it", ".5", MarkNumber},
		{"no separators", "the code 1,2345", "2345", MarkNumber},
		{"a formula on lines of its own", "The answer is:\n\n\\[\n\\frac{14}{3}\n\\]", `\frac{14}{3}`, MarkStatement},
		{"a formula below", "**Answer:**\n$x^2$", "x^2", MarkStatement},
		{"an answer in tags", "<answer>\\frac{14}{3}</answer>", `\frac{14}{3}`, MarkStatement},
		{"LaTeX's thin negative space", `the answer is 11,\! 111,\! 100`, "11, 111, 100", MarkStatement},
		{"nothing", "I cannot tell.", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { assert.Equal(t, Extracted{tt.want, tt.mark}, ExtractAnswer(tt.text)) })
	}
}

func TestEqual(t *testing.T) {
	groups := map[string]string{ // answers that mean the same, between bars
		"separators":           `1000 ‖ 1,000 ‖ 1000.00 ‖ 1{,}000 ‖ 1,\!000`,
		"currency":             `$18 ‖ 18 ‖ 18 dollars ‖ \$18.00 ‖ 18.0`,
		"percent":              `50% ‖ 50\% ‖ 50 percent`,
		"percent as a share":   `50% ‖ 0.5 ‖ 1/2`,
		"a unit":               `5 ‖ 5 apples ‖ 5\text{ apples} ‖ 5.`,
		"degrees":              `90^\circ ‖ 90 ‖ 90 degrees ‖ 90°`,
		"fractions":            `\frac{1}{2} ‖ \dfrac12 ‖ 1/2 ‖ 0.5 ‖ .5 ‖ 2/4 ‖ \frac 12`,
		"mixed numbers":        `1\frac{4}{5} ‖ 1 4/5 ‖ 9/5 ‖ 1.8 ‖ 1 and 4/5`,
		"negative mixed":       `-1\frac{1}{2} ‖ -3/2 ‖ -1 1/2`,
		"radicals":             `2\sqrt{3} ‖ \sqrt{12} ‖ 2*3^{1/2} ‖ 2√3 ‖ 6/\sqrt3 ‖ 2 sqrt(3)`,
		"pi":                   `2\pi ‖ 2π ‖ \pi*2 ‖ 2pi`,
		"a rounding":           `3.1416 ‖ \pi`,
		"polynomials":          `x^2 + 2x + 1 ‖ (x+1)^2 ‖ 1+x(2+x)`,
		"factors":              `(a+5)(b+2) ‖ ab + 2a + 5b + 10`,
		"complex":              `6 - 5i ‖ -5i+6 ‖ (6-5i)`,
		"trigonometry":         `\cot x ‖ \frac{\cos x}{\sin x} ‖ cot(x)`,
		"a named value":        `x = 5 ‖ 5 ‖ x=5.0`,
		"equations":            `y = 2x + 3 ‖ y - 2x = 3 ‖ 2y = 4x + 6`,
		"a formula's name":     `2x + 3 ‖ y = 2x + 3 ‖ f(x) = 3+2x`,
		"lists":                `1,-2 ‖ -2, 1 ‖ \{1,-2\} ‖ {1, -2} ‖ 1 and -2 ‖ x = 1 or x = -2`,
		"plus or minus":        `1 \pm \sqrt{19} ‖ 1+\sqrt{19}, 1-\sqrt{19}`,
		"formula signs":        `18 ‖ \(18\) ‖ \[ 18 \]`,
		"lists of hundreds":    `100, 200, 300 ‖ 300, 100, 200`,
		"wide separators":      `58,500 ‖ 58, 500 ‖ 58500`,
		"inequalities":         `x \le 5 ‖ x\leq5 ‖ x ≤ 5`,
		"tight inequalities":   `x<5 ‖ x < 5`,
		"tuples":               `\left( 3, \frac{\pi}{2} \right) ‖ (3, \pi/2) ‖ (3.0,0.5\pi)`,
		"intervals":            `(-\infty, 2) \cup (3, \infty) ‖ (3,\infty)\cup(-\infty,2)`,
		"membership":           `x \in [-2,7] ‖ [-2, 7]`,
		"matrices":             `\begin{pmatrix} -1/3 \\ 2 \end{pmatrix} ‖ \begin{bmatrix} -\frac13 \\ 2.0 \\ \end{bmatrix}`,
		"text":                 `\text{Evelyn} ‖ evelyn ‖ Evelyn. ‖ **Evelyn**`,
		"choices":              `\text{(C)} ‖ C ‖ (C)`,
		"another base":         `52_8 ‖ 52_{8}`,
		"great words":          `8 billion ‖ 8,000,000,000 ‖ 8e9`,
		"large whole numbers":  `2^{100} ‖ 1267650600228229401496703205376`,
		"factorials":           `5! ‖ 120`,
		"binomials":            `\binom{5}{2} ‖ 10`,
		"the empty set":        `\emptyset ‖ \{\}`,
		"a result":             `5 ‖ 2+3=5 ‖ 2 + 3 = 5 ‖ 5 = 2 + 3 ‖ x = 2+3 = 5`,
		"a result's unit":      `12 ‖ 3*4 = 12 eggs ‖ 3 \times 4 = 12`,
		"units":                `5 ‖ 5cm ‖ 5 men ‖ 5kg ‖ 5 cm^2`,
		"variables":            `2x^3y ‖ 2yx^3 ‖ 2 yx^3 ‖ 2*x^3*y`,
		"variables alone":      `a*b ‖ ab ‖ a b ‖ ba`,
		"spaced separators":    `1000 ‖ 1\,000 ‖ 1 000`,
		"repeating decimals":   `1/3 ‖ 0.\overline{3} ‖ .\bar{3} ‖ 0.3\overline{33}`,
		"inverse functions":    `\arctan 2 ‖ \tan^{-1} 2 ‖ \tan^{-1}(2)`,
		"squares of sines":     `\sin^2 x ‖ (\sin x)^2`,
		"odd roots":            `-2 ‖ \sqrt[3]{-8} ‖ -\sqrt[3]{8}`,
		"letters' factorials":  `\frac{n!}{k!(n-k)!} ‖ \binom{n}{k}`,
		"next factorial":       `(n+1)! ‖ n!(n+1) ‖ (n+1)n!`,
		"Greek":                `\cos\theta ‖ cos(theta) ‖ \cos θ`,
		"a Greek letter":       `\theta ‖ θ ‖ theta`,
		"infinity":             `\infty ‖ infinity ‖ ∞`,
		"all numbers":          `\mathbb{R} ‖ \mathbb R ‖ ℝ ‖ (-\infty, \infty)`,
		"vectors":              `\mathbf{i}+2\mathbf{j} ‖ i + 2j ‖ \hat{i} + 2\hat j`,
		"in its box":           `5 ‖ \boxed{5} ‖ $\fbox{5}$`,
		"sizes":                `\frac12 ‖ \displaystyle \frac{1}{2} ‖ \textstyle\frac12`,
		"typed inequalities":   `x \ge 3 ‖ x >= 3 ‖ x≥3`,
		"typed differences":    `x \neq 2 ‖ x \ne 2 ‖ x != 2 ‖ x ≠ 2`,
		"about":                `3.14 ‖ \approx 3.14 ‖ ≈3.14`,
		"exact, and about":     `\frac13 ‖ \frac{1}{3}\approx 0.33 ‖ 1/3 = 0.33 ‖ 1/3`,
		"of either":            `2.83 ‖ 2\sqrt2 \approx 2.83`,
		"Celsius":              `5 ‖ 5°C ‖ 5^\circ C ‖ 5^\circ\text{C}`,
		"a named pair":         `(1,2) ‖ (x,y)=(1,2) ‖ (a, b) = (1, 2)`,
		"named functions":      `2x ‖ f^{-1}(x) = 2x ‖ \frac{dy}{dx}=2x ‖ y'=2x`,
		"numbers in words":     `25 ‖ twenty-five ‖ Twenty five apples ‖ \text{twenty-five} ‖ twenty-five (25)`,
		"hundreds in words":    `342 ‖ three hundred forty-two ‖ three hundred and forty-two`,
		"thousands in words":   `1500 ‖ one thousand five hundred ‖ fifteen hundred ‖ 1.5 thousand`,
		"signs in words":       `-5 ‖ minus 5 ‖ negative five ‖ －5 ‖ −5`,
		"parts in words":       `2/3 ‖ two thirds ‖ two-thirds ‖ ⅔`,
		"halves in words":      `3/2 ‖ one and a half ‖ 1 and a half ‖ 1½ ‖ 1 1/2 cups`,
		"prices":               `$3 ‖ $3 per pound ‖ 3 dollars an hour`,
		"marbles in March":     `5 ‖ 5 marbles ‖ 5 novels ‖ 5 decks`,
		"modulo":               `x \equiv 5 \pmod{7} ‖ x ≡ 5 (mod 7) ‖ x \equiv 5 \pmod 7`,
		"vectors by name":      `\langle 1, 2\rangle ‖ \vec{v} = (1,2) ‖ ⟨1, 2⟩`,
		"distances":            `12 ‖ |AB| = 12 ‖ AB = 12`,
		"dozens":               `12 ‖ a dozen ‖ one dozen ‖ 1 dozen eggs`,
		"half of many":         `500000 ‖ half a million ‖ 0.5 million`,
		"feet":                 `6 ft ‖ 6 feet ‖ 6 foot ‖ 6`,
		"square feet":          `6 square feet ‖ 6 sq. ft ‖ 6 ft^2 ‖ 6 ft² ‖ 6 \text{ feet}^2 ‖ 6 square units`,
		"speeds":               `6 m/s ‖ 6 meters per second ‖ 6 \frac{\text{m}}{\text{s}} ‖ 6`,
		"miles per hour":       `6 mph ‖ 6 miles per hour ‖ 6 \text{ mi/h}`,
		"letters of units":     `6 h ‖ 6 hours ‖ 6 hrs ‖ 6`,
		"irregular plurals":    `6 people ‖ 6 persons`,
		"two units":            `6 feet 2 inches ‖ 6 ft 2 in ‖ 6'2" ‖ 6 feet and 2 inches`,
		"euros":                `€5 ‖ 5€ ‖ 5 euros ‖ EUR 5 ‖ 5`,
		"dollars":              `$5 ‖ 5$ ‖ US$5 ‖ 5 USD ‖ 5 dollars`,
		"units of pi":          `9\pi ‖ 9π cm² ‖ 9 pi square inches ‖ 9\pi \text{ cm}`,
		"Celsius in words":     `20°C ‖ 20 ℃ ‖ 20 degrees Celsius ‖ 20 degrees`,
		"other scripts":        `12 ‖ １２ ‖ ١٢ ‖ 12 个 ‖ 12元 ‖ 12 яблок`,
		"separators abroad":    `1234567.5 ‖ 1.234.567,5 ‖ 1'234'567.5 ‖ 1 234 567.5`,
		"lakhs":                `100000 ‖ 1,00,000`,
		"powers of ten":        `1200 ‖ 1.2e3 ‖ 1.2 x 10^3 ‖ 1.2×10³ ‖ 1.2 \times 10^{3}`,
		"going on":             `1/3 ‖ 0.333... ‖ 0.333\ldots`,
		"ratios":               `3:4 ‖ 6 : 8 ‖ 3 to 4 ‖ 3/4 ‖ 3 out of 4 ‖ 3\colon 4`,
		"ratios of three":      `1:2:3 ‖ 2:4:6`,
		"times of day":         `3:30 pm ‖ 3:30 PM ‖ 3:30 p.m. ‖ 15:30`,
		"whole hours":          `3 pm ‖ 3:00 p.m. ‖ 15:00`,
		"o'clock":              `3 ‖ 3:00 ‖ 3 o'clock ‖ 3 am`,
		"noon":                 `12:00 pm ‖ noon ‖ 12 p.m.`,
		"dates":                `March 4, 2020 ‖ 4 March 2020 ‖ Mar 4th, 2020 ‖ 2020-03-04 ‖ 3/4/2020 ‖ 03/04/2020`,
		"days":                 `March 4 ‖ march 4th ‖ 4 March`,
		"turned inequalities":  `x > 5 ‖ 5 < x ‖ (5, \infty)`,
		"bounds on both sides": `2 < x \le 5 ‖ 5 \ge x > 2 ‖ (2, 5] ‖ x \in (2, 5] ‖ ]2, 5]`,
		"unions":               `x < -1 \text{ or } x > 1 ‖ (-\infty,-1)\cup(1,\infty)`,
		"a point by names":     `(1,2) ‖ x=1, y=2 ‖ y=2, x=1 ‖ x = 1 and y = 2`,
		"lists in words":       `1,2,3 ‖ 1, 2, and 3 ‖ 1; 2; 3`,
		"lists of choices":     `B, D ‖ B and D`,
		"lists of names":       `red, blue ‖ blue and red`,
		"what holds":           `[1,3) ‖ \{x : 1 \le x < 3\} ‖ \{x \mid 1 \leq x < 3\}`,
		"spaced rows":          `\begin{pmatrix}1\\2\end{pmatrix} ‖ \left(\begin{matrix}1\\[4pt]2\end{matrix}\right)`,
		"TeX's fractions":      `3/4 ‖ {3 \over 4} ‖ ¾ ‖ 3⁄4`,
		"TeX's binomials":      `10 ‖ {5 \choose 2}`,
		"sines of degrees":     `\sin 30^\circ ‖ 1/2 ‖ \sin(\pi/6)`,
		"a name's thousands":   `1080 ‖ x = 1,080`,
		"looks":                `12 ‖ <b>12</b> ‖ \color{red}{12} ‖ 12 ✅`,
		"cancelled":            `\sin \pi ‖ 0 ‖ \sqrt2\sqrt2 - 2`,
	}
	for name, group := range groups {
		t.Run(name, func(t *testing.T) {
			forms := strings.Split(group, " ‖ ")
			for _, a := range forms {
				assert.True(t, Equal(forms[0], a), "%s and %s", forms[0], a)
				assert.True(t, Equal(a, forms[0]), "%s and %s", a, forms[0])
			}
		})
	}
}

func TestNotEqual(t *testing.T) {
	for _, pair := range []string{
		`18 ‖ 19`, `18 ‖ 1.8`, `18 ‖ -18`, `0.33 ‖ 1/3`, `0.5 ‖ 50`, `50% ‖ 5`, `5 cm ‖ 5 m`, `5 dollars ‖ 5 cents`,
		`\sqrt{2} ‖ 1.41`, `x^2 ‖ x^3`, `x ‖ y`, `\sqrt{x^2} ‖ x`, `(x+1)^2 ‖ x^2+1`, `2x ‖ 2`, `y = 2x+3 ‖ y = 2x+4`, `x = 5 ‖ x = 6`,
		`(1,2) ‖ (2,1)`, `(1,2) ‖ [1,2]`, `(1,2] ‖ (1,2)`, `1,2 ‖ 1,3`, `1,2 ‖ 1,2,3`, `1,1 ‖ 1,2`, `\text{even} ‖ \text{odd}`, `no ‖ on`, `even ‖ neve`,
		`52_8 ‖ 52`, `52_8 ‖ 52_9`, `(C) ‖ (D)`, `2^{100} ‖ 1267650600228229401496703205377`, `1/0 ‖ 2/0`, ` ‖ `, ` ‖ 5`,
		`\begin{pmatrix} 1 \\ 2 \end{pmatrix} ‖ \begin{pmatrix} 2 \\ 1 \end{pmatrix}`, `3.1416 ‖ 3.14161`, `0.25 ‖ 0.2500001`, `x+1=0 ‖ 1`, `100, 200 ‖ 100, 300`, `x < 5 ‖ x > 5`,
		`6xy ‖ 6`, `3ab ‖ 3`, `2xyz ‖ 2`, `6xy ‖ 6xz`, `x >= 3 ‖ 3`, `x != 3 ‖ 3`, `2+3=6 ‖ 5`, `x+1 = 3 ‖ 3`, `0.\overline{3} ‖ 0.3`, `\tan^{-1} 2 ‖ 1/\tan 2`,
		`e^{-40} ‖ 0`, `\pi \times 10^{-20} ‖ 2\pi \times 10^{-20}`, `\sqrt{2}\cdot 10^{-14} ‖ \sqrt{3}\cdot 10^{-14}`, `n! ‖ (n+1)!`, `\binom{n}{2} ‖ \binom{n}{3}`,
		`\mathbb{R} ‖ \mathbb{Z}`, `ab ‖ a+b`, `5°C ‖ 5°F`, `(x,y)=(1,2) ‖ (2,1)`, `2+3=6 ‖ 2+3`, `1/3 = 0.34 ‖ 1/3`, `\approx 3 ‖ 4`, `\approx ‖ 3`, `is ‖ it`,
		`3/4/2020 ‖ 3/8/4040`, `3/4/2020 ‖ 4/3/2020`, `2020-03-04 ‖ 2013`, `2020-03-04 ‖ 2020-04-03`, `March 4, 2020 ‖ March 4, 2021`, `March 4 ‖ May 4`,
		`3:30 pm ‖ 3:30 am`, `15:30 ‖ 3:30 am`, `3:30 ‖ 1:10`, `3:30 ‖ 3`, `12:00 am ‖ 12:00 pm`, `12:30 pm ‖ 0:30`, `3:4 ‖ 4:3`, `1:2:3 ‖ 1:2`, `3 ‖ 3 to 4`,
		`$5 ‖ 5%`, `€5 ‖ $5`, `20% ‖ 20 dollars`, `60 degrees ‖ 60 radians`, `20°C ‖ 20°F`, `x \equiv 5 \pmod 7 ‖ x \equiv 4 \pmod 7`, `5 \pmod 7 ‖ 4 \pmod 7`, `v = (1,2) ‖ (2,1)`, `20℃ ‖ 20°F`, `6 mph ‖ 6 miles`, `6 ft^2 ‖ 6 ft`, `6 kg ‖ 6 grams`, `6 feet ‖ 6 feet 2 inches`,
		`6 ‖ 6h`, `6 x ‖ 6`, `5 ‖ 5 of 10`, `12 ‖ 12 squared`, `12 ‖ 12 choose 2`, `$5 ‖ 5 million dollars`, `5 boys ‖ 5 girls`,
		`2 ‖ two-thirds`, `2 ‖ two and a half`, `|x| = 12 ‖ 12`, `20/3 ‖ twenty third`, `20 ‖ twenty third`, `1 ‖ one of them`, `3 ‖ three or four`, `100 ‖ one hundred one`, `5 ‖ twenty-five`, `11 ‖ five six`, `5 ‖ minus five`,
		`3.5 ‖ 3, 5`, `1.234 ‖ 1,234`, `1.23456 ‖ 1.234,56`, `x > 2 ‖ x \ge 2`, `x > 2 ‖ y > 2`, `x > 2 ‖ 2`, `[2, \infty) ‖ x > 2`, `2 < x < 5 ‖ x < 5`,
		`(1,2) ‖ x=2, y=1`, `(1,2) ‖ 1, 2`, `\begin{vmatrix}1&2\\3&4\end{vmatrix} ‖ \begin{pmatrix}1&2\\3&4\end{pmatrix}`, `0.33... ‖ 1/3`, `10/3 ‖ 3.33`,
	} {
		a, b, _ := strings.Cut(pair, " ‖ ")
		assert.False(t, Equal(a, b), pair)
		assert.False(t, Equal(b, a), pair)
	}
}

func TestGradeAnswer(t *testing.T) {
	assert.True(t, GradeAnswer("The answer is that she makes 18 dollars a day.", "18").Right)
	assert.False(t, GradeAnswer("The answer is that 3 hens make 18 dollars a day.", "3").Right, "which number is meant cannot be told")
	assert.False(t, GradeAnswer("I do not know", "18").Right)
	assert.True(t, GradeAnswer("The answer is therefore 18.", "18").Right)
	assert.True(t, GradeAnswer("She made $114,200 in all.", "114200").Right)
	assert.True(t, GradeAnswer("The answer is that she made 114,200 dollars.", "114200").Right)
	assert.False(t, GradeAnswer("She made $114,200 in all.", "200").Right)
	assert.False(t, GradeAnswer(`The answer is 10\sqrt{2}`, "2").Right)
	for _, text := range []string{"The answer is (B) 12.", "Answer: B) 12", "The answer is **option B**.", "The answer is B."} {
		assert.True(t, GradeAnswer(text, "B").Right, text)
		assert.True(t, GradeAnswer(text, "(B)").Right, text)
		assert.False(t, GradeAnswer(text, "A").Right, text)
	}
	for text, right := range map[string]bool{
		`\boxed{\textbf{(B)}\ 12}`: true, `\boxed{(B) 12}`: true, "The answer is (b).": true, "The answer is b": true, "The correct option is B": true, "Thus choice (B) it is": true,
		"The answer is B because A is wrong": true, "The answer is (B), since (A) is wrong": true, "The answer is (A) or (B)": false, "Answer: B and C": false, "The answer is B or C": false,
		"The answer is **B**, not A": true,
	} {
		assert.Equal(t, right, GradeAnswer(text, "B").Right, text)
		assert.Equal(t, right, GradeAnswer(text, `\text{(B)}`).Right, text)
	}
	for _, text := range []string{
		"The answer is 12 because 3*4 = 12 and 5 is wrong", "The answer is 12 (since 3*4 = 12).", "The answer is 12, not 7.", "The answer is 3*4 = 12 eggs.", "The answer should be 12.",
		`\boxed{3 \cdot 4 = 12}`,
	} {
		assert.True(t, GradeAnswer(text, "12").Right, text)
		assert.False(t, GradeAnswer(text, "7").Right, text)
	}
	for _, text := range []string{`\boxed{3} and \boxed{5}`, `$\boxed{x=3}$ or $\boxed{x=5}$`, "The answers are 3 and 5.", "The answers are $x=5$ and $x=3$.", `The answer is \(3\), \(5\).`} {
		assert.True(t, GradeAnswer(text, "3, 5").Right, text)
		assert.False(t, GradeAnswer(text, "5").Right, text)
	}
	assert.True(t, GradeAnswer(`\boxed{3}, so twice that: \boxed{6}`, "6").Right)
	assert.False(t, GradeAnswer("The answer is a) wrong", "A").Right, "an article is no choice")
	for text, gold := range map[string]string{
		"The answer is certainly not 18": "18", "The answer is that she has less than 18 left": "18", "The answer is 1 hour 30 minutes": "1", "The answer is 5 lb 3 oz": "5",
		"The answer is 5 to 7 hours": "5", "The answer is 2 - 1/2": "5/2", "Answer: I don't know": "I", "The answer is I think C": "I", "Yes or no? No.": "yes",
		"True or false: false": "true", "The answer is yes or no": "yes", "Yes and no.": "yes", "No idea": "no", "No clue, sorry.": "no",
		"The answer is at least 18.": "18", "The answer is at most 18 books": "18", "The answer is no more than 18 books": "18", "The answer is up to 18": "18",
		"The answer is anything but 18": "18", "The answer is the square root of 18": "18", "The answer is 18 thousand dollars": "18", "The answer is 18 times 2": "18",
		"The answer isn't 18.": "18", "The answer cannot be 18.": "18", "The answer is not 18. It is 7.": "18", "The answer is neither 18 nor 7.": "18", "答案不是18。": "18",
		"<think>maybe 18": "18", "\\boxed{7} (not \\boxed{18})": "18", "Answer: 7\n\nCheck: 18 - 11 = 7, 7 + 11 = 18": "18", "答案：7，因为 18 - 11 = 7，不是 18。": "18",
		"Réponse : 7\nVérification : 7 + 11 = 18": "18", "The ratio is 3:4": "4", "It ends at 3:30": "30", "It is 1.2e3": "3", "She ate 1 1/2": "1/2", "Christmas is on 2020-12-25": "25",
		"18 eggs cost 9 dollars": "18", "The total is 18 dollars (9 × 2).": "2", "It is 9 × 2 = 19 dollars, not 18.": "18", "18 is the answer, but 5 is odd": "5", "The answer is 1/2 or 1/3.": "1/2",
		"C. Paris\n\nExplanation: Option A is wrong.": "A", "The answer is 18 apples fewer than 34": "18", `\boxed{18 but maybe 34}`: "18", "The answer is $18 and $34": "18",
		"The answer is 18 of 34 apples": "18", "The answer is 18 apples plus 34 apples": "18", "The answer is a divisor of 18": "18", "The answer is different from 18": "18",
		"The answer is that it is minus 18 degrees": "18", "100 degrees Fahrenheit": "100°C", "$75": "75 cents", "It's either 8 or 9.": "9", "The answer is a number bigger than 9": "9",
		"The answer lies between 8 and 9.": "9", "The answer is the 9th number.": "9", "The triangle is not isosceles.": `\text{isosceles}`,
		"Even though it looks so, it is \\boxed{\\text{odd}}.": `\text{even}`, "Evelyn is slower. The answer is Carla.": "Evelyn", `\boxed{\text{Evelyn and Carla}}`: "Evelyn", "The answer is 0 to 5": "0", "The answer is 12 (maybe 13)": "12", "The answer is x^2 for all real numbers": "2", "x^2+1": "1", "B is incorrect, C is correct.": "B", "Option B is incorrect.": "B", "The answer is not B.": "B", "The answer is 20 C.": "C", "An apple": "A", "The correct option is B or C.": "B", "The right choice is not B.": "B",
	} {
		assert.False(t, GradeAnswer(text, gold).Right, text)
	}
	for text, gold := range map[string]string{
		"The answer is that she can't buy more than 18": "18", "The answer is 1 hour 30 minutes": "1 hour 30 minutes",
		"The answer is 5 apples in 3 bags": "5", "The answer is I Paris": "I", "The answer is I because A is wrong": "I", "The answer is 2-1/2": "5/2", "Yes, or so it seems": "yes",
		"The answer is 3 million dollars": "3000000",
		"The answer is not 5 but 7.":      "7", "The answer isn't 5, it's 7.": "7", "The answer is not 5. It is 7.": "7", "The answer is 7 rather than 5.": "7",
		"Final answer: 7. This answer is correct.": "7", "Final answer: 7\nThe answer is in dollars.": "7", "The answer is correct.": "correct",
		"#### Step 1\n3 + 4 = 7\n\n#### Final answer\n7\n\nCheck: 7 - 4 = 3": "7", "#### Step 2: add, and 3 + 4 = 7\nThe answer is 7.": "7", "#### The answer is 7.": "7",
		"**Final answer:**\n\n\\text{seven}\n\nCheck: 7 - 4 = 3": "7", "Answer:\n3 + 4 = 7\n7 + 5 = 12": "12", "**Final Answer**\n\nB": "B",
		"She has **7** apples after 3 days.": "7", "She ate 1 1/2": "3/2", "It is 1.2 × 10^3": "1200", "x^2+1": "x^2 + 1", "New York": "New York", "\\frac{14}{3}": "14/3", "1, -2": "-2, 1",
		"答案是7。检查：7 - 4 = 3": "7", "答えは7です。": "7", "Antwort: 7\nProbe: 7 - 4 = 3": "7", "La réponse est 7. On a 7 - 4 = 3.": "7", "Respuesta: 7 manzanas": "7", "Ответ: 7\n7 - 4 = 3": "7",
		"The answer is (B) 12.": "12", "The answer is 12 (B).": "B", "The answer is 12, which is 3*4.": "12", "The answer is 12 with 90% confidence.": "12", "Answer: 3,5": "3.5",
		"B) 12": "B", "**B**": "B", "(b)": "B", "The answer is still 18.": "18", "The answer is, therefore, 18.": "18", "The answer comes out to 18": "18",
		"The probability is $\\frac{3}{6} = \\frac{1}{2}$.": "1/2", "Thus the polynomial is $x^2+1$.": "x^2 + 1", "The total is 18 dollars (9 × 2).": "18", "It is 9 × 2 = 18 dollars, not 19.": "18",
		"18 is the answer, since 9 * 2 = 18 and 5 is odd.": "18", `{"answer": "18 eggs", "steps": 3}`: "18", "The answer is **$18** per day, because 9*2 = 18.": "18", "The answer is $3, 5,$ and $7$.": "3, 5, 7",
		"The answer is 1/2 (50%).": "1/2", "The answer is 1/2 or 50%.": "1/2", "The required answer is $7+11=\\mathbf{18}$.": "18", "The answer is $(r, \\theta) = (3, \\pi)$.": `(3, \pi)`,
		"The answer is 18.\n\nNote: the answer must be positive.": "18", "The answer is 18. Let me know if this answer is clear.": "18",
		"**C**\n\nExplanation: A is wrong.": "C", "I choose C.": "C", "The answer is the point (2, -3).": "(2, -3)", "The answer is 17, the 7th prime.": "17", "The answer is 1/6, or about 16.7%.": "1/6", "The correct option is (b).": "B", "The correct choice is $\\text{(B)}$.": "B", "The answer is therefore B.": "B", "The answer is “B”.": "B", "Answer: B; 12": "B", "The triangle is isosceles.": `\text{isosceles}`, "July 4th": "July 4", "blue and red": "red, blue", "It will be Friday.": `\text{Friday}`, "48 cubic inches": "48 in^3", "The answer is C, I think.": "C", "Option C is not correct; option D is.": "D",
	} {
		assert.True(t, GradeAnswer(text, gold).Right, text)
	}
	assert.True(t, GradeAnswer("<think>It is citys.</think>\nCities.", "cities").Right)
	assert.False(t, GradeAnswer("<think>it is cities</think>\nCitys.", "cities").Right, "a thought does not count")
	assert.Equal(t, "18", GoldAnswer("9 * 2 = 18\n#### 18"))
	assert.Equal(t, "east", GoldAnswer("east"))
}

// FuzzEqual looks for panics and for endless work; an answer is always equal to itself, and equality has no direction.
func FuzzEqual(f *testing.F) {
	for _, s := range []string{`\frac{1}{2}`, `1\pm\sqrt[3]{x}`, "((((((", `\boxed{`, "5!!!!!!", "9^9^9^9", `\{1,2\}`, "1e999", "|x|", `\sin^2 x`, "⦃", `\log_2 8`, "three hundred and forty-two",
		"3:30 pm", "2020-03-04", `5 > x \ge 2`, "6'2", "Conclusion: although the answer is right, it is not", "The answer is not 5 but 7", "0.333...", "答案：12个", "1:2:3", "6 sq. ft/h"} {
		f.Add(s, `\dfrac{2}{4}`)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if len(a)+len(b) > 500 {
			return
		}
		GradeAnswer(a, b)
		Judge(a, DefaultThresholds())
		if Equal(a, b) != Equal(b, a) {
			t.Errorf("%q and %q: equal one way only", a, b)
		}
		if c := clean(a); c != "" && !Equal(a, a) {
			t.Errorf("%q is not equal to itself", a)
		}
	})
}

// leastAgreement is the share of GSM8K's own gradings that ours must agree with.
const leastAgreement = 0.99

func TestAgreesWithGSM8K(t *testing.T) {
	type graded struct {
		IsCorrect bool   `json:"is_correct"`
		Solution  string `json:"solution"`
	}
	rows := sharedRows[struct {
		Truth string `json:"ground_truth"`
		A     graded `json:"6b_finetuning"`
		B     graded `json:"6b_verification"`
		C     graded `json:"175b_finetuning"`
		D     graded `json:"175b_verification"`
	}](t, "gsm8k", "example_model_solutions.jsonl")
	n, agree := 0, 0
	marks := map[string]int{}
	for i, r := range rows {
		gold := ExtractAnswer(r.Truth).Text
		require.NotEmpty(t, gold, "row %d", i)
		for k, s := range []graded{r.A, r.B, r.C, r.D} {
			g := GradeAnswer(s.Solution, gold)
			marks[g.Mark]++
			if n++; g.Right == s.IsCorrect {
				agree++
				continue
			}
			t.Logf("row %d, model %d: read %q (%s), gold %q, is_correct %v", i, k, g.Text, g.Mark, gold, s.IsCorrect)
		}
	}
	t.Logf("%d of %d gradings agree (%.2f %%); marks %v", agree, n, 100*float64(agree)/float64(n), marks)
	assert.GreaterOrEqual(t, float64(agree)/float64(n), leastAgreement)
	assert.Equal(t, 5276, n)
}

// respelled gives other spellings of an answer that mean the same.
func respelled(answer string) map[string]string {
	forms := map[string]string{
		"itself": answer, "in dollars": "$" + answer + "$", "with a full stop": answer + ".",
		"dfrac": strings.ReplaceAll(answer, `\frac`, `\dfrac`), "tight": strings.ReplaceAll(answer, ", ", ","),
		"no sizes":    strings.NewReplacer(`\left`, "", `\right`, "").Replace(answer),
		"wide":        strings.NewReplacer("+", " + ", `,\!`, `,\!`, ",", ", ").Replace(answer),
		"extracted":   ExtractAnswer(`Hence it is $\boxed{` + answer + `}$.`).Text,
		"as Minerva":  ExtractAnswer(`The final answer is $` + answer + `$. I hope it is correct.`).Text,
		"as sentence": ExtractAnswer(`So the answer is $` + answer + `$.`).Text,
	}
	if n, err := strconv.Atoi(answer); err == nil {
		forms["decimal"], forms["sum"], forms["fraction"] = answer+".00", fmt.Sprintf("%d + 1 - 1", n), fmt.Sprintf(`\frac{%d}{3}`, 3*n)
		forms["units"], forms["apples"] = answer+`\text{ units}`, answer+" apples"
		if n >= 1000 {
			forms["thousands"] = fmt.Sprintf("%d,%03d", n/1000, n%1000)
			if n >= 1000000 {
				delete(forms, "thousands")
			}
		}
	}
	if m := regexp.MustCompile(`^(-?)\\d?frac\{(\d+)\}\{(\d+)\}$`).FindStringSubmatch(answer); m != nil {
		a, _ := strconv.Atoi(m[2])
		b, _ := strconv.Atoi(m[3])
		forms["plain fraction"] = m[1] + m[2] + "/" + m[3]
		forms["scaled fraction"] = fmt.Sprintf(`%s\frac{%d}{%d}`, m[1], 7*a, 7*b)
		forms["rounded"] = fmt.Sprintf("%s%.6f", m[1], float64(a)/float64(b))
	}
	if strings.Contains(answer, `\sqrt{`) {
		forms["power"] = regexp.MustCompile(`\\sqrt\{([^{}]*)\}`).ReplaceAllString(answer, `($1)^{1/2}`)
	}
	return forms
}

var firstNumber = regexp.MustCompile(`\d+`)

// altered gives other answers: the first number is another, or where there is none, the text is.
func altered(answer string) map[string]string {
	forms := map[string]string{}
	if at := firstNumber.FindStringIndex(answer); at != nil {
		n, _ := strconv.Atoi(answer[at[0]:at[1]])
		forms["one more"] = answer[:at[0]] + strconv.Itoa(n+1) + answer[at[1]:]
		forms["a digit more"] = answer[:at[1]] + "1" + answer[at[1]:]
	} else {
		forms["another"] = "not " + strings.Trim(answer, "$")
	}
	if n, err := strconv.Atoi(answer); err == nil {
		forms["a tenth"] = strconv.FormatFloat(float64(n)/10, 'f', -1, 64)
		forms["twice"] = strconv.Itoa(2 * n)
		forms["negative"] = strconv.Itoa(-n)
		if n == 0 {
			delete(forms, "a tenth")
			delete(forms, "twice")
			delete(forms, "negative")
		}
	}
	return forms
}

func TestMATHAnswers(t *testing.T) {
	rows := sharedRows[struct{ Answer, Solution string }](t, "math500", "test.jsonl")
	require.Len(t, rows, 500)
	same, sameOK, other, otherOK, solutions := 0, 0, 0, 0, 0
	for i, r := range rows {
		if GradeAnswer(r.Solution, r.Answer).Right {
			solutions++
		} else {
			t.Logf("row %d: of its solution %q was read, the answer is %q", i, ExtractAnswer(r.Solution).Text, r.Answer)
		}
		for name, form := range respelled(r.Answer) {
			if same++; assert.True(t, Equal(form, r.Answer), "row %d, %s: %q should be %q", i, name, form, r.Answer) {
				sameOK++
			}
		}
		for name, form := range altered(r.Answer) {
			if other++; assert.False(t, Equal(form, r.Answer), "row %d, %s: %q should not be %q", i, name, form, r.Answer) {
				otherOK++
			}
		}
	}
	t.Logf("%d of %d respelled answers accepted, %d of %d altered ones refused, %d of 500 solutions graded right", sameOK, same, otherOK, other, solutions)
	assert.Equal(t, 500, solutions)
}
