package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/durable"
)

// ending is a mirror's end.json: why the run's last training ended. It stands beside the copies, since a checkpoint is often there before
// it is known that it is the last, and it counts only for the one that it names.
type ending struct {
	Format int    `json:"format"`
	Run    string `json:"run"`
	Step   int    `json:"step"` // the newest checkpoint then
	// End is what the run's own file says; nothing here looks into it.
	End json.RawMessage `json:"end"`
}

func parseEnding(text []byte) (ending, error) {
	var e ending
	if err := decodeStrictly(text, &e); err != nil {
		return ending{}, corrupt("%s: %v", checkpoint.EndName, err)
	}
	if e.Format != FormatVersion {
		return ending{}, fmt.Errorf("%w: %s: format %d is not %d, the one this version reads", checkpoint.ErrIncompatible, checkpoint.EndName, e.Format, FormatVersion)
	}
	return e, nil
}

// KeepEnd puts what a run's own file says of its end beside the copy of its newest checkpoint, which must be there.
func (w *Worker) KeepEnd(ctx context.Context, step int, end []byte) error {
	c := w.claim
	if err := c.holds(ctx); err != nil {
		return err
	}
	text, err := json.MarshalIndent(ending{Format: FormatVersion, Run: c.claim.Run, Step: step, End: end}, "", "  ")
	if err != nil {
		return err
	}
	if text = append(text, '\n'); len(text) > maxEntryBytes {
		return fmt.Errorf("it has %d bytes, more than %d", len(text), maxEntryBytes)
	}
	return c.store.putBytes(ctx, "", checkpoint.EndName, text)
}

// ending reads end.json; without one, it is of no step.
func (s *Store) ending(ctx context.Context) (ending, error) {
	text, err := s.read(ctx, checkpoint.EndName, maxEntryBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return ending{Step: -1}, nil
	}
	if err != nil {
		return ending{}, err
	}
	return parseEnding(text)
}

// fetchEnd brings the run's end along, if it is that of this copy. It is for people: without it the run is as good.
func (d *download) fetchEnd(ctx context.Context, say func(string)) error {
	e, err := d.store.ending(ctx)
	if err != nil {
		say(fmt.Sprintf("why the run ended is not known: %v", err))
		return ctx.Err()
	}
	if e.Run != d.entry.Run || e.Step != d.entry.Step {
		return nil
	}
	if _, err := durable.WriteFile(d.fs, filepath.Join(d.temp, checkpoint.EndName), func(w io.Writer) error {
		_, err := w.Write(append(e.End, '\n'))
		return err
	}); err != nil {
		return &checkpoint.OutputError{Dir: d.temp, Err: err}
	}
	return nil
}
