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
	"cftune/trainer/mirror"
)

// MirrorStateName is the file in a run directory that tells how the mirror stood last.
const MirrorStateName = "mirror-state.json"

// MirrorError says that the mirror of a run cannot be used, before anything was done.
type MirrorError struct{ Err error }

func (e *MirrorError) Error() string { return fmt.Sprintf("checkpoint.mirror: %v", e.Err) }

func (e *MirrorError) Unwrap() error { return e.Err }

// mirroring copies a run's checkpoints while it trains. A nil one does nothing.
type mirroring struct {
	store  *mirror.Store
	worker *mirror.Worker
	dir    string
	limit  time.Duration // of the wait at the end
}

// openMirror claims the run's mirror, where it has one.
func (t *Trainer) openMirror(ctx context.Context) (*mirroring, error) {
	url := t.run.Checkpoint.Mirror
	if url == "" {
		return nil, nil
	}
	limit, err := t.run.Checkpoint.Wait()
	if err != nil {
		return nil, fmt.Errorf("checkpoint.mirror_wait: %w", err)
	}
	open := t.options.openMirror
	if open == nil {
		open = mirror.Open
	}
	store, err := open(ctx, url, true)
	if err != nil {
		return nil, &MirrorError{err}
	}
	claim, err := store.Claim(ctx, mirror.RunName(t.record.Started), t.done)
	if err != nil {
		return nil, errors.Join(&MirrorError{err}, store.Close())
	}
	m := &mirroring{store: store, dir: t.dir.Dir(), limit: limit}
	m.worker = mirror.Start(claim, m.keepState)
	return m, nil
}

// offer hands the checkpoint of a step over; it is called when metrics and journal are those of the checkpoint.
func (m *mirroring) offer(step int, keep checkpoint.Retention) {
	if m == nil {
		return
	}
	s, err := mirror.Take(m.dir, step, keep)
	if err != nil {
		m.worker.Miss(step, err)
		return
	}
	m.worker.Offer(s)
}

func (m *mirroring) tell(say func(string)) {
	if m == nil {
		return
	}
	for _, note := range m.worker.Notes() {
		say(note)
	}
}

// finish waits for the last copy. ctx ends the wait; it is not the run's, which may have been interrupted.
func (m *mirroring) finish(ctx context.Context, say func(string)) *mirror.Report {
	if m == nil {
		return nil
	}
	if step, is := m.worker.Pending(); is {
		say(fmt.Sprintf("mirror %s: waiting for the copy of step %d, at most %v; the checkpoint itself is safe on disk", m.store.Name(), step, m.limit))
	}
	report := m.worker.Finish(ctx, m.limit)
	m.keepEnd(ctx, report, say)
	m.tell(say)
	say(report.String())
	if err := m.store.Close(); err != nil {
		say(fmt.Sprintf("mirror %s: close: %v", m.store.Name(), err))
	}
	return &report
}

// endLimit bounds the copying of a run's end, after that of its last checkpoint went well.
const endLimit = 30 * time.Second

// keepEnd copies what the run's own file says of its end, where the mirror has the checkpoint that it names.
func (m *mirroring) keepEnd(ctx context.Context, report mirror.Report, say func(string)) {
	end, err := ReadEnd(m.dir)
	if err != nil || end == nil || report.Step != end.Checkpoint || report.Behind() {
		return // who restores the run learns no more than of one that was killed
	}
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	text, err := json.Marshal(end)
	if err == nil {
		err = m.worker.KeepEnd(ctx, end.Checkpoint, text)
	}
	if err != nil {
		say(fmt.Sprintf("mirror %s: why the run ended is not told there: %v", m.store.Name(), err))
	}
}

// keepState writes down how the mirror stands. It is called by the worker's goroutine: the run's own disk, of which tests
// make faults in a given order, is not used for it; and a report that cannot be kept is no failure of anything.
func (m *mirroring) keepState(r mirror.Report) {
	if r.Wanted < 0 {
		return // nothing has come of the run yet, and perhaps nothing will
	}
	_ = writeJSON(durable.OS, filepath.Join(m.dir, MirrorStateName), r)
}

// ReadMirrorState returns how a run's mirror stood when the run was last trained; nil if it has none.
func ReadMirrorState(dir string) (*mirror.Report, error) {
	text, err := regular.ReadFile(filepath.Join(dir, MirrorStateName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mirror's state: %w", err)
	}
	var r mirror.Report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("mirror's state: %s: %w: %w", MirrorStateName, checkpoint.ErrCorrupt, err)
	}
	return &r, nil
}

// Mirror brings the mirror up to date of a run that is finished: what could not be copied when it ended.
func (t *Trainer) Mirror(ctx context.Context, say func(string)) (*mirror.Report, error) {
	m, err := t.openMirror(ctx)
	if m == nil || err != nil {
		return nil, err
	}
	m.offer(t.saved, t.retention())
	return m.finish(ctx, say), nil
}

// Restore brings a run back from a mirror to a folder, from where Resume goes on with it. A folder that holds the run
// already, at the same step or a later one, stays as it is.
func Restore(ctx context.Context, url, dir string, say func(string)) (mirror.Restored, error) {
	store, err := mirror.Open(ctx, url, false)
	if err != nil {
		return mirror.Restored{}, err
	}
	restored, err := store.Restore(ctx, mirror.RestoreOptions{Dir: dir, Check: checkWhole, Say: say})
	return restored, errors.Join(err, store.Close())
}

// checkWhole is an error where Check finds anything damaged.
func checkWhole(dir string) error {
	report, err := Check(dir)
	if err != nil {
		return err
	}
	if len(report.Problems) == 0 {
		return nil
	}
	// What a newer version wrote is no damage, for which an older copy would be taken.
	_, recordErr := ReadRecord(dir)
	_, _, journalErr := ReadJournal(dir)
	for _, err := range []error{recordErr, journalErr} {
		if errors.Is(err, checkpoint.ErrIncompatible) {
			return err
		}
	}
	var problems []error
	for _, p := range report.Problems {
		problems = append(problems, errors.New(p))
	}
	return errors.Join(problems...)
}

// CheckMirror verifies everything in a mirror and changes nothing.
func CheckMirror(ctx context.Context, url string) (mirror.State, error) {
	store, err := mirror.Open(ctx, url, false)
	if err != nil {
		return mirror.State{}, err
	}
	state, err := store.Check(ctx)
	return state, errors.Join(err, store.Close())
}
