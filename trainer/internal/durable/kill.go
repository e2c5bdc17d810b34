//go:build crashpoints

package durable

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// With the build tag crashpoints the process kills itself, as SIGKILL does, right before the operation whose number is in
// DURABLE_KILL_AT (from 1), and names it on standard error: tests kill a run at every point of its writing.
func init() {
	at, err := strconv.ParseInt(os.Getenv("DURABLE_KILL_AT"), 10, 64)
	if err == nil && at > 0 {
		OS = &killer{OS, at, new(atomic.Int64)}
	}
}

type killer struct {
	FS
	at   int64
	done *atomic.Int64
}

func (k *killer) point(what, path string) {
	if k.done.Add(1) != k.at {
		return
	}
	fmt.Fprintf(os.Stderr, "killed before: %s %s\n", what, path)
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {} // the signal is on its way
}

func (k *killer) Create(path string) (File, error) {
	k.point("create", path)
	f, err := k.FS.Create(path)
	return k.wrap(f, path, err)
}

func (k *killer) Append(path string) (File, error) {
	k.point("open", path)
	f, err := k.FS.Append(path)
	return k.wrap(f, path, err)
}

func (k *killer) wrap(f File, path string, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &killerFile{f, k, path}, nil
}

func (k *killer) Mkdir(path string) error {
	k.point("mkdir", path)
	return k.FS.Mkdir(path)
}

func (k *killer) Rename(from, to string) error {
	k.point("rename", from)
	return k.FS.Rename(from, to)
}

func (k *killer) RemoveAll(path string) error {
	k.point("remove", path)
	return k.FS.RemoveAll(path)
}

func (k *killer) SyncDir(path string) error {
	k.point("sync folder", path)
	return k.FS.SyncDir(path)
}

type killerFile struct {
	File
	k    *killer
	path string
}

func (f *killerFile) Write(p []byte) (int, error) {
	f.k.point("write", f.path)
	return f.File.Write(p)
}

func (f *killerFile) Sync() error {
	f.k.point("sync", f.path)
	return f.File.Sync()
}
