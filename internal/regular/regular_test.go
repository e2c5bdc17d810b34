package regular

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOnlyRegularFilesAreOpened(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, syscall.Mkfifo(at("pipe"), 0o600))
	require.NoError(t, os.Mkdir(at("folder"), 0o700))
	listener, err := net.Listen("unix", at("socket"))
	require.NoError(t, err)
	defer listener.Close()
	require.NoError(t, os.Symlink("/dev/null", at("device")))
	require.NoError(t, os.Symlink("pipe", at("link to a pipe")))
	for name, want := range map[string]string{
		"pipe": "a named pipe", "folder": "a folder", "socket": "a socket", "device": "a device", "link to a pipe": "a named pipe",
	} {
		for how, open := range map[string]func() error{
			"read":   func() error { _, err := ReadFile(at(name)); return err },
			"open":   func() error { _, err := Open(at(name)); return err },
			"append": func() error { _, err := OpenFile(at(name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); return err },
			"lock":   func() error { _, err := OpenFile(at(name), os.O_RDWR|os.O_CREATE, 0o600); return err },
		} {
			err := open()
			assert.ErrorIs(t, err, ErrNotRegular, "%s %s", how, name)
			assert.EqualError(t, err, at(name)+" is "+want+", not a regular file")
		}
	}

	require.NoError(t, os.Symlink("loop", at("loop")))
	_, err = ReadFile(at("loop"))
	assert.ErrorIs(t, err, syscall.ELOOP)
	_, err = ReadFile(at("none"))
	assert.True(t, errors.Is(err, os.ErrNotExist), "%v", err)
}

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, want := range []string{"", "a", string(make([]byte, 100_000))} {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o600))
		got, err := ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, want, string(got))
	}
	// A file of the kernel's tells no size.
	got, err := ReadFile("/proc/self/status")
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
		assert.Contains(t, string(got), "Pid:")
	}
	// A hole takes no room on the disk, but would in memory.
	require.NoError(t, os.Truncate(path, 1<<40))
	_, err = ReadFile(path)
	assert.ErrorContains(t, err, "1024 GiB, more than any such file")
}
