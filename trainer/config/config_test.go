package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testlimit"
)

// minimal is the shortest valid configuration.
const minimal = `
model: base.gguf
output: runs/x
data: {sources: [{path: a.jsonl, format: cft}]}
`

func mustParse(t *testing.T, data string, sets, environ []string) Run {
	t.Helper()
	run, err := Parse([]byte(data), sets, environ)
	require.NoError(t, err)
	return run
}

func TestMinimalHasDefaults(t *testing.T) {
	want := Defaults()
	want.Model, want.Output = "base.gguf", "runs/x"
	want.Data.Sources = []Source{{Path: "a.jsonl", Format: "cft", Weight: 1, Sample: 1}}
	assert.Equal(t, want, mustParse(t, minimal, nil, nil))
}

func TestExampleIsTheDefaults(t *testing.T) {
	want := Defaults()
	want.Model, want.Output = "model.gguf", "runs/first"
	want.Data.Sources = []Source{{Path: "data/train.jsonl", Format: "cft", Weight: 1, Sample: 1}}
	assert.Equal(t, want, mustParse(t, Example(), nil, nil))
	for _, key := range Keys() {
		assert.True(t, strings.Contains(Example(), lastPart(key)+":"), "the example lacks %s", key)
	}
}

func TestPrecedence(t *testing.T) {
	tests := []struct {
		name          string
		file          string
		environ, sets []string
		want          int
	}{
		{"default", "", nil, nil, 1024},
		{"file over default", "train: {seq_len: 100}", nil, nil, 100},
		{"environment over file", "train: {seq_len: 100}", []string{"CFTUNE_TRAIN__SEQ_LEN=200"}, nil, 200},
		{"one underscore for a dot", "", []string{"CFTUNE_TRAIN_SEQ_LEN=200"}, nil, 200},
		{"set over environment", "", []string{"CFTUNE_TRAIN__SEQ_LEN=200"}, []string{"train.seq_len=300"}, 300},
		{"later set over earlier", "", nil, []string{"train.seq_len=300", "train.seq_len=400"}, 400},
		{"a group set whole keeps its other keys", "train: {seq_len: 100}", nil, []string{"train={epochs: 2}"}, 100},
		{"a narrower variable over a wider one", "", []string{"CFTUNE_TRAIN_SEQ_LEN=7", "CFTUNE_TRAIN={seq_len: 8}"}, nil, 7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, mustParse(t, minimal+tt.file, tt.sets, tt.environ).Train.SeqLen)
		})
	}
}

// The digest of what must not change between the parts of a run is over the configuration's JSON, with an empty checkpoint
// group; runs from before a key of it was there keep theirs.
func TestEmptyCheckpointGroupHasNoNewKeys(t *testing.T) {
	assert.Equal(t, `{"every_steps":0,"keep_last":0,"keep_every":0,"keep_best":false}`, string(canonical(Checkpoint{})))
	wait, err := Checkpoint{}.Wait()
	require.NoError(t, err)
	assert.Equal(t, 5*time.Minute, wait)
}

func TestGlobalBatchIsOneChoice(t *testing.T) {
	tests := []struct {
		name          string
		file          string
		environ, sets []string
		want          GlobalBatch
	}{
		{"file replaces the default", "train: {global_batch: {packs: 4}}", nil, nil, GlobalBatch{Packs: 4}},
		{"an empty group replaces nothing", "train: {global_batch: {}}", nil, nil, GlobalBatch{Examples: 32}},
		{"set with a mapping", "train: {global_batch: {tokens: 9}}", nil, []string{"train.global_batch={packs: 2}"}, GlobalBatch{Packs: 2}},
		{"set of one key", "train: {global_batch: {tokens: 9}}", nil, []string{"train.global_batch.packs=3"}, GlobalBatch{Packs: 3}},
		{"set of a group around it", "", nil, []string{"train={global_batch: {packs: 3}}"}, GlobalBatch{Packs: 3}},
		{"environment", "", []string{"CFTUNE_TRAIN__GLOBAL_BATCH__TOKENS=5"}, nil, GlobalBatch{Tokens: 5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, mustParse(t, minimal+tt.file, tt.sets, tt.environ).Train.GlobalBatch)
		})
	}
}

func TestSetsTakeFlowValues(t *testing.T) {
	run := mustParse(t, minimal, []string{
		"data.sources=[{path: x, format: alpaca, weight: 0.5}, {path: y, format: cft}]",
		"objective.stages=[{mix: {cft: 1, sft: 0.25}, until: {steps: 20}}, {mix: {sft: 1}}]",
		"optimizer.betas=[0.8, 0.95]",
		"optimizer.lr=3e-5",
		"limits.max_time=90m",
		"device=cuda:0",
		"model=12",
		"seed=18446744073709551615",
	}, nil)
	assert.Equal(t, []Source{{Path: "x", Format: "alpaca", Weight: 0.5, Sample: 1}, {Path: "y", Format: "cft", Weight: 1, Sample: 1}}, run.Data.Sources)
	assert.Equal(t, []Stage{
		{Mix: map[string]float64{"cft": 1, "sft": 0.25}, Until: Until{Steps: 20}},
		{Mix: map[string]float64{"sft": 1}},
	}, run.Objective.Stages)
	assert.Equal(t, []float64{0.8, 0.95}, run.Optimizer.Betas)
	assert.Equal(t, 3e-5, run.Optimizer.LR)
	assert.Equal(t, "cuda:0", run.Device)
	assert.Equal(t, "12", run.Model, "text outside the file needs no quotes")
	assert.Equal(t, uint64(18446744073709551615), run.Seed)
}

func TestProblems(t *testing.T) {
	tests := []struct {
		name          string
		file          string
		environ, sets []string
		want          string
	}{
		{"misspelt key trains at the default", "adapter: {rnak: 8}", nil, nil, "line 5: adapter.rnak: unknown key (did you mean adapter.rank?)"},
		{"key in the wrong group", "lr: 1", nil, nil, "line 5: lr: unknown key (did you mean optimizer.lr?)"},
		{"unknown key of a list's item", "objective: {stages: [{mxi: {cft: 1}, mix: {cft: 1}}]}", nil, nil, "line 5: objective.stages[0].mxi: unknown key (did you mean mix?)"},
		{"wrong case", "Train: {}", nil, nil, "line 5: Train: unknown key (did you mean train?)"},
		{"set twice", "seed: 1\nseed: 2", nil, nil, "line 6: seed: set twice, first on line 5"},
		{"text for a number", "train: {seq_len: long}", nil, nil, `line 5: train.seq_len: must be a whole number, got "long"`},
		{"quoted number for a number", "train: {seq_len: '12'}", nil, nil, `line 5: train.seq_len: must be a whole number, got "12"`},
		{"fraction for a whole number", "train: {seq_len: 1.5}", nil, nil, "line 5: train.seq_len: must be a whole number, got 1.5"},
		{"number beyond the type", "train: {seq_len: 99999999999999999999}", nil, nil, "line 5: train.seq_len: must be a whole number, got 99999999999999999999"},
		{"negative seed", "seed: -1", nil, nil, "line 5: seed: must be a whole number of at least 0, and -1 is out of its range"},
		{"number for text", "device: 3", nil, nil, "line 5: device: must be text, got 3; put it in quotes if it is meant"},
		{"yes for true", "adapter: {rslora: yes}", nil, nil, `line 5: adapter.rslora: must be true or false, got "yes"`},
		{"no value", "seed:", nil, nil, "line 5: seed: has no value"},
		{"scalar for a group", "train: 5", nil, nil, "line 5: train: must be a mapping of keys, got 5"},
		{"mapping for a list", "optimizer: {betas: {a: 1}}", nil, nil, "line 5: optimizer.betas: must be a list, got a mapping"},
		{"unknown objective", "objective: {stages: [{mix: {ctf: 1}}]}", nil, nil, "line 5: objective.stages[0].mix.ctf: unknown objective: must be cft, sft or refine (did you mean cft?)"},
		{"weights without a sum", "objective: {stages: [{mix: {cft: 0}}]}", nil, nil, "line 5: objective.stages[0].mix: needs an objective with a weight above 0, such as {cft: 1}"},
		{"negative weight", "objective: {stages: [{mix: {cft: 2, sft: -1}}]}", nil, nil, "line 5: objective.stages[0].mix.sft: must be a finite number of at least 0, got -1"},
		{"stage without an end", "objective: {stages: [{mix: {cft: 1}}, {mix: {sft: 1}}]}", nil, nil, "objective.stages[0].until: missing: only the last stage goes on to the end"},
		{"stages that go back", "objective: {stages: [{mix: {cft: 1}, until: {steps: 9}}, {mix: {sft: 1}, until: {steps: 9}}, {mix: {cft: 1}}]}", nil, nil, "line 5: objective.stages[1].until.steps: must be above 9, the end of an earlier stage, got 9"},
		{"a stage with two ends", "objective: {stages: [{mix: {cft: 1}, until: {steps: 9, tokens: 9}}, {mix: {sft: 1}}]}", nil, nil, "line 5: objective.stages[0].until: must be one of steps, epochs, tokens and plateau, got 2 of them"},
		{"a plateau of nothing", "objective: {stages: [{mix: {cft: 1}, until: {plateau: 2}}, {mix: {sft: 1}}]}", nil, nil, "line 5: objective.stages[0].until.plateau: needs data.validation: it is the validation loss that must stop falling"},
		{"turns of no kind", "objective: {turns: first}", nil, nil, "line 5: objective.turns: must be all or last, got \"first\""},
		{"an end for the last stage", "objective: {stages: [{mix: {cft: 1}, until: {epochs: 1}}]}", nil, nil, "line 5: objective.stages[0].until: the last stage has no end: remove it or add a stage"},
		{"two batch sizes", "train: {global_batch: {packs: 1, tokens: 2}}", nil, nil, "line 5: train.global_batch: must have exactly one of examples, tokens and packs above 0, got 2"},
		{"no batch size", "train: {global_batch: {examples: 0}}", nil, nil, "line 5: train.global_batch: must have exactly one of examples, tokens and packs above 0, got 0"},
		{"rank 0", "adapter: {rank: 0}", nil, nil, "line 5: adapter.rank: must be within 1..4096, got 0"},
		{"not a number", "optimizer: {lr: .nan}", nil, nil, "line 5: optimizer.lr: must be a finite number above 0, got NaN"},
		{"one beta", "optimizer: {betas: [0.9]}", nil, nil, "line 5: optimizer.betas: must be two numbers, got 1"},
		{"unknown module", "adapter: {targets: 'attn_q,ffn_don'}", nil, nil, `line 5: adapter.targets: unknown target module "ffn_don": must be a list of all_linear, attn_q, attn_k, attn_v, attn_qkv, attn_output, ffn_gate, ffn_up, ffn_down, token_embd, output (did you mean ffn_down?)`},
		{"a key as PEFT calls it", "lora_r: 8", nil, nil, "line 5: lora_r: unknown key (did you mean adapter.rank?)"},
		{"a key as transformers call it", "", nil, []string{"train.learning_rate=1e-4"}, "--set: train.learning_rate: unknown key (did you mean optimizer.lr?)"},
		{"a module as transformers call it", "adapter: {targets: [q_proj]}", nil, nil, `line 5: adapter.targets: unknown target module "q_proj": must be a list of all_linear, attn_q, attn_k, attn_v, attn_qkv, attn_output, ffn_gate, ffn_up, ffn_down, token_embd, output (did you mean attn_q?)`},
		{"targets of no words", "adapter: {targets: [[attn_q]]}", nil, nil, "line 5: adapter.targets: its items must be words, got a list"},
		{"a mirror that is a path", "checkpoint: {mirror: /mnt/x}", nil, nil, "line 5: checkpoint.mirror: must begin with s3://, gs://, azblob:// or file://"},
		{"a mirror on another machine", "", nil, []string{"checkpoint.mirror=file://host/x"}, "--set: checkpoint.mirror: names the machine host; three slashes begin a path of this one (file:///folder/file)"},
		{"no time for the mirror", "checkpoint: {mirror_wait: 0s}", nil, nil, `line 5: checkpoint.mirror_wait: must be a time above 0 such as 90m or 1h30m, got "0s"`},
		{"time without a unit", "limits: {max_time: '90'}", nil, nil, `line 5: limits.max_time: must be a time above 0 such as 90m or 1h30m, got "90"`},
		{"size of an unknown unit", "limits: {memory: 8GiG}", nil, nil, `line 5: limits.memory: must be a size such as 8GiB or 500MB, got "8GiG"`},
		{"group set twice", "data: {over_long: cut}", nil, nil, "line 5: data: set twice, first on line 3"},
		{"validation without a path", "", nil, []string{"data.validation.format=cft"}, "data.validation.path: missing, though data.validation.format is set"},
		{"validation without a format", "", nil, []string{"data.validation.path=v"}, "data.validation.format: missing: must be cft, alpaca, webinstruct-cft, messages, sharegpt, prompt-completion or tokenized"},
		{"source weight 0", "", nil, []string{"data.sources=[{path: x, format: cft, weight: 0}]"}, "--set: data.sources[0].weight: must be a finite number above 0, got 0"},
		{"format spelt wrong", "", nil, []string{"data.sources=[{path: x, format: alpacca}]"}, `--set: data.sources[0].format: must be cft, alpaca, webinstruct-cft, messages, sharegpt, prompt-completion or tokenized, got "alpacca" (did you mean alpaca?)`},
		{"choice outside", "", nil, []string{"data.over_long=cut"}, `--set: data.over_long: must be refuse, drop, truncate_prompt or split, got "cut"`},
		{"set without a value", "", nil, []string{"seed"}, `--set: "seed" is not key=value`},
		{"set of an unknown key", "", nil, []string{"train.seqlen=1"}, "--set: train.seqlen: unknown key (did you mean train.seq_len?)"},
		{"set below a value", "", nil, []string{"seed.x=1"}, "--set: seed.x: unknown key (did you mean seed?)"},
		{"set of broken YAML", "", nil, []string{"data.sources=[{"}, "--set: data.sources: yaml: line 1: did not find expected node content"},
		{"unknown variable", "", []string{"CFTUNE_TRAIN_SEQLEN=1", "PATH=/bin"}, nil, "CFTUNE_TRAIN_SEQLEN: unknown variable (did you mean CFTUNE_TRAIN_SEQ_LEN?)"},
		{"two spellings of a variable", "", []string{"CFTUNE_TRAIN_SEQ_LEN=1", "CFTUNE_TRAIN__SEQ_LEN=2"}, nil, "CFTUNE_TRAIN__SEQ_LEN: train.seq_len: set by CFTUNE_TRAIN_SEQ_LEN as well"},
		{"variable out of range", "", []string{"CFTUNE_TRAIN_EPOCHS=0"}, nil, "CFTUNE_TRAIN_EPOCHS: train.epochs: must be at least 1, got 0"},
		{"two documents", "---\nseed: 1", nil, nil, "a configuration is one YAML document, found more"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(strings.TrimPrefix(minimal, "\n")+"#\n"+tt.file), tt.sets, tt.environ)
			var problems *Problems
			require.ErrorAs(t, err, &problems)
			assert.Contains(t, strings.Split(err.Error(), "\n"), tt.want)
		})
	}
}

// A file that is no configuration is told as that, not as one in which everything is missing.
func TestWhatIsNoConfiguration(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"broken YAML", "model: [\n", "yaml: line 1: did not find expected node content"},
		{"a tab", "model: m.gguf\n\toutput: o\n", "yaml: line 2: found a tab character that violates indentation"},
		{"a list", "- model: m.gguf\n", "line 1: a configuration must be a mapping of keys, got a list"},
		{"a text", "model.gguf", `line 1: a configuration must be a mapping of keys, got "model.gguf"`},
		{"two documents", "model: m.gguf\n---\noutput: o\n", "a configuration is one YAML document, found more"},
	} {
		_, err := Parse([]byte(tt.file), nil, nil)
		assert.EqualError(t, err, tt.want, tt.name)
		var into struct {
			Model string `mapstructure:"model"`
		}
		d := ReadDocument("f", []byte(tt.file), &into)
		d.Check(into.Model != "", "model", "missing")
		var problems *Problems
		require.ErrorAs(t, d.Err(), &problems, tt.name)
		assert.Len(t, problems.List, 1, tt.name)
	}
	_, err := Parse(nil, nil, nil)
	assert.ErrorContains(t, err, "model: missing", "an empty file is a configuration")
}

// What is a list may be written as one, wherever it is given.
func TestListsOfWordsMayBeLists(t *testing.T) {
	for _, tt := range []struct {
		name, file    string
		sets, environ []string
	}{
		{"commas", "adapter: {targets: 'attn_q,attn_v', layers: '0-2,-1'}", nil, nil},
		{"a list", "adapter: {targets: [attn_q, attn_v], layers: [0-2, -1]}", nil, nil},
		{"--set", "", []string{"adapter.targets=[attn_q, attn_v]", "adapter.layers=[0-2,-1]"}, nil},
		{"environment", "", nil, []string{"CFTUNE_ADAPTER__TARGETS=[attn_q, attn_v]", "CFTUNE_ADAPTER__LAYERS=[0-2, -1]"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run, err := Parse([]byte(minimal+tt.file), tt.sets, tt.environ)
			require.NoError(t, err)
			assert.Equal(t, "attn_q,attn_v", run.Adapter.Targets)
			assert.Equal(t, "0-2,-1", run.Adapter.Layers)
		})
	}
}

// Each name of other trainers leads to a key that there is.
func TestNamesElsewhereLeadToKeys(t *testing.T) {
	for name, key := range namesElsewhere {
		assert.Contains(t, allKeys, key, name)
		assert.NotContains(t, allKeys, name)
	}
	for name, module := range modulesElsewhere {
		assert.Contains(t, allTargets, module, name)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Parse([]byte("adapter: {rank: none}\ntrain: {seq_len: 0}\nfoo: 1\n"), nil, []string{"CFTUNE_NO=1"})
	var problems *Problems
	require.ErrorAs(t, err, &problems)
	assert.Equal(t, []string{
		`line 1: adapter.rank: must be a whole number, got "none"`,
		"line 3: foo: unknown key",
		"CFTUNE_NO: unknown variable",
		"model: missing: the path of the base model's GGUF file",
		"output: missing: the run directory",
		"data.sources: missing: at least one source of records",
		"line 2: train.seq_len: must be within 2..1048576 tokens, got 0",
	}, strings.Split(err.Error(), "\n"))
	var one Problem
	require.ErrorAs(t, err, &one)
	assert.Equal(t, "adapter.rank", one.Key)
}

func TestOtherVariablesAreNoKeys(t *testing.T) {
	run := mustParse(t, minimal, nil, []string{"CFTUNE_CACHE=/x", "CFTUNE_PORTABLE=1", "CFTUNE_MODEL=other.gguf"})
	assert.Equal(t, "base.gguf", run.Model, "the tests' model replaced the run's")
	for name := range OtherVariables() {
		assert.NotContains(t, envKeys, name)
	}
}

// Two keys that share a variable would make one of them unreachable.
func TestVariablesNameOneKeyEach(t *testing.T) {
	dotted := -1 // model has no variable
	for _, key := range Keys() {
		if strings.Contains(key, ".") {
			dotted++
		}
	}
	assert.Len(t, envKeys, len(Keys())+dotted)
}

func TestLoadNamesFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run.yaml")
	require.NoError(t, os.WriteFile(path, []byte("sed: 1"), 0o600))
	_, err := Load(path, nil, nil)
	assert.ErrorContains(t, err, path+":1: sed: unknown key (did you mean seed?)")

	require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("#", maxFileBytes+1)), 0o600))
	_, err = Load(path, nil, nil)
	assert.ErrorContains(t, err, "larger than")

	_, err = Load(filepath.Join(t.TempDir(), "none.yaml"), nil, nil)
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestShippedConfigsLoad(t *testing.T) {
	paths, err := filepath.Glob("../../configs/*.yaml")
	require.NoError(t, err)
	if len(paths) == 0 {
		t.Skip("configs/ has no *.yaml yet")
	}
	for _, path := range paths {
		if strings.HasPrefix(filepath.Base(path), "study-") {
			continue // files of another kind, which trainer/study's tests load
		}
		_, err := Load(path, nil, nil)
		assert.NoError(t, err)
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.True(t, strings.HasPrefix(string(text), "# cftune ") || strings.HasPrefix(string(text), "# ./"), "%s does not open with its command line", path)
	}
}

func TestDigestAndDiff(t *testing.T) {
	a := mustParse(t, minimal, nil, nil)
	b := mustParse(t, minimal, []string{"adapter.rank=8", "data.sources=[{path: b, format: cft}]", "train.global_batch.packs=2"}, nil)
	assert.Empty(t, Diff(a, a))
	assert.Equal(t, a.Digest(), mustParse(t, minimal, nil, nil).Digest())
	assert.Len(t, a.Digest(), 64)
	assert.NotEqual(t, a.Digest(), b.Digest())
	assert.Equal(t, []FieldDiff{
		{"data.sources", `[{"path":"a.jsonl","format":"cft","weight":1,"sample":1}]`, `[{"path":"b","format":"cft","weight":1,"sample":1}]`},
		{"adapter.rank", "16", "8"},
		{"train.global_batch.examples", "32", "0"},
		{"train.global_batch.packs", "0", "2"},
	}, Diff(a, b))
}

func TestTargetsMask(t *testing.T) {
	all, err := TargetsMask("all_linear")
	require.NoError(t, err)
	assert.Equal(t, allLinear, all)
	some, err := TargetsMask("ffn_down, attn_q")
	require.NoError(t, err)
	assert.Equal(t, []string{"attn_q", "ffn_down"}, some, "the order of the list must not matter")
	for _, spec := range []string{"", " ", "attn_q,", "attn_q,attn_q", "all_linear,attn_q", "lm_head"} {
		_, err := TargetsMask(spec)
		assert.Error(t, err, "%q", spec)
	}
}

func TestParseSize(t *testing.T) {
	good := map[string]uint64{
		"0": 0, "17": 17, "17B": 17, "8GiB": 8 << 30, "8 GiB": 8 << 30, "1.5KiB": 1536, "500MB": 500e6, "2TB": 2e12, "1TiB": 1 << 40,
	}
	for text, want := range good {
		got, err := ParseSize(text)
		assert.NoError(t, err)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "GiB", "8gib", "8G", "-1", "1/2", "1e3", "0x10", "1.5", "1..5KB", "9223372036854775808", "99999999TiB", "8GiBGiB", "ten"} {
		_, err := ParseSize(text)
		assert.Error(t, err, text)
	}
}

func TestLimits(t *testing.T) {
	d, err := Limits{MaxTime: "1h30m"}.Duration()
	require.NoError(t, err)
	assert.Equal(t, 90*time.Minute, d)
	for _, text := range []string{"-1h", "0s", "tomorrow"} {
		_, err := Limits{MaxTime: text}.Duration()
		assert.Error(t, err, text)
	}
	_, err = Limits{Memory: "0"}.Bytes()
	assert.Error(t, err)
	none, err := Limits{}.Bytes()
	assert.NoError(t, err)
	assert.Zero(t, none)
}

func FuzzParse(f *testing.F) {
	f.Add(minimal, "train.seq_len=1")
	f.Add(example, "data.sources=[{path: x, format: cft}]")
	f.Add("a: &a [*a]", "objective.stages=[{mix: {cft: .inf}}]")
	f.Add("? {a: b}\n: c", "train={global_batch: {packs: 1}}")
	f.Add("data: {sources: [{path: &p x, format: *p}]}", "limits.memory=8GiB")
	f.Fuzz(func(t *testing.T, data, set string) {
		var run Run
		var err error
		testlimit.Bound(t, func() { run, err = Parse([]byte(data), []string{set}, nil) })
		if err == nil {
			// What Parse accepts, Validate accepts, and the canonical form exists.
			if err := run.Validate(); err != nil {
				t.Fatalf("Parse accepted what Validate refuses: %v", err)
			}
			run.Digest()
			return
		}
		var problems *Problems
		if !errors.As(err, &problems) || len(problems.List) == 0 {
			t.Fatalf("not a *Problems: %v", err)
		}
	})
}

func TestSettingsAreAllKeys(t *testing.T) {
	run := Defaults()
	var keys []string
	for _, s := range Settings(run) {
		keys = append(keys, s.Key)
		if s.Key == "optimizer.lr" {
			assert.Equal(t, "0.0002", s.Value)
		}
	}
	assert.Contains(t, keys, "optimizer.lr")
	for _, d := range Diff(Run{}, run) {
		assert.Contains(t, keys, d.Key, "what can differ is among them")
	}
}
