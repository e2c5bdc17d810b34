// Package chart draws lines over two axes as SVG, for every page that this program writes. How it looks is the style
// sheet's of trainer/report: classes plot, grid, line.
//
// It knows nothing of what it draws. Texts are escaped; colors are the caller's own, never anybody's input.
package chart

import (
	"fmt"
	"html/template"
	"math"
	"strings"
)

// Colors are told apart also by people who see few colors, on light and on dark ground.
var Colors = []string{"#0a84d6", "#d55e00", "#009e73", "#b07aa1", "#e69f00", "#56b4e9", "#a5764a", "#cc79a7", "#8a8f98"}

// Color returns a color by number; after the last one they come again.
func Color(i int) string { return Colors[i%len(Colors)] }

// The margins within the picture: room for the ticks' texts.
const (
	MarginLeft   = 56.0
	MarginRight  = 12.0
	MarginTop    = 10.0
	MarginBottom = 30.0
)

// Chart is a picture under way. The zero value of the sizes is not useful: set Width, Height, and the data's bounds.
type Chart struct {
	Width, Height float64
	// Left, Right, Low and High are bounds of the data.
	Left, Right, Low, High float64
	Logarithmic            bool // the vertical axis

	body strings.Builder
}

// X is where a value lies in the picture, from the left.
func (c *Chart) X(v float64) float64 {
	return MarginLeft + (v-c.Left)/(c.Right-c.Left)*(c.Width-MarginLeft-MarginRight)
}

// Y is where a value lies in the picture, from the top.
func (c *Chart) Y(v float64) float64 {
	at := (c.High - v) / (c.High - c.Low)
	if c.Logarithmic {
		at = math.Log(c.High/v) / math.Log(c.High/c.Low)
	}
	return MarginTop + at*(c.Height-MarginTop-MarginBottom)
}

// TickX names a place of the horizontal axis.
func (c *Chart) TickX(v float64, text string) {
	anchor, x := "middle", c.X(v)
	if x > c.Width-2*MarginRight && len(text) > 3 {
		anchor, x = "end", c.Width-2 // it would be cut off
	}
	fmt.Fprintf(&c.body, `<text x="%.1f" y="%g" text-anchor="%s">%s</text>`, x, c.Height-MarginBottom+16, anchor, template.HTMLEscapeString(text))
}

// TickY names a place of the vertical axis and draws a line across.
func (c *Chart) TickY(v float64, text string) {
	fmt.Fprintf(&c.body, `<path class="grid" d="M%g %.1fH%g"/><text x="%g" y="%.1f" text-anchor="end">%s</text>`,
		MarginLeft, c.Y(v), c.Width-MarginRight, MarginLeft-6, c.Y(v)+4, template.HTMLEscapeString(text))
}

// NameX says what the horizontal axis has.
func (c *Chart) NameX(text string) {
	fmt.Fprintf(&c.body, `<text class="name" x="%g" y="%g" text-anchor="end">%s</text>`, c.Width-MarginRight, c.Height-2, template.HTMLEscapeString(text))
}

// Line draws a line through the points. class names more of its style, dash is as SVG has it; both may be empty.
func (c *Chart) Line(xs, ys []float64, color, class, dash string) {
	if len(xs) == 0 {
		return
	}
	fmt.Fprintf(&c.body, `<path class="%s" stroke="%s"`, strings.TrimSpace("line "+class), color)
	if dash != "" {
		fmt.Fprintf(&c.body, ` stroke-dasharray="%s"`, dash)
	}
	c.body.WriteString(` d="`)
	for i := range xs {
		fmt.Fprintf(&c.body, "%c%.1f %.1f", "ML"[min(i, 1)], c.X(xs[i]), c.Y(ys[i]))
	}
	c.body.WriteString(`"/>`)
}

// Columns draws upright strokes from lows to highs, joined to each other: what many values within a pixel's width cover.
func (c *Chart) Columns(xs, lows, highs []float64, color, class string) {
	if len(xs) == 0 {
		return
	}
	fmt.Fprintf(&c.body, `<path class="%s" stroke="%s" d="M`, strings.TrimSpace("line "+class), color)
	for i := range xs {
		fmt.Fprintf(&c.body, "%.1f %.1fV%.1f", c.X(xs[i]), c.Y(lows[i]), c.Y(highs[i]))
		if i+1 < len(xs) {
			c.body.WriteString("L")
		}
	}
	c.body.WriteString(`"/>`)
}

// Ring draws a ring around a point.
func (c *Chart) Ring(x, y float64, color string) {
	fmt.Fprintf(&c.body, `<circle cx="%.1f" cy="%.1f" r="4" fill="none" stroke="%s" stroke-width="2"/>`, c.X(x), c.Y(y), color)
}

// Mark draws an upright line at a place of the horizontal axis, with a title that pointers show.
func (c *Chart) Mark(x float64, class, title string) {
	fmt.Fprintf(&c.body, `<path class="%s" d="M%.1f %gV%g">%s</path>`, class, c.X(x), MarginTop, c.Height-MarginBottom, titleElement(title))
}

// Area fills what lies between lows and highs.
func (c *Chart) Area(xs, lows, highs []float64, color string) {
	if len(xs) == 0 {
		return
	}
	fmt.Fprintf(&c.body, `<path class="area" fill="%s" d="M`, color)
	for i := range xs {
		fmt.Fprintf(&c.body, "%.1f %.1fL", c.X(xs[i]), c.Y(highs[i]))
	}
	for i := len(xs) - 1; i >= 0; i-- {
		fmt.Fprintf(&c.body, "%.1f %.1f", c.X(xs[i]), c.Y(lows[i]))
		if i > 0 {
			c.body.WriteString("L")
		}
	}
	c.body.WriteString(`Z"/>`)
}

// Bar draws an upright line of its own color, as an interval is shown.
func (c *Chart) Bar(x, low, high float64, color string) {
	fmt.Fprintf(&c.body, `<path d="M%.1f %.1fV%.1f" stroke="%s" stroke-width="1.5"/>`, c.X(x), c.Y(low), c.Y(high), color)
}

func titleElement(text string) string {
	if text == "" {
		return ""
	}
	return "<title>" + template.HTMLEscapeString(text) + "</title>"
}

// HTML returns the picture. label says what it shows to those who do not see it. attributes are name and value in turn.
func (c *Chart) HTML(label string, attributes ...string) template.HTML {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" class="plot" role="img" aria-label="%s"`, c.Width, c.Height, template.HTMLEscapeString(label))
	for i := 0; i+1 < len(attributes); i += 2 {
		fmt.Fprintf(&b, ` %s="%s"`, attributes[i], template.HTMLEscapeString(attributes[i+1]))
	}
	b.WriteString(">" + c.body.String() + "</svg>")
	return template.HTML(b.String()) // numbers, escaped texts and our own markup
}

// LogBounds makes the vertical axis logarithmic between whole powers of two around the data, so that the grid has ends,
// and draws its grid. It returns false if the data has no logarithm.
func (c *Chart) LogBounds(low, high float64) bool {
	if !(low > 0) || !(high >= low) || high > Most || low < 1/Most {
		return false
	}
	c.Logarithmic = true
	c.Low, c.High = math.Exp2(math.Floor(math.Log2(low))), math.Exp2(math.Ceil(math.Log2(high)))
	if c.Low == c.High {
		c.High *= 2
	}
	factor := 2.0
	for c.Low*math.Pow(factor, 8) < c.High {
		factor *= factor // a loss that fell over many powers needs no line for each
	}
	for v := c.Low; v <= c.High; v *= factor {
		c.TickY(v, fmt.Sprintf("%.3g", v))
	}
	return true
}

// Most is the greatest number that can be drawn: differences and sums of such numbers are far from an overflow.
const Most = 1e100

// Ticks returns about n round numbers from low to high.
func Ticks(low, high float64, n int) []float64 {
	if !(high > low) || n < 1 || high > Most || low < -Most {
		return []float64{low}
	}
	step := math.Pow(10, math.Floor(math.Log10((high-low)/float64(n))))
	for _, factor := range []float64{1, 2, 2.5, 5, 10} {
		if (high-low)/(step*factor) <= float64(n) {
			step *= factor
			break
		}
	}
	var ticks []float64
	first := math.Ceil(low/step - 1e-9)
	for i := range 2*n + 2 {
		v := (first+float64(i))*step + 0 // not -0
		if v > high+step*1e-9 {
			break
		}
		if k := len(ticks); k == 0 || v > ticks[k-1] { // large numbers close to each other may be the same
			ticks = append(ticks, v)
		}
	}
	if len(ticks) == 0 {
		return []float64{low}
	}
	return ticks
}

// Dot draws a point.
func (c *Chart) Dot(x, y float64, color string) {
	fmt.Fprintf(&c.body, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`, c.X(x), c.Y(y), color)
}

// Flag draws a small triangle on the horizontal axis, with a title that pointers show.
func (c *Chart) Flag(x float64, class, title string) {
	y := c.Height - MarginBottom
	fmt.Fprintf(&c.body, `<path class="%s" d="M%.1f %gl-5 8h10Z">%s</path>`, class, c.X(x), y-6, titleElement(title))
}
