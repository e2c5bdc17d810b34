package study

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
)

// The values of fields with a choice.
const (
	answersGold, answersRaw = "gold", "raw"
	candidatesRows          = "rows"
	candidatesNumbers       = "numbers"
	graderForm              = "form"
	graderAnswer            = "answer"
	generatorWordForms      = "wordforms"
	chooseLast, chooseBest  = "last", "best"
	// MeasureAnswers is the share of right answers, MeasureVerdicts that of right verdicts on given answers.
	MeasureAnswers  = "answers"
	MeasureVerdicts = "verdicts"
)

// mostParallel is how many sequences libllama has at once.
const mostParallel = 256

// goodName is what arms and sets may be called: their names become parts of file names.
var goodName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// Load reads a study's file, then sets ("model=...", "sets.svamp.path=..."; items of lists go by their names). Its error,
// if the file can be read, is *config.Problems and holds every problem.
func Load(path string, sets []string) (Spec, error) {
	spec := Defaults()
	d, err := config.OpenDocument(path, &spec)
	if err != nil {
		return Spec{}, fmt.Errorf("read study: %w", err)
	}
	for _, set := range sets {
		d.Set(set)
	}
	return complete(d, spec)
}

// complete fills in what depends on other keys and checks everything.
func complete(d *config.Document, spec Spec) (Spec, error) {
	for i := range spec.Sets {
		spec.Sets[i].fillIn()
	}
	for i := range spec.Arms {
		a := &spec.Arms[i]
		if a.Answers == "" {
			a.Answers = answersGold
		}
		if len(a.Stages) == 1 && a.Stages[0].Share == 0 {
			a.Stages[0].Share = 1
		}
	}
	v := validator{d, spec}
	v.all()
	return spec, d.Err()
}

func (s *Set) fillIn() {
	fill := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	fill(&s.Candidates, candidatesRows)
	if s.Generator == generatorWordForms {
		fill(&s.Grader, graderForm)
	}
	fill(&s.Grader, graderAnswer)
	if s.AnswerTokens == 0 {
		s.AnswerTokens = 256
	}
	if s.CritiqueTokens == 0 {
		s.CritiqueTokens = 512
	}
}

type validator struct {
	*config.Document
	spec Spec
}

func (v validator) all() {
	s := v.spec
	v.Check(goodName.MatchString(s.Name), "name", "must be a name of letters, digits, dots, - and _, got %q", s.Name)
	v.Check(len(s.Seeds) > 0, "seeds", "missing: at least one")
	for i, seed := range s.Seeds {
		v.Check(!slices.Contains(s.Seeds[:i], seed), fmt.Sprintf("seeds[%d]", i), "%d is there twice", seed)
	}
	v.budget()
	v.Check(len(s.Sets) > 0, "sets", "missing: at least one set of questions")
	trains, tests := false, false
	for i, set := range s.Sets {
		v.set(i, set)
		whole := set.Generator != "" || set.Path != "" || set.Optional
		trains, tests = trains || whole || set.Train.Path != "", tests || whole || set.Test.Path != ""
	}
	v.Check(trains || len(s.TrainedArms()) == 0, "sets", "none has training rows")
	v.Check(tests, "sets", "none has test rows")
	v.Check(len(s.Arms) > 0, "arms", "missing: at least one")
	for i, arm := range s.Arms {
		v.arm(i, arm)
	}
	for i, claim := range s.Claims {
		v.claim(i, claim)
	}
	v.training()
	v.Check(s.Scoring.Parallel >= 1 && s.Scoring.Parallel <= mostParallel, "scoring.parallel", "must be within 1..%d, got %d", mostParallel, s.Scoring.Parallel)
	v.Check(s.Scoring.Threads >= 0, "scoring.threads", "must be at least 0, got %d", s.Scoring.Threads)
	v.Check(s.Scoring.GPULayers >= 0, "scoring.gpu_layers", "must be at least 0, got %d", s.Scoring.GPULayers)
	v.Check(!slices.Contains(s.Scoring.Stop, ""), "scoring.stop", "an empty text would end everything")
}

// training checks the sections that a run's configuration has, by making one.
func (v validator) training() {
	s := v.spec
	v.OneOf(s.Train.Choose, "train.choose", chooseLast, chooseBest)
	v.Check(s.Train.ValidateEvery >= 1, "train.validate_every", "must be at least 1, got %d", s.Train.ValidateEvery)
	v.OneOf(s.Train.OverLong, "train.over_long", "refuse", "drop", "truncate_prompt", "split")
	run := s.run(nil, 1)
	run.Data.Sources = []config.Source{{Path: "-", Format: "cft", Weight: 1, Sample: 1}}
	run.Data.OverLong = config.Defaults().Data.OverLong // has a key of its own here
	v.CheckRun(run)
	v.Check(s.Checkpoint.Mirror == "", "checkpoint.mirror", "a study has many runs, and each would need a mirror of its own")
	v.Check(s.Limits.MaxTime == "", "limits.max_time", "would end runs before their budget; budget says how long they are")
	v.Check(s.Adapter.InitFrom == "", "adapter.init_from", "every arm starts from the base model")
}

func (v validator) budget() {
	b, set := v.spec.Budget, 0
	for _, each := range []struct {
		key string
		n   int
	}{{"steps", b.Steps}, {"epochs", b.Epochs}, {"target_tokens", b.TargetTokens}} {
		v.Check(each.n >= 0, "budget."+each.key, "must be above 0, got %d", each.n)
		if each.n != 0 {
			set++
		}
	}
	v.Check(set == 1, "budget", "must have exactly one of steps, epochs and target_tokens, got %d", set)
	v.Check(b.Tolerance > 0 && b.Tolerance < 1, "budget.tolerance", "must be above 0 and below 1, got %v", b.Tolerance)
}

func (v validator) set(i int, s Set) {
	key := fmt.Sprintf("sets[%d]", i)
	v.Check(goodName.MatchString(s.Name), key+".name", "must be a name of letters, digits, dots, - and _, got %q", s.Name)
	for _, other := range v.spec.Sets[:i] {
		v.Check(s.Name != other.Name, key+".name", "%q is there twice", s.Name)
	}
	v.OneOf(s.Candidates, key+".candidates", candidatesRows, candidatesNumbers)
	v.OneOf(s.Grader, key+".grader", graderForm, graderAnswer)
	v.Check(s.AnswerTokens >= 1, key+".answer_tokens", "must be at least 1, got %d", s.AnswerTokens)
	v.Check(s.CritiqueTokens >= 1, key+".critique_tokens", "must be at least 1, got %d", s.CritiqueTokens)
	parts := s.Train.Path != "" || s.Test.Path != ""
	divided := s.Path != "" || s.Optional
	switch {
	case s.Generator != "":
		v.Check(s.Generator == generatorWordForms, key+".generator", "must be %s or left out, got %q", generatorWordForms, s.Generator)
		v.Check(!parts && s.Path == "", key+".path", "a set is generated or read, not both")
		v.split(key, s.Split)
	case parts:
		v.Check(s.Path == "", key+".path", "either path and split, or train and test, not both")
		v.part(key+".train", s.Train)
		v.part(key+".validation", s.Validation)
		v.part(key+".test", s.Test)
	default:
		v.Check(divided, key+".path", "missing: path with split, train and test with paths of their own, or generator: %s", generatorWordForms)
		v.format(key+".format", s.Format)
		v.split(key, s.Split)
	}
}

func (v validator) split(key string, s Split) {
	v.Check(s.Train >= 1, key+".split.train", "must be at least 1, got %d", s.Train)
	v.Check(s.Validation >= 0, key+".split.validation", "must be at least 0, got %d", s.Validation)
	v.Check(s.Test >= 1, key+".split.test", "must be at least 1, got %d", s.Test)
}

// part may be left out: a set can be one to train on, one to test on, or both.
func (v validator) part(key string, p Part) {
	if p.Path == "" {
		v.Check(p.Format == "" && p.Rows == 0 && len(p.Fields) == 0, key+".path", "missing: a file, a folder, a pattern or a URL")
		return
	}
	v.format(key+".format", p.Format)
	v.Check(p.Rows >= 0, key+".rows", "must be at least 0 (all), got %d", p.Rows)
}

// format refuses those whose records are no questions.
func (v validator) format(key, format string) {
	var fit []string
	for _, f := range dataset.Formats() {
		if f != "messages" && f != "sharegpt" && f != "tokenized" {
			fit = append(fit, f)
		}
	}
	v.OneOf(format, key, fit...)
}

func (v validator) arm(i int, a Arm) {
	key := fmt.Sprintf("arms[%d]", i)
	v.Check(goodName.MatchString(a.Name), key+".name", "must be a name of letters, digits, dots, - and _, got %q", a.Name)
	for _, other := range v.spec.Arms[:i] {
		v.Check(a.Name != other.Name, key+".name", "%q is there twice", a.Name)
		v.Check(a.Trained() || other.Trained(), key+".stages", "%s and %s are both the base model", other.Name, a.Name)
	}
	v.OneOf(a.Answers, key+".answers", answersGold, answersRaw)
	v.Check(a.Corrupt >= 0 && a.Corrupt <= 1, key+".corrupt", "must be within 0..1, got %v", a.Corrupt)
	sum, learnsCritiques := 0.0, false
	for j, stage := range a.Stages {
		at := fmt.Sprintf("%s.stages[%d]", key, j)
		v.Check(stage.Share > 0 && stage.Share <= 1, at+".share", "must be above 0 and at most 1, got %v", stage.Share)
		if err := config.ValidateStages([]config.Stage{{Mix: stage.Mix}}, false); err != nil {
			v.Check(false, at+".mix", "%s", strings.ReplaceAll(err.Error(), "objective.stages[0].mix", "mix"))
		}
		learnsCritiques = learnsCritiques || stage.Mix[objective.CFT] > 0
		sum += stage.Share
	}
	v.Check(!a.Trained() || math.Abs(sum-1) < 1e-9, key+".stages", "the shares must add up to 1, they are %v", sum)
	v.Check(a.Corrupt == 0 || learnsCritiques, key+".corrupt", "corrupts critiques, but the arm learns none")
}

func (v validator) claim(i int, c Claim) {
	key := fmt.Sprintf("claims[%d]", i)
	v.Check(strings.TrimSpace(c.Text) != "", key+".text", "missing: the claim in words")
	v.OneOf(c.Kind, key+".kind", ClaimBetter, ClaimNotWorse, ClaimOthers)
	names := func(name, key string) {
		known := slices.ContainsFunc(v.spec.Arms, func(a Arm) bool { return a.Name == name })
		v.Check(known, key, "no arm is called %q", name)
	}
	names(c.Arm, key+".arm")
	v.Check(slices.ContainsFunc(v.spec.Sets, func(s Set) bool { return s.Name == c.Set }), key+".set", "no set is called %q", c.Set)
	v.Check(c.Margin >= 0 && c.Margin < 1, key+".margin", "must be at least 0 and below 1, got %v", c.Margin)
	if c.Kind == ClaimOthers {
		v.Check(c.Than == "", key+".than", "is not used: the claim compares two measures of one arm")
		v.Check(c.Measure == "", key+".measure", "is not used: the claim compares verdicts on others' and on own answers")
		v.Check(v.spec.Scoring.SelfCritique, key+".kind", "needs scoring.self_critique")
		return
	}
	names(c.Than, key+".than")
	v.Check(c.Arm != c.Than, key+".than", "an arm cannot be compared with itself")
	v.OneOf(c.Measure, key+".measure", MeasureAnswers, MeasureVerdicts)
}

// run is the training configuration of an arm; without an arm, one to be checked. Sources, output, steps and stages are
// the plan's to fill in.
func (s Spec) run(arm *Arm, seed uint64) config.Run {
	run := config.Defaults()
	run.Model, run.Output, run.Device, run.Threads, run.Seed = s.Model, s.Output, s.Device, s.Threads, seed
	run.Chat, run.Adapter, run.Optimizer, run.Checkpoint, run.Limits = s.Chat, s.Adapter, s.Optimizer, s.Checkpoint, s.Limits
	run.Train.SeqLen, run.Train.GlobalBatch = s.Train.SeqLen, s.Train.GlobalBatch
	run.Train.SharePrefixes, run.Train.KeepActivations = s.Train.SharePrefixes, s.Train.KeepActivations
	run.Data.OverLong = s.Train.OverLong
	run.Data.Validation.EverySteps = s.Train.ValidateEvery
	run.Checkpoint.KeepBest = s.Train.Choose == chooseBest
	if arm != nil {
		run.Objective.Stages = nil
		for _, stage := range arm.Stages {
			run.Objective.Stages = append(run.Objective.Stages, config.Stage{Mix: stage.Mix})
		}
	}
	return run
}
