// Package regular opens files that are regular ones, and no others: what lies in a folder under a file's name may be a named pipe,
// which would be waited for without end, a device, which has no end, or a socket.
//
// It is for files that a program finds by their names. What a user names may be a pipe (`--config <(...)`), and is opened by package os.
package regular

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ErrNotRegular is wrapped by the errors that say what else a file is.
var ErrNotRegular = errors.New("not a regular file")

// maxReadBytes bounds what is read as a whole: what is larger is none of the files that are read so, but a mistake or an attack.
const maxReadBytes = 2 << 30

// Open opens a regular file for reading.
func Open(path string) (*os.File, error) { return OpenFile(path, os.O_RDONLY, 0) }

// OpenFile is os.OpenFile for regular files, and those that it makes.
func OpenFile(path string, flag int, perm fs.FileMode) (*os.File, error) {
	// To open a device may already do something, so it is looked at first.
	if err := Check(path); errors.Is(err, ErrNotRegular) {
		return nil, err
	}
	// It may have become another since: a pipe is not waited for, and looked at again.
	f, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, perm)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = kindError(path, info.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Check says whether a file is there and a regular one, and otherwise what is wrong.
func Check(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return kindError(path, info.Mode())
	}
	return err
}

// ReadFile reads a regular file as a whole.
func ReadFile(path string) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxReadBytes {
		return nil, fmt.Errorf("%s has %d GiB, more than any such file", path, info.Size()>>30)
	}
	text := make([]byte, 0, info.Size()+1) // and one, to see its end without another allocation
	for {
		n, err := f.Read(text[len(text):cap(text)])
		text = text[:len(text)+n]
		if errors.Is(err, io.EOF) {
			return text, nil
		}
		if err != nil {
			return text, err
		}
		if len(text) == cap(text) { // it grows
			text = append(text, 0)[:len(text)]
		}
	}
}

func kindError(path string, mode fs.FileMode) error {
	what := "a device"
	switch {
	case mode.IsDir():
		what = "a folder"
	case mode&fs.ModeNamedPipe != 0:
		what = "a named pipe"
	case mode&fs.ModeSocket != 0:
		what = "a socket"
	}
	return fmt.Errorf("%s is %s, %w", path, what, ErrNotRegular)
}
