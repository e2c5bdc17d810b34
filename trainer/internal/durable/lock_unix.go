//go:build unix

package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cftune/internal/regular"
)

// Lock is held from Acquire to Release, or to the end of the process, however that comes.
type Lock struct {
	f *os.File
}

// HeldError says that another process holds a lock.
type HeldError struct {
	Path   string
	Holder string // "pid 4711 on host"; empty if unknown
}

func (e *HeldError) Error() string {
	if e.Holder == "" {
		return fmt.Sprintf("%s is held by another process", e.Path)
	}
	return fmt.Sprintf("%s is held by %s", e.Path, e.Holder)
}

// maxHolderBytes bounds what is read of who holds a lock.
const maxHolderBytes = 256

// Acquire takes the lock file at path, making it if needed, and writes pid and host into it, as far as that goes: it is for people, and a
// full disk must not keep anybody from making room. It does not wait for another holder: the error
// is a *HeldError if another process has it. The file stays when the lock is released; the lock is flock's, not the
// file's presence, so a crashed holder leaves nothing to clean.
func Acquire(path string) (*Lock, error) {
	f, err := lockedFile(path)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintf(f, "pid %d on %s\n", os.Getpid(), host)
	}
	return &Lock{f: f}, nil
}

// lockedFile opens the file and locks it. A holder may remove it, or its folder, before it lets go: who has waited for that one has the lock
// of a file that nobody else will find, and tries again; not for ever, since there may be file systems that never call a file the same.
func lockedFile(path string) (*os.File, error) {
	for attempt := 1; ; attempt++ {
		f, err := regular.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := take(f); err != nil {
			defer f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, &HeldError{Path: path, Holder: holder(f)}
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		have, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(have, there) || attempt == lockAttempts {
			return f, nil
		}
		f.Close()
	}
}

// Lookers have a lock for less than a millisecond (see Held): a lock that is free but for them is tried again.
const (
	lockAttempts = 10
	lockPause    = 10 * time.Millisecond
)

// take locks a file without waiting for a holder.
func take(f *os.File) error {
	for attempt := 1; ; attempt++ {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || attempt == lockAttempts {
			return err
		}
		time.Sleep(lockPause)
	}
}

// LastHolder returns who had the lock file at path last, also if nobody has it now; empty if that is unknown.
func LastHolder(path string) string {
	f, err := regular.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	return holder(f)
}

func holder(f io.Reader) string {
	text, err := io.ReadAll(io.LimitReader(f, maxHolderBytes))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// Held returns who holds the lock file at path, without taking it: "" and false if nobody does.
func Held(path string) (string, bool) {
	f, err := regular.Open(path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	// A shared lock is compatible with other lookers, not with a holder.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return holder(f), true
	}
	return "", false
}

// Release gives the lock back. Nil is fine.
func (l *Lock) Release() error {
	if l == nil || l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
