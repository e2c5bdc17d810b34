// Package report writes the page that shows what a comparison of training methods gave: one HTML file that needs nothing
// else, with a reading of the numbers, tables with intervals, loss curves, and samples side by side.
//
// It draws what it is given. What the numbers mean is the caller's to say.
package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"time"

	"cftune/trainer/evaluate"
)

// Page is everything that the report shows.
type Page struct {
	Title       string
	Intro       []string // paragraphs
	Checks      []Check
	Reading     []string // conclusions, drawn from the numbers
	Arms        []Arm
	Comparisons []Comparison
	Rules       []Rule
	Samples     []Sample
	Rows        []Row // of the training data
	Facts       []Fact
	Commands    []string // to go on with
}

// Check is something that was expected, and whether it came true.
type Check struct {
	Text string `json:"text"`
	Met  bool   `json:"met"`
}

// Fact is a line of the recipe.
type Fact struct{ Name, Value string }

// Arm is one model of the comparison.
type Arm struct {
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Training    []Point   `json:"training,omitempty"` // loss by step
	HeldOut     []Point   `json:"held_out,omitempty"`
	Seconds     float64   `json:"seconds"` // of training
	Judging     Judging   `json:"judging"`
	Answering   Answering `json:"answering"`
}

// Judging is how an arm criticizes others' answers.
type Judging struct {
	Verdicts  evaluate.Share `json:"verdicts"` // that are right
	Accepted  evaluate.Share `json:"accepted"` // right answers that it calls right
	Rejected  evaluate.Share `json:"rejected"` // wrong answers that it calls wrong
	SaidRight evaluate.Share `json:"said_right"`
	None      evaluate.Share `json:"none"`    // critiques without a verdict
	Derived   evaluate.Share `json:"derived"` // critiques that name the right form
	Sound     evaluate.Share `json:"sound"`   // critiques that are right in every word
}

// Answering is how an arm answers questions itself.
type Answering struct {
	Leading    evaluate.Share     `json:"leading"`
	Exact      evaluate.Share     `json:"exact"`
	Anywhere   evaluate.Share     `json:"anywhere"`
	VersusBase *AnswerDifferences `json:"versus_base,omitempty"` // nil for the base model
	Drifted    evaluate.Share     `json:"drifted"`               // answers that have the form of a critique
	Ended      evaluate.Share     `json:"ended"`                 // answers that ended by themselves
	MeanTokens float64            `json:"mean_tokens"`
}

// AnswerDifferences compare an arm's answers with the base model's.
type AnswerDifferences struct {
	Leading  evaluate.Difference `json:"leading"`
	Exact    evaluate.Difference `json:"exact"`
	Anywhere evaluate.Difference `json:"anywhere"`
}

// Comparison is a paired comparison of two arms.
type Comparison struct {
	Better              string `json:"better"`
	Other               string `json:"other"`
	Measure             string `json:"measure"`
	evaluate.Difference        // Better's share minus Other's
}

// Rule is how the arms do on the items of one spelling rule.
type Rule struct {
	Name  string     `json:"name"`
	Items int        `json:"items"`
	Cells []RuleCell `json:"cells,omitempty"` // in the order of the arms
}

// RuleCell counts what is right.
type RuleCell struct {
	Verdicts int `json:"verdicts"`
	Answers  int `json:"answers"`
}

// Point is a place of a curve.
type Point struct {
	Step int     `json:"step"`
	Loss float64 `json:"loss"`
}

// Sample is an item with every arm's texts.
type Sample struct {
	Question, Gold, Candidate, Label string
	Cells                            []SampleCell // in the order of the arms
}

// SampleCell is what an arm wrote.
type SampleCell struct {
	Answer, Critique          string
	AnswerRight, VerdictRight bool
}

// Row is an example of the training data.
type Row struct{ Question, Answer, Label, Critique, Solution, NoisySolution string }

//go:embed page.html
var source string

//go:embed style.css
var style string

// Style is how this package's pages look, for others that are to look alike.
func Style() template.CSS { return template.CSS(style) } // of our own, not of anybody's input

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"percent": percent, "interval": interval, "difference": difference, "curves": curves, "bar": bar, "color": color,
	"style": Style, "count": count, "cell": ruleCell, "duration": duration, "p": pValue,
}).Parse(source))

// Write writes the page.
func Write(w io.Writer, p Page) error {
	if err := page.Execute(w, p); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func percent(x float64) string { return fmt.Sprintf("%.1f %%", 100*x) }

func count(s evaluate.Share) string { return fmt.Sprintf("%d of %d", s.Count, s.N) }

func interval(i evaluate.Interval) string {
	return fmt.Sprintf("%.1f–%.1f %%", 100*i.Low, 100*i.High)
}

func difference(d evaluate.Difference) string {
	return fmt.Sprintf("%+.1f points (%+.1f to %+.1f)", 100*d.Value, 100*d.Low, 100*d.High)
}

// leastP is where p-values are no longer told apart.
const leastP = 0.0001

func pValue(p float64) string {
	if p < leastP {
		return fmt.Sprintf("p < %g", leastP)
	}
	return fmt.Sprintf("p = %.2g", p)
}

func duration(seconds float64) string {
	return (time.Duration(seconds) * time.Second).String()
}
