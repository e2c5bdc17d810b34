package report

import (
	"fmt"
	"html/template"
	"math"
	"strings"

	"cftune/trainer/chart"
	"cftune/trainer/evaluate"
)

// colors of the arms, told apart also by people who see few colors, on light and on dark ground.
var colors = []string{"#8a8f98", "#d55e00", "#0a84d6", "#b07aa1", "#009e73"}

func color(arm int) template.CSS { return template.CSS(colors[arm%len(colors)]) }

// bar draws a share with its interval on a scale from 0 to 1. mark, if above 0, is a dashed line.
func bar(s evaluate.Share, mark float64, arm int) template.HTML {
	const width, height = 200.0, 20.0
	x := func(v float64) float64 { return 1 + v*(width-2) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="bar" viewBox="0 0 %g %g" role="img" aria-label="%s">`, width, height, percent(s.Value()))
	fmt.Fprintf(&b, `<rect class="ground" x="1" y="5" width="%g" height="10" rx="2"/>`, width-2)
	fmt.Fprintf(&b, `<rect x="1" y="5" width="%.1f" height="10" rx="2" fill="%s"/>`, s.Value()*(width-2), color(arm))
	fmt.Fprintf(&b, `<path class="ink" d="M%.1f 10H%.1fM%.1f 6V14M%.1f 6V14"/>`, x(s.Low), x(s.High), x(s.Low), x(s.High))
	if mark > 0 {
		fmt.Fprintf(&b, `<path class="mark" d="M%.1f 0V20"/>`, x(mark))
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) // numbers and our own markup only
}

// ruleCell shades a count by its share.
func ruleCell(right, n int) template.HTML {
	share := 0.0
	if n > 0 {
		share = float64(right) / float64(n)
	}
	return template.HTML(fmt.Sprintf(`<td class="num" style="background:rgba(0,158,115,%.2f)">%d</td>`, 0.45*share*share, right))
}

const plotWidth, plotHeight = 760.0, 280.0

// curves draws training losses as lines and held-out losses as rings. It is empty when there is nothing to draw.
func curves(arms []Arm) template.HTML {
	c := chart.Chart{Width: plotWidth, Height: plotHeight, Right: 1}
	low, high := math.Inf(1), math.Inf(-1)
	for _, a := range arms {
		for _, points := range [][]Point{a.Training, a.HeldOut} {
			for _, q := range points {
				c.Right = max(c.Right, float64(q.Step))
				low, high = min(low, q.Loss), max(high, q.Loss)
			}
		}
	}
	if !c.LogBounds(low, high) {
		return ""
	}
	steps := int(c.Right)
	labels := min(5, steps)
	for i := range labels + 1 {
		step := steps * i / labels
		c.TickX(float64(step), fmt.Sprint(step))
	}
	c.NameX("step")
	for i, a := range arms {
		var xs, ys []float64
		for _, q := range a.Training {
			xs, ys = append(xs, float64(q.Step)), append(ys, q.Loss)
		}
		c.Line(xs, ys, string(color(i)), "", "")
		for _, q := range a.HeldOut {
			c.Ring(float64(q.Step), q.Loss, string(color(i)))
		}
	}
	return c.HTML("loss by step")
}
