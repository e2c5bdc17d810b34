// Package schedule gives the learning rate of each step.
//
// A Schedule is a function of the step's number alone, so a resumed run continues with the rates of an unbroken one.
package schedule

import (
	"fmt"
	"math"
)

// The kinds of schedule.
const (
	Cosine   = "cosine"
	Linear   = "linear"
	Constant = "constant"
)

// Schedule is a warm-up followed by a decay.
type Schedule struct {
	kind     string
	lr       float64
	warmup   int
	total    int
	minRatio float64
}

// New returns a schedule that rises linearly to lr over warmup steps and then decays to lr*minRatio at the end of total
// steps: along half a cosine, along a line, or (constant) not at all.
//
// warmup may exceed total; such a run is all warm-up and ends below lr.
func New(kind string, lr float64, warmup, total int, minRatio float64) (Schedule, error) {
	switch {
	case kind != Cosine && kind != Linear && kind != Constant:
		return Schedule{}, fmt.Errorf("new schedule: kind %q is not cosine, linear or constant", kind)
	case !(lr >= 0) || math.IsInf(lr, 0):
		return Schedule{}, fmt.Errorf("new schedule: lr must be a finite number of at least 0, got %v", lr)
	case warmup < 0:
		return Schedule{}, fmt.Errorf("new schedule: warm-up must be at least 0 steps, got %d", warmup)
	case total < 1:
		return Schedule{}, fmt.Errorf("new schedule: total must be at least 1 step, got %d", total)
	case !(minRatio >= 0 && minRatio <= 1):
		return Schedule{}, fmt.Errorf("new schedule: minimum ratio must be within 0..1, got %v", minRatio)
	}
	return Schedule{kind: kind, lr: lr, warmup: warmup, total: total, minRatio: minRatio}, nil
}

// LR returns the rate of a step, counted from 1.
//
// In warm-up, step s of w has lr*s/w: the first step already learns, where transformers' schedulers spend one step at
// rate 0. After it, step s has what transformers' get_cosine_schedule_with_warmup and get_linear_schedule_with_warmup
// give the s-th optimizer step, so steps w and w+1 both have lr, and the last step is one notch above the minimum
// instead of being spent at it. Steps past total have the minimum.
func (s Schedule) LR(step int) float64 {
	if step < 1 {
		panic(fmt.Sprintf("schedule: step %d: steps count from 1", step))
	}
	if step <= s.warmup {
		return s.lr * float64(step) / float64(s.warmup)
	}
	if s.kind == Constant {
		return s.lr
	}
	progress := 1.0
	if s.total > s.warmup {
		progress = min(1, float64(step-1-s.warmup)/float64(s.total-s.warmup))
	}
	share := 1 - progress
	if s.kind == Cosine {
		share = (1 + math.Cos(math.Pi*progress)) / 2
	}
	return s.lr * (s.minRatio + (1-s.minRatio)*share)
}
