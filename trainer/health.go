package trainer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"cftune/trainer/internal/durable"
	"cftune/trainer/metrics"
)

// spike looks at a step's loss before it is learned from. What is a spike is told, or is an error that wraps ErrSpike.
func (t *Trainer) spike(step int, loss float64) error {
	factor := t.run.Health.LossSpike
	if factor == 0 || len(t.losses) < metrics.SpikeWindow {
		return nil
	}
	median := metrics.Median(t.losses)
	if loss <= factor*median {
		return nil
	}
	err := fmt.Errorf("the loss is %.4g, more than %g times the median of the last %d, %.4g: %w", loss, factor, metrics.SpikeWindow, median, ErrSpike)
	if t.run.Health.OnSpike == "warn" {
		t.progress.Note(fmt.Sprintf("warning: step %d: %v", step, err))
		return nil
	}
	return err
}

// skip leaves the examples of a group out: the next step is made of those after them. It is counted, told and recorded,
// and the same again after a resume. Where no more may be skipped, the group is saved for inspection and the run ends.
func (t *Trainer) skip(ctx context.Context, g group, why *StepError) error {
	stop := errors.Is(why, ErrSpike) && t.run.Health.OnSpike == "stop"
	if most := int64(t.run.Health.MaxSkips); stop || t.counters.Skipped >= most {
		path, err := t.saveGroup(g, why)
		if err != nil {
			return errors.Join(why, err)
		}
		if most > 0 && !stop {
			return fmt.Errorf("%w; %d steps were skipped before (health.max_skips); its examples are in %s", why, t.counters.Skipped, path)
		}
		return fmt.Errorf("%w; its examples are in %s", why, path)
	}
	t.skips = append(t.skips, why)
	t.counters.Skipped++
	t.counters.MicroBatches += uint64(why.counted)
	t.cursor = g.end
	t.progress.Note(fmt.Sprintf("warning: skipped %d examples (%d of %d): %v", g.examples, t.counters.Skipped, t.run.Health.MaxSkips, why))
	return t.keep(ctx, metrics.Skip{
		Step: g.step, Skipped: t.counters.Skipped, Reason: why.Error(), Examples: slices.Concat(g.ids...), Time: time.Now().UTC(),
	})
}

// endsInSkips is an error where a run is over, no step was made, or several were skipped after the last: then it is not
// the examples that are wrong, but the weights.
func (t *Trainer) endsInSkips() error {
	switch n := len(t.skips); {
	case n > 0 && t.done == 0:
		return fmt.Errorf("no step could be made, all were skipped: %w", t.skips[n-1])
	case n > 1:
		return fmt.Errorf("the run ends with %d skipped steps after step %d: %w", n, t.done, t.skips[n-1])
	}
	return nil
}

// badGroup is the file of a group that ended a run.
type badGroup struct {
	Step   int       `json:"step"`
	Reason string    `json:"reason"`
	Packs  []badPack `json:"packs"`
}

// badPack is a pack as the engine got it.
type badPack struct {
	Examples  []string `json:"examples"`
	Tokens    []int32  `json:"tokens"`
	Positions []int32  `json:"positions"`
	Targets   []int32  `json:"targets"` // shifted; -100: none
	// VisibleUntil: query i sees key j when j <= i and i < VisibleUntil[j].
	VisibleUntil []int32   `json:"visible_until"`
	Weights      []float32 `json:"weights"`
}

// saveGroup writes the group that a step was to be made of into the run directory, and returns the file's path.
func (t *Trainer) saveGroup(g group, why error) (string, error) {
	bad := badGroup{Step: g.step, Reason: why.Error()}
	for i, b := range g.batches {
		bad.Packs = append(bad.Packs, badPack{g.ids[i], b.Tokens, b.Positions, b.Targets, b.VisibleUntil, b.Weights})
	}
	path := filepath.Join(t.dir.Dir(), fmt.Sprintf("failed-step-%08d.json", g.step))
	_, err := durable.ReplaceFile(t.options.fs, path, func(w io.Writer) error { return json.NewEncoder(w).Encode(bad) })
	if err != nil {
		return "", fmt.Errorf("save the step's examples: %w", err)
	}
	return path, nil
}

// watchdog calls stalled once whenever no beat came for so long.
type watchdog struct {
	last atomic.Pointer[time.Time] // with the clock that is never set
	step atomic.Int64              // the one that is being made
	done chan struct{}
	gone chan struct{}
}

// startWatchdog starts a goroutine that watches; a timeout of 0 watches nothing.
func startWatchdog(timeout time.Duration, stalled func(idle time.Duration, step int64)) *watchdog {
	w := &watchdog{done: make(chan struct{}), gone: make(chan struct{})}
	w.beat()
	if timeout == 0 {
		close(w.gone)
		return w
	}
	go func() {
		defer close(w.gone)
		var told *time.Time
		tick := time.NewTicker(max(timeout/10, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-w.done:
				return
			case <-tick.C:
			}
			last := w.last.Load()
			if idle := time.Since(*last); idle >= timeout && told != last {
				told = last
				stalled(idle, w.step.Load())
			}
		}
	}()
	return w
}

// beat says that there was progress.
func (w *watchdog) beat() {
	now := time.Now()
	w.last.Store(&now)
}

func (w *watchdog) stop() {
	close(w.done)
	<-w.gone
}

// maxStacks bounds what is written down of a stall.
const maxStacks = 8 << 20

// stalled writes down where every goroutine, and every thread of the engine, stands. The run goes on: it may only be slow.
func (t *Trainer) stalled(idle time.Duration, step int64) {
	stacks := make([]byte, maxStacks)
	stacks = stacks[:runtime.Stack(stacks, true)]
	path := filepath.Join(t.dir.Dir(), "stall-"+time.Now().UTC().Format("20060102T150405Z")+".txt")
	_, err := durable.ReplaceFile(t.options.fs, path, func(w io.Writer) error {
		if _, err := fmt.Fprintf(w, "no progress for %s at step %d\n\ngoroutines\n\n%s\n", idle.Round(time.Second), step, stacks); err != nil {
			return err
		}
		if t.options.NativeStacks == nil {
			return nil
		}
		_, err := fmt.Fprintf(w, "\nnative threads\n\n%s\n", t.options.NativeStacks())
		return err
	})
	if err != nil {
		t.progress.Note(fmt.Sprintf("warning: no progress for %s, and it could not be written down: %v", idle.Round(time.Second), err))
		return
	}
	t.progress.Note(fmt.Sprintf("warning: no progress for %s: %s tells where the program stands", idle.Round(time.Second), path))
}
