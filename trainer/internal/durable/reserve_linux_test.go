package durable

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is kept for a file is the file's before it is written to, and the disk's again afterwards; the file's content and size know nothing of it.
func TestReserve(t *testing.T) {
	f, err := OS.Append(filepath.Join(t.TempDir(), "journal"))
	require.NoError(t, err)
	file := f.(*os.File)
	takes := func() (size, onDisk int64) {
		info, err := file.Stat()
		require.NoError(t, err)
		return info.Size(), 512 * info.Sys().(*syscall.Stat_t).Blocks
	}
	_, err = f.Write([]byte("a line\n"))
	require.NoError(t, err)
	require.NoError(t, Reserve(f, 1<<20))
	size, onDisk := takes()
	assert.EqualValues(t, 7, size)
	if onDisk < 1<<20 {
		t.Skipf("this file system keeps nothing: %d bytes", onDisk)
	}
	_, err = f.Write([]byte("another\n"))
	require.NoError(t, err)
	require.NoError(t, Unreserve(f))
	size, onDisk = takes()
	assert.EqualValues(t, 15, size)
	assert.Less(t, onDisk, int64(1<<20))
	require.NoError(t, f.Close())
	text, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	assert.Equal(t, "a line\nanother\n", string(text))
}
