package dashboard

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"

	"cftune/trainer/chart"
)

// The sizes of pictures. A column is what one stroke stands for.
const (
	wide, wideHeight     = 760.0, 280.0
	narrow, narrowHeight = 400.0, 190.0
	wideColumns          = 340
	narrowColumns        = 160
	tips                 = 100 // places at which a pointer is told the numbers
	sparkWidth           = 120.0
	sparkHeight          = 26.0
	sparkColumns         = 60
)

// line is a curve of a picture.
type line struct {
	name   string
	curve  *curve
	column int
	number int // of its color
	smooth bool
	dash   string
}

// picture is a chart of one quantity.
type picture struct {
	label         string
	lines         []line
	over          axis
	text          func(float64) string // of a value, for people
	unit          float64              // of the vertical axis' ticks; 0 is 1
	fromZero      bool
	width, height float64
	columns       int
	marks         func(*chart.Chart) // drawn over the lines, if it is not nil
}

// bounds are the data's.
func (p picture) bounds() (left, right, low, high float64) {
	left, right, low, high = math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	for _, l := range p.lines {
		for i := range l.curve.buckets {
			b := &l.curve.buckets[i]
			x := p.over.of(b)
			left, right = min(left, x), max(right, x)
			low, high = min(low, b.stats[l.column].low), max(high, b.stats[l.column].high)
		}
	}
	return left, right, low, high
}

// draw returns the picture; empty if there is nothing to draw.
func (p picture) draw() template.HTML {
	left, right, low, high := p.bounds()
	if !(right >= left) || math.IsInf(high, 0) || math.IsInf(low, 0) {
		return ""
	}
	for _, v := range []float64{left, right, low, high} {
		if math.Abs(v) > chart.Most {
			return template.HTML(fmt.Sprintf(`<p class="soft">Numbers such as %.3g cannot be drawn.</p>`, v))
		}
	}
	c := &chart.Chart{Width: p.width, Height: p.height, Left: left, Right: right}
	widen(&c.Left, &c.Right)
	p.scale(c, low, high)
	p.tickX(c)
	var told [][]told
	for _, l := range p.lines {
		buckets := l.curve.thin(p.columns, p.over)
		if len(buckets) == 0 {
			continue
		}
		p.drawLine(c, l, buckets)
		told = append(told, p.tell(l, buckets))
	}
	if p.marks != nil {
		p.marks(c)
	}
	return c.HTML(p.label, "data-tips", tipsText(c, p.over, told))
}

// widen makes room between bounds that are the same, or so close that numbers between them are.
func widen(low, high *float64) {
	if *high-*low <= math.Abs(*high)*1e-12 {
		*high = *low + max(math.Abs(*low)/10, 1)
	}
}

// scale sets the vertical axis: logarithmic where the data are of several magnitudes and none is zero.
func (p picture) scale(c *chart.Chart, low, high float64) {
	if p.fromZero {
		low = min(low, 0)
	} else if low > 0 && high/low > 4 && c.LogBounds(low, high) {
		return
	}
	if high-low <= math.Abs(high)*1e-9 {
		high = low + max(math.Abs(low)/10, 1e-9)
	}
	unit := cmp.Or(p.unit, 1)
	ticks := chart.Ticks(low/unit, high/unit, 4)
	step := unit * (ticks[min(1, len(ticks)-1)] - ticks[0])
	if !(step > 0) {
		step = high - low
	}
	first, last := math.Floor(low/step+1e-9), math.Ceil(high/step-1e-9)
	c.Low, c.High = first*step, max(last, first+1)*step
	for i := range maxTicks {
		if v := (first+float64(i))*step + 0; v <= c.High+step/1e6 { // + 0: not -0
			c.TickY(v, axisText(p.text(v)))
		}
	}
}

// maxTicks bounds those of an axis; there are four or five.
const maxTicks = 12

// axisText makes a number short enough to stand beside the picture.
func axisText(text string) string {
	if v, err := strconv.ParseFloat(text, 64); err == nil && len(text) > 6 {
		return fmt.Sprintf("%.2g", v)
	}
	return strings.Replace(strings.Replace(text, ".0 ", " ", 1), ".00 ", " ", 1)
}

// timeSteps are between what the axis of times may have for ticks, in seconds.
var timeSteps = []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800}

func (p picture) tickX(c *chart.Chart) {
	n := 5
	if p.width < wide {
		n = 4
	}
	if p.over.name == overTime.name {
		i := slices.IndexFunc(timeSteps, func(step float64) bool { return (c.Right-c.Left)/step <= float64(n) })
		step := timeSteps[max(i, 0)]
		if i < 0 {
			step = (c.Right - c.Left) / float64(n)
		}
		for i := range maxTicks {
			if at := (math.Ceil(c.Left/step) + float64(i)) * step; at <= c.Right {
				c.TickX(at, seconds(at))
			}
		}
	} else {
		for _, at := range chart.Ticks(c.Left, c.Right, n) {
			if at == math.Trunc(at) {
				c.TickX(at, short(at))
			}
		}
	}
	c.NameX(p.over.name)
}

func (p picture) drawLine(c *chart.Chart, l line, buckets []bucket) {
	xs, lows, highs, means := make([]float64, len(buckets)), make([]float64, len(buckets)), make([]float64, len(buckets)), make([]float64, len(buckets))
	single := true
	for i := range buckets {
		b := &buckets[i]
		xs[i], lows[i], highs[i], means[i] = p.over.of(b), b.stats[l.column].low, b.stats[l.column].high, b.mean(l.column)
		single = single && b.n == 1
	}
	color, class := chart.Color(l.number), ""
	if l.smooth {
		class = "faint"
	}
	switch {
	case single:
		c.Line(xs, means, color, class, l.dash)
	case l.smooth:
		c.Columns(xs, lows, highs, color, "range")
	default:
		c.Columns(xs, lows, highs, color, "range")
		c.Line(xs, means, color, "", l.dash)
	}
	if l.smooth {
		c.Line(xs, smooth(buckets, l.column), color, "strong", l.dash)
	}
	if single && len(xs) < 40 && !l.smooth {
		for i := range xs {
			c.Dot(xs[i], means[i], color)
		}
	}
}

// told is what a pointer over a place is told of one line.
type told struct {
	x    float64
	text string
}

func (p picture) tell(l line, buckets []bucket) []told {
	var smoothed []float64
	if l.smooth {
		smoothed = smooth(buckets, l.column)
	}
	every := max(1, (len(buckets)+tips-1)/tips)
	var list []told
	for i := 0; i < len(buckets); i += every {
		b := &buckets[i]
		text := p.text(b.mean(l.column))
		if l.smooth {
			text = p.text(smoothed[i]) + " smoothed, " + text + map[bool]string{true: " this step", false: " mean"}[b.n == 1]
		}
		if s := b.stats[l.column]; b.n > 1 && s.low != s.high {
			text += " (" + p.text(s.low) + "–" + p.text(s.high) + ")"
		}
		if l.name != "" {
			text = l.name + " " + text
		}
		list = append(list, told{p.over.of(b), text})
	}
	return list
}

// tipsText is what the page's script reads: for each line the places in the picture, and the texts.
func tipsText(c *chart.Chart, over axis, lines [][]told) string {
	type place struct {
		X    float64 `json:"x"`
		At   string  `json:"at"`
		Text string  `json:"t"`
	}
	all := make([][]place, len(lines))
	for i, line := range lines {
		for _, t := range line {
			at := over.name + " " + fmt.Sprintf("%.0f", t.x)
			if over.name == overTime.name {
				at = seconds(t.x)
			}
			all[i] = append(all[i], place{math.Round(c.X(t.x)), at, t.text})
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return "[]" // texts and finite numbers have JSON
	}
	return string(text)
}

// spark draws a curve's course without axes.
func spark(c *curve, column int) template.HTML {
	buckets := c.thin(sparkColumns, overSteps)
	if len(buckets) < 2 {
		return ""
	}
	low, high := math.Inf(1), math.Inf(-1)
	smoothed := smooth(buckets, column)
	for _, v := range smoothed {
		low, high = min(low, v), max(high, v)
	}
	if low < -chart.Most || high > chart.Most {
		return ""
	}
	widen(&low, &high)
	first, last := overSteps.of(&buckets[0]), overSteps.of(&buckets[len(buckets)-1])
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="spark" viewBox="0 0 %g %g" role="img" aria-label="loss from %s to %s"><path d="`, sparkWidth, sparkHeight,
		number(smoothed[0]), number(smoothed[len(smoothed)-1]))
	for i, v := range smoothed {
		x := 1 + (overSteps.of(&buckets[i])-first)/(last-first)*(sparkWidth-2)
		fmt.Fprintf(&b, "%c%.1f %.1f", "ML"[min(i, 1)], x, 2+(high-v)/(high-low)*(sparkHeight-4))
	}
	b.WriteString(`"/></svg>`)
	return template.HTML(b.String()) // numbers and our own markup
}
