// Package report writes the page that shows what a comparison of training methods gave: one HTML file that needs nothing
// else, with loss curves, a table with intervals, samples side by side, and a reading of the numbers.
package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"

	"cftune/trainer/evaluate"
)

// Page is everything that the report shows.
type Page struct {
	Title   string
	Intro   string
	Facts   []Fact // how it was made
	Arms    []Arm
	Reading []string // conclusions, drawn from the numbers
	Samples []Sample
}

// Fact is a line of the recipe.
type Fact struct{ Name, Value string }

// Arm is one model of the comparison.
type Arm struct {
	Name        string
	Description string
	Loss        []Point // training loss by step
	Verdicts    evaluate.Share
	RightShare  evaluate.Share // how many verdicts were "right"
	NoVerdict   int
	Strict      evaluate.Share
	Loose       evaluate.Share
	Drift       evaluate.Share       // direct answers that have the form of a critique
	Unended     int                  // direct answers that did not end by themselves
	MeanTokens  float64              // of a direct answer
	VersusBase  *evaluate.Difference // strict answers, nil for the base model
	LooseVsBase *evaluate.Difference
	Seconds     float64 // of training
}

// Point is a place of a curve.
type Point struct {
	Step int
	Loss float64
}

// Sample is a question with every arm's texts.
type Sample struct {
	Question, Gold, Candidate string
	Label                     string
	Answers, Critiques        []string // in the order of the arms
}

//go:embed page.html
var source string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"percent": percent, "interval": interval, "chart": chart, "difference": difference, "bar": bar, "color": color,
}).Parse(source))

// Write writes the page.
func Write(w io.Writer, p Page) error {
	if err := page.Execute(w, p); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func percent(x float64) string { return fmt.Sprintf("%.1f %%", 100*x) }

func interval(s evaluate.Share) string {
	return fmt.Sprintf("%.0f–%.0f %%", 100*s.Low, 100*s.High)
}

func difference(c *evaluate.Difference) string {
	if c == nil {
		return "—"
	}
	return fmt.Sprintf("%+.1f points (%+.1f to %+.1f), p = %.2g", 100*c.Value, 100*c.Low, 100*c.High, c.P)
}

var colors = []string{"#6b7280", "#b45309", "#1d4ed8", "#047857", "#be185d"}

func color(i int) string { return colors[i%len(colors)] }

// bar draws a share with its interval on a scale from 0 to 1; mark is a dashed line.
func bar(s evaluate.Share, mark float64, i int) template.HTML {
	const width, height = 180, 18
	x := func(v float64) float64 { return 2 + v*(width-4) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg width="%d" height="%d" role="img" aria-label="%s">`, width, height, percent(s.Value()))
	fmt.Fprintf(&b, `<rect x="2" y="5" width="%d" height="8" fill="#e5e7eb"/>`, width-4)
	fmt.Fprintf(&b, `<rect x="2" y="5" width="%.1f" height="8" fill="%s"/>`, s.Value()*(width-4), color(i))
	fmt.Fprintf(&b, `<path d="M%.1f 9H%.1fM%.1f 3V15M%.1f 3V15" stroke="#111" fill="none"/>`, x(s.Low), x(s.High), x(s.Low), x(s.High))
	if mark > 0 {
		fmt.Fprintf(&b, `<path d="M%.1f 0V18" stroke="#dc2626" stroke-dasharray="2 2"/>`, x(mark))
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) // numbers and our own markup only
}

// chart draws the loss curves of all arms, with a logarithmic scale of losses.
func chart(arms []Arm) template.HTML {
	const width, height, left, bottom = 720.0, 260.0, 50.0, 30.0
	steps, low, high := 1, math.Inf(1), math.Inf(-1)
	for _, a := range arms {
		for _, p := range a.Loss {
			steps = max(steps, p.Step)
			low, high = min(low, p.Loss), max(high, p.Loss)
		}
	}
	if low > high || low <= 0 {
		return ""
	}
	if low == high {
		low, high = low/2, high*2
	}
	x := func(step int) float64 { return left + float64(step-1)/float64(max(1, steps-1))*(width-left-10) }
	y := func(loss float64) float64 {
		return 10 + (math.Log(high)-math.Log(loss))/(math.Log(high)-math.Log(low))*(height-bottom-10)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" class="chart" role="img" aria-label="training loss by step">`, width, height)
	for e := math.Floor(math.Log2(low)); e <= math.Ceil(math.Log2(high)); e++ {
		loss := math.Exp2(e)
		if loss < low || loss > high {
			continue
		}
		fmt.Fprintf(&b, `<path d="M%g %.1fH%g" stroke="#e5e7eb"/><text x="%g" y="%.1f" text-anchor="end">%.3g</text>`, left, y(loss), width-10, left-6, y(loss)+4, loss)
	}
	for i, a := range arms {
		if len(a.Loss) == 0 {
			continue
		}
		var path strings.Builder
		for j, p := range a.Loss {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(j, 1)], x(p.Step), y(p.Loss))
		}
		fmt.Fprintf(&b, `<path d="%s" stroke="%s" stroke-width="1.6" fill="none"/>`, path.String(), color(i))
	}
	fmt.Fprintf(&b, `<text x="%g" y="%g">step 1</text><text x="%g" y="%g" text-anchor="end">step %d</text></svg>`, left, height-8, width-10, height-8, steps)
	return template.HTML(b.String()) // numbers and our own markup only
}
