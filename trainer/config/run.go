package config

import (
	"cmp"
	"fmt"
	"net"
	"strconv"
	"time"
)

// Run is everything a training run is made from. Keys are the YAML names; they stay once released.
type Run struct {
	// Model is the base model: a path to a GGUF file.
	Model string `mapstructure:"model" json:"model"`
	// Output is the run directory. It must not hold another run.
	Output string `mapstructure:"output" json:"output"`
	// Seed decides the adapter's initial values, dropout and the order of records.
	Seed uint64 `mapstructure:"seed" json:"seed"`
	// Device is auto, cpu, or a device's name as `cftune doctor` shows it.
	Device string `mapstructure:"device" json:"device"`
	// Threads is the number of CPU threads; 0 = all that the process may use. Results depend on it in the last bits.
	Threads int `mapstructure:"threads" json:"threads"`

	Data       Data       `mapstructure:"data" json:"data"`
	Chat       Chat       `mapstructure:"chat" json:"chat"`
	Objective  Objective  `mapstructure:"objective" json:"objective"`
	Adapter    Adapter    `mapstructure:"adapter" json:"adapter"`
	Train      Train      `mapstructure:"train" json:"train"`
	Optimizer  Optimizer  `mapstructure:"optimizer" json:"optimizer"`
	Checkpoint Checkpoint `mapstructure:"checkpoint" json:"checkpoint"`
	Health     Health     `mapstructure:"health" json:"health"`
	Limits     Limits     `mapstructure:"limits" json:"limits"`
	Metrics    Metrics    `mapstructure:"metrics" json:"metrics,omitzero"`
}

// Data says where records come from.
type Data struct {
	Sources    []Source   `mapstructure:"sources" json:"sources"`
	Validation Validation `mapstructure:"validation" json:"validation"`
	// Shuffle puts records in a keyed random order of (seed, epoch); false keeps the files' order.
	Shuffle bool `mapstructure:"shuffle" json:"shuffle"`
	// OverLong is what happens to an example longer than train.seq_len: refuse, drop, truncate_prompt or split.
	OverLong string `mapstructure:"over_long" json:"over_long"`
	// Audit refuses what is trained on but looks like a mistake: records that are held out as well, tokenized rows that
	// begin with two BOS or have labels that are shifted already.
	Audit bool `mapstructure:"audit" json:"audit"`
}

// Source is one set of records.
type Source struct {
	// Path is a file, a folder, a pattern, "-" for standard input, or a URL (s3, gs, azblob, file, http, https).
	Path string `mapstructure:"path" json:"path"`
	// Format is cft, alpaca, webinstruct-cft, messages, sharegpt, prompt-completion or tokenized.
	Format string `mapstructure:"format" json:"format"`
	// Weight multiplies the loss weight of the source's records; 1 if left out.
	Weight float64 `mapstructure:"weight" json:"weight"`
	// Sample is how many times an epoch has the source's records: 2 each twice, 0.5 half of them, others in each epoch;
	// 1 if left out.
	Sample float64 `mapstructure:"sample" json:"sample"`
	// Fields says where the format's fields come from: {query: problem, solution: "{rationale} {answer}"}.
	Fields Fields `mapstructure:"fields" json:"fields,omitempty"`
}

// Fields maps the fields of a format to what the rows have.
type Fields map[string]string

// Validation is the held-out set whose loss is measured during training.
type Validation struct {
	Path       string `mapstructure:"path" json:"path"`
	Format     string `mapstructure:"format" json:"format"`
	Fields     Fields `mapstructure:"fields" json:"fields,omitempty"`
	EverySteps int    `mapstructure:"every_steps" json:"every_steps"`
	// Patience, if not 0, ends the run after so many validations without a new best loss.
	Patience int `mapstructure:"patience" json:"patience"`
}

// Chat overrides what the GGUF says about conversations.
type Chat struct {
	// System is the system message of every conversation; empty leaves it to the template.
	System string `mapstructure:"system" json:"system"`
	// TemplateFile replaces the GGUF's chat template.
	TemplateFile string `mapstructure:"template_file" json:"template_file"`
}

// Objective is the list of stages that decide which layout a record is trained in.
type Objective struct {
	Stages []Stage `mapstructure:"stages" json:"stages"`
	// Turns says which of the assistant's turns are learned: all or last. Rows that say it themselves are asked first.
	Turns string `mapstructure:"turns" json:"turns"`
}

// Stage is a weighted mix of objectives that holds until its end.
type Stage struct {
	// Mix has the weights of sft, cft and refine; each record is drawn into one of them by (seed, position).
	Mix   map[string]float64 `mapstructure:"mix" json:"mix"`
	Until Until              `mapstructure:"until" json:"until"`
}

// Until ends a stage; zero means never. Only one may be set.
type Until struct {
	Steps  int `mapstructure:"steps" json:"steps"`
	Epochs int `mapstructure:"epochs" json:"epochs"`
	// Tokens ends the stage once so many are trained since the run began.
	Tokens int `mapstructure:"tokens" json:"tokens"`
	// Plateau ends it after so many validations in a row whose loss was not below the stage's best.
	Plateau int `mapstructure:"plateau" json:"plateau"`
}

// Adapter describes the LoRA adapter.
type Adapter struct {
	Rank    int     `mapstructure:"rank" json:"rank"`
	Alpha   float64 `mapstructure:"alpha" json:"alpha"`
	Dropout float64 `mapstructure:"dropout" json:"dropout"`
	RSLoRA  bool    `mapstructure:"rslora" json:"rslora"`
	// DoRA trains the lengths of the adapted weights' rows apart from their directions.
	DoRA bool `mapstructure:"dora" json:"dora,omitempty"`
	// LoRAPlusRatio is the learning rate of B over that of A; 0 = 1.
	LoRAPlusRatio float64 `mapstructure:"lora_plus_ratio" json:"lora_plus_ratio,omitempty"`
	// Targets is a comma-separated list of all_linear (every one of a layer that the model has), attn_q, attn_k, attn_v,
	// attn_output, ffn_gate, ffn_up, ffn_down, of models whose q, k and v are one tensor attn_qkv, and token_embd and output.
	Targets string `mapstructure:"targets" json:"targets"`
	// Layers chooses layers ("0-5,10,-1"); those below 0 count from the end. Empty = all.
	Layers string `mapstructure:"layers" json:"layers,omitempty"`
	// RankPattern and AlphaPattern are ranks and alphas of modules that have others, by MODULE, blk.LAYERS or
	// blk.LAYERS.MODULE; where several match, the one that says more counts.
	RankPattern  map[string]int     `mapstructure:"rank_pattern" json:"rank_pattern,omitempty"`
	AlphaPattern map[string]float64 `mapstructure:"alpha_pattern" json:"alpha_pattern,omitempty"`
	// InitFrom is a GGUF adapter or a PEFT folder whose A and B the run starts from.
	InitFrom string `mapstructure:"init_from" json:"init_from"`
}

// Train says how much is trained on, in what portions.
type Train struct {
	// SeqLen is the capacity of a pack, in tokens.
	SeqLen      int         `mapstructure:"seq_len" json:"seq_len"`
	GlobalBatch GlobalBatch `mapstructure:"global_batch" json:"global_batch"`
	// Epochs is the number of passes; MaxSteps, if not 0, ends the run earlier.
	Epochs   int `mapstructure:"epochs" json:"epochs"`
	MaxSteps int `mapstructure:"max_steps" json:"max_steps"`
	// SharePrefixes computes what examples of a step begin with in common once. The gradient is the same; with dropout,
	// they share its masks there. It has no effect where global_batch is packs.
	SharePrefixes bool `mapstructure:"share_prefixes" json:"share_prefixes"`
	// KeepActivations is auto, all or layers.
	KeepActivations string `mapstructure:"keep_activations" json:"keep_activations"`
}

// GlobalBatch is what one optimizer step is made of; exactly one is set.
type GlobalBatch struct {
	Examples int `mapstructure:"examples" json:"examples"`
	Tokens   int `mapstructure:"tokens" json:"tokens"`
	Packs    int `mapstructure:"packs" json:"packs"`
}

// Optimizer is AdamW and its learning-rate schedule.
type Optimizer struct {
	LR          float64   `mapstructure:"lr" json:"lr"`
	Betas       []float64 `mapstructure:"betas" json:"betas"`
	Eps         float64   `mapstructure:"eps" json:"eps"`
	WeightDecay float64   `mapstructure:"weight_decay" json:"weight_decay"`
	MaxGradNorm float64   `mapstructure:"max_grad_norm" json:"max_grad_norm"`
	// Schedule is cosine, linear or constant; warm-up is linear from 0.
	Schedule    string `mapstructure:"schedule" json:"schedule"`
	WarmupSteps int    `mapstructure:"warmup_steps" json:"warmup_steps"`
	// MinLRRatio is the share of lr that cosine and linear end at.
	MinLRRatio float64 `mapstructure:"min_lr_ratio" json:"min_lr_ratio"`
}

// Checkpoint says when training state is saved and what is kept.
type Checkpoint struct {
	EverySteps int `mapstructure:"every_steps" json:"every_steps"`
	KeepLast   int `mapstructure:"keep_last" json:"keep_last"`
	// KeepEvery, if not 0, keeps those whose step is a multiple of it for good.
	KeepEvery int `mapstructure:"keep_every" json:"keep_every"`
	// KeepBest saves at every validation that is the best so far, and keeps that one.
	KeepBest bool `mapstructure:"keep_best" json:"keep_best"`
	// Mirror is the URL of a second place, to which checkpoints are copied: s3://, gs://, azblob:// or file://. Empty = none.
	Mirror string `mapstructure:"mirror" json:"mirror,omitempty"`
	// MirrorWait is how long the end of a run waits for the last copy ("10m").
	MirrorWait string `mapstructure:"mirror_wait" json:"mirror_wait,omitempty"`
}

// Wait returns MirrorWait; runs from before there were mirrors have none, and get the default.
func (c Checkpoint) Wait() (time.Duration, error) {
	if c.MirrorWait == "" {
		return positiveDuration(Defaults().Checkpoint.MirrorWait)
	}
	return positiveDuration(c.MirrorWait)
}

// Health says what is done about steps that go wrong.
type Health struct {
	// MaxSkips is how many steps whose loss or gradient is not finite, or whose loss is a spike that is to be skipped, are
	// left out, with their examples, before the run ends.
	MaxSkips int `mapstructure:"max_skips" json:"max_skips"`
	// LossSpike, if not 0, is how many times the median of the last 20 losses makes a spike; OnSpike is warn, skip or stop.
	LossSpike float64 `mapstructure:"loss_spike" json:"loss_spike"`
	OnSpike   string  `mapstructure:"on_spike" json:"on_spike"`
	// StallTimeout, if not empty, writes down where the program stands when a step makes no progress for so long ("10m").
	StallTimeout string `mapstructure:"stall_timeout" json:"stall_timeout"`
}

// Stall returns StallTimeout, 0 if there is none.
func (h Health) Stall() (time.Duration, error) { return positiveDuration(h.StallTimeout) }

// Limits bound the run.
type Limits struct {
	// MaxTime ends the run with a checkpoint after this time ("90m"), though not before one step; empty = no limit.
	MaxTime string `mapstructure:"max_time" json:"max_time"`
	// Memory bounds the trainer's buffers ("8GiB"); empty = what the machine has.
	Memory string `mapstructure:"memory" json:"memory"`
}

// Metrics says how a run can be watched, beside its metrics.jsonl. Nothing of it changes what the run comes to.
type Metrics struct {
	// TensorBoard has the run write event files to the folder tensorboard in the run directory.
	TensorBoard bool `mapstructure:"tensorboard" json:"tensorboard,omitempty"`
	// Listen is the address ("127.0.0.1:9464") at which the run answers Prometheus while it trains; empty = none. Without a
	// host it is this machine's alone; port 0 is any free one.
	Listen string `mapstructure:"listen" json:"listen,omitempty"`
}

// Address returns Listen with its host filled in; empty where there is none.
func (m Metrics) Address() (string, error) {
	if m.Listen == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(m.Listen)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return "", fmt.Errorf("must be HOST:PORT such as 127.0.0.1:9464, got %q", m.Listen)
	}
	return net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port), nil
}
