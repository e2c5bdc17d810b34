package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/score"
)

const lostConfig = `model: model.gguf
output: run
threads: 2
data: {sources: [{path: train.jsonl, format: cft}]}
adapter: {rank: 4, alpha: 8, dropout: 0.1}
train: {seq_len: 128, epochs: 1000, global_batch: {examples: 30}}
checkpoint: {every_steps: 1000}
`

// cutOff is what is said of a file that has become shorter: by who read a page that was gone, or by who looked at its size first.
const cutOff = `model\.gguf was (cut off while it was in use: it has \d+ bytes now, and those from \d+ on are needed|changed while it was in use: it had \d+ bytes, and has \d+)`

// lostSite is a folder with the program under its name, a model that is to be lost, and a run.
func lostSite(t *testing.T) (dir string, command func(args ...string) (*exec.Cmd, *bytes.Buffer)) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	program := filepath.Join(dir, "cftune") // under this name the test program is cftune (TestMain)
	require.NoError(t, os.Symlink(self, program))
	require.NoError(t, testmodel.Write(filepath.Join(dir, "model.gguf"), testmodel.Options{Seed: 1, Type: testmodel.Q8_0, Layers: 2}))
	var rows strings.Builder
	for i := range 100 {
		fmt.Fprintf(&rows, `{"query": "%d?", "response": "%d", "critique": "right"}`+"\n", i, i)
	}
	for name, text := range map[string]string{"train.jsonl": rows.String(), "run.yaml": lostConfig} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir, func(args ...string) (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		var said bytes.Buffer
		cmd.Stderr = &said
		return cmd, &said
	}
}

// What is mapped is gone with the end of the file: that is an error with the file's name, not the end of the process, and what a run has
// learned by then is saved. With the file as it was the run goes on.
func TestAModelThatIsCutOffWhileItTrains(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(path string) error
		words  string
	}{
		{"cut off", func(path string) error { return os.Truncate(path, 5000) }, cutOff},
		{"emptied", func(path string) error { return os.Truncate(path, 0) }, cutOff},
		{"written over", func(path string) error {
			return testmodel.Write(path+".other", testmodel.Options{Seed: 2, Type: testmodel.Q8_0, Layers: 2})
		}, "model.gguf was changed while it was in use: it was written to at 20"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, command := lostSite(t)
			model := filepath.Join(dir, "model.gguf")
			whole, err := os.ReadFile(model)
			require.NoError(t, err)
			cmd, said := command("train", "--config", "run.yaml")
			require.NoError(t, cmd.Start())
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			require.NoError(t, awaitLines(filepath.Join(dir, "run", checkpoint.MetricsName), 2, done))
			require.NoError(t, c.change(model))
			if other, err := os.ReadFile(model + ".other"); err == nil { // without a moment in which it is shorter
				f, err := os.OpenFile(model, os.O_WRONLY, 0)
				require.NoError(t, err)
				_, err = f.WriteAt(other, 0)
				require.NoError(t, err)
				require.NoError(t, f.Close())
			}
			err = <-done
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit, "%s", said)
			require.Equal(t, codeData, exit.ExitCode(), "%s", said)
			assert.Regexp(t, c.words, said.String())
			assert.Contains(t, said.String(), "\nthe base model cannot be used any more: saving step ")
			assert.Contains(t, said.String(), "cftune: hint: with the model as it was, cftune resume goes on")
			assert.NotContains(t, said.String(), "goroutine")

			require.NoError(t, os.WriteFile(model, whole, 0o600))
			for _, args := range [][]string{{"check", "run"}, {"resume", "run", "--stop-after", "1"}} {
				cmd, said := command(args...)
				require.NoError(t, cmd.Run(), "%v: %s", args, said)
			}
		})
	}
}

func TestAModelThatIsCutOffWhileItAnswers(t *testing.T) {
	dir, command := lostSite(t)
	cmd, said := command("chat", "--model", "model.gguf", "--threads", "1", "--max-tokens", "4")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = fmt.Fprintln(in, "the answer")
	require.NoError(t, err)
	answers := bufio.NewReader(out)
	first, err := answers.ReadString('\n')
	require.NoError(t, err, "%s", said)
	require.NoError(t, os.Truncate(filepath.Join(dir, "model.gguf"), 5000))
	_, err = fmt.Fprintln(in, "the answer")
	require.NoError(t, err)
	rest, err := answers.ReadString('\n')
	assert.Error(t, err, "%q was answered with %q", first, rest)
	require.NoError(t, in.Close())
	err = cmd.Wait()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", said)
	assert.Equal(t, codeData, exit.ExitCode(), "%s", said)
	assert.Contains(t, said.String(), "model.gguf was cut off while it was in use: it has 5000 bytes now, and those from ")
	assert.NotContains(t, said.String(), "goroutine")
}

// Faults that are no mapped file's go to Go's handler, which ends the process as it always did.
func TestOtherFaultsAreGos(t *testing.T) {
	dir, command := lostSite(t)
	cmd, _ := command("train", "--config", "run.yaml")
	require.NoError(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	require.NoError(t, awaitLines(filepath.Join(dir, "run", checkpoint.MetricsName), 2, done))
	require.NoError(t, cmd.Process.Signal(syscall.SIGBUS))
	err := <-done
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.NotEqual(t, 0, exit.ExitCode())
}

// What a model wrote that was written into is not kept under the name of what it was.
func TestNoTextOfAModelThatChangesIsKept(t *testing.T) {
	model := tinyModel(t, testmodel.Options{})
	held, err := trainer.HoldModel(model)
	require.NoError(t, err)
	defer held.Close()
	m, err := openServed(held, served{model: model}, servedOptions{parallel: 1, threads: 1, lossContext: 64})
	require.NoError(t, err)
	defer m.Close()
	write := func() (texts int, err error) {
		err = m.Write(context.Background(), []score.Request{{Prompt: "the answer"}}, score.Sampling{}, 4, func(int, score.Text) error { texts++; return nil })
		return texts, err
	}
	texts, err := write()
	require.NoError(t, err)
	require.Equal(t, 1, texts)
	data, err := os.ReadFile(model)
	require.NoError(t, err)
	data[len(data)-1] ^= 1
	f, err := os.OpenFile(model, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(data, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	texts, err = write()
	require.ErrorIs(t, err, trainer.ErrModelGone)
	assert.Equal(t, codeData, exitCode(err))
	assert.Zero(t, texts)
}
