package metrics

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Progress shows people how a run goes. Nothing may be shown after Close.
type Progress interface {
	Sink
	// Note shows a line of text.
	Note(text string)
}

// quiet is the part of a display that shows nothing: a skip is told by a note, and checkpoints come as a matter of course.
type quiet struct{}

func (quiet) Skip(Skip)            {}
func (quiet) Saved(int, time.Time) {}

// pace estimates the time left from a smoothed time of a step, checkpoints and validation included.
type pace struct {
	total   int
	last    time.Time
	perStep float64 // seconds
}

// smoothing is the weight of the newest step: about the last ten count.
const smoothing = 0.1

func (p *pace) left(s Step) time.Duration {
	taken := s.Seconds
	if !p.last.IsZero() {
		taken = max(taken, s.Time.Sub(p.last).Seconds()) // the clock may have been set back
	}
	p.last = s.Time
	if p.perStep == 0 {
		p.perStep = taken
	}
	p.perStep += smoothing * (taken - p.perStep)
	left := time.Duration(float64(p.total-s.Step) * p.perStep * float64(time.Second))
	return left.Round(time.Second)
}

func (v Validation) text() string {
	of := ""
	if v.Objective != "" {
		of = " of " + v.Objective
	}
	return fmt.Sprintf("step %d: validation loss%s %.4f over %d targets", v.Step, of, v.Loss, v.Targets)
}

type lines struct {
	quiet
	w    io.Writer
	pace pace
}

// NewLines shows a line of text for each step of a run of total steps: for logs.
func NewLines(w io.Writer, total int) Progress { return &lines{w: w, pace: pace{total: total}} }

func (l *lines) Step(s Step) {
	l.Note(fmt.Sprintf("step %d/%d: loss %.4f, lr %.3g, grad norm %.3g, %.0f tokens/s, %.0f targets/s, ETA %s",
		s.Step, l.pace.total, s.Loss, s.LR, s.GradNorm, s.TokensPerS, s.TargetTokensPerS, l.pace.left(s)))
}

func (l *lines) Validation(v Validation) { l.Note(v.text()) }

// A terminal or log that went away does not end a run.
func (l *lines) Note(text string) { _, _ = fmt.Fprintln(l.w, text) }

func (l *lines) Close() {}

type bar struct {
	quiet
	progress *mpb.Progress
	bar      *mpb.Bar
	pace     pace

	mu   sync.Mutex // the display is drawn by a goroutine of its own
	last Step
	left time.Duration
}

// NewBar shows a bar with loss, learning rate, speed and the time left: for terminals. The run is at step first.
func NewBar(w io.Writer, first, total int) Progress { return newBar(w, first, total) }

func newBar(w io.Writer, first, total int, options ...mpb.ContainerOption) *bar {
	b := &bar{pace: pace{total: total}}
	b.progress = mpb.New(append([]mpb.ContainerOption{mpb.WithOutput(w)}, options...)...)
	b.bar = b.progress.New(int64(total), mpb.BarStyle().Rbound("]"),
		mpb.PrependDecorators(decor.CountersNoUnit("step %d/%d ")),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.status() })),
	)
	b.bar.SetCurrent(int64(first))
	return b
}

func (b *bar) status() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last.Step == 0 {
		return " first step"
	}
	return fmt.Sprintf(" loss %.4f lr %.1e %.0f tok/s %.0f targets/s ETA %s",
		b.last.Loss, b.last.LR, b.last.TokensPerS, b.last.TargetTokensPerS, b.left)
}

func (b *bar) Step(s Step) {
	b.mu.Lock()
	b.last, b.left = s, b.pace.left(s)
	b.mu.Unlock()
	b.bar.SetCurrent(int64(s.Step))
}

func (b *bar) Validation(v Validation) { b.Note(v.text()) }

func (b *bar) Note(text string) { _, _ = fmt.Fprintln(b.progress, text) }

func (b *bar) Close() {
	b.bar.Abort(false) // a bar that is full is complete already
	b.progress.Wait()
}
