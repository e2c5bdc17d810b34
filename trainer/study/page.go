package study

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"

	"cftune/trainer/chart"
	"cftune/trainer/report"
)

//go:embed page.html
var source string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"style": report.Style, "wordClass": wordClass, "p": pText, "color": color, "armColor": armColor,
	"percent":    func(x float64) string { return fmt.Sprintf("%.1f", 100*x) },
	"hundred":    func(x float64) float64 { return 100 * x },
	"effects":    drawEffects,
	"shares":     drawShares,
	"corruption": drawCorruption,
	"losses":     drawLosses,
}).Parse(source))

func writePage(w io.Writer, r Report) error { return page.Execute(w, r) }

func wordClass(word string) string {
	switch word {
	case WordYes:
		return "yes"
	case WordNo:
		return "no"
	}
	return "open"
}

// colors of the arms in their order, told apart also by people who see few colors.
var colors = []string{"#8a8f98", "#009e73", "#b07aa1", "#d55e00", "#e69f00", "#7a5230", "#0a84d6", "#cc79a7", "#56b4e9"}

func color(arm int) template.CSS { return template.CSS(colors[arm%len(colors)]) }

func armColor(r Report, name string) template.CSS {
	return color(slices.IndexFunc(r.Spec.Arms, func(a Arm) bool { return a.Name == name }))
}

// dots is a picture of estimates below each other on one scale.
type dots struct {
	low, high, mark float64
	labels          float64 // width of the names
	b               strings.Builder
	rows            int
}

const (
	dotsWidth = 760.0
	dotsRow   = 24.0
	dotsTop   = 22.0
	dotsRight = 60.0
)

func (d *dots) x(v float64) float64 {
	return d.labels + (min(max(v, d.low), d.high)-d.low)/(d.high-d.low)*(dotsWidth-d.labels-dotsRight)
}

func (d *dots) row(name, value string, e Estimate, color template.CSS) {
	y := dotsTop + dotsRow*(float64(d.rows)+0.5)
	d.rows++
	fmt.Fprintf(&d.b, `<text x="0" y="%.1f">%s</text>`, y+4, template.HTMLEscapeString(name))
	fmt.Fprintf(&d.b, `<path d="M%.1f %.1fH%.1f" stroke="%s" stroke-width="3"/><circle cx="%.1f" cy="%.1f" r="5" fill="%s"/>`,
		d.x(e.Low), y, d.x(e.High), color, d.x(e.Value), y, color)
	fmt.Fprintf(&d.b, `<text class="soft" x="%g" y="%.1f" text-anchor="end">%s</text>`, dotsWidth, y+4, value)
}

// draw puts the rows on a ground with ticks. The marked value has a dashed line.
func (d *dots) draw(label string, ticks []float64, unit string) template.HTML {
	height := dotsTop + dotsRow*float64(d.rows) + 4
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="dot" viewBox="0 0 %g %g" role="img" aria-label="%s">`, dotsWidth, height, template.HTMLEscapeString(label))
	for _, t := range ticks {
		fmt.Fprintf(&b, `<path class="grid" d="M%.1f %gV%g"/><text class="soft" x="%.1f" y="12" text-anchor="middle">%.0f%s</text>`, d.x(t), dotsTop-4, height, d.x(t), 100*t, unit)
	}
	if d.mark >= d.low {
		fmt.Fprintf(&b, `<path class="zero" d="M%.1f %gV%g"/>`, d.x(d.mark), dotsTop-4, height)
	}
	b.WriteString(d.b.String() + "</svg>")
	return template.HTML(b.String()) // numbers, escaped names and our own markup
}

// drawEffects shows the claims' differences beside each other.
func drawEffects(claims []Decided) template.HTML {
	reach := 0.1
	for _, c := range claims {
		if e := c.Effect; e != nil {
			reach = max(reach, math.Abs(e.Low), math.Abs(e.High))
		}
	}
	reach = math.Ceil(reach*10) / 10
	d := dots{low: -reach, high: reach, labels: 300}
	for _, c := range claims {
		if e := c.Effect; e != nil {
			name := fmt.Sprintf("%s: %s − %s, %s", c.Set, c.Arm, c.Than, c.Measure)
			if c.Kind == ClaimOthers {
				name = fmt.Sprintf("%s: %s, others’ − own answers", c.Set, c.Arm)
			}
			d.row(name, points(e.Value), e.Estimate, map[string]template.CSS{WordYes: "#0b7a57", WordNo: "#b42318"}[c.Word]+gray(c.Word))
		}
	}
	if d.rows == 0 {
		return ""
	}
	return d.draw("differences with intervals", []float64{-reach, -reach / 2, 0, reach / 2, reach}, "")
}

func gray(word string) template.CSS {
	if word == WordNotShown {
		return "#8a8f98"
	}
	return ""
}

// drawShares shows a measure of a set, arm by arm.
func drawShares(s SetReport, measure string) template.HTML {
	d := dots{low: 0, high: 1, mark: -1, labels: 120}
	if measure == MeasureVerdicts {
		d.mark = 0.5
	}
	for i, m := range s.Models {
		e := m.Answers
		if measure == MeasureVerdicts {
			e = m.Balanced
		}
		if e != nil {
			d.row(m.Arm, fmt.Sprintf("%.1f %%", 100*e.Value), *e, color(i))
		}
	}
	if d.rows == 0 {
		return `<p class="soft">Not measured.</p>`
	}
	return d.draw(measure+" by arm", []float64{0, 0.25, 0.5, 0.75, 1}, " %")
}

const chartWidth, chartHeight = 760.0, 260.0

// drawCorruption shows what wrong critiques do: the arms that learn the same but for them, by their share.
func drawCorruption(r Report) template.HTML {
	arms := corruptionArms(r.Spec)
	if len(arms) < 2 {
		return ""
	}
	c := chart.Chart{Width: chartWidth, Height: chartHeight, Right: max(r.Spec.Arms[arms[len(arms)-1]].Corrupt, 0.01), High: 1}
	for _, v := range []float64{0, 0.25, 0.5, 0.75, 1} {
		c.TickY(v, fmt.Sprintf("%.0f %%", 100*v))
	}
	for _, i := range arms {
		c.TickX(r.Spec.Arms[i].Corrupt, fmt.Sprintf("%.0f %%", 100*r.Spec.Arms[i].Corrupt))
	}
	var legend strings.Builder
	for k, s := range r.Sets {
		for _, measure := range []string{MeasureAnswers, MeasureVerdicts} {
			var xs, ys []float64
			dash := ""
			for _, i := range arms {
				e := s.Models[i].Answers
				if measure == MeasureVerdicts {
					e, dash = s.Models[i].Verdicts, "5 4"
				}
				if e == nil {
					continue
				}
				x := r.Spec.Arms[i].Corrupt
				xs, ys = append(xs, x), append(ys, e.Value)
				c.Bar(x, e.Low, e.High, string(color(k+3)))
			}
			if len(xs) > 0 {
				c.Line(xs, ys, string(color(k+3)), "", dash)
				fmt.Fprintf(&legend, `<span><span class="key" style="background:%s"></span>%s, %s%s</span> `, color(k+3), template.HTMLEscapeString(s.Name), measure,
					map[bool]string{true: " (dashed)"}[dash != ""])
			}
		}
	}
	return template.HTML(`<p class="legend">`+legend.String()+`</p>`) + c.HTML("shares by corruption")
}

// corruptionArms are the places of the arms that differ in corruption only, in its order; the first has none.
func corruptionArms(s Spec) []int {
	key := func(a Arm) string { return fmt.Sprint(a.Stages, a.Answers) }
	var first = -1
	for i, a := range s.Arms {
		if a.Trained() && a.Corrupt == 0 && slices.ContainsFunc(s.Arms, func(b Arm) bool { return b.Corrupt > 0 && key(b) == key(a) }) {
			first = i
			break
		}
	}
	if first < 0 {
		return nil
	}
	var arms []int
	for i, a := range s.Arms {
		if key(a) == key(s.Arms[first]) {
			arms = append(arms, i)
		}
	}
	slices.SortFunc(arms, func(a, b int) int {
		return int(math.Round(1e6 * (s.Arms[a].Corrupt - s.Arms[b].Corrupt)))
	})
	return arms
}

// drawLosses shows the mean loss over seeds, step by step.
func drawLosses(r Report) template.HTML {
	c := chart.Chart{Width: chartWidth, Height: chartHeight, Left: 1, Right: 2}
	low, high := math.Inf(1), math.Inf(-1)
	means := map[string][]float64{}
	for _, a := range r.Arms {
		var mean []float64
		for i := 0; ; i++ {
			sum, n := 0.0, 0
			for _, curve := range a.Curves {
				if i < len(curve.Steps) {
					sum, n = sum+curve.Steps[i].Loss, n+1
				}
			}
			if n == 0 {
				break
			}
			mean = append(mean, sum/float64(n))
			low, high, c.Right = min(low, sum/float64(n)), max(high, sum/float64(n)), max(c.Right, float64(i+1))
		}
		means[a.Arm] = mean
	}
	if !c.LogBounds(low, high) {
		return ""
	}
	for i := range 5 {
		step := 1 + math.Round(float64(i)/4*(c.Right-1))
		c.TickX(step, fmt.Sprintf("%.0f", step))
	}
	for _, a := range r.Arms {
		if ys := means[a.Arm]; len(ys) > 0 {
			xs := make([]float64, len(ys))
			for i := range xs {
				xs[i] = float64(i + 1)
			}
			c.Line(xs, ys, string(armColor(r, a.Arm)), "", "")
		}
	}
	return c.HTML("loss by step")
}
