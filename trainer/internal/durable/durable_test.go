package durable_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/internal/durable"
)

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

// Whatever operation fails, power loss included, the file holds the old text or the new one, and if the call succeeded
// the new one.
func TestReplaceFileIsAllOrNothing(t *testing.T) {
	for _, powerLoss := range []bool{false, true} {
		for at := 1; ; at++ {
			path := filepath.Join(t.TempDir(), "file")
			require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
			fs := &crashpoint.FS{At: at}
			_, err := durable.ReplaceFile(fs, path, text("the new text"))
			if powerLoss {
				require.NoError(t, fs.Lose())
			}
			got, readErr := os.ReadFile(path)
			require.NoError(t, readErr)
			if err == nil {
				require.Equal(t, "the new text", string(got))
			} else {
				require.Contains(t, []string{"old", "the new text"}, string(got), "crash at operation %d", at)
			}
			if !fs.Crashed() {
				require.NoError(t, err)
				require.Greater(t, at, 5)
				break
			}
		}
	}
}

func TestReplaceFileLeavesNothingWhenWritingFails(t *testing.T) {
	dir := t.TempDir()
	reason := errors.New("no more words")
	_, err := durable.ReplaceFile(durable.OS, filepath.Join(dir, "file"), func(io.Writer) error { return reason })
	assert.ErrorIs(t, err, reason)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestWrittenIsWhatDigestFinds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	written, err := durable.WriteFile(durable.OS, path, text("abc"))
	require.NoError(t, err)
	// FIPS 180-2, appendix B.1.
	assert.Equal(t, durable.Written{Bytes: 3, SHA256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}, written)
	found, err := durable.Digest(path)
	require.NoError(t, err)
	assert.Equal(t, written, found)
	_, err = durable.WriteFile(durable.OS, path, text("abc"))
	assert.ErrorIs(t, err, os.ErrExist, "a file was written over")
}

func TestCommitNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.tmp", "a"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	err := durable.Commit(durable.OS, filepath.Join(dir, "a.tmp"), filepath.Join(dir, "a"))
	assert.ErrorContains(t, err, "already exists")
	require.NoError(t, durable.RemoveTemp(durable.OS, dir))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "a", entries[0].Name())
}

func TestCheckSpace(t *testing.T) {
	free := uint64(3 << 20)
	fs := &crashpoint.FS{Free: &free}
	assert.NoError(t, durable.CheckSpace(fs, "disk", 3<<20))
	assert.EqualError(t, durable.CheckSpace(fs, "disk", 3<<20+1), "disk: 3.1 MiB are needed, 3.0 MiB are free")
}

func TestLockIsOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "LOCK")
	lock, err := durable.Acquire(path)
	require.NoError(t, err)
	_, err = durable.Acquire(path)
	var held *durable.HeldError
	require.ErrorAs(t, err, &held)
	assert.Regexp(t, `^pid \d+ on .+`, held.Holder)
	require.NoError(t, lock.Release())
	require.NoError(t, lock.Release(), "the second release is nothing")
	_, is := durable.Held(path)
	assert.False(t, is)
}

// Somebody who looks whether a lock is held has it for a moment; whoever takes it then must not be turned away.
func TestLookersDoNotKeepALockFromItsTaker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "LOCK")
	require.NoError(t, os.WriteFile(path, nil, 0o644))
	looker, err := os.Open(path)
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(looker.Fd()), unix.LOCK_SH|unix.LOCK_NB))
	looked := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() {
		defer close(looked)
		_ = looker.Close() // and with it goes the lock
	})
	defer func() { <-looked }()
	lock, err := durable.Acquire(path)
	require.NoError(t, err)
	_, held := durable.Held(path)
	assert.True(t, held)
	require.NoError(t, lock.Release())
	assert.Contains(t, durable.LastHolder(path), "pid ", "also when nobody has it")
	assert.Empty(t, durable.LastHolder(filepath.Join(t.TempDir(), "none")))
}

// Who waits for a holder that removes the file, as one does that gives up, must not end with the lock of a file that nobody finds.
func TestALockIsOfTheFileThatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "LOCK")
	for range 20 {
		first, err := durable.Acquire(path)
		require.NoError(t, err)
		type answer struct {
			lock *durable.Lock
			err  error
		}
		second := make(chan answer)
		go func() {
			lock, err := durable.Acquire(path)
			second <- answer{lock, err}
		}()
		time.Sleep(5 * time.Millisecond) // it waits now, or comes later, which must be as well
		require.NoError(t, os.Remove(path))
		require.NoError(t, first.Release())
		a := <-second
		require.NoError(t, a.err)
		_, held := durable.Held(path)
		assert.True(t, held)
		_, err = durable.Acquire(path)
		require.Error(t, err, "there is one holder")
		require.NoError(t, a.lock.Release())
	}
}

// Of two that make the same file at once, the one whose unfinished file was taken away says so, and the other's is whole.
func TestTwoThatReplaceTheSameFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	text := func(s string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	_, err := durable.ReplaceFile(durable.OS, path, func(w io.Writer) error {
		if _, err := durable.ReplaceFile(durable.OS, path, text("second")); err != nil {
			return err
		}
		_, err := durable.WriteFile(durable.OS, path+durable.TempSuffix, text("third, unfinished")) // of one more
		return errors.Join(err, text("first")(w))
	})
	require.ErrorContains(t, err, "another process writes it, too")
	have, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "second", string(have))
}
