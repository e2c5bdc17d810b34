package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// The same curve by the command line alone: tokenized rows, and the PEFT folder as it is for a warm start. It goes
// through everything that training goes through: rows, packs, warm start with its permutation, loop, metrics.
func TestCommandLineCurveMatchesPEFT(t *testing.T) {
	forEachReference(t, func(t *testing.T, r *reference) {
		dir := t.TempDir()
		rows := filepath.Join(dir, "rows.jsonl")
		r.writeRows(t, rows)
		output := filepath.Join(dir, "run")
		steps := len(r.curve) - 1
		path := filepath.Join(dir, "run.yaml")
		text := fmt.Sprintf(`
model: %q
output: %q
threads: %d
data: {sources: [{path: %q, format: tokenized}], shuffle: false}
adapter: {rank: %d, alpha: %g, init_from: %q}
train: {seq_len: %d, global_batch: {examples: %d}, epochs: %d, max_steps: %d}
optimizer: {lr: %g, schedule: constant, warmup_steps: 0, max_grad_norm: 1, weight_decay: 0}
`, r.model, output, r.threads, rows, r.rank, r.alpha, r.adapterDir(), referencePack, len(r.sequences), steps, steps, r.loss.LR)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		if code := run([]string{"train", "--config", path}, &stdout, &stderr); code != 0 {
			t.Fatalf("train: exit code %d\n%s", code, stderr.String())
		}
		losses := readLosses(t, filepath.Join(output, "metrics.jsonl"))
		if len(losses) != steps {
			t.Fatalf("metrics of %d steps, want %d", len(losses), steps)
		}
		r.checkCurve(t, losses)
	})
}

func (r *reference) writeRows(t *testing.T, path string) {
	t.Helper()
	var text bytes.Buffer
	for _, s := range r.sequences {
		if err := json.NewEncoder(&text).Encode(map[string][]int32{"input_ids": s.Tokens, "labels": s.labels()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readLosses(t *testing.T, path string) []float64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var losses []float64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var step struct {
			Step int     `json:"step"`
			Loss float64 `json:"loss"`
		}
		if err := json.Unmarshal(lines.Bytes(), &step); err != nil {
			t.Fatal(err)
		}
		if step.Step != len(losses)+1 {
			t.Fatalf("metrics: step %d after %d", step.Step, len(losses))
		}
		losses = append(losses, step.Loss)
	}
	return losses
}
