package durable

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"cftune/internal/regular"
)

// TempSuffix ends the names of what is not yet, or no longer, part of the store.
const TempSuffix = ".tmp"

// Written tells what a file holds.
type Written struct {
	Bytes  int64
	SHA256 string // hex
}

// WriteFile makes a new file of what write writes, synced. The name itself is durable once its folder is synced. On
// failure a part of the file may be left.
func WriteFile(fs FS, path string, write func(io.Writer) error) (Written, error) {
	f, err := fs.Create(path)
	if err != nil {
		return Written{}, fmt.Errorf("write: %w", err)
	}
	sum := sha256.New()
	var count counter
	buffered := bufio.NewWriterSize(f, 1<<20)
	err = write(io.MultiWriter(buffered, sum, &count))
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = stillThere(f, path)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return Written{}, fmt.Errorf("write %s: %w", path, err)
	}
	return Written{Bytes: int64(count), SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// stillThere fails if another process has taken the file's name: two that make the same output at once begin with taking each other's
// unfinished file away, and neither may pass the other's for its own.
func stillThere(f File, path string) error {
	file, ok := f.(interface{ Stat() (os.FileInfo, error) })
	if !ok {
		return nil // not of this machine
	}
	have, err := file.Stat()
	if err != nil {
		return err
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(have, there) {
		return errors.New("another process writes it, too")
	}
	return nil
}

// Reserve has so many bytes kept for what is appended to an open file, so that it can be written though the disk is full by then. Where the file
// system cannot, nothing is kept, and that is no error.
func Reserve(f File, bytes int64) error {
	if own, ok := f.(interface{ Reserve(bytes int64) error }); ok {
		return own.Reserve(bytes)
	}
	file, ok := f.(*os.File)
	if !ok {
		return nil // not of this machine
	}
	info, err := file.Stat()
	if err == nil {
		err = reserve(file, info.Size(), bytes)
	}
	if err != nil {
		return fmt.Errorf("reserve %d bytes for %s: %w", bytes, file.Name(), err)
	}
	return nil
}

// Unreserve gives back what is kept for a file.
func Unreserve(f File) error {
	file, ok := f.(*os.File)
	if !ok {
		return nil
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return file.Truncate(info.Size())
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// ReplaceFile makes path hold what write writes, or leaves it as it was.
func ReplaceFile(fs FS, path string, write func(io.Writer) error) (Written, error) {
	temp := path + TempSuffix
	if err := fs.RemoveAll(temp); err != nil {
		return Written{}, fmt.Errorf("replace %s: %w", path, err)
	}
	written, err := WriteFile(fs, temp, write)
	if err != nil {
		// What is left is a ".tmp" that the next writer removes; the first error is the one that matters.
		_ = fs.RemoveAll(temp)
		return Written{}, err
	}
	if err := fs.Rename(temp, path); err != nil {
		return Written{}, fmt.Errorf("replace: %w", err)
	}
	if err := fs.SyncDir(filepath.Dir(path)); err != nil {
		return Written{}, fmt.Errorf("replace %s: %w", path, err)
	}
	return written, nil
}

// MkdirAll makes a folder and those above it, each durable.
func MkdirAll(fs FS, path string) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("make folder %s: there is a file of that name", path)
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.Mkdir(path); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := fs.SyncDir(parent); err != nil {
		return fmt.Errorf("make folder %s: %w", path, err)
	}
	return nil
}

// Commit makes the folder temp, whose files are synced, visible under its final name.
//
// Until the rename a reader sees nothing under that name; after it, all. A crash in between leaves the folder temp.
func Commit(fs FS, temp, final string) error {
	switch _, err := os.Lstat(final); {
	case err == nil:
		return fmt.Errorf("commit: %s already exists", final)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("commit: %w", err)
	}
	if err := fs.SyncDir(temp); err != nil {
		return fmt.Errorf("commit %s: %w", final, err)
	}
	if err := fs.Rename(temp, final); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	// The rename is durable only once the parent folder is.
	if err := fs.SyncDir(filepath.Dir(final)); err != nil {
		return fmt.Errorf("commit %s: %w", final, err)
	}
	return nil
}

// Remove is the mirror of Commit: the name goes first, then the files, so that a visible folder never lacks any.
func Remove(fs FS, path string) error {
	temp := path + TempSuffix
	if err := fs.RemoveAll(temp); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := fs.Rename(path, temp); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if err := fs.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := fs.RemoveAll(temp); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// RemoveTemp removes everything in the folder whose name ends in ".tmp". Only the holder of the lock may call it.
func RemoveTemp(fs FS, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove leftovers: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), TempSuffix) {
			continue
		}
		if err := fs.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("remove leftovers: %w", err)
		}
	}
	return nil
}

// Digest returns size and SHA-256 of a file, or of several as if they were one.
func Digest(paths ...string) (Written, error) {
	sum := sha256.New()
	total := int64(0)
	for _, path := range paths {
		f, err := regular.Open(path)
		if err != nil {
			return Written{}, fmt.Errorf("digest: %w", err)
		}
		n, err := io.Copy(sum, f)
		f.Close()
		if err != nil {
			return Written{}, fmt.Errorf("digest %s: %w", path, err)
		}
		total += n
	}
	return Written{Bytes: total, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}
