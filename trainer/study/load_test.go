package study

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
)

// smallFile is a study that is right.
const smallFile = `name: small
model: model.gguf
output: out
seeds: [1, 2]
budget: {steps: 4}
sets:
  - {name: words, generator: wordforms, seed: 3, split: {train: 8, validation: 2, test: 4}}
arms:
  - {name: base}
  - {name: sft, stages: [{mix: {sft: 1}}]}
  - {name: cft, stages: [{mix: {cft: 1}}]}
  - {name: cft-50, corrupt: 0.5, stages: [{mix: {cft: 1}}]}
  - {name: both, stages: [{mix: {cft: 1}, share: 0.25}, {mix: {sft: 1}, share: 0.75}]}
claims:
  - {text: critiques help, set: words, kind: better, arm: cft, than: sft, measure: answers}
`

func load(t *testing.T, text string, sets ...string) (Spec, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "study.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return Load(path, sets)
}

func mustLoad(t *testing.T, text string, sets ...string) Spec {
	t.Helper()
	spec, err := load(t, text, sets...)
	require.NoError(t, err)
	return spec
}

func TestLoadFillsIn(t *testing.T) {
	spec := mustLoad(t, smallFile, "threads=3", "arms.cft-50.corrupt=0.25", "sets.words.split.test=5", "seeds=[7]")
	assert.Equal(t, 3, spec.Threads)
	assert.Equal(t, 0.25, spec.Arms[3].Corrupt)
	assert.Equal(t, Split{8, 2, 5}, spec.Sets[0].Split)
	assert.Equal(t, []uint64{7}, spec.Seeds)
	assert.Equal(t, graderForm, spec.Sets[0].Grader)
	assert.Equal(t, answersGold, spec.Arms[1].Answers)
	assert.Equal(t, 1.0, spec.Arms[1].Stages[0].Share)
	assert.False(t, spec.Arms[0].Trained())
	assert.Len(t, spec.TrainedArms(), 4)
}

func TestLoadRefusesEverythingAtOnce(t *testing.T) {
	replaced := strings.NewReplacer(
		"seeds: [1, 2]", "seeds: [1, 1]",
		"budget: {steps: 4}", "budget: {steps: 4, epochs: 1}\nadapter: {rnak: 4}\noptimizer: {lr: -1}",
		"generator: wordforms", "generator: words",
		"corrupt: 0.5, stages: [{mix: {cft: 1}}]", "corrupt: 1.5, stages: [{mix: {cft: 1}}]",
		"share: 0.75", "share: 0.5",
		"{name: sft, stages: [{mix: {sft: 1}}]}", "{name: sft, corrupt: 0.1, stages: [{mix: {stf: 1}}]}",
		"than: sft, measure: answers", "than: stf, measure: length",
	).Replace(smallFile)
	_, err := load(t, replaced)
	var problems *config.Problems
	require.ErrorAs(t, err, &problems)
	for _, want := range []string{
		"seeds[1]: 1 is there twice", "budget: must have exactly one of steps, epochs and target_tokens, got 2", "adapter.rnak: unknown key",
		"optimizer.lr: must be a finite number above 0, got -1", "sets[0].generator: must be wordforms or left out", "arms[3].corrupt: must be within 0..1",
		"arms[4].stages: the shares must add up to 1, they are 0.75", "unknown objective", "corrupts critiques, but the arm learns none",
		`claims[0].than: no arm is called "stf"`, "claims[0].measure: must be answers or verdicts",
	} {
		assert.Contains(t, err.Error(), want)
	}
	assert.Contains(t, err.Error(), "study.yaml:", "places are named")
}

func TestLoadRefusesSingleFaults(t *testing.T) {
	for want, change := range map[string][2]string{
		"sets[0].path: a set is generated or read, not both":                 {"generator: wordforms,", "generator: wordforms, path: a.jsonl,"},
		"sets[0].path: missing: path with split":                             {"generator: wordforms,", "format: cft,"},
		"sets[0].split.test: must be at least 1, got 0":                      {", test: 4", ""},
		"arms[2].name: \"sft\" is there twice":                               {"name: cft,", "name: sft,"},
		"arms[1].stages: base and sft are both the base model":               {"{name: sft, stages: [{mix: {sft: 1}}]}", "{name: sft}"},
		"arms[1].name: must be a name of letters":                            {"name: sft,", "name: a/b,"},
		"claims[0].kind: must be better, not-worse or others-over-self":      {"kind: better", "kind: best"},
		"claims[0].than: is not used":                                        {"kind: better", "kind: others-over-self"},
		"limits.max_time: would end runs before their budget":                {"seeds: [1, 2]", "seeds: [1, 2]\nlimits: {max_time: 1m}"},
		"sets[0].trian: unknown key":                                         {"seed: 3,", "trian: {path: x},"},
		"train.choose: must be last or best":                                 {"seeds: [1, 2]", "train: {choose: newest}"},
		"--set: nonsense: unknown key":                                       {},
		"arms[4].stages[0].mxi: unknown key (did you mean mix?)":             {"[{mix: {cft: 1}, share", "[{mxi: {cft: 1}, share"},
		"checkpoint.mirror: a study has many runs":                           {"seeds: [1, 2]", "checkpoint: {mirror: \"file:///x\"}"},
		"sets[0].format: must be alpaca, cft, prompt-completion or webinstr": {"generator: wordforms,", "path: a.jsonl, format: messages,"},
	} {
		text, sets := smallFile, []string{"nonsense=1"}
		if change[0] != "" {
			text, sets = strings.Replace(smallFile, change[0], change[1], 1), nil
			require.NotEqual(t, smallFile, text, want)
		}
		_, err := load(t, text, sets...)
		assert.ErrorContains(t, err, want)
	}
}

func TestDigestLeavesOutWhereItComputes(t *testing.T) {
	spec := mustLoad(t, smallFile)
	assert.Equal(t, spec.Digest(), mustLoad(t, smallFile, "output=elsewhere", "model=b.gguf", "threads=9", "scoring.threads=1").Digest())
	assert.NotEqual(t, spec.Digest(), mustLoad(t, smallFile, "claims=[]").Digest(), "claims cannot be changed afterwards")
	assert.NotEqual(t, spec.Digest(), mustLoad(t, smallFile, "optimizer.lr=1e-3").Digest())
}
