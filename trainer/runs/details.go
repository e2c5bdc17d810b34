package runs

import (
	"fmt"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/mirror"
)

// Details is all that is told of a run.
type Details struct {
	Summary
	Model       string             `json:"model"`
	Version     string             `json:"version"` // of the cftune that began the run
	Plan        trainer.Plan       `json:"plan"`
	Config      config.Run         `json:"config"`
	WarmStart   *trainer.Origin    `json:"warm_start,omitempty"`
	Accepted    []trainer.Accepted `json:"accepted,omitempty"`
	Spans       []trainer.Span     `json:"spans,omitempty"`
	Best        *checkpoint.Best   `json:"best,omitempty"`
	Mirror      *mirror.Report     `json:"mirror,omitempty"` // as the run's last training left it
	Checkpoints []Checkpoint       `json:"checkpoints"`
}

// Checkpoint is a checkpoint whose manifest was read; its files were not digested (cftune check does that).
type Checkpoint struct {
	Step     int                  `json:"step"`
	Bytes    int64                `json:"bytes"`
	Counters *checkpoint.Counters `json:"counters,omitempty"`
	Problem  string               `json:"problem,omitempty"`
}

// Show reads a run directory with its checkpoints' manifests.
func Show(dir string) (Details, error) {
	summary, err := Summarize(dir)
	if err != nil {
		return Details{}, fmt.Errorf("show run: %w", err)
	}
	record, err := trainer.ReadRecord(dir)
	if err != nil {
		return Details{}, err
	}
	steps, err := checkpoint.List(dir)
	if err != nil {
		return Details{}, err
	}
	d := Details{
		Summary: summary, Model: record.Model.Path, Version: record.Version, Plan: record.Plan, Config: record.Config,
		WarmStart: record.WarmStart, Accepted: record.Accepted, Spans: record.Spans,
	}
	if d.Mirror, err = trainer.ReadMirrorState(dir); err != nil {
		return Details{}, err
	}
	for _, step := range steps {
		detail, best := ReadCheckpoint(dir, step)
		d.Checkpoints = append(d.Checkpoints, detail)
		if detail.Problem == "" {
			d.Best = best
		}
	}
	return d, nil
}

// ReadCheckpoint reads a checkpoint's manifest; best is the lowest validation loss up to it.
func ReadCheckpoint(dir string, step int) (c Checkpoint, best *checkpoint.Best) {
	m, err := checkpoint.ReadManifest(dir, step)
	if err != nil {
		return Checkpoint{Step: step, Problem: err.Error()}, nil
	}
	c = Checkpoint{Step: step, Counters: &m.Counters}
	for _, f := range m.Files {
		c.Bytes += f.Bytes
	}
	return c, m.Best
}
