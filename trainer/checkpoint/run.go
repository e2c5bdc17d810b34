package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// Names in a run directory.
const (
	ConfigName      = "config.json"
	MetricsName     = "metrics.jsonl"
	JournalName     = "journal.jsonl"
	ControlName     = "control"
	EndName         = "end.json"
	LockName        = "LOCK"
	TensorBoardName = "tensorboard"
	checkpointsName = "checkpoints"
	ManifestName    = "manifest.json"
)

// HeldError says that another process holds a run's lock.
type HeldError = durable.HeldError

// SpaceError says that a disk is too full for a checkpoint.
type SpaceError = durable.SpaceError

// IsFull reports whether an error is of a disk, or of a share of one, that is full.
func IsFull(err error) bool {
	_, short := errors.AsType[*SpaceError](err)
	return short || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Run is a run directory that this process may write to.
type Run struct {
	fs   durable.FS
	dir  string
	lock *durable.Lock
	made []string // folders that Create made, outermost first
}

// Create takes the folder for a new run, making it if needed. It fails with ErrExists if a run is there, and with a
// *durable.HeldError if another process has it.
func Create(fs durable.FS, dir string) (*Run, error) {
	for attempt := 1; ; attempt++ {
		r, err := create(fs, dir)
		if attempt == createAttempts || !errors.Is(err, os.ErrNotExist) {
			return r, err
		}
	}
}

// createAttempts is how often the folder is made: another process may give it up, and take it away, while this one comes.
const createAttempts = 5

func create(fs durable.FS, dir string) (*Run, error) {
	r := &Run{fs: fs, dir: dir}
	if err := notWithin(dir); err != nil {
		return nil, err
	}
	if err := r.makeFolders(); err != nil {
		r.Abandon()
		return nil, &OutputError{dir, err}
	}
	if err := holdsNone(dir); err != nil {
		r.Abandon()
		return nil, err
	}
	lock, err := durable.Acquire(filepath.Join(dir, LockName))
	var held *HeldError
	switch {
	case errors.As(err, &held):
		r.Abandon()
		return nil, fmt.Errorf("create run: %w", err)
	case err != nil:
		r.Abandon()
		return nil, &OutputError{dir, err}
	}
	// Who had the lock until now may have made a run here.
	if err := holdsNone(dir); err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	r.lock = lock
	return r, nil
}

// holdsNone is an error where the folder has anything of a run.
func holdsNone(dir string) error {
	for _, name := range []string{ConfigName, MetricsName, JournalName, checkpointsName, TensorBoardName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("create run: %s %w", dir, ErrExists)
		}
	}
	return nil
}

// Vacant says why Create would not take a folder, as far as can be told without making one: something of a run is there, or what is no folder.
func Vacant(dir string) error {
	at, _ := existing(dir)
	if info, err := os.Stat(at); err == nil && !info.IsDir() {
		return &OutputError{dir, fmt.Errorf("%s is no folder", at)}
	}
	if err := notWithin(dir); err != nil {
		return err
	}
	return holdsNone(dir)
}

// notWithin is an error where a folder is another run's.
func notWithin(dir string) error {
	if other := OwnedBy(dir); other != "" {
		return &OutputError{dir, fmt.Errorf("it is of the run %s, whose checkpoints never change", other)}
	}
	return nil
}

// existing returns the nearest of a folder and those around it that is there, and those that are not, the outermost first.
func existing(dir string) (at string, missing []string) {
	for at = filepath.Clean(dir); ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil || at == filepath.Dir(at) {
			return at, missing
		}
		missing = append([]string{at}, missing...)
	}
}

// OutputError says that a folder cannot be made or written to.
type OutputError struct {
	Dir string
	Err error
}

func (e *OutputError) Error() string { return fmt.Sprintf("create run: output %s: %v", e.Dir, e.Err) }

// ForeignError says that this user may read a run, perhaps, but not write to it.
type ForeignError struct {
	Dir string
	Err error
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("open run: %s cannot be written to: %v", e.Dir, e.Err)
}

func (e *ForeignError) Unwrap() error { return e.Err }

func (e *OutputError) Unwrap() error { return e.Err }

func (r *Run) makeFolders() error {
	_, missing := existing(r.dir)
	if err := durable.MkdirAll(r.fs, r.dir); err != nil {
		return err
	}
	r.made = missing
	return nil
}

// Abandon gives up a run that Create made and that holds nothing yet, and removes what was made for it.
func (r *Run) Abandon() {
	if r.lock != nil {
		// The lock file goes while it is held, so that nobody can take it in between.
		_ = os.Remove(filepath.Join(r.dir, LockName))
		_ = r.lock.Release()
	}
	for i := len(r.made) - 1; i >= 0; i-- {
		_ = os.Remove(r.made[i]) // removes empty folders only
	}
}

// OpenRun takes an existing run for writing and removes what a crash left of unfinished checkpoints. It fails with a *ForeignError where this
// user may not write to it, before anything is learned that could not be kept. A nil fs is the machine's.
func OpenRun(fs durable.FS, dir string) (*Run, error) {
	if fs == nil {
		fs = durable.OS
	}
	if err := exists(dir); err != nil {
		return nil, fmt.Errorf("open run: %w", err)
	}
	for _, name := range []string{"", checkpointsName, LockName, MetricsName, JournalName} {
		if err := durable.Writable(filepath.Join(dir, name)); err != nil {
			return nil, &ForeignError{dir, err}
		}
	}
	lock, err := durable.Acquire(filepath.Join(dir, LockName))
	if err != nil {
		return nil, fmt.Errorf("open run: %w", err)
	}
	r := &Run{fs: fs, dir: dir, lock: lock}
	for _, folder := range []string{dir, r.checkpoints()} {
		if err := durable.RemoveTemp(fs, folder); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.Close()
			return nil, fmt.Errorf("open run: %w", err)
		}
	}
	return r, nil
}

// exists reports ErrNotFound if dir holds no run.
func exists(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, ConfigName)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: no run, it has no %s: %w", dir, ConfigName, ErrNotFound)
	} else if err != nil {
		return err
	}
	return nil
}

// Clear removes the configuration, metrics, journal and event files of a run without checkpoints, so that Abandon leaves nothing.
func (r *Run) Clear() error {
	for _, name := range []string{TensorBoardName, MetricsName, JournalName, ConfigName} {
		if err := r.fs.RemoveAll(filepath.Join(r.dir, name)); err != nil {
			return fmt.Errorf("clear run: %w", err)
		}
	}
	return nil
}

// RemoveUnbegun removes the folder of checkpoints, which must be empty.
func (r *Run) RemoveUnbegun() error {
	if err := os.Remove(r.checkpoints()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clear run: %w", err)
	}
	return nil
}

// Dir is the run's folder.
func (r *Run) Dir() string { return r.dir }

// FS is where the run's files are written.
func (r *Run) FS() durable.FS { return r.fs }

// Close gives the run's lock back.
func (r *Run) Close() error { return r.lock.Release() }

func (r *Run) checkpoints() string { return filepath.Join(r.dir, checkpointsName) }

// WriteConfig replaces the run's config.json.
func (r *Run) WriteConfig(text []byte) error {
	_, err := durable.ReplaceFile(r.fs, filepath.Join(r.dir, ConfigName), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	return err
}

// ReadConfig returns a run's config.json.
func ReadConfig(dir string) ([]byte, error) {
	if err := exists(dir); err != nil {
		return nil, err
	}
	return regular.ReadFile(filepath.Join(dir, ConfigName))
}

// Holder returns who is writing to the run, and false if nobody is.
func Holder(dir string) (string, bool) { return durable.Held(filepath.Join(dir, LockName)) }

// LastHolder returns who wrote to a run last ("pid 4711 on host"); empty if that is unknown.
func LastHolder(dir string) string { return durable.LastHolder(filepath.Join(dir, LockName)) }
