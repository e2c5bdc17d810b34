package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/export"
	"cftune/trainer/metrics"
	"cftune/trainer/report"
)

// demoConfig is the configuration of an arm; what the arms differ in is filled in.
const demoConfig = `# cftune train --config %[1]s
model: %[2]q
output: %[3]q
threads: %[4]d
data:
  sources: [{path: %[5]q, format: cft}]
  validation: {path: %[6]q, format: cft, every_steps: 25}
chat: {system: %[7]q}
objective: {stages: [{mix: %[8]s}]}
adapter: {rank: 16, alpha: 32}
train: {seq_len: 1024, global_batch: {examples: 8}, epochs: 1}
optimizer: {lr: 1e-3, schedule: cosine, warmup_steps: 5}
checkpoint: {every_steps: 25, keep_last: 2}
`

// config writes the configuration file of an arm and reads it as train would.
func (d *demo) config(arm demoArm) (config.Run, error) {
	path := d.path("configs", arm.name+".yaml")
	text := fmt.Sprintf(demoConfig, path, d.model, d.runDir(arm.name), d.threads, d.path("data", arm.data+".jsonl"),
		d.path("data", "dev.jsonl"), demoSystem, arm.mix)
	if err := writeWhole(path, []byte(text)); err != nil {
		return config.Run{}, err
	}
	return config.Load(path, nil, nil)
}

func (d *demo) runDir(arm string) string { return d.path("runs", arm) }

// adapter is where an arm's exported adapter lies; the base model has none.
func (d *demo) adapter(arm string) string {
	if arm == armBase {
		return ""
	}
	return d.path("adapters", arm+".gguf")
}

// train trains an arm, or goes on with it, and exports its adapter.
func (d *demo) train(ctx context.Context, arm demoArm) error {
	run, err := d.config(arm)
	if err != nil {
		return err
	}
	began := time.Now()
	s := session{out: io.Discard, notes: d.notes}
	begun, err := runBegun(run.Output, func(text string) { d.note("%s", text) })
	if err != nil {
		return err
	}
	if begun {
		d.note("%s: a run is there already", arm.name)
		_, err = s.resume(ctx, run.Output, nil)
	} else {
		d.note("%s: training", arm.name)
		_, err = s.train(ctx, run)
	}
	if err != nil {
		return err
	}
	c, _, err := checkpoint.Latest(run.Output, false)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.path("adapters"), 0o755); err != nil {
		return err
	}
	if _, err := export.Adapter(c, d.adapter(arm.name), export.Options{Force: true}); err != nil {
		return err
	}
	d.note("%s: trained in %s, exported to %s", arm.name, time.Since(began).Round(time.Second), d.adapter(arm.name))
	return nil
}

// curves reads an arm's losses, and the time that its steps took.
func (d *demo) curves(arm string) (training, heldOut []report.Point, seconds float64, err error) {
	text, err := regular.ReadFile(filepath.Join(d.runDir(arm), checkpoint.MetricsName))
	if err != nil {
		return nil, nil, 0, err
	}
	for line := range bytes.Lines(text) {
		var record struct {
			metrics.Step
			HeldOut   *float64 `json:"validation_loss"`
			Objective any      `json:"objective"` // of a step; hides its type
			Part      string   `json:"validation_objective"`
		}
		if err := json.Unmarshal(line, &record); err != nil {
			return nil, nil, 0, fmt.Errorf("metrics of %s: %w", arm, err)
		}
		switch {
		case record.HeldOut == nil:
			training = append(training, report.Point{Step: record.Step.Step, Loss: record.Loss})
			seconds += record.Seconds
		case record.Part == "":
			heldOut = append(heldOut, report.Point{Step: record.Step.Step, Loss: *record.HeldOut})
		}
	}
	return training, heldOut, seconds, nil
}
