package dashboard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/metrics"
)

// fixture is a run directory that a test writes.
type fixture struct {
	dir  string
	t    *testing.T
	time time.Time
}

// begin writes the configuration of a run of so many steps; change may alter it.
func begin(t *testing.T, dir string, steps int, change func(r *trainer.Record)) *fixture {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	run := config.Defaults()
	run.Model, run.Output, run.Data.Sources = "/models/Small.Q4.gguf", dir, []config.Source{{Path: "train.jsonl", Format: "cft", Weight: 1, Sample: 1}}
	r := trainer.Record{
		Format: checkpoint.FormatVersion, Version: "test", Config: run, Started: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC),
		Plan: trainer.Plan{Steps: steps, Records: 100, Examples: 100, Tokens: 5000, Targets: 900}, Model: trainer.ModelFile{Path: run.Model},
	}
	if change != nil {
		change(&r)
	}
	text, err := json.Marshal(r)
	require.NoError(t, err)
	f := &fixture{dir: dir, t: t, time: r.Started}
	f.write(checkpoint.ConfigName, string(text))
	f.write(checkpoint.MetricsName, "")
	return f
}

func (f *fixture) write(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	require.NoError(f.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(f.t, os.WriteFile(path, []byte(text), 0o644))
}

// add appends text to the metrics, as the trainer does.
func (f *fixture) add(text string) {
	f.t.Helper()
	file, err := os.OpenFile(filepath.Join(f.dir, checkpoint.MetricsName), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(f.t, err)
	_, err = file.WriteString(text)
	require.NoError(f.t, err)
	require.NoError(f.t, file.Close())
}

func line1(t *testing.T, record any) string {
	t.Helper()
	text, err := json.Marshal(record)
	require.NoError(t, err)
	return string(text) + "\n"
}

// step is a plausible record of a step.
func (f *fixture) step(n int) metrics.Step {
	f.time = f.time.Add(2 * time.Second)
	return metrics.Step{
		Step: n, Epoch: float64(n) / 100, Loss: 3*math.Exp(-float64(n)/50) + 1, Targets: 90, Tokens: 500, Computed: 450, Examples: 4, Packs: 1,
		LR: 2e-4, GradNorm: 0.5, Objective: map[string]int{"cft": 3, "sft": 1}, TokensPerS: 250, TargetTokensPerS: 45, MemoryBytes: 300 << 20,
		Time: f.time, Seconds: 2,
	}
}

// steps appends the records of steps from one to another.
func (f *fixture) steps(from, to int) *fixture {
	f.t.Helper()
	var b bytes.Buffer
	for n := from; n <= to; n++ {
		b.WriteString(line1(f.t, f.step(n)))
	}
	f.add(b.String())
	return f
}

// checkpoint commits an empty checkpoint.
func (f *fixture) checkpoint(step int, best *checkpoint.Best) {
	f.t.Helper()
	r, err := checkpoint.OpenRun(nil, f.dir)
	require.NoError(f.t, err)
	defer r.Close()
	_, err = r.Write(checkpoint.Manifest{Step: step, Best: best, ValidatedStep: -1}, nil)
	require.NoError(f.t, err)
}

// replace writes the metrics anew, as a resume that takes some off does.
func (f *fixture) replace(text string) {
	f.t.Helper()
	path := filepath.Join(f.dir, checkpoint.MetricsName)
	require.NoError(f.t, os.WriteFile(path+".tmp", []byte(text), 0o644))
	require.NoError(f.t, os.Rename(path+".tmp", path))
}

func (f *fixture) read() string {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join(f.dir, checkpoint.MetricsName))
	require.NoError(f.t, err)
	return string(text)
}

// look reads a run directory.
func look(dir string) *run {
	r := newRun(dir, filepath.Base(dir))
	r.refresh()
	return r
}

// listing says what is in a folder and below, with times and sizes: that nothing was written shows in it.
func listing(t *testing.T, folder string) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, info.Size(), info.ModTime().UnixNano(), info.Mode())
		return nil
	}))
	return b.String()
}
