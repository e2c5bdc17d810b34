package durable

import (
	"fmt"
	"io"
	"math"
	"os"

	"cftune/internal/regular"
)

// FS is every operation by which this package changes a disk.
type FS interface {
	// Create makes a new file; one of that name must not exist.
	Create(path string) (File, error)
	// Append opens a file for writing at its end, and makes it if it is missing.
	Append(path string) (File, error)
	Mkdir(path string) error
	Rename(from, to string) error
	RemoveAll(path string) error
	// SyncDir makes the names in a folder durable.
	SyncDir(path string) error
	// FreeBytes is what may still be written below path.
	FreeBytes(path string) (uint64, error)
}

// File is an open file of an FS.
type File interface {
	io.Writer
	Sync() error
	Close() error
}

// OS is the FS of this machine.
var OS FS = osFS{}

type osFS struct{}

const (
	fileMode = 0o644
	dirMode  = 0o755
)

func (osFS) Create(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err // not f: a nil *os.File would be a File that is not nil
	}
	return f, nil
}

func (osFS) Append(path string) (File, error) {
	f, err := regular.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, fileMode)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFS) Mkdir(path string) error      { return os.Mkdir(path, dirMode) }
func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) RemoveAll(path string) error  { return os.RemoveAll(path) }

func (osFS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (osFS) FreeBytes(path string) (uint64, error) { return freeBytes(path) }

// CheckSpace reports an error if fewer than want bytes can be written below path.
func CheckSpace(fs FS, path string, want int64) error {
	free, err := fs.FreeBytes(path)
	if err != nil {
		return fmt.Errorf("free space of %s: %w", path, err)
	}
	if want > 0 && free < uint64(want) {
		return &SpaceError{Path: path, Want: uint64(want), Free: free}
	}
	return nil
}

// SpaceError says that a disk is too full for what is to be written.
type SpaceError struct {
	Path       string
	Want, Free uint64 // bytes
}

func (e *SpaceError) Error() string {
	const mib = 1 << 20
	return fmt.Sprintf("%s: %.1f MiB are needed, %.1f MiB are free", e.Path,
		math.Ceil(float64(e.Want)/mib*10)/10, math.Floor(float64(e.Free)/mib*10)/10)
}
