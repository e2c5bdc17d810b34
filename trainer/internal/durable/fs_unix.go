//go:build unix

package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func freeBytes(path string) (uint64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return 0, err
	}
	return uint64(stat.Bavail) * uint64(stat.Bsize), nil
}

// Writable says why this process cannot write to a file, or make files in a folder, as far as permissions tell: whose they are, and whether the
// file system takes writes. What is not there does not hinder.
func Writable(path string) error {
	mode := uint32(unix.W_OK)
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		mode |= unix.X_OK
	}
	if err := unix.Access(path, mode); err != nil && !errors.Is(err, os.ErrNotExist) {
		return &os.PathError{Op: "write to", Path: path, Err: err}
	}
	return nil
}
