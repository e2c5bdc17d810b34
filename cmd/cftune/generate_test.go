package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"cftune/bindings/engine"
	"cftune/internal/testfiles"
	"cftune/internal/testmodel"
)

// execute runs a command as main would, without a main.
func execute(t *testing.T, cmd *cobra.Command, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, notes bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&notes)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.ExecuteContext(t.Context())
	return out.String(), notes.String(), err
}

func tinyModel(t *testing.T, o testmodel.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	require.NoError(t, testmodel.Write(path, o))
	return path
}

func TestGenerateAnswersAQuestion(t *testing.T) {
	// The model's own template adds a system message under which its first token is a near tie.
	template := filepath.Join(t.TempDir(), "chatml.jinja")
	require.NoError(t, os.WriteFile(template, []byte(testmodel.ChatTemplate), 0o600))
	common := []string{"--model", testfiles.Model(t), "--template-file", template, "--threads", "2"}
	const question = "What is the capital of France?"
	ask := func(stdin string, args ...string) (text, notes string) {
		t.Helper()
		text, notes, err := execute(t, newGenerateCommand(), stdin, append(common, args...)...)
		require.NoError(t, err)
		return text, notes
	}

	text, notes := ask("", "--prompt", question, "--max-tokens", "40")
	require.Contains(t, text, "Paris")
	require.True(t, strings.HasSuffix(text, "\n"))
	require.Empty(t, notes)

	fromStdin, _ := ask(question+"\n", "--max-tokens", "40")
	require.Equal(t, text, fromStdin)

	cut, notes := ask("", "--prompt", question, "--max-tokens", "2")
	require.True(t, strings.HasPrefix(text, strings.TrimSpace(cut)))
	require.Contains(t, notes, "cut off: --max-tokens is 2")

	line, _ := ask("", "--prompt", question, "--max-tokens", "40", "--json", "--stop", "Paris")
	var a answerLine
	require.NoError(t, json.Unmarshal([]byte(line), &a))
	before, _, _ := strings.Cut(text, "Paris")
	require.Equal(t, before, a.Text)
	require.Equal(t, engine.StopString, a.Reason)
}

func TestGenerateJSONLines(t *testing.T) {
	model := tinyModel(t, testmodel.Options{})
	stdin := `{"id": 7, "prompt": "the answer"}

{"id": "b", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "is"}, {"role": "user", "content": "wrong"}]}
{"prompt": "<|im_end|>"}`
	args := []string{"--model", model, "--jsonl", "--max-tokens", "6", "--parallel", "2", "--threads", "1", "--temperature", "1", "--seed", "3"}
	out, _, err := execute(t, newGenerateCommand(), stdin, args...)
	require.NoError(t, err)
	var ids []string
	for line := range strings.Lines(out) {
		var a answerLine
		require.NoError(t, json.Unmarshal([]byte(line), &a))
		require.LessOrEqual(t, a.Tokens, 6)
		require.Contains(t, []string{"end", "max_tokens"}, string(a.Reason))
		ids = append(ids, string(a.ID))
	}
	require.Equal(t, []string{"7", `"b"`, ""}, ids)

	again, _, err := execute(t, newGenerateCommand(), stdin, args...)
	require.NoError(t, err)
	require.Equal(t, out, again)
	other, _, err := execute(t, newGenerateCommand(), stdin, append(args, "--seed", "4")...)
	require.NoError(t, err)
	require.NotEqual(t, out, other)
}

func TestGenerateRefuses(t *testing.T) {
	model := tinyModel(t, testmodel.Options{})
	data, err := os.ReadFile(model)
	require.NoError(t, err)
	cut := filepath.Join(t.TempDir(), "cut.gguf")
	require.NoError(t, os.WriteFile(cut, data[:len(data)/2], 0o600))
	ask := func(args ...string) []string { return append([]string{"--model", model, "--prompt", "a"}, args...) }

	for _, tt := range []struct {
		name, stdin string
		args        []string
		words       string
		code        int
	}{
		{"missing model", "", []string{"--model", "none.gguf", "--prompt", "a"}, "no such file", 3},
		{"a folder as model", "", []string{"--model", filepath.Dir(cut), "--prompt", "a"}, "is a folder, not a regular file", 3},
		{"cut-off model", "", []string{"--model", cut, "--prompt", "a"}, "cut off: tensor", 3},
		{"adapter that is a model", "", ask("--adapter", model), "not a LoRA adapter", 3},
		{"missing template", "", ask("--template-file", "none.jinja"), "no such file", 2},
		{"empty prompt", "", []string{"--model", model}, "the prompt is empty", 2},
		{"no JSON", "{\"prompt\": \"a\"}\nhello\n", []string{"--model", model, "--jsonl"}, "line 2: no JSON: invalid character", 3},
		{"unknown key", `{"promt": "a"}`, []string{"--model", model, "--jsonl"}, `line 1: unknown field "promt"`, 3},
		{"neither prompt nor messages", `{"id": 1}`, []string{"--model", model, "--jsonl"}, "want either", 3},
		{"both inputs", "", ask("--jsonl"), "exclude each other", 2},
		{"no tokens", "", ask("--max-tokens", "0"), "--max-tokens: must be at least 1, got 0", 2},
		{"negative temperature", "", ask("--temperature", "-1"), "--temperature", 2},
		{"temperature NaN", "", ask("--temperature", "NaN"), "--temperature", 2},
		{"top-p above 1", "", ask("--temperature", "1", "--top-p", "1.5"), "--top-p", 2},
		{"top-k without temperature", "", ask("--top-k", "5"), "need a --temperature", 2},
		{"adapter scale without adapter", "", ask("--adapter-scale", "2"), "needs an --adapter", 2},
		{"prompt above the context", "", ask("--context", "4"), "--context is 4, and the longest question has 10 tokens", 2},
		{"GPU layers without a GPU", "", ask("--gpu-layers", "1"), "no GPU", 5},
		{"cache above the memory", "", ask("--context", "2000000000"), "takes about", 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, _, err := execute(t, newGenerateCommand(), tt.stdin, tt.args...)
			require.ErrorContains(t, err, tt.words)
			require.Equal(t, tt.code, exitCode(err))
			require.Empty(t, out)
		})
	}
}

func TestDoctorAndVersion(t *testing.T) {
	out, _, err := execute(t, newVersionCommand(), "", "--json")
	require.NoError(t, err)
	var version versionReport
	require.NoError(t, json.Unmarshal([]byte(out), &version))
	require.NotEmpty(t, version.Version)
	require.Contains(t, version.Libraries[0], "libllama")

	out, _, err = execute(t, newDoctorCommand(), "", "--json")
	require.NoError(t, err)
	var report doctorReport
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.NotEmpty(t, report.Devices)
	require.Greater(t, report.SGEMM, 1e8) // any processor of this century
	require.Nil(t, report.Run)
}

func TestDoctorTellsWhatARunTakes(t *testing.T) {
	model := tinyModel(t, testmodel.Options{Context: 4096})
	config := filepath.Join(t.TempDir(), "run.yaml")
	require.NoError(t, os.WriteFile(config, []byte("model: "+model+"\noutput: "+t.TempDir()+"/run\n"+
		"data: {sources: [{path: train.jsonl, format: cft}]}\ntrain: {seq_len: 2048}\n"), 0o600))

	out, _, err := execute(t, newDoctorCommand(), "", "--config", config, "--json")
	require.NoError(t, err)
	var report doctorReport
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	m := report.Run.Memory
	require.True(t, report.Run.Fits)
	require.Equal(t, "llama", report.Run.Info.Architecture)
	require.Equal(t, m.Total, m.Weights+m.Adapter+m.Gradients+m.Moments+m.Activations+m.Workspace+m.Loss)
	require.Equal(t, 2*m.Adapter, m.Moments)
	require.Equal(t, m.Total-m.Weights, report.Run.Buffers)

	text, _, err := execute(t, newDoctorCommand(), "", "--config", config)
	require.NoError(t, err)
	require.Contains(t, text, "The run fits.")

	// With less than it takes, settings are named that do fit, and these hold.
	limit := "limits.memory=" + bytesOf(report.Run.Buffers*2/3)
	out, _, err = execute(t, newDoctorCommand(), "", "--config", config, "--set", limit, "--json")
	require.ErrorContains(t, err, "available are")
	require.Equal(t, 5, exitCode(err))
	report = doctorReport{}
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.False(t, report.Run.Fits)
	require.NotEmpty(t, report.Run.WouldFit)
	for _, f := range report.Run.WouldFit {
		args := []string{"--config", config, "--set", limit}
		for _, s := range f.Settings {
			args = append(args, "--set", s)
		}
		text, _, err := execute(t, newDoctorCommand(), "", args...)
		require.NoError(t, err, "%v", f.Settings)
		require.Contains(t, text, "The run fits.")
	}

	text, _, err = execute(t, newDoctorCommand(), "", "--config", config, "--set", "limits.memory=1KiB")
	require.Equal(t, 5, exitCode(err))
	require.Contains(t, text, "does not fit, with any setting")

	_, _, err = execute(t, newDoctorCommand(), "", "--config", config, "--set", "model=none.gguf")
	require.Equal(t, 3, exitCode(err))
	_, _, err = execute(t, newDoctorCommand(), "", "--config", config, "--set", "adapter.rnak=4")
	require.ErrorContains(t, err, "adapter.rnak")
	require.Equal(t, 2, exitCode(err))
	_, _, err = execute(t, newDoctorCommand(), "", "--set", "adapter.rank=4")
	require.ErrorContains(t, err, "--set needs --config")
}

func bytesOf(n uint64) string {
	text, err := json.Marshal(n)
	if err != nil {
		panic(err) // a number always has a text
	}
	return string(text)
}
