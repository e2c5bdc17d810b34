package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/durable"
)

// Restored is a run that was brought back.
type Restored struct {
	Dir  string
	Step int
	// Kept: the folder held the run already, at this step or a later one, and nothing was done.
	Kept bool
}

// RestoreOptions say where and how a run is brought back.
type RestoreOptions struct {
	// Dir is the new run directory.
	Dir string
	// Check looks at a run directory as a whole, before it is put in place. Its error is damage, unless it wraps checkpoint.ErrIncompatible.
	Check func(dir string) error
	// Say tells people what was passed over.
	Say func(text string)
	// FS is where the run is written; nil is the machine's.
	FS durable.FS
}

// restoreEnding ends the name of a run directory that is not whole yet. Another attempt begins it anew.
const restoreEnding = ".restore" + durable.TempSuffix

// spaceMargin is what is wanted beyond the files themselves, for folders.
const spaceMargin = 1 << 20

// Restore makes a run directory of the newest checkpoint in the mirror that is whole; what is newer and damaged is told. The
// directory appears all at once. If it is there already with the same run, at that step or a later one, it stays as it is;
// any other content is an error that wraps checkpoint.ErrExists.
func (s *Store) Restore(ctx context.Context, o RestoreOptions) (Restored, error) {
	if o.FS == nil {
		o.FS = durable.OS
	}
	fail := func(err error) (Restored, error) { return Restored{}, fmt.Errorf("restore from %s: %w", s.name, err) }
	steps, _, err := s.steps(ctx)
	if err != nil {
		return fail(err)
	}
	var passed []error
	for _, step := range slices.Backward(steps) {
		r, err := s.restoreStep(ctx, step, o)
		if err == nil {
			return r, nil
		}
		if !damaged(err) {
			return fail(fmt.Errorf("step %d: %w", step, err))
		}
		passed = append(passed, fmt.Errorf("step %d: %w", step, err))
		o.Say(fmt.Sprintf("passed over: step %d of %s: %v", step, s.name, err))
	}
	if len(passed) > 0 {
		return fail(fmt.Errorf("none of %d checkpoints is whole: %w", len(passed), errors.Join(passed...)))
	}
	return fail(fmt.Errorf("there is no checkpoint: %w", checkpoint.ErrNotFound))
}

// restoreStep brings back one step. An error for which damaged is true says that the copy is no good.
func (s *Store) restoreStep(ctx context.Context, step int, o RestoreOptions) (Restored, error) {
	e, err := s.entry(ctx, step)
	if err != nil {
		return Restored{}, err
	}
	r := Restored{Dir: o.Dir, Step: step}
	if r.Kept, err = occupied(o.Dir, e); err != nil || r.Kept {
		return r, err
	}
	d := &download{store: s, fs: o.FS, entry: e, temp: filepath.Clean(o.Dir) + restoreEnding}
	if err := d.begin(filepath.Dir(filepath.Clean(o.Dir))); err != nil {
		return Restored{}, err
	}
	defer d.end()
	if err := d.fetch(ctx); err != nil {
		return Restored{}, err
	}
	if err := d.verify(); err != nil {
		return Restored{}, err
	}
	if err := d.fetchEnd(ctx, o.Say); err != nil {
		return Restored{}, err
	}
	switch err := o.Check(d.temp); {
	case errors.Is(err, checkpoint.ErrIncompatible):
		return Restored{}, err
	case err != nil:
		return Restored{}, corrupt("%v", err)
	}
	return r, d.commit(o.Dir)
}

// occupied reports whether a folder holds the run already, at the entry's step or a later one. Other content is an error.
func occupied(dir string, e entry) (bool, error) {
	config, err := checkpoint.ReadConfig(dir)
	if errors.Is(err, checkpoint.ErrNotFound) {
		entries, err := os.ReadDir(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && len(entries) == 0:
			return false, nil
		case err != nil:
			return false, &checkpoint.OutputError{Dir: dir, Err: err}
		}
		return false, &checkpoint.OutputError{Dir: dir, Err: errors.New("it is not empty, and what it holds is no run")}
	}
	if err != nil {
		return false, &checkpoint.OutputError{Dir: dir, Err: err}
	}
	if run, err := startedOf(config); err != nil || run != e.Run {
		return false, fmt.Errorf("%s %w, and it is another one", dir, checkpoint.ErrExists)
	}
	// Where the local one is damaged, the error must not look like the mirror's.
	latest, _, err := checkpoint.Latest(dir, true)
	if err != nil {
		return false, fmt.Errorf("%s %w, but without a whole checkpoint (%v): move it away, or choose another folder", dir, checkpoint.ErrExists, err)
	}
	if latest.Step < e.Step {
		return false, fmt.Errorf("%s %w: it stands at step %d, the mirror at %d: move it away, or choose another folder", dir, checkpoint.ErrExists, latest.Step, e.Step)
	}
	return true, nil
}

// download is a run directory in the making.
type download struct {
	store *Store
	fs    durable.FS
	entry entry
	temp  string
	lock  *durable.Lock
}

// begin makes an empty folder that no other process restores to.
func (d *download) begin(parent string) error {
	if err := durable.MkdirAll(d.fs, parent); err != nil {
		return &checkpoint.OutputError{Dir: parent, Err: err}
	}
	if err := durable.CheckSpace(d.fs, parent, d.entry.bytes()+spaceMargin); err != nil {
		return err
	}
	if err := durable.MkdirAll(d.fs, d.temp); err != nil {
		return &checkpoint.OutputError{Dir: d.temp, Err: err}
	}
	var err error
	if d.lock, err = durable.Acquire(filepath.Join(d.temp, checkpoint.LockName)); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.temp)
	for _, old := range entries {
		if err == nil && old.Name() != checkpoint.LockName {
			err = d.fs.RemoveAll(filepath.Join(d.temp, old.Name()))
		}
	}
	if err == nil {
		err = durable.MkdirAll(d.fs, d.folder())
	}
	if err != nil {
		d.end()
	}
	return err
}

// folder is that of the checkpoint.
func (d *download) folder() string { return checkpoint.StepDir(d.temp, d.entry.Step) }

// end gives the lock back and, unless it was committed, removes what there is.
func (d *download) end() {
	if d.temp != "" {
		// The next attempt begins with nothing, whatever is left.
		_ = d.fs.RemoveAll(d.temp)
	}
	_ = d.lock.Release()
}

// fetch downloads all files, synced.
func (d *download) fetch(ctx context.Context) error {
	for _, f := range d.entry.Files {
		path := filepath.Join(d.folder(), f.Name)
		if ofRun(f.Name) {
			path = filepath.Join(d.temp, f.Name)
		}
		err := d.store.try(ctx, f.Bytes, func(ctx context.Context) error { return d.fetchFile(ctx, f, path) })
		var local *checkpoint.OutputError
		switch {
		case errors.As(err, &local):
			return local
		case errors.Is(err, fs.ErrNotExist):
			return corrupt("%s is missing", f.Name)
		case err != nil:
			return err
		}
	}
	return nil
}

// fetchFile downloads one file. Failures of the local disk are an *OutputError, and settled.
func (d *download) fetchFile(ctx context.Context, f checkpoint.File, path string) error {
	if err := d.fs.RemoveAll(path); err != nil {
		return settledError{&checkpoint.OutputError{Dir: d.temp, Err: err}}
	}
	var remote error
	_, err := durable.WriteFile(d.fs, path, func(w io.Writer) error {
		disk := &localWriter{w: w}
		err := d.store.copyOut(ctx, stepFolder(d.entry.Step)+f.Name, f, disk)
		if disk.failed == nil {
			remote = err
		}
		return err
	})
	if err != nil && remote == nil {
		return settledError{&checkpoint.OutputError{Dir: d.temp, Err: err}}
	}
	return remote
}

// localWriter keeps an error of the local disk apart from those of the store.
type localWriter struct {
	w      io.Writer
	failed error
}

func (l *localWriter) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if err != nil {
		l.failed = err
	}
	return n, err
}

// verify looks at what was downloaded as at any checkpoint.
func (d *download) verify() error {
	if _, err := checkpoint.Open(d.temp, d.entry.Step); err != nil {
		return err
	}
	config, err := checkpoint.ReadConfig(d.temp)
	if err != nil {
		return err
	}
	if run, err := startedOf(config); err != nil || run != d.entry.Run {
		return corrupt("%s is of another run than %s", checkpoint.ConfigName, entryName)
	}
	return nil
}

// commit puts the run in its place.
func (d *download) commit(dir string) error {
	for _, folder := range []string{d.folder(), filepath.Dir(d.folder())} {
		if err := d.fs.SyncDir(folder); err != nil {
			return &checkpoint.OutputError{Dir: d.temp, Err: err}
		}
	}
	// It was empty before; if it is not now, this fails, and so does the commit.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &checkpoint.OutputError{Dir: dir, Err: err}
	}
	if err := durable.Commit(d.fs, d.temp, dir); err != nil {
		return err
	}
	d.temp = ""
	return nil
}
