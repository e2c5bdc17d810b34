package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve allocates the bytes that follow a file's end, which stays where it is.
func reserve(f *os.File, from, bytes int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	err = errors.Join(raw.Control(func(fd uintptr) {
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Fallocate(int(fd), unix.FALLOC_FL_KEEP_SIZE, from, bytes)
		}
	}), err)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil // of this file system, as NFS before 4.2
	}
	return err
}
