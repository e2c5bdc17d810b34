package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"cftune/internal/regular"
)

// Host is a machine on which commands are run and whose files are read and written. Errors for files wrap fs.ErrNotExist
// where there is none.
type Host interface {
	// Run runs a command line of a POSIX shell with the input and returns its output. An *ExitError says that it failed.
	Run(ctx context.Context, script string, input []byte, env map[string]string) ([]byte, error)
	Open(path string) (ReadFile, error)
	// WriteFrom opens a file for writing from an offset on, making it, for the owner alone. What lies behind stays until it is written over.
	WriteFrom(path string, offset int64) (io.WriteCloser, error)
	Stat(path string) (fs.FileInfo, error)
	ReadDir(path string) ([]fs.FileInfo, error)
	MkdirAll(path string) error
	Rename(from, to string) error
	Remove(path string) error
	Chmod(path string, mode fs.FileMode) error
	Symlink(target, path string) error
	// Name is for people.
	Name() string
	Close() error
}

// ReadFile is a file that is read, from anywhere on.
type ReadFile interface {
	io.ReadSeekCloser
}

// ExitError says that a command ran on a host and failed.
type ExitError struct {
	Host   string
	Code   int
	Signal string
	Stderr string
}

func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit code %d", e.Code)
	if e.Signal != "" {
		how = "signal " + e.Signal
	}
	if words := lastLines(e.Stderr, 12); words != "" {
		return fmt.Sprintf("on %s: %s: %s", e.Host, how, words)
	}
	return fmt.Sprintf("on %s: %s", e.Host, how)
}

// lastLines returns the end of a text, without white space around it.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// maxOutput bounds what a command may answer.
const maxOutput = 16 << 20

// bounded keeps the first bytes that are written to it and counts the rest as written.
type bounded struct {
	bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	b.Buffer.Write(p[:n])
	return len(p), nil
}

// localHost is this machine.
type localHost struct{}

func (localHost) Name() string { return "this machine" }
func (localHost) Close() error { return nil }

func (h localHost) Run(ctx context.Context, script string, input []byte, env map[string]string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Stdin = bytes.NewReader(input)
	out, errs := &bounded{left: maxOutput}, &bounded{left: maxOutput}
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.Env = os.Environ()
	for _, k := range sortedKeys(env) {
		cmd.Env = append(cmd.Env, k+"="+env[k])
	}
	const patience = time.Second // for whoever inherited the output and keeps it open
	cmd.WaitDelay = patience
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &exit):
		return out.Bytes(), &ExitError{Host: h.Name(), Code: exit.ExitCode(), Stderr: errs.String()}
	case err != nil:
		return nil, fmt.Errorf("on %s: %w", h.Name(), err)
	}
	return out.Bytes(), nil
}

func (localHost) Open(path string) (ReadFile, error)    { return regular.Open(path) }
func (localHost) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }
func (localHost) MkdirAll(path string) error            { return os.MkdirAll(path, privateDir) }
func (localHost) Rename(from, to string) error          { return os.Rename(from, to) }
func (localHost) Remove(path string) error              { return os.Remove(path) }
func (localHost) Symlink(target, path string) error     { return os.Symlink(target, path) }

func (localHost) Chmod(path string, mode fs.FileMode) error { return os.Chmod(path, mode) }

func (localHost) WriteFrom(path string, offset int64) (io.WriteCloser, error) {
	f, err := regular.OpenFile(path, os.O_WRONLY|os.O_CREATE, privateFile)
	if err != nil {
		return nil, err
	}
	if _, err = f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (localHost) ReadDir(path string) ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var infos []fs.FileInfo
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// What is made on a target is for its owner alone: data and models may not be others' to see.
const (
	privateDir  fs.FileMode = 0o700
	privateFile fs.FileMode = 0o600
)

// home returns the absolute home folder on a host.
func home(ctx context.Context, h Host) (string, error) {
	out, err := h.Run(ctx, `cd && pwd -P`, nil, nil)
	if err != nil {
		return "", fmt.Errorf("find the home folder: %w", err)
	}
	dir := strings.TrimSuffix(string(out), "\n")
	if !filepath.IsAbs(dir) || checkPath(dir) != nil {
		return "", fmt.Errorf("find the home folder on %s: it answers %q (does the login print something?)", h.Name(), lastLines(dir, 5))
	}
	return dir, nil
}
