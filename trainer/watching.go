package trainer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/durable"
	"cftune/trainer/metrics"
	"cftune/trainer/metrics/exporter"
	"cftune/trainer/metrics/tensorboard"
	"cftune/trainer/objective"
)

// ListenError says that the address of metrics.listen cannot be taken, before anything was done.
type ListenError struct{ Err error }

func (e *ListenError) Error() string { return fmt.Sprintf("metrics.listen: %v", e.Err) }

func (e *ListenError) Unwrap() error { return e.Err }

// listen answers Prometheus from now on, where the run has an address for it.
func (t *Trainer) listen() error {
	address, err := t.run.Metrics.Address()
	if err != nil {
		return &ListenError{err}
	}
	if address == "" || t.server != nil {
		return nil
	}
	var mixes []string
	for _, stage := range t.run.Objective.Stages {
		mixes = append(mixes, objective.MixText(stage.Mix))
	}
	t.server, err = exporter.Listen(address, exporter.Run{
		Version: t.options.Version, Dir: t.run.Output, Model: t.run.Model, Objective: strings.Join(mixes, ", then "), Device: t.run.Device,
	})
	if err != nil {
		return &ListenError{err}
	}
	t.notes = append(t.notes, "metrics for Prometheus are at "+t.server.URL())
	return nil
}

// openSinks opens what shows the run to people and to other programs. log and config are those of the run.
func (t *Trainer) openSinks(log string, config []byte) error {
	t.sinks = nil
	if t.run.Metrics.TensorBoard {
		events, err := tensorboard.Open(t.options.fs, filepath.Join(t.dir.Dir(), checkpoint.TensorBoardName), tensorboard.Options{
			Config: config,
			History: func(show func(metrics.Record)) error {
				_, err := metrics.Read(log, show)
				return err
			},
			Failed: func(err error) {
				t.progress.Note(fmt.Sprintf("warning: %v: TensorBoard's file ends here, the run goes on; cftune runs tensorboard %s makes it anew when the run is over", err, t.dir.Dir()))
			},
		})
		if err != nil {
			return fmt.Errorf("metrics.tensorboard: %w", err)
		}
		t.sinks = append(t.sinks, events)
	}
	t.progress = silent{}
	if t.options.Progress != nil {
		t.progress = t.options.Progress(t.done, t.record.Plan.Steps)
	}
	t.sinks = append(t.sinks, t.progress)
	if t.server != nil {
		t.server.Stands(t.done, t.record.Plan.Steps)
		t.sinks = append(t.sinks, t.server)
	}
	if t.resumed != nil {
		if info, err := os.Stat(filepath.Join(t.savedDir, checkpoint.ManifestName)); err == nil {
			t.tellSaved(info.ModTime())
		}
	}
	return nil
}

// keep records what happened, and shows it. Only where it cannot be recorded the run has failed.
func (t *Trainer) keep(ctx context.Context, r metrics.Record) error {
	if err := t.withRoom(ctx, t.log.Write(r), t.log.Flush); err != nil {
		return err
	}
	for _, s := range t.sinks {
		r.Show(s)
	}
	return nil
}

func (t *Trainer) tellSaved(at time.Time) {
	for _, s := range t.sinks {
		s.Saved(t.saved, at)
	}
}

// ErrEventsExist says that a folder has an event file already.
var ErrEventsExist = errors.New("has an event file of cftune already")

// WrittenEvents is what WriteEvents has written.
type WrittenEvents struct {
	File        string `json:"file"`
	Steps       int    `json:"steps"`
	Validations int    `json:"validations"`
	Skips       int    `json:"skips"`
	Torn        bool   `json:"torn"` // the last line of the run's records is cut off, and left out
}

// WriteEvents makes TensorBoard's event file of a run's records in a folder. One that is there is replaced only with force.
// In the run's own folder it must be the only one that writes to the run.
func WriteEvents(run, folder string, force bool) (w WrittenEvents, err error) {
	config, err := checkpoint.ReadConfig(run)
	if err != nil {
		return w, fmt.Errorf("write events: %w", err)
	}
	if same, err := samePath(folder, filepath.Join(run, checkpoint.TensorBoardName)); err != nil {
		return w, fmt.Errorf("write events: %w", err)
	} else if same {
		r, err := checkpoint.OpenRun(nil, run)
		if err != nil {
			return w, fmt.Errorf("write events: %w", err)
		}
		defer r.Close()
	}
	old, err := tensorboard.Files(folder)
	switch {
	case err != nil:
		return w, fmt.Errorf("write events: %w", err)
	case len(old) > 0 && !force:
		return w, fmt.Errorf("write events: %s %w", folder, ErrEventsExist)
	}
	events, err := tensorboard.Open(durable.OS, folder, tensorboard.Options{
		Config: config,
		History: func(show func(metrics.Record)) error {
			var err error
			w.Torn, err = metrics.Read(filepath.Join(run, checkpoint.MetricsName), func(r metrics.Record) {
				w.count(r)
				show(r)
			})
			return err
		},
	})
	if err != nil {
		return WrittenEvents{}, fmt.Errorf("write events: %w", err)
	}
	events.Close()
	w.File = events.Path()
	return w, nil
}

func (w *WrittenEvents) count(r metrics.Record) {
	switch r.(type) {
	case metrics.Step:
		w.Steps++
	case metrics.Validation:
		w.Validations++
	case metrics.Skip:
		w.Skips++
	}
}

// samePath reports whether two names are of one file, or would be.
func samePath(a, b string) (bool, error) {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	if errA == nil && errB == nil {
		return os.SameFile(infoA, infoB), nil
	}
	a, errA = filepath.Abs(a)
	b, errB = filepath.Abs(b)
	return a == b, errors.Join(errA, errB)
}

// silent is a display that shows nothing.
type silent struct{}

func (silent) Step(metrics.Step)             {}
func (silent) Validation(metrics.Validation) {}
func (silent) Skip(metrics.Skip)             {}
func (silent) Saved(int, time.Time)          {}
func (silent) Note(string)                   {}
func (silent) Close()                        {}
