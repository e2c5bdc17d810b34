package study

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"cftune/trainer/config"
)

// Spec is a study's file. Keys are the YAML names. Sections that a training configuration has too mean the same here.
type Spec struct {
	Name string `mapstructure:"name" json:"name"`
	// About says in a sentence what the study is for; the report opens with it.
	About string `mapstructure:"about" json:"about"`
	Model string `mapstructure:"model" json:"model"`
	// Output is the folder for everything that the study makes.
	Output  string `mapstructure:"output" json:"output"`
	Device  string `mapstructure:"device" json:"device"`
	Threads int    `mapstructure:"threads" json:"threads"`
	// Seeds: each arm is trained once with each.
	Seeds  []uint64 `mapstructure:"seeds" json:"seeds"`
	Budget Budget   `mapstructure:"budget" json:"budget"`
	Sets   []Set    `mapstructure:"sets" json:"sets"`
	Arms   []Arm    `mapstructure:"arms" json:"arms"`
	Claims []Claim  `mapstructure:"claims" json:"claims"`

	Chat       config.Chat       `mapstructure:"chat" json:"chat"`
	Adapter    config.Adapter    `mapstructure:"adapter" json:"adapter"`
	Train      Train             `mapstructure:"train" json:"train"`
	Optimizer  config.Optimizer  `mapstructure:"optimizer" json:"optimizer"`
	Checkpoint config.Checkpoint `mapstructure:"checkpoint" json:"checkpoint"`
	Limits     config.Limits     `mapstructure:"limits" json:"limits"`
	Scoring    Scoring           `mapstructure:"scoring" json:"scoring"`
}

// Budget is what all trained arms get alike; exactly one of the first three is set.
type Budget struct {
	// Steps is the number of optimizer steps of every arm.
	Steps int `mapstructure:"steps" json:"steps"`
	// Epochs gives every arm the steps of so many passes over the questions.
	Epochs int `mapstructure:"epochs" json:"epochs"`
	// TargetTokens gives every arm as many steps as bring it to so many learned tokens.
	TargetTokens int `mapstructure:"target_tokens" json:"target_tokens"`
	// Tolerance is the share by which an arm may miss target_tokens before the report calls the budget unequal.
	Tolerance float64 `mapstructure:"tolerance" json:"tolerance"`
}

// Set is one set of questions. Its rows come from a generator, from one source that is divided, or from a source for each
// part, of which it need not have all. All sets are trained on together and scored apart.
type Set struct {
	Name string `mapstructure:"name" json:"name"`
	// Generator is empty or wordforms.
	Generator string `mapstructure:"generator" json:"generator"`
	// Seed decides what the generator makes, how a source is divided, and which candidates are made flawed.
	Seed uint64 `mapstructure:"seed" json:"seed"`
	// Path, Format and Fields are of a source that Split divides.
	Path   string        `mapstructure:"path" json:"path"`
	Format string        `mapstructure:"format" json:"format"`
	Fields config.Fields `mapstructure:"fields" json:"fields"`
	Split  Split         `mapstructure:"split" json:"split"`
	// Optional leaves the set out when it has no path; the report says so.
	Optional bool `mapstructure:"optional" json:"optional"`
	// Train, Validation and Test are sources of their own.
	Train      Part `mapstructure:"train" json:"train"`
	Validation Part `mapstructure:"validation" json:"validation"`
	Test       Part `mapstructure:"test" json:"test"`
	// Candidates says where the answers to be judged come from: rows (their own) or numbers (made from the gold number,
	// half of them flawed, with a rule-made critique).
	Candidates string `mapstructure:"candidates" json:"candidates"`
	// Grader says when an answer is right: form (leads with the gold word) or answer (the value stated last is the gold one).
	Grader string `mapstructure:"grader" json:"grader"`
	// AnswerTokens and CritiqueTokens bound what is written about a test item.
	AnswerTokens   int `mapstructure:"answer_tokens" json:"answer_tokens"`
	CritiqueTokens int `mapstructure:"critique_tokens" json:"critique_tokens"`
}

// Split is how many rows each part takes; what is left over is not used.
type Split struct {
	Train      int `mapstructure:"train" json:"train"`
	Validation int `mapstructure:"validation" json:"validation"`
	Test       int `mapstructure:"test" json:"test"`
}

// Part is a part's own source; its first Rows rows, 0 for all.
type Part struct {
	Path   string        `mapstructure:"path" json:"path"`
	Format string        `mapstructure:"format" json:"format"`
	Fields config.Fields `mapstructure:"fields" json:"fields"`
	Rows   int           `mapstructure:"rows" json:"rows"`
}

// Arm is one way of training. An arm without stages is the base model.
type Arm struct {
	Name   string     `mapstructure:"name" json:"name"`
	About  string     `mapstructure:"about" json:"about"`
	Stages []ArmStage `mapstructure:"stages" json:"stages"`
	// Answers says what sft and refine learn: gold (the rows' solutions) or raw (the candidate answers, flawed or not).
	Answers string `mapstructure:"answers" json:"answers"`
	// Corrupt is the share of training critiques whose conclusion is turned into its opposite.
	Corrupt float64 `mapstructure:"corrupt" json:"corrupt"`
}

// Trained reports whether the arm is not the base model.
func (a Arm) Trained() bool { return len(a.Stages) > 0 }

// ArmStage is a mix of objectives for a share of the arm's steps.
type ArmStage struct {
	Mix   map[string]float64 `mapstructure:"mix" json:"mix"`
	Share float64            `mapstructure:"share" json:"share"`
}

// Train is what all runs have in common.
type Train struct {
	SeqLen        int                `mapstructure:"seq_len" json:"seq_len"`
	GlobalBatch   config.GlobalBatch `mapstructure:"global_batch" json:"global_batch"`
	SharePrefixes bool               `mapstructure:"share_prefixes" json:"share_prefixes"`
	OverLong      string             `mapstructure:"over_long" json:"over_long"`
	// ValidateEvery is the number of steps between two measurements of the held-out loss.
	ValidateEvery int `mapstructure:"validate_every" json:"validate_every"`
	// Choose is the checkpoint that is scored: last, or best (the lowest loss on validation rows, never on test rows).
	Choose string `mapstructure:"choose" json:"choose"`
	// KeepActivations is auto, all or layers.
	KeepActivations string `mapstructure:"keep_activations" json:"keep_activations"`
}

// Scoring says how texts are written. They are greedy.
type Scoring struct {
	Parallel int      `mapstructure:"parallel" json:"parallel"` // texts at once
	Stop     []string `mapstructure:"stop" json:"stop"`         // ends of a text beside the model's own
	// SelfCritique lets every model judge its own answers as well.
	SelfCritique bool `mapstructure:"self_critique" json:"self_critique"`
	// Threads write texts; 0 means as many as train. On a machine that others use too, one is the fastest: threads that
	// wait for each other wait for whoever is not running.
	Threads int `mapstructure:"threads" json:"threads"`
	// GPULayers puts layers on a GPU for writing.
	GPULayers int `mapstructure:"gpu_layers" json:"gpu_layers"`
}

// The kinds of claims; see Decide for the rule of each.
const (
	ClaimBetter   = "better"
	ClaimNotWorse = "not-worse"
	ClaimOthers   = "others-over-self"
)

// Claim is a statement that the study decides. It is recorded before the first run.
type Claim struct {
	Text string `mapstructure:"text" json:"text"`
	Set  string `mapstructure:"set" json:"set"`
	Kind string `mapstructure:"kind" json:"kind"`
	// Arm is compared with Than; others-over-self compares two measures of one arm.
	Arm  string `mapstructure:"arm" json:"arm"`
	Than string `mapstructure:"than" json:"than"`
	// Measure is answers or verdicts.
	Measure string `mapstructure:"measure" json:"measure"`
	// Margin is a share of items: what the difference must be above for better, and may fall by for not-worse.
	Margin float64 `mapstructure:"margin" json:"margin"`
}

// Defaults returns what a study's file need not say.
func Defaults() Spec {
	run := config.Defaults()
	check := run.Checkpoint
	check.KeepLast = 1
	return Spec{
		Device: "auto",
		Budget: Budget{Tolerance: 0.05},
		Seeds:  []uint64{1, 2, 3},
		Train: Train{
			SeqLen: 1024, GlobalBatch: run.Train.GlobalBatch, SharePrefixes: true, OverLong: "refuse", ValidateEvery: 50,
			Choose: "last", KeepActivations: "auto",
		},
		Adapter: run.Adapter, Optimizer: run.Optimizer, Checkpoint: check,
		Scoring: Scoring{Parallel: 16, Stop: []string{"[END]"}, SelfCritique: true},
	}
}

// deciding is what of the file decides what a study finds: not where it computes and writes, nor where files lie, whose
// contents have digests of their own.
func (s Spec) deciding() Spec {
	s, err := s.Relocate(func(string, string) (string, error) { return "", nil })
	if err != nil {
		panic("study: no paths: " + err.Error()) // there is nothing that could fail
	}
	s.Output, s.Device, s.Threads = "", "", 0
	s.Limits, s.Scoring.Threads, s.Scoring.GPULayers = config.Limits{}, 0, 0
	return s
}

// Digest is of everything in the file that decides what a study finds.
func (s Spec) Digest() string {
	text, err := json.Marshal(s.deciding())
	if err != nil {
		panic("study: canonical JSON: " + err.Error()) // NaN and infinities are refused before
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// TrainedArms are the arms but the base model.
func (s Spec) TrainedArms() []Arm {
	var arms []Arm
	for _, a := range s.Arms {
		if a.Trained() {
			arms = append(arms, a)
		}
	}
	return arms
}
