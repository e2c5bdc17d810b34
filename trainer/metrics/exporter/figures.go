package exporter

import (
	"io"
	"log"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cftune/trainer/metrics"
)

// nobody hears of clients that speak no HTTP or go away.
var nobody = log.New(io.Discard, "", 0)

// Run says which run the figures are of.
type Run struct {
	Version, Dir, Model, Objective, Device string
}

// allObjectives is the label of the validation loss over all objectives.
const allObjectives = "all"

// figures are the last that the run has shown. Counters count from the start of the process, as Prometheus wants them: a
// resumed run goes back to its checkpoint, and what it trains again is work all the same.
type figures struct {
	run Run

	mu         sync.Mutex
	step       int
	steps      int
	last       metrics.Step // its Step is 0 before the first of this process
	validation map[string]float64
	tokens     int
	targets    int
	examples   map[string]int
	skipped    int
	checkpoint int
	saved      time.Time
}

func newFigures(run Run) *figures {
	return &figures{run: run, validation: map[string]float64{}, examples: map[string]int{}}
}

// Stands tells the step that the run goes on after, and how many are planned.
func (f *figures) Stands(step, steps int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.step, f.steps = step, steps
}

// Step implements metrics.Sink.
func (f *figures) Step(s metrics.Step) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.step, f.last = s.Step, s
	f.tokens += s.Tokens
	f.targets += s.Targets
	for name, n := range s.Objective {
		f.examples[name] += n
	}
}

// Validation implements metrics.Sink.
func (f *figures) Validation(v metrics.Validation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := v.Objective
	if name == "" {
		name = allObjectives
	}
	f.validation[name] = v.Loss
}

// Skip implements metrics.Sink.
func (f *figures) Skip(metrics.Skip) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.skipped++
}

// Saved implements metrics.Sink.
func (f *figures) Saved(step int, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checkpoint, f.saved = step, at
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("cftune_"+name, help, labels, nil)
}

var (
	info       = describe("info", "The run; always 1.", "version", "run", "model", "objective", "device")
	step       = describe("step", "Optimizer steps taken since the run began.")
	planned    = describe("planned_steps", "Optimizer steps that are planned.")
	epoch      = describe("epoch", "Passes over the records so far.")
	loss       = describe("loss", "Mean loss over the targets of the last step.")
	validation = describe("validation_loss", "Mean loss over the held-out targets, of each objective and of all.", "objective")
	rate       = describe("learning_rate", "Learning rate of the last step.")
	norm       = describe("gradient_norm", "Gradient norm of the last step, before clipping.")
	speed      = describe("tokens_per_second", "Tokens a second in the last step.")
	targetRate = describe("target_tokens_per_second", "Learned tokens a second in the last step.")
	seconds    = describe("step_duration_seconds", "How long the last step took.")
	stepTime   = describe("step_timestamp_seconds", "When the last step was done, in Unix time.")
	memory     = describe("memory_bytes", "What the engine's buffers take, mapped weights included.")
	tokens     = describe("tokens_total", "Tokens trained on by this process.")
	targets    = describe("target_tokens_total", "Learned tokens trained on by this process.")
	examples   = describe("examples_total", "Examples trained on by this process.", "objective")
	skipped    = describe("skipped_steps_total", "Steps left out by this process because their loss or gradient was no good.")
	checkpoint = describe("checkpoint_step", "Step of the newest checkpoint.")
	saved      = describe("checkpoint_timestamp_seconds", "When the newest checkpoint was written, in Unix time.")
)

// Describe implements prometheus.Collector.
func (f *figures) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		info, step, planned, epoch, loss, validation, rate, norm, speed, targetRate, seconds, stepTime, memory, tokens, targets,
		examples, skipped, checkpoint, saved,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector. What is not known yet is left out, not 0.
func (f *figures) Collect(to chan<- prometheus.Metric) {
	for _, m := range f.collect() {
		to <- m // outside of the lock: whoever reads this may be slow
	}
}

func (f *figures) collect() []prometheus.Metric {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []prometheus.Metric
	add := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		all = append(all, prometheus.MustNewConstMetric(d, kind, v, labels...))
	}
	r, s := f.run, f.last
	add(info, prometheus.GaugeValue, 1, r.Version, r.Dir, r.Model, r.Objective, r.Device)
	add(step, prometheus.GaugeValue, float64(f.step))
	add(planned, prometheus.GaugeValue, float64(f.steps))
	if s.Step > 0 {
		add(epoch, prometheus.GaugeValue, s.Epoch)
		add(loss, prometheus.GaugeValue, s.Loss)
		add(rate, prometheus.GaugeValue, s.LR)
		add(norm, prometheus.GaugeValue, s.GradNorm)
		add(speed, prometheus.GaugeValue, s.TokensPerS)
		add(targetRate, prometheus.GaugeValue, s.TargetTokensPerS)
		add(seconds, prometheus.GaugeValue, s.Seconds)
		add(stepTime, prometheus.GaugeValue, unix(s.Time))
		add(memory, prometheus.GaugeValue, float64(s.MemoryBytes))
	}
	for name, loss := range f.validation {
		add(validation, prometheus.GaugeValue, loss, name)
	}
	for name, n := range f.examples {
		add(examples, prometheus.CounterValue, float64(n), name)
	}
	add(tokens, prometheus.CounterValue, float64(f.tokens))
	add(targets, prometheus.CounterValue, float64(f.targets))
	add(skipped, prometheus.CounterValue, float64(f.skipped))
	if !f.saved.IsZero() {
		add(checkpoint, prometheus.GaugeValue, float64(f.checkpoint))
		add(saved, prometheus.GaugeValue, unix(f.saved))
	}
	return all
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }
