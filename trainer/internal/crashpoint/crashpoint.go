// Package crashpoint is a disk for tests that fails at a chosen operation, and can then lose what was never synced.
//
// After the chosen operation every later one fails too, as after the end of a process. Lose then does the worst that a
// power loss may do to what was not synced: files are cut in half, names that were not made durable go back.
package crashpoint

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cftune/trainer/internal/durable"
)

// ErrCrash is what every operation from the crash on returns.
var ErrCrash = errors.New("crashed here")

// FS passes operations to durable.OS until the crash.
type FS struct {
	// At is the number of the operation that fails, from 1; 0 = none does.
	At int
	// Err is what the operation At fails with; nil means ErrCrash. With Once set, later operations work again: a full
	// disk, not a crash.
	Err  error
	Once bool
	// Short makes a write At take only a part of the data and fail with io.ErrShortWrite, as package os does.
	Short bool
	// Free, if not nil, is what FreeBytes reports.
	Free *uint64
	// Rand, if not nil, decides at every loss whether it happens, and how much: a power cut may spare things. Without it
	// all that can be lost is lost.
	Rand *rand.Rand

	// Ops counts operations.
	Ops int

	unsynced map[string]int64 // files with data that was not synced, and how many bytes were
	renames  []rename         // whose folder was not synced since
	created  []string         // files whose folder was not synced since
}

type rename struct {
	from, to string
	replaced []byte // the file that had the name before; nil if there was none
}

func (fs *FS) step(what string) error {
	fs.Ops++
	if fs.At == 0 || fs.Ops < fs.At || (fs.Once && fs.Ops > fs.At) {
		return nil
	}
	if fs.Err != nil {
		return fmt.Errorf("%s: %w", what, fs.Err)
	}
	return fmt.Errorf("%s: %w", what, ErrCrash)
}

// Crashed reports whether the operation At was reached.
func (fs *FS) Crashed() bool { return fs.At > 0 && fs.Ops >= fs.At }

func (fs *FS) open(path string, open func(string) (durable.File, error)) (durable.File, error) {
	if err := fs.step("open " + path); err != nil {
		return nil, err
	}
	size := int64(0) // what a file has when it is opened is taken for durable
	if info, err := os.Stat(path); err == nil {
		size = info.Size()
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	fs.dirty(path, size)
	if size == 0 {
		fs.created = append(fs.created, path)
	}
	return &file{fs, f, path, size}, nil
}

func (fs *FS) dirty(path string, synced int64) {
	if fs.unsynced == nil {
		fs.unsynced = map[string]int64{}
	}
	fs.unsynced[path] = synced
}

// Create implements durable.FS.
func (fs *FS) Create(path string) (durable.File, error) { return fs.open(path, durable.OS.Create) }

// Append implements durable.FS.
func (fs *FS) Append(path string) (durable.File, error) { return fs.open(path, durable.OS.Append) }

// Mkdir implements durable.FS.
func (fs *FS) Mkdir(path string) error {
	if err := fs.step("mkdir " + path); err != nil {
		return err
	}
	return durable.OS.Mkdir(path)
}

// Rename implements durable.FS.
func (fs *FS) Rename(from, to string) error {
	if err := fs.step("rename " + from); err != nil {
		return err
	}
	replaced, err := os.ReadFile(to)
	if err != nil {
		replaced = nil
	}
	if err := durable.OS.Rename(from, to); err != nil {
		return err
	}
	for path, synced := range fs.unsynced {
		rest, inside := strings.CutPrefix(path, from)
		if inside && (rest == "" || rest[0] == filepath.Separator) {
			delete(fs.unsynced, path)
			fs.dirty(to+rest, synced)
		}
	}
	// Whether the file's own name is kept is now a matter of the rename.
	fs.created = slices.DeleteFunc(fs.created, func(path string) bool { return path == from })
	for i, path := range fs.created {
		if rest, inside := strings.CutPrefix(path, from+string(filepath.Separator)); inside {
			fs.created[i] = filepath.Join(to, rest)
		}
	}
	fs.renames = append(fs.renames, rename{from, to, replaced})
	return nil
}

// RemoveAll implements durable.FS.
func (fs *FS) RemoveAll(path string) error {
	if err := fs.step("remove " + path); err != nil {
		return err
	}
	return durable.OS.RemoveAll(path)
}

// SyncDir implements durable.FS.
func (fs *FS) SyncDir(path string) error {
	if err := fs.step("sync " + path); err != nil {
		return err
	}
	kept := fs.renames[:0]
	for _, r := range fs.renames {
		if filepath.Dir(r.to) != path {
			kept = append(kept, r)
		}
	}
	fs.renames = kept
	fs.created = slices.DeleteFunc(fs.created, func(file string) bool { return filepath.Dir(file) == path })
	return durable.OS.SyncDir(path)
}

// FreeBytes implements durable.FS.
func (fs *FS) FreeBytes(path string) (uint64, error) {
	if fs.Free != nil {
		return *fs.Free, nil
	}
	return durable.OS.FreeBytes(path)
}

// Lose makes the losses of a power cut: renames that were not synced are undone, newest first, if nothing else took their
// names, files that were not synced keep half of their bytes, but no fewer than were synced, and with Rand new files whose
// folder was not synced are gone.
func (fs *FS) Lose() error {
	for i := len(fs.renames) - 1; i >= 0; i-- {
		r := fs.renames[i]
		if _, err := os.Lstat(r.from); err == nil || fs.spared() {
			continue
		}
		if err := os.Rename(r.to, r.from); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if r.replaced != nil {
			if err := os.WriteFile(r.to, r.replaced, 0o644); err != nil {
				return err
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(fs.unsynced)) {
		synced := fs.unsynced[path]
		info, err := os.Stat(path)
		if err != nil {
			continue // removed, or in a folder that was
		}
		left := max(synced, info.Size()/2)
		if fs.Rand != nil {
			left = synced + fs.Rand.Int64N(info.Size()-synced+1)
		}
		if err := os.Truncate(path, left); err != nil {
			return err
		}
	}
	if fs.Rand == nil {
		return nil
	}
	for _, path := range fs.created {
		if fs.spared() {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (fs *FS) spared() bool { return fs.Rand != nil && fs.Rand.IntN(2) == 0 }

type file struct {
	fs     *FS
	f      durable.File
	path   string
	synced int64 // bytes
}

func (f *file) Write(p []byte) (int, error) {
	if err := f.fs.step("write " + f.path); err != nil {
		// A crash may come in the middle of a write.
		n, writeErr := f.f.Write(p[:len(p)/2])
		if f.fs.Short && len(p) > 0 {
			return n, errors.Join(io.ErrShortWrite, writeErr)
		}
		return n, errors.Join(err, writeErr)
	}
	f.fs.dirty(f.path, f.synced)
	return f.f.Write(p)
}

func (f *file) Sync() error {
	if err := f.fs.step("sync " + f.path); err != nil {
		return err
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	f.synced = info.Size()
	delete(f.fs.unsynced, f.path)
	return f.f.Sync()
}

func (f *file) Close() error { return f.f.Close() }
