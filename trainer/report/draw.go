package report

import (
	"fmt"
	"html/template"
	"math"
	"strings"

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

// plot maps steps and losses to a picture, losses logarithmically.
type plot struct {
	steps     int
	low, high float64
}

const plotWidth, plotHeight, plotLeft, plotBottom, plotTop, plotRight = 760.0, 280.0, 48.0, 30.0, 10.0, 12.0

func (p plot) x(step int) float64 {
	return plotLeft + float64(step)/float64(p.steps)*(plotWidth-plotLeft-plotRight)
}

func (p plot) y(loss float64) float64 {
	return plotTop + math.Log(p.high/loss)/math.Log(p.high/p.low)*(plotHeight-plotBottom-plotTop)
}

// curves draws training losses as lines and held-out losses as rings. It is empty when there is nothing to draw.
func curves(arms []Arm) template.HTML {
	p := plot{steps: 1, low: math.Inf(1), high: math.Inf(-1)}
	for _, a := range arms {
		for _, points := range [][]Point{a.Training, a.HeldOut} {
			for _, q := range points {
				p.steps = max(p.steps, q.Step)
				p.low, p.high = min(p.low, q.Loss), max(p.high, q.Loss)
			}
		}
	}
	if !(p.low > 0) || math.IsInf(p.low, 0) {
		return ""
	}
	// Whole powers of two, so that the grid has ends.
	p.low, p.high = math.Exp2(math.Floor(math.Log2(p.low))), math.Exp2(math.Ceil(math.Log2(p.high)))
	if p.low == p.high {
		p.high *= 2
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" class="plot" role="img" aria-label="loss by step">`, plotWidth, plotHeight)
	p.grid(&b)
	for i, a := range arms {
		p.line(&b, a.Training, i)
		for _, q := range a.HeldOut {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="none" stroke="%s" stroke-width="2"/>`, p.x(q.Step), p.y(q.Loss), color(i))
		}
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) // numbers and our own markup only
}

func (p plot) grid(b *strings.Builder) {
	for loss := p.low; loss <= p.high; loss *= 2 {
		fmt.Fprintf(b, `<path class="grid" d="M%g %.1fH%g"/><text x="%g" y="%.1f" text-anchor="end">%.3g</text>`,
			plotLeft, p.y(loss), plotWidth-plotRight, plotLeft-6, p.y(loss)+4, loss)
	}
	labels := min(5, p.steps)
	for i := range labels + 1 {
		step := p.steps * i / labels
		fmt.Fprintf(b, `<text x="%.1f" y="%g" text-anchor="middle">%d</text>`, p.x(step), plotHeight-plotBottom+16, step)
	}
	fmt.Fprintf(b, `<text x="%g" y="%g" text-anchor="end">step</text>`, plotWidth-plotRight, plotHeight-2)
}

func (p plot) line(b *strings.Builder, points []Point, arm int) {
	if len(points) == 0 {
		return
	}
	fmt.Fprintf(b, `<path class="line" stroke="%s" d="`, color(arm))
	for i, q := range points {
		fmt.Fprintf(b, "%c%.1f %.1f", "ML"[min(i, 1)], p.x(q.Step), p.y(q.Loss))
	}
	b.WriteString(`"/>`)
}
