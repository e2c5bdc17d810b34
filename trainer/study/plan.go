package study

import (
	"context"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"

	"cftune/trainer"
	"cftune/trainer/config"
)

// Engine does what needs a model.
type Engine interface {
	// Model identifies the base model and the text forms that it is trained and scored with.
	Model(ctx context.Context, spec Spec) (Model, error)
	// Plan tells what a run would train on, and writes nothing.
	Plan(ctx context.Context, run config.Run) (trainer.Plan, error)
	// Train makes a run, or goes on with one that has a checkpoint, to its end.
	Train(ctx context.Context, run config.Run) error
	// OpenWriter opens the base model with an adapter (none if empty) to write texts.
	OpenWriter(ctx context.Context, spec Spec, adapter string) (Writer, error)
}

// Writer writes texts, greedily.
type Writer interface {
	// Write answers prompts, each one turn of a user's, with at most so many tokens each, and hands each text over as soon
	// as it is complete.
	Write(ctx context.Context, prompts []string, maxTokens int, done func(prompt int, t Completion) error) error
	Close() error
}

// Completion is a text that a model wrote.
type Completion struct {
	Text   string `json:"text"`
	Tokens int    `json:"tokens"`
	Ended  bool   `json:"ended"` // by itself, not at the bound
}

// Model identifies a base model.
type Model struct {
	File       string `json:"file"` // without its folder
	Bytes      int64  `json:"bytes"`
	SHA256     string `json:"sha256"`
	ChatSHA256 string `json:"chat_sha256"` // of its chat template
	Weights    int64  `json:"weights"`     // numbers in its matrices
	Adapter    int64  `json:"adapter"`     // numbers in the adapter that the study trains
	// TrainTokensPerS and WriteTokensPerS are guesses at the machine's speed, 0 where there is none. They decide nothing.
	TrainTokensPerS float64 `json:"-"`
	WriteTokensPerS float64 `json:"-"`
}

// Run is what is planned for an arm and a seed.
type Run struct {
	Key    string         `json:"key"` // arm-sSEED; names its folders
	Arm    string         `json:"arm"`
	Seed   uint64         `json:"seed"`
	Steps  int            `json:"steps"`
	Epochs int            `json:"epochs"`
	Stages []config.Stage `json:"stages"`
	// Targets and Tokens are about what it learns from: the mean of its objectives over the training rows.
	Targets int64 `json:"expected_targets"`
	Tokens  int64 `json:"expected_tokens"`
}

// rate is what a step of one objective has, on average over an epoch.
type rate struct {
	steps           int // of an epoch
	targets, tokens float64
}

// planner plans the runs of a study whose data lies in a folder.
type planner struct {
	engine Engine
	spec   Spec
	sets   []openSet
	data   string // folder
	output string
}

// runs plans every trained arm with every seed. All seeds of an arm get the same number of steps.
func (p planner) runs(ctx context.Context) ([]Run, error) {
	var runs []Run
	for _, arm := range p.spec.TrainedArms() {
		rates, err := p.rates(ctx, arm)
		if err != nil {
			return nil, fmt.Errorf("arm %s: %w", arm.Name, err)
		}
		planned := p.plan(arm, rates)
		for _, seed := range p.spec.Seeds {
			r := planned
			r.Seed, r.Key = seed, runKey(arm, seed)
			runs = append(runs, r)
		}
	}
	return runs, nil
}

// rates measures what each objective of an arm learns in a step. Corruption exchanges words, so one seed stands for all.
func (p planner) rates(ctx context.Context, arm Arm) (map[string]rate, error) {
	rates := map[string]rate{}
	for _, stage := range arm.Stages {
		for _, name := range slices.Sorted(maps.Keys(stage.Mix)) {
			if _, known := rates[name]; known || stage.Mix[name] == 0 {
				continue
			}
			run := p.spec.run(&arm, p.spec.Seeds[0])
			run.Objective.Stages = []config.Stage{{Mix: map[string]float64{name: 1}}}
			p.sources(&run, arm, p.spec.Seeds[0])
			run.Data.Validation = config.Validation{EverySteps: 1}
			plan, err := p.engine.Plan(ctx, run)
			if err != nil {
				return nil, err
			}
			steps := float64(plan.Steps)
			rates[name] = rate{plan.Steps, float64(plan.Targets) / steps, float64(plan.Tokens) / steps}
		}
	}
	return rates, nil
}

// plan turns budget and rates into steps.
func (p planner) plan(arm Arm, rates map[string]rate) Run {
	r := Run{Arm: arm.Name}
	var targets, tokens float64 // of a step, over the whole run
	epoch := math.MaxInt
	for _, stage := range arm.Stages {
		sum := 0.0
		for _, w := range stage.Mix {
			sum += w
		}
		for name, w := range stage.Mix {
			if w == 0 {
				continue
			}
			share := stage.Share * w / sum
			targets += share * rates[name].targets
			tokens += share * rates[name].tokens
			epoch = min(epoch, rates[name].steps)
		}
	}
	switch b := p.spec.Budget; {
	case b.Steps > 0:
		r.Steps = b.Steps
	case b.Epochs > 0:
		r.Steps = b.Epochs * epoch
	default:
		r.Steps = max(1, int(math.Round(float64(b.TargetTokens)/targets)))
	}
	r.Epochs = (r.Steps + epoch - 1) / epoch
	r.Targets, r.Tokens = int64(math.Round(targets*float64(r.Steps))), int64(math.Round(tokens*float64(r.Steps)))
	r.Stages = stagesOf(arm, r.Steps)
	return r
}

// stagesOf ends each stage but the last after its share of the steps. A stage whose share is less than a step gets one.
func stagesOf(arm Arm, steps int) []config.Stage {
	stages := make([]config.Stage, len(arm.Stages))
	share, last := 0.0, 0
	for i, s := range arm.Stages {
		stages[i].Mix = s.Mix
		if i == len(arm.Stages)-1 {
			break
		}
		share += s.Share
		last = max(last+1, int(math.Round(share*float64(steps))))
		stages[i].Until.Steps = last
	}
	return stages
}

// sources gives a run the training rows of an arm and a seed.
func (p planner) sources(run *config.Run, arm Arm, seed uint64) {
	run.Data.Sources = nil
	for _, s := range p.sets {
		if len(s.train) == 0 {
			continue
		}
		run.Data.Sources = append(run.Data.Sources, config.Source{
			Path: filepath.Join(p.data, trainingFile(s.Name, arm, seed)), Format: "cft", Weight: 1, Sample: 1,
		})
	}
}

// config is the training configuration of a planned run.
func (p planner) config(r Run) config.Run {
	var arm Arm
	for _, a := range p.spec.Arms {
		if a.Name == r.Arm {
			arm = a
		}
	}
	run := p.spec.run(&arm, r.Seed)
	run.Output = filepath.Join(p.output, "runs", r.Key)
	run.Objective.Stages = r.Stages
	run.Train.Epochs, run.Train.MaxSteps = r.Epochs, r.Steps
	p.sources(&run, arm, r.Seed)
	held := 0
	for _, s := range p.sets {
		held += len(s.validation)
	}
	if held > 0 {
		run.Data.Validation.Path, run.Data.Validation.Format = filepath.Join(p.data, validationFile(arm)), "cft"
	}
	return run
}

// prompts counts what is written about each model.
func (p planner) prompts() (texts, tokens int) {
	for _, s := range p.sets {
		n := len(s.test)
		texts, tokens = texts+n, tokens+n*s.AnswerTokens
		for _, judged := range []bool{s.judged(), p.spec.Scoring.SelfCritique} {
			if judged {
				texts, tokens = texts+n, tokens+n*s.CritiqueTokens
			}
		}
	}
	return texts, tokens
}

// judged reports whether the test rows have answers of others' to judge, and say which of them are right.
func (s openSet) judged() bool {
	return len(s.test) > 0 && !slices.ContainsFunc(s.test, func(i Item) bool { return i.Response == "" || i.Label == "" })
}

// bytesPerRun is about what a finished run takes on the disk: a checkpoint has the adapter and two moments in four bytes
// each, the exported adapter one.
func bytesPerRun(m Model, spec Spec) int64 {
	checkpoints := int64(spec.Checkpoint.KeepLast)
	if spec.Train.Choose == chooseBest {
		checkpoints++
	}
	return m.Adapter * 4 * (3*checkpoints + 1)
}
