package trainer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/durable"
)

// Why a run's training ended.
const (
	EndFinished    = "finished"
	EndPatience    = "patience"   // the validation loss has not fallen for so long (data.validation.patience): nothing is left to do
	EndMaxTime     = "max_time"   // limits.max_time
	EndStopAfter   = "stop_after" // so many steps were asked for
	EndInterrupted = "interrupted"
	EndError       = "error"
)

// End says why a run's last training ended. A process that was killed leaves none.
type End struct {
	Step       int       `json:"step"`       // the last that was completed
	Checkpoint int       `json:"checkpoint"` // the newest; 0 if there is none
	Reason     string    `json:"reason"`
	Error      string    `json:"error,omitempty"`
	Time       time.Time `json:"time"`
}

// stopReason says whether the run is to end now, between two steps. A limit of time lets each start take one step at least: what is started
// again until it is done must come to its end.
func (t *Trainer) stopReason(began time.Time, limit time.Duration) string {
	switch patience := t.run.Data.Validation.Patience; {
	case limit > 0 && t.done > t.from && time.Since(began) >= limit:
		return EndMaxTime
	case patience > 0 && t.best != nil && t.best.Stale >= patience:
		return EndPatience
	}
	return ""
}

// keepEnd writes down why Run ends. As with the mirror's state, the run's own disk, of which tests make faults in a given order, is not used
// for it, and an end that cannot be kept is no failure of anything: the run looks as if it had been killed.
func (t *Trainer) keepEnd(stopped string, err error) {
	end := End{Step: t.done, Checkpoint: max(t.saved, 0), Reason: stopped, Time: time.Now().UTC()}
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		end.Reason = EndInterrupted
	case err != nil:
		end.Reason, end.Error = EndError, err.Error()
	case stopped == "":
		end.Reason = EndFinished
	}
	if t.done > 0 || t.saved >= 0 { // otherwise nothing came of the run
		_ = writeJSON(durable.OS, filepath.Join(t.dir.Dir(), checkpoint.EndName), end)
	}
}

// ReadEnd returns why a run's last training ended; nil where that is unknown: it was killed, it trains, or it is of a version that did not say.
func ReadEnd(dir string) (*End, error) {
	text, err := regular.ReadFile(filepath.Join(dir, checkpoint.EndName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the run's end: %w", err)
	}
	var e End
	if err := json.Unmarshal(text, &e); err != nil {
		return nil, fmt.Errorf("the run's end: %s: %w: %w", checkpoint.EndName, checkpoint.ErrCorrupt, err)
	}
	return &e, nil
}

// over reports whether no step can follow, where the plan does not tell: the checkpoint of the last step must know its
// validation loss, and is written before the feeder finds no more records.
func (t *Trainer) over() bool {
	if !t.dynamic() && t.counters.Skipped == 0 {
		return false
	}
	if most := t.run.Train.MaxSteps; most > 0 && t.done >= most || t.cursor.Epoch >= t.run.Train.Epochs {
		return true
	}
	if t.cursor.Epoch < t.run.Train.Epochs-1 || t.set.EpochLen()-t.cursor.Index > t.run.Train.GlobalBatch.Examples {
		return false
	}
	next := t.newFeeder().make(t.cursor, t.done+1) // the last records may all be left out
	return next.err == nil && next.batches == nil
}
