package dashboard

import (
	"maps"
	"slices"
	"time"

	"cftune/trainer/metrics"
)

// The columns of a run's steps.
const (
	columnLoss = iota
	columnLR
	columnGradNorm
	columnTokens
	columnTargets
	columnMemory
	numColumns
)

const (
	// maxObjectives bounds how many objectives are told apart, within the mix and among validation losses; there are four.
	maxObjectives = 6
	// maxEvents bounds lists of what happened in a run; more is counted.
	maxEvents = 50
	// usualSpike is how many times their median is a spike, where the configuration does not say.
	usualSpike = 3
)

// event is something that happened at a step.
type event struct {
	step int
	text string
	at   time.Time
}

// events are the newest of a kind, and how many there were.
type events struct {
	list  []event
	total int
}

func (e *events) add(x event) {
	e.total++
	e.list = append(e.list, x)
	if len(e.list) > 2*maxEvents {
		e.list = slices.Delete(e.list, 0, maxEvents)
	}
}

// newest returns the newest ones, the newest first.
func (e *events) newest() []event {
	list := slices.Clone(e.list[max(0, len(e.list)-maxEvents):])
	slices.Reverse(list)
	return list
}

// stageStart is the first step of a stage.
type stageStart struct{ step, stage int }

// validations are the losses of one objective; those of all together have no name.
type validations struct {
	objective string
	curve     curve
}

// series is all that is kept of a run's metrics. It is a metrics.Visitor.
type series struct {
	spikeFactor float64

	steps       curve
	last        metrics.Step
	tokens      int64
	targets     int64
	seconds     float64
	objectives  []string // of the mix, in the order of their first step; the last place counts all that have none
	stages      []stageStart
	validations []*validations
	best        metrics.Validation // of all objectives together
	skips       events
	skipped     int64
	spikes      events
	window      []float64 // the last losses
}

// Restart implements metrics.Visitor.
func (s *series) Restart() { *s = series{spikeFactor: s.spikeFactor} }

// Step implements metrics.Visitor.
func (s *series) Step(step metrics.Step) {
	s.lookForSpike(step)
	s.tokens += int64(step.Tokens)
	s.targets += int64(step.Targets)
	s.seconds += step.Seconds
	x := sample{step: step.Step, tokens: s.tokens, seconds: s.seconds, values: []float64{
		columnLoss: step.Loss, columnLR: step.LR, columnGradNorm: step.GradNorm, columnTokens: step.TokensPerS,
		columnTargets: step.TargetTokensPerS, columnMemory: float64(step.MemoryBytes),
	}}
	for _, name := range slices.Sorted(maps.Keys(step.Objective)) {
		x.mix[s.objectiveNumber(name)] += int32(step.Objective[name])
	}
	if n := len(s.stages); (n == 0 || s.stages[n-1].stage != step.Stage) && n < maxBuckets {
		s.stages = append(s.stages, stageStart{step.Step, step.Stage})
	}
	s.steps.add(x)
	s.last = step
}

// otherObjectives is the name of those that are not told apart.
const otherObjectives = "others"

func (s *series) objectiveNumber(name string) int {
	if i := slices.Index(s.objectives, name); i >= 0 {
		return i
	}
	if len(s.objectives) < maxObjectives-1 {
		s.objectives = append(s.objectives, name)
		return len(s.objectives) - 1
	}
	if len(s.objectives) < maxObjectives {
		s.objectives = append(s.objectives, otherObjectives)
	}
	return maxObjectives - 1
}

func (s *series) lookForSpike(step metrics.Step) {
	if len(s.window) == metrics.SpikeWindow {
		// The median is not below the least, so most steps need no sorting.
		if factor := s.spikeFactor; step.Loss > factor*slices.Min(s.window) {
			if median := metrics.Median(s.window); step.Loss > factor*median {
				s.spikes.add(event{step.Step, number(step.Loss) + ", the median of the 20 before is " + number(median), step.Time})
			}
		}
		copy(s.window, s.window[1:])
		s.window = s.window[:metrics.SpikeWindow-1]
	}
	s.window = append(s.window, step.Loss)
}

// Validation implements metrics.Visitor.
func (s *series) Validation(v metrics.Validation) {
	if v.Objective == "" && (s.best.Targets == 0 || v.Loss < s.best.Loss) {
		s.best = v
	}
	i := slices.IndexFunc(s.validations, func(of *validations) bool { return of.objective == v.Objective })
	if i < 0 {
		if len(s.validations) == maxObjectives && v.Objective != "" || len(s.validations) > maxObjectives {
			return
		}
		s.validations = append(s.validations, &validations{objective: v.Objective})
		i = len(s.validations) - 1
	}
	of := s.validations[i]
	of.curve.add(sample{step: v.Step, tokens: s.tokens, seconds: s.seconds, values: []float64{v.Loss}})
}

// Skip implements metrics.Visitor.
func (s *series) Skip(k metrics.Skip) {
	s.skipped = k.Skipped
	s.skips.add(event{k.Step, k.Reason, k.Time})
}
