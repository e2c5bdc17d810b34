package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

// tensorBoardPython is a Python that has TensorBoard: TENSORBOARD_PYTHON's, or that of scripts/setup-tensorboard.
func tensorBoardPython(t *testing.T) string {
	t.Helper()
	python := os.Getenv("TENSORBOARD_PYTHON")
	if python == "" {
		cache := cacheFolder()
		if cache == "" {
			t.Skip("no TensorBoard: TENSORBOARD_PYTHON is not set and there is no cache folder")
		}
		python = filepath.Join(cache, "tensorboard", "bin", "python")
	}
	if out, err := exec.Command(python, "-c", "import tensorboard").CombinedOutput(); err != nil {
		t.Skipf("no TensorBoard: scripts/setup-tensorboard installs it: %v %s", err, out)
	}
	return python
}

// reader is a TensorBoard that stays open.
type reader struct {
	in  io.WriteCloser
	out *bufio.Reader
}

type shown struct {
	Scalars map[string][][2]float64
	Texts   map[string][]string
}

func openReader(t *testing.T, python, folder string) *reader {
	t.Helper()
	script, err := filepath.Abs(filepath.Join("..", "..", "scripts", "peer", "read-events.py"))
	require.NoError(t, err)
	cmd := exec.Command(python, script, folder)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, stderr.String())
		}
	})
	return &reader{in, bufio.NewReader(out)}
}

func (r *reader) shows(t *testing.T) (s shown) {
	t.Helper()
	line, err := r.out.ReadBytes('\n')
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(line, &s))
	return s
}

func (r *reader) looksAgain(t *testing.T) shown {
	t.Helper()
	_, err := io.WriteString(r.in, "\n")
	require.NoError(t, err)
	return r.shows(t)
}

// scalarsOf are the scalars that a run's metrics.jsonl has, as TensorBoard should show them.
func scalarsOf(t *testing.T, run string) map[string][][2]float64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(run, "metrics.jsonl"))
	require.NoError(t, err)
	want := map[string][][2]float64{}
	for line := range bytes.Lines(text) {
		var r map[string]any
		require.NoError(t, json.Unmarshal(line, &r))
		add := func(tag string, value any) {
			want[tag] = append(want[tag], [2]float64{r["step"].(float64), float64(float32(value.(float64)))})
		}
		switch of, _ := r["validation_objective"].(string); {
		case r["loss"] == nil && of != "":
			add("validation/loss/"+of, r["validation_loss"])
		case r["loss"] == nil:
			add("validation/loss", r["validation_loss"])
		default:
			for tag, key := range map[string]string{
				"train/loss": "loss", "train/learning_rate": "lr", "train/gradient_norm": "grad_norm", "train/epoch": "epoch",
				"train/targets": "targets", "train/tokens": "tokens", "speed/tokens_per_second": "tokens_per_s",
				"speed/target_tokens_per_second": "target_tokens_per_s", "speed/step_seconds": "seconds", "memory/bytes": "memory_bytes",
			} {
				add(tag, r[key])
			}
			counts := r["objective"].(map[string]any)
			for _, name := range []string{"cft", "sft"} { // sft comes first, and both are trained from then on
				if n, is := counts[name].(float64); is || len(want["objective/"+name]) > 0 {
					add("objective/"+name, n/r["examples"].(float64))
				}
			}
		}
	}
	return want
}

// tear takes the last bytes off a file.
func tear(t *testing.T, path string, bytes int64) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, info.Size()-bytes))
}

const tensorBoardConfig = `model: tiny.gguf
output: run
threads: 2
data:
  sources: [{path: train.jsonl, format: cft}]
  validation: {path: held.jsonl, format: cft, every_steps: 2}
objective: {stages: [{mix: {sft: 1}, until: {steps: 3}}, {mix: {cft: 2, sft: 1}}]}
adapter: {rank: 4, alpha: 8}
train: {seq_len: 128, global_batch: {examples: 2}, epochs: 300, max_steps: 400}
checkpoint: {every_steps: 10, keep_best: false}
metrics: {tensorboard: true}
`

// TensorBoard's own reader finds in a run's event files what metrics.jsonl has, to float32: while it stays open over a crash and a
// resume, after which it must have forgotten what lay beyond the checkpoint, and when it is opened afterwards.
func TestTensorBoard(t *testing.T) {
	python := tensorBoardPython(t)
	s := &killSite{dir: t.TempDir()}
	self, err := os.Executable()
	require.NoError(t, err)
	s.program = filepath.Join(s.dir, "cftune")
	require.NoError(t, os.Symlink(self, s.program))
	require.NoError(t, testmodel.Write(filepath.Join(s.dir, "tiny.gguf"), testmodel.Options{Seed: 1, Type: testmodel.Q8_0}))
	row := `{"query": "1 + 1?", "response": "3", "critique": "wrong", "solution": "2"}` + "\n"
	for name, text := range map[string]string{
		"run.yaml": tensorBoardConfig, "held.jsonl": row,
		"train.jsonl": `{"query": "2 + 2?", "response": "4", "critique": "right", "solution": "4"}` + "\n" +
			`{"query": "2 + 3?", "response": "6", "critique": "wrong", "solution": "5"}` + "\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
	}
	run := filepath.Join(s.dir, "run")
	folder := filepath.Join(run, "tensorboard")

	// What a kill in the midst of step 17 leaves: the checkpoint of step 10, and files whose last record is torn.
	s.do(t, "train", "--config", "run.yaml", "--stop-after", "16")
	require.NoError(t, os.RemoveAll(filepath.Join(run, "checkpoints", "step-00000016")))
	files, err := filepath.Glob(filepath.Join(folder, "*"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	tear(t, files[0], 20)
	tear(t, filepath.Join(run, "metrics.jsonl"), 30)
	open := openReader(t, python, folder)
	before := open.shows(t).Scalars
	require.Len(t, before["train/loss"], 16)
	require.Len(t, before["validation/loss"], 8, "the last one is torn") // of step 0 and of every second

	s.do(t, "resume", "run", "--stop-after", "1")
	want := scalarsOf(t, run)
	require.Len(t, want["train/loss"], 11)
	got := open.looksAgain(t)
	assert.Equal(t, want, got.Scalars, "it was open over the crash")
	require.Contains(t, want, "objective/cft")
	require.Contains(t, want, "validation/loss/sft")

	s.do(t, "resume", "run", "--stop-after", "3")
	want = scalarsOf(t, run)
	assert.Equal(t, want, open.looksAgain(t).Scalars, "it was open over a resume")
	fresh := openReader(t, python, folder).shows(t)
	assert.Equal(t, want, fresh.Scalars)
	record, err := os.ReadFile(filepath.Join(run, "config.json"))
	require.NoError(t, err)
	assert.Equal(t, "    "+string(bytes.ReplaceAll(bytes.TrimSpace(record), []byte("\n"), []byte("\n    "))), fresh.Texts["configuration"][0])

	s.do(t, "runs", "tensorboard", "run", "--output", "copy")
	assert.Equal(t, want, openReader(t, python, filepath.Join(s.dir, "copy")).shows(t).Scalars)
}
