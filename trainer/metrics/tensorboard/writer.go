// Package tensorboard writes a run's records as an event file, which TensorBoard shows.
//
// A folder has one event file of this program that is not empty, with all records of the run so far. Whoever begins, or
// goes on with, a run makes it anew from the run's log, and only then appends: so it never has what the log has lost by a
// crash. It begins with a session's start at step 0, by which a TensorBoard that has read older files forgets all that was
// in them. Those are emptied; their names stay, since TensorBoard waits for ever where the file that it reads is gone.
//
// The file is the log in another form and can be made again at any time. It is not synced after that.
package tensorboard

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"cftune/trainer/internal/durable"
	"cftune/trainer/metrics"
)

// Names of event files. TensorBoard takes every file whose name has "tfevents" in it and reads them in the order of their
// names; what is being made must not have it.
const (
	namePrefix = "events.out.tfevents."
	nameSuffix = ".cftune"
	freshName  = "fresh" + durable.TempSuffix
	emptyName  = "empty" + durable.TempSuffix
)

// flushBytes is how much is gathered before a write while records of the past are written.
const flushBytes = 1 << 16

// Options say what a file begins with.
type Options struct {
	// Config is the run's config.json, which TensorBoard shows as text.
	Config []byte
	// History calls its argument for all records so far.
	History func(func(metrics.Record)) error
	// Failed is told, once, that the file cannot be written any more.
	Failed func(error)
}

// Writer is an open event file. It is a metrics.Sink.
type Writer struct {
	path   string
	f      durable.File // nil after a failure
	failed func(error)
	buffer []byte
	past   bool            // records of the past are being written
	seen   map[string]bool // objectives
}

var _ metrics.Sink = (*Writer)(nil)

// Open makes the folder's event file anew and leaves it open for what follows. Older ones of this program are emptied once
// the new one is whole; files of others stay as they are.
func Open(fs durable.FS, dir string, o Options) (*Writer, error) {
	w, err := open(fs, dir, o)
	if err != nil {
		return nil, fmt.Errorf("event file in %s: %w", dir, err)
	}
	return w, nil
}

func open(fs durable.FS, dir string, o Options) (*Writer, error) {
	if err := durable.MkdirAll(fs, dir); err != nil {
		return nil, err
	}
	old, err := Files(dir)
	if err != nil {
		return nil, err
	}
	fresh := filepath.Join(dir, freshName)
	if err := fs.RemoveAll(fresh); err != nil { // of a crash
		return nil, err
	}
	w := &Writer{path: filepath.Join(dir, nextName(old)), seen: map[string]bool{}}
	if w.f, err = fs.Create(fresh); err != nil {
		return nil, err
	}
	if err := w.begin(o); err != nil {
		return nil, errors.Join(err, w.abandon(), fs.RemoveAll(fresh))
	}
	if err := fs.Rename(fresh, w.path); err != nil {
		return nil, errors.Join(err, w.abandon(), fs.RemoveAll(fresh))
	}
	for _, name := range old {
		if err := empty(fs, filepath.Join(dir, name)); err != nil {
			return nil, errors.Join(err, w.abandon())
		}
	}
	if err := fs.SyncDir(dir); err != nil {
		return nil, errors.Join(err, w.abandon())
	}
	w.failed = o.Failed
	return w, nil
}

// empty puts an empty file in the place of another.
func empty(fs durable.FS, path string) error {
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		return err
	}
	temp := filepath.Join(filepath.Dir(path), emptyName)
	if err := fs.RemoveAll(temp); err != nil { // of a crash
		return err
	}
	f, err := fs.Create(temp)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return fs.Rename(temp, path)
}

// begin writes what comes before the records to come.
func (w *Writer) begin(o Options) error {
	var failure error
	w.past, w.failed = true, func(err error) { failure = err }
	now := time.Now()
	w.write(versionEvent(now))
	w.write(startEvent(now, 0))
	if len(o.Config) > 0 {
		w.write(textEvent(now, 0, "configuration", codeBlock(string(o.Config))))
	}
	if o.History != nil {
		if err := o.History(func(r metrics.Record) { r.Show(w) }); err != nil {
			return err
		}
	}
	w.past = false
	w.flush()
	if failure == nil {
		return w.f.Sync()
	}
	return failure
}

func (w *Writer) abandon() error {
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}

// Files returns the names of this program's event files in a folder, the last one the newest; none where there is no folder.
func Files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries { // sorted
		if name := entry.Name(); strings.HasPrefix(name, namePrefix) && strings.HasSuffix(name, nameSuffix) {
			names = append(names, name)
		}
	}
	return names, err
}

// nextName has the time in seconds, as others' names do, but always sorts after the names that there are.
func nextName(old []string) string {
	at := time.Now().Unix()
	for _, name := range old {
		seconds := strings.TrimSuffix(strings.TrimPrefix(name, namePrefix), nameSuffix)
		if n, err := strconv.ParseInt(seconds, 10, 64); err == nil {
			at = max(at, n+1)
		}
	}
	return fmt.Sprintf("%s%010d%s", namePrefix, at, nameSuffix)
}

// codeBlock is text that Markdown shows as it is, whatever is in it.
func codeBlock(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ")
}

// Path is the file's.
func (w *Writer) Path() string { return w.path }

// Step implements metrics.Sink.
func (w *Writer) Step(s metrics.Step) {
	scalars := []scalar{
		{"train/loss", s.Loss},
		{"train/learning_rate", s.LR},
		{"train/gradient_norm", s.GradNorm},
		{"train/epoch", s.Epoch},
		{"train/targets", float64(s.Targets)},
		{"train/tokens", float64(s.Tokens)},
		{"speed/tokens_per_second", s.TokensPerS},
		{"speed/target_tokens_per_second", s.TargetTokensPerS},
		{"speed/step_seconds", s.Seconds},
		{"memory/bytes", float64(s.MemoryBytes)},
	}
	// An objective that is trained no more goes to 0; without a value its line would just end.
	for name := range s.Objective {
		w.seen[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(w.seen)) {
		scalars = append(scalars, scalar{"objective/" + name, float64(s.Objective[name]) / float64(max(s.Examples, 1))})
	}
	w.write(scalarsEvent(s.Time, s.Step, scalars))
}

// Validation implements metrics.Sink.
func (w *Writer) Validation(v metrics.Validation) {
	tag := "validation/loss"
	if v.Objective != "" {
		tag += "/" + v.Objective
	}
	w.write(scalarsEvent(v.Time, v.Step, []scalar{{tag, v.Loss}}))
}

// Skip implements metrics.Sink.
func (w *Writer) Skip(s metrics.Skip) {
	w.write(scalarsEvent(s.Time, s.Step, []scalar{{"train/skipped", float64(s.Skipped)}}))
	w.write(textEvent(s.Time, s.Step, "skipped", codeBlock(fmt.Sprintf("%s\n%d examples: %s", s.Reason, len(s.Examples), strings.Join(s.Examples, ", ")))))
}

// Saved implements metrics.Sink; TensorBoard has no place for it.
func (w *Writer) Saved(int, time.Time) {}

// Close implements metrics.Sink.
func (w *Writer) Close() {
	if w.f == nil {
		return
	}
	if err := w.f.Close(); err != nil {
		w.fail(err)
	}
	w.f = nil
}

func (w *Writer) write(event []byte) {
	if w.f == nil {
		return
	}
	w.buffer = appendRecord(w.buffer, event)
	if !w.past || len(w.buffer) >= flushBytes {
		w.flush()
	}
}

// flush hands the buffer over. After a failure nothing more is written: what a reader finds after half a record is lost to
// it anyway.
func (w *Writer) flush() {
	if w.f == nil {
		return
	}
	_, err := w.f.Write(w.buffer)
	w.buffer = w.buffer[:0]
	if err != nil {
		w.fail(errors.Join(err, w.f.Close()))
	}
}

func (w *Writer) fail(err error) {
	w.f = nil
	if w.failed != nil {
		w.failed(fmt.Errorf("write event file %s: %w", w.path, err))
	}
}
