package checkpoint

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// Content is a file to be stored.
type Content struct {
	Name  string
	Bytes int64 // about how many; for the check of free space
	Write func(io.Writer) error
}

// spaceMargin is what is wanted beyond the files themselves, for folders and the manifest.
const spaceMargin = 1 << 20

// Write commits a checkpoint of m.Step and returns its folder. On failure the run has the checkpoints that it had.
func (r *Run) Write(m Manifest, contents []Content) (string, error) {
	final := StepDir(r.dir, m.Step)
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("write checkpoint step %d: %w", m.Step, err)
	}
	if _, err := os.Lstat(final); err == nil {
		return fail(fmt.Errorf("%s already exists", final))
	}
	if err := durable.MkdirAll(r.fs, r.checkpoints()); err != nil {
		return fail(err)
	}
	need := int64(spaceMargin)
	for _, c := range contents {
		need += c.Bytes
	}
	if err := durable.CheckSpace(r.fs, r.checkpoints(), need); err != nil {
		return fail(err)
	}
	temp := final + durable.TempSuffix
	if err := r.fs.RemoveAll(temp); err != nil {
		return fail(err)
	}
	if err := r.fill(temp, m, contents); err != nil {
		// The ".tmp" folder is no checkpoint; what cannot be removed now, the next OpenRun removes.
		_ = r.fs.RemoveAll(temp)
		return fail(err)
	}
	if err := durable.Commit(r.fs, temp, final); err != nil {
		return fail(err)
	}
	return final, nil
}

// fill writes the files and, last, the manifest.
func (r *Run) fill(temp string, m Manifest, contents []Content) error {
	if err := r.fs.Mkdir(temp); err != nil {
		return err
	}
	m.Format, m.Files = FormatVersion, nil
	for _, c := range contents {
		path := filepath.Join(temp, c.Name)
		written, err := durable.WriteFile(r.fs, path, c.Write)
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() != written.Bytes {
			return fmt.Errorf("%s has %d bytes, %d were written", c.Name, info.Size(), written.Bytes)
		}
		m.Files = append(m.Files, File{Name: c.Name, Bytes: written.Bytes, SHA256: written.SHA256})
	}
	slices.SortFunc(m.Files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	text, err := m.encode()
	if err != nil {
		return err
	}
	_, err = durable.WriteFile(r.fs, filepath.Join(temp, ManifestName), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	return err
}

// Amend replaces the manifest of a checkpoint, all at once: more is known of its step than when it was written. Its files stay.
func (r *Run) Amend(m Manifest) error {
	fail := func(err error) error { return fmt.Errorf("amend checkpoint step %d: %w", m.Step, err) }
	was, err := ReadManifest(r.dir, m.Step)
	if err != nil {
		return fail(err)
	}
	m.Format, m.Files = was.Format, was.Files
	text, err := m.encode()
	if err != nil {
		return fail(err)
	}
	folder := StepDir(r.dir, m.Step)
	temp := folder + "." + ManifestName + durable.TempSuffix // beside the folder, in which only what the manifest lists may be
	if err := r.fs.RemoveAll(temp); err != nil {
		return fail(err)
	}
	if _, err := durable.WriteFile(r.fs, temp, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	}); err != nil {
		_ = r.fs.RemoveAll(temp) // no checkpoint; the next OpenRun removes what is left
		return fail(err)
	}
	if err := r.fs.Rename(temp, filepath.Join(folder, ManifestName)); err != nil {
		return fail(err)
	}
	if err := r.fs.SyncDir(folder); err != nil {
		return fail(err)
	}
	return nil
}

// Retention says which checkpoints are kept: the newest ones, those whose step is a multiple of Every (0: none), and some
// more.
type Retention struct {
	Last, Every int
	Also        []int
}

// Removed returns which of the steps, ascending, are not kept.
func (k Retention) Removed(steps []int) []int {
	var removed []int
	for _, step := range steps[:max(0, len(steps)-max(k.Last, 1))] {
		if (k.Every == 0 || step%k.Every != 0) && !slices.Contains(k.Also, step) {
			removed = append(removed, step)
		}
	}
	return removed
}

// Pinned returns the retention with what an evaluation of the run chose: see Choose.
func (k Retention) Pinned(dir string) (Retention, error) {
	c, found, err := Chosen(dir)
	if found {
		k.Also = append(slices.Clone(k.Also), c.Step)
	}
	return k, err
}

// Prune removes the checkpoints that are not kept. The newest one always is, and so is a chosen one.
func (r *Run) Prune(keep Retention) error {
	keep, err := keep.Pinned(r.dir)
	if err != nil {
		return fmt.Errorf("prune checkpoints: %w", err)
	}
	steps, err := List(r.dir)
	if err != nil {
		return fmt.Errorf("prune checkpoints: %w", err)
	}
	for _, step := range keep.Removed(steps) {
		if err := durable.Remove(r.fs, StepDir(r.dir, step)); err != nil {
			return fmt.Errorf("prune checkpoints: %w", err)
		}
	}
	return nil
}

// RemoveAfter removes the checkpoints of all steps after the given one.
func (r *Run) RemoveAfter(step int) error {
	steps, err := List(r.dir)
	if err != nil {
		return fmt.Errorf("remove checkpoints: %w", err)
	}
	for _, s := range slices.Backward(steps) {
		if s <= step {
			break
		}
		if err := durable.Remove(r.fs, StepDir(r.dir, s)); err != nil {
			return fmt.Errorf("remove checkpoints: %w", err)
		}
	}
	return nil
}

const stepPrefix = "step-"

// StepDir is the folder of a step's checkpoint in a run directory.
func StepDir(dir string, step int) string {
	return filepath.Join(dir, checkpointsName, fmt.Sprintf("%s%08d", stepPrefix, step))
}

// List returns the steps of the visible checkpoints, ascending, unverified.
func List(dir string) ([]int, error) {
	if err := exists(dir); err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, checkpointsName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	var steps []int
	for _, entry := range entries {
		digits, ok := strings.CutPrefix(entry.Name(), stepPrefix)
		step, err := strconv.Atoi(digits)
		if ok && err == nil && filepath.Base(StepDir(dir, step)) == entry.Name() {
			steps = append(steps, step)
		}
	}
	slices.Sort(steps)
	return steps, nil
}

// Checkpoint is a committed checkpoint whose files had the manifest's sizes and digests when it was opened.
type Checkpoint struct {
	Manifest
	Dir string
}

// Path returns the path of one of its files.
func (c *Checkpoint) Path(name string) string { return filepath.Join(c.Dir, name) }

// SplitStep takes a checkpoint's folder apart: the run that it lies in, and its step.
func SplitStep(path string) (run string, step int, ok bool) {
	folder := filepath.Dir(filepath.Clean(path))
	digits, ok := strings.CutPrefix(filepath.Base(path), stepPrefix)
	step, err := strconv.Atoi(digits)
	run = filepath.Dir(folder)
	if !ok || err != nil || filepath.Base(folder) != checkpointsName || StepDir(run, step) != filepath.Clean(path) {
		return "", 0, false
	}
	return run, step, true
}

// Open opens the checkpoint of a step and verifies all of it. The error wraps ErrNotFound, ErrCorrupt or ErrIncompatible.
func Open(dir string, step int) (*Checkpoint, error) {
	c := &Checkpoint{Dir: StepDir(dir, step)}
	if err := c.verify(step); err != nil {
		return nil, fmt.Errorf("open checkpoint step %d of %s: %w", step, dir, err)
	}
	return c, nil
}

// ReadManifest reads the manifest of a step's checkpoint and none of its files.
func ReadManifest(dir string, step int) (Manifest, error) {
	text, err := regular.ReadFile(filepath.Join(StepDir(dir, step), ManifestName))
	if errors.Is(err, os.ErrNotExist) {
		return Manifest{}, fmt.Errorf("read checkpoint step %d of %s: %w", step, dir, ErrNotFound)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("read checkpoint step %d: %w", step, err)
	}
	m, err := ParseManifest(text)
	if err != nil {
		return Manifest{}, fmt.Errorf("read checkpoint step %d of %s: %w", step, dir, err)
	}
	return m, nil
}

func (c *Checkpoint) verify(step int) error {
	entries, err := os.ReadDir(c.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	text, err := regular.ReadFile(c.Path(ManifestName))
	if errors.Is(err, os.ErrNotExist) {
		return corrupt("%s is missing", ManifestName)
	}
	if err != nil {
		return err
	}
	if c.Manifest, err = ParseManifest(text); err != nil {
		return err
	}
	if c.Step != step {
		return corrupt("manifest: it is of step %d", c.Step)
	}
	listed := map[string]bool{ManifestName: true}
	for _, f := range c.Files {
		listed[f.Name] = true
		if err := c.verifyFile(f); err != nil {
			return err
		}
	}
	for _, entry := range entries {
		if !listed[entry.Name()] {
			return corrupt("%s is not in the manifest", entry.Name())
		}
	}
	return nil
}

func (c *Checkpoint) verifyFile(f File) error {
	if f.Name != filepath.Base(f.Name) || f.Name == ManifestName {
		return corrupt("manifest: file name %q", f.Name)
	}
	found, err := durable.Digest(c.Path(f.Name))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return corrupt("%s is missing", f.Name)
	case err != nil:
		return err
	case found.Bytes != f.Bytes:
		return corrupt("%s has %d bytes, its manifest says %d", f.Name, found.Bytes, f.Bytes)
	case found.SHA256 != f.SHA256:
		return corrupt("%s: its checksum differs from its manifest's", f.Name)
	}
	return nil
}

// Latest opens the newest checkpoint that is visible. If that is damaged, it fails, or, with older set, takes the newest
// one that is not and returns why it passed the others over. One that cannot be read, or is of another version, may be whole: it is not passed
// over, since what is passed over is removed when the run goes on.
func Latest(dir string, older bool) (latest *Checkpoint, passed []error, err error) {
	steps, err := List(dir)
	if err != nil {
		return nil, nil, err
	}
	for i := len(steps) - 1; i >= 0; i-- {
		c, err := Open(dir, steps[i])
		if err == nil {
			return c, passed, nil
		}
		if !older || !errors.Is(err, ErrCorrupt) {
			return nil, nil, err
		}
		passed = append(passed, err)
	}
	if len(passed) > 0 {
		return nil, passed, fmt.Errorf("open checkpoint of %s: none of %d is whole: %w", dir, len(passed), errors.Join(passed...))
	}
	return nil, nil, fmt.Errorf("open checkpoint of %s: %w", dir, ErrNone)
}

// Leftovers returns what a crash left in a run directory; OpenRun removes it.
func Leftovers(dir string) ([]string, error) {
	var found []string
	for _, folder := range []string{dir, filepath.Join(dir, checkpointsName)} {
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list leftovers: %w", err)
		}
		for _, entry := range entries {
			if strings.HasSuffix(entry.Name(), durable.TempSuffix) {
				found = append(found, filepath.Join(folder, entry.Name()))
			}
		}
	}
	return found, nil
}
