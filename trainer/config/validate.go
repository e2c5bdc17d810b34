package config

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"cftune/trainer/internal/bucket"
)

// What the fields with a choice may be.
var (
	formats         = []string{"cft", "alpaca", "webinstruct-cft", "messages", "sharegpt", "prompt-completion", "tokenized"}
	overLong        = []string{"refuse", "drop", "truncate_prompt", "split"}
	objectives      = []string{"cft", "sft", "refine"}
	onSpike         = []string{"warn", "skip", "stop"}
	turns           = []string{"all", "last"}
	keepActivations = []string{"auto", "all", "layers"}
	schedules       = []string{"cosine", "linear", "constant"}
)

// Bounds that are not a matter of meaning but of sense: beyond them lies a mistake.
const (
	maxThreads = 1024 // as the engine
	maxRank    = 4096
	maxSeqLen  = 1 << 20
)

var deviceName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*(:[0-9]+)?$`)

// Validate checks every field. Its error is a *Problems.
func (run Run) Validate() error {
	r := &reader{where: map[string]string{}}
	r.validate(run)
	if len(r.problems) == 0 {
		return nil
	}
	return &Problems{List: r.problems}
}

// check reports a problem unless ok. Of a file that is none nothing more is said: what it was to set would be told as missing.
func (r *reader) check(ok bool, key, format string, args ...any) {
	if ok || r.unread {
		return
	}
	for _, p := range r.problems {
		// A value that could not be read has been reported; what its default would be told is noise.
		if p.Key == key || strings.HasPrefix(p.Key, key+".") || strings.HasPrefix(p.Key, key+"[") || p.Key != "" && strings.HasPrefix(key, p.Key+".") {
			return
		}
	}
	r.source = func(*yaml.Node) string { return r.where[key] }
	r.add(nil, key, fmt.Sprintf(format, args...))
}

func (r *reader) oneOf(value, key string, choices []string) {
	if value == "" {
		r.check(false, key, "missing: must be %s", orList(choices))
		return
	}
	r.check(slices.Contains(choices, value), key, "must be %s, got %q%s", orList(choices), value, suggestion(value, choices))
}

func (r *reader) atLeast(value, low int, key string) {
	r.check(value >= low, key, "must be at least %d, got %d", low, value)
}

func (r *reader) validate(run Run) {
	r.check(strings.TrimSpace(run.Model) != "", "model", "missing: the path of the base model's GGUF file")
	r.check(strings.TrimSpace(run.Output) != "", "output", "missing: the run directory")
	r.check(deviceName.MatchString(run.Device), "device", "must be auto, cpu or a device's name such as cuda:0 or vulkan:0, got %q", run.Device)
	r.check(run.Threads >= 0 && run.Threads <= maxThreads, "threads", "must be within 0..%d, got %d", maxThreads, run.Threads)
	r.validateData(run.Data)
	r.validateStages(run.Objective.Stages, run.Data.Validation.Path != "")
	r.oneOf(run.Objective.Turns, "objective.turns", turns)
	r.validateAdapter(run.Adapter)
	r.validateTrain(run.Train)
	r.validateOptimizer(run.Optimizer)
	r.validateCheckpoint(run.Checkpoint)
	r.validateHealth(run.Health)
	if _, err := run.Limits.Duration(); err != nil {
		r.check(false, "limits.max_time", "%v", err)
	}
	if _, err := run.Limits.Bytes(); err != nil {
		r.check(false, "limits.memory", "%v", err)
	}
	if _, err := run.Metrics.Address(); err != nil {
		r.check(false, "metrics.listen", "%v", err)
	}
}

func (r *reader) validateCheckpoint(c Checkpoint) {
	r.atLeast(c.EverySteps, 1, "checkpoint.every_steps")
	r.atLeast(c.KeepLast, 1, "checkpoint.keep_last")
	r.atLeast(c.KeepEvery, 0, "checkpoint.keep_every")
	if c.Mirror != "" {
		_, err := bucket.ParseURL(c.Mirror)
		r.check(err == nil, "checkpoint.mirror", "%v", err)
	}
	_, err := c.Wait()
	r.check(err == nil, "checkpoint.mirror_wait", "%v", err)
}

func (r *reader) validateHealth(h Health) {
	r.atLeast(h.MaxSkips, 0, "health.max_skips")
	r.check(h.LossSpike == 0 || h.LossSpike > 1 && finite(h.LossSpike), "health.loss_spike", "must be 0 (off) or a finite number above 1, got %v", h.LossSpike)
	r.oneOf(h.OnSpike, "health.on_spike", onSpike)
	if _, err := h.Stall(); err != nil {
		r.check(false, "health.stall_timeout", "%v", err)
	}
}

func (r *reader) validateData(d Data) {
	r.check(len(d.Sources) > 0, "data.sources", "missing: at least one source of records")
	for i, s := range d.Sources {
		key := fmt.Sprintf("data.sources[%d]", i)
		r.check(strings.TrimSpace(s.Path) != "", key+".path", "missing: a file, a folder, a pattern, - or a URL")
		if s.Format != "" { // without it, the error of opening it tells what its rows look like
			r.oneOf(s.Format, key+".format", formats)
		}
		r.check(s.Sample > 0 && finite(s.Sample), key+".sample", "must be a finite number above 0, got %v", s.Sample)
		r.check(s.Weight > 0 && finite(s.Weight), key+".weight", "must be a finite number above 0, got %v", s.Weight)
	}
	v := d.Validation
	if v.Path != "" {
		r.oneOf(v.Format, "data.validation.format", formats)
		r.atLeast(v.EverySteps, 1, "data.validation.every_steps")
		r.atLeast(v.Patience, 0, "data.validation.patience")
	} else {
		r.check(v.Format == "", "data.validation.path", "missing, though data.validation.format is set")
	}
	r.oneOf(d.OverLong, "data.over_long", overLong)
}

func (r *reader) validateStages(stages []Stage, validates bool) {
	r.check(len(stages) > 0, "objective.stages", "missing: at least one stage")
	var last Until
	for i, s := range stages {
		key := fmt.Sprintf("objective.stages[%d]", i)
		r.validateMix(s.Mix, key+".mix")
		u, untilKey := s.Until, key+".until"
		if i == len(stages)-1 {
			r.check(u == Until{}, untilKey, "the last stage has no end: remove it or add a stage")
			continue
		}
		r.check(u != Until{}, untilKey, "missing: only the last stage goes on to the end")
		set := 0
		for _, end := range []struct {
			name        string
			value, last int
		}{{"steps", u.Steps, last.Steps}, {"epochs", u.Epochs, last.Epochs}, {"tokens", u.Tokens, last.Tokens}, {"plateau", u.Plateau, 0}} {
			name := untilKey + "." + end.name
			r.atLeast(end.value, 0, name)
			// These ends count from the start of the run, so a stage whose end is not after the one before would never hold.
			r.check(end.value <= 0 || end.value > end.last, name, "must be above %d, the end of an earlier stage, got %d", end.last, end.value)
			if end.value != 0 {
				set++
			}
		}
		r.check(set <= 1, untilKey, "must be one of steps, epochs, tokens and plateau, got %d of them", set)
		r.check(u.Plateau == 0 || validates, untilKey+".plateau", "needs data.validation: it is the validation loss that must stop falling")
		last = Until{Steps: max(last.Steps, u.Steps), Epochs: max(last.Epochs, u.Epochs), Tokens: max(last.Tokens, u.Tokens)}
	}
}

// ValidateStages checks stages as Validate does; validates says whether the run measures a validation loss. Its error is
// a *Problems.
func ValidateStages(stages []Stage, validates bool) error {
	r := &reader{where: map[string]string{}}
	r.validateStages(stages, validates)
	if len(r.problems) == 0 {
		return nil
	}
	return &Problems{List: r.problems}
}

func (r *reader) validateMix(mix map[string]float64, key string) {
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(mix)) {
		weight := mix[name]
		known := slices.Contains(objectives, name)
		r.check(known, join(key, name), "unknown objective: must be %s%s", orList(objectives), suggestion(name, objectives))
		r.check(weight >= 0 && finite(weight), join(key, name), "must be a finite number of at least 0, got %v", weight)
		sum += weight
	}
	r.check(sum > 0 || math.IsNaN(sum), key, "needs an objective with a weight above 0, such as {cft: 1}")
	r.check(!math.IsInf(sum, 0), key, "the weights' sum is not finite")
}

func (r *reader) validateTrain(t Train) {
	r.check(t.SeqLen >= 2 && t.SeqLen <= maxSeqLen, "train.seq_len", "must be within 2..%d tokens, got %d", maxSeqLen, t.SeqLen)
	g := t.GlobalBatch
	r.atLeast(g.Examples, 0, "train.global_batch.examples")
	r.atLeast(g.Tokens, 0, "train.global_batch.tokens")
	r.atLeast(g.Packs, 0, "train.global_batch.packs")
	set := 0
	for _, n := range []int{g.Examples, g.Tokens, g.Packs} {
		if n != 0 {
			set++
		}
	}
	r.check(set == 1, "train.global_batch", "must have exactly one of examples, tokens and packs above 0, got %d", set)
	r.atLeast(t.Epochs, 1, "train.epochs")
	r.atLeast(t.MaxSteps, 0, "train.max_steps")
	r.oneOf(t.KeepActivations, "train.keep_activations", keepActivations)
}

func (r *reader) validateOptimizer(o Optimizer) {
	r.check(o.LR > 0 && finite(o.LR), "optimizer.lr", "must be a finite number above 0, got %v", o.LR)
	r.check(len(o.Betas) == 2, "optimizer.betas", "must be two numbers, got %d", len(o.Betas))
	for i, b := range o.Betas {
		r.check(b >= 0 && b < 1, fmt.Sprintf("optimizer.betas[%d]", i), "must be at least 0 and below 1, got %v", b)
	}
	r.check(o.Eps > 0 && finite(o.Eps), "optimizer.eps", "must be a finite number above 0, got %v", o.Eps)
	r.check(o.WeightDecay >= 0 && finite(o.WeightDecay), "optimizer.weight_decay", "must be a finite number of at least 0, got %v", o.WeightDecay)
	r.check(o.MaxGradNorm >= 0 && finite(o.MaxGradNorm), "optimizer.max_grad_norm", "must be a finite number of at least 0 (0 = no clipping), got %v", o.MaxGradNorm)
	r.oneOf(o.Schedule, "optimizer.schedule", schedules)
	r.atLeast(o.WarmupSteps, 0, "optimizer.warmup_steps")
	r.check(o.MinLRRatio >= 0 && o.MinLRRatio <= 1, "optimizer.min_lr_ratio", "must be within 0..1, got %v", o.MinLRRatio)
}

func finite(x float64) bool { return !math.IsInf(x, 0) && !math.IsNaN(x) }

func orList(choices []string) string {
	last := len(choices) - 1
	return strings.Join(choices[:last], ", ") + " or " + choices[last]
}
