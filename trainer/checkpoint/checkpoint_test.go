package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testlimit"
	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/internal/durable"
)

func contents(step int) []Content {
	file := func(name, text string) Content {
		return Content{Name: name, Bytes: int64(len(text)), Write: func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		}}
	}
	return []Content{
		file("optimizer.bin", fmt.Sprintf("moments of step %d", step)),
		file("adapter.gguf", strings.Repeat(fmt.Sprintf("values of step %d ", step), 50)),
	}
}

func manifest(step int) Manifest {
	return Manifest{
		Step: step, Cursor: Cursor{Epoch: 1, Index: 3 * step}, Seed: 1 << 63, ConfigDigest: "c", ModelDigest: "m", DataDigest: "d",
		Counters: Counters{Examples: 1, Tokens: 2, Targets: 3, MicroBatches: 4}, ValidatedStep: -1, Best: &Best{Step: 1, Loss: 0.5},
	}
}

// newRun makes a run in a temporary folder; at the end, all of its checkpoints must verify.
func newRun(t *testing.T, fs durable.FS) *Run {
	t.Helper()
	r, err := Create(fs, filepath.Join(t.TempDir(), "runs", "first"))
	require.NoError(t, err)
	require.NoError(t, r.WriteConfig([]byte("{}")))
	t.Cleanup(func() {
		assert.NoError(t, r.Close())
		if !t.Failed() {
			verifyAll(t, r.Dir())
		}
	})
	return r
}

func verifyAll(t *testing.T, dir string) []int {
	t.Helper()
	steps, err := List(dir)
	require.NoError(t, err)
	for _, step := range steps {
		c, err := Open(dir, step)
		require.NoError(t, err, "a visible checkpoint is not whole")
		want := contents(step)
		for _, content := range want {
			var text strings.Builder
			require.NoError(t, content.Write(&text))
			got, err := os.ReadFile(c.Path(content.Name))
			require.NoError(t, err)
			require.Equal(t, text.String(), string(got))
		}
	}
	return steps
}

func TestWriteAndOpen(t *testing.T) {
	r := newRun(t, durable.OS)
	path, err := r.Write(manifest(12), contents(12))
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(r.Dir(), "checkpoints", "step-00000012"), path)
	c, err := Open(r.Dir(), 12)
	require.NoError(t, err)
	want := manifest(12)
	want.Format, want.Files, want.Digest = FormatVersion, c.Files, c.Digest
	assert.Equal(t, want, c.Manifest)
	require.Len(t, c.Files, 2)
	assert.Equal(t, "adapter.gguf", c.Files[0].Name)

	_, err = r.Write(manifest(12), contents(12))
	assert.ErrorContains(t, err, "already exists", "a checkpoint was changed")
	_, err = Open(r.Dir(), 13)
	assert.ErrorIs(t, err, ErrNotFound)
}

func TestPruneKeepsTheNewest(t *testing.T) {
	r := newRun(t, durable.OS)
	for _, step := range []int{5, 10, 100, 20} {
		_, err := r.Write(manifest(step), contents(step))
		require.NoError(t, err)
	}
	require.NoError(t, r.Prune(Retention{Last: 2}))
	steps, err := List(r.Dir())
	require.NoError(t, err)
	assert.Equal(t, []int{20, 100}, steps)
	require.NoError(t, r.Prune(Retention{Last: 5}))
	assert.Equal(t, []int{20, 100}, verifyAll(t, r.Dir()))
}

func TestDamageIsFound(t *testing.T) {
	edit := func(name string, f func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, f(data), 0o600))
		}
	}
	replace := func(from, to string) func([]byte) []byte {
		return func(b []byte) []byte { return []byte(strings.Replace(string(b), from, to, 1)) }
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, name))) }
	}
	for _, tt := range []struct {
		name   string
		damage func(*testing.T, string)
		want   string
		is     error
	}{
		{"a flipped bit", edit("adapter.gguf", flip), "adapter.gguf: its checksum differs", ErrCorrupt},
		{"a file cut off", edit("optimizer.bin", func(b []byte) []byte { return b[:4] }), "optimizer.bin has 4 bytes", ErrCorrupt},
		{"a file missing", remove("optimizer.bin"), "optimizer.bin is missing", ErrCorrupt},
		{"the manifest missing", remove("manifest.json"), "manifest.json is missing", ErrCorrupt},
		{"the manifest cut off", edit("manifest.json", func(b []byte) []byte { return b[:len(b)/2] }), "manifest", ErrCorrupt},
		{"a counter changed", edit("manifest.json", replace(`"targets": 3`, `"targets": 4`)), "digest differs", ErrCorrupt},
		{"an unknown key", edit("manifest.json", replace(`"seed"`, `"sead": 1, "seed"`)), "unknown field", ErrCorrupt},
		{"of a newer version", edit("manifest.json", func(b []byte) []byte {
			more := replace(`"seed"`, `"sead": 1, "seed"`)(b)
			at := bytes.Index(more, []byte(`"digest": "`)) + len(`"digest": "`)
			more = slices.Delete(more, at, at+64)
			sum := sha256.Sum256(bytes.TrimSuffix(more, []byte("\n")))
			return slices.Insert(more, at, []byte(hex.EncodeToString(sum[:]))...)
		}), `another version of cftune wrote it: manifest: json: unknown field "sead"`, ErrIncompatible},
		{"a file that cannot be read", func(t *testing.T, dir string) {
			path := filepath.Join(dir, "optimizer.bin")
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Symlink(path, path))
		}, "optimizer.bin", syscall.ELOOP},
		{"another format", edit("manifest.json", replace(`"format": 1`, `"format": 2`)), "format 2", ErrIncompatible},
		{"a file more", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
		}, "x is not in the manifest", ErrCorrupt},
		{"under another step's name", func(t *testing.T, dir string) {
			other := filepath.Join(filepath.Dir(dir), "step-00000002")
			require.NoError(t, os.RemoveAll(dir))
			require.NoError(t, os.Rename(other, dir))
		}, "it is of step 2", ErrCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Create(durable.OS, filepath.Join(t.TempDir(), "run"))
			require.NoError(t, err)
			defer r.Close()
			require.NoError(t, r.WriteConfig([]byte("{}")))
			var dir string
			for _, step := range []int{1, 2, 3} {
				dir, err = r.Write(manifest(step), contents(step))
				require.NoError(t, err)
			}
			tt.damage(t, dir)
			_, err = Open(r.Dir(), 3)
			require.ErrorIs(t, err, tt.is)
			assert.ErrorContains(t, err, tt.want)

			_, _, err = Latest(r.Dir(), false)
			require.ErrorIs(t, err, tt.is, "an older checkpoint was taken silently")
			older, passed, err := Latest(r.Dir(), true)
			if tt.is != ErrCorrupt {
				require.ErrorIs(t, err, tt.is, "it may be whole, and would be removed by who goes on from an older one")
				return
			}
			require.NoError(t, err)
			assert.Len(t, passed, 1)
			assert.Less(t, older.Step, 3)
		})
	}
}

func TestLatestOfNothing(t *testing.T) {
	_, _, err := Latest(t.TempDir(), false)
	assert.ErrorIs(t, err, ErrNotFound)
	r := newRun(t, durable.OS)
	_, _, err = Latest(r.Dir(), true)
	assert.ErrorIs(t, err, ErrNotFound)
	assert.ErrorIs(t, err, ErrNone)
	assert.EqualError(t, err, "open checkpoint of "+r.Dir()+": there is none: not found")
}

// At every operation: a crash, and a power loss after it, leave all old checkpoints whole, and the new one whole or not
// there. Opening the run cleans up, and the checkpoint can then be written.
func TestCrashesDuringWriteAndPrune(t *testing.T) {
	for _, powerLoss := range []bool{false, true} {
		for at := 1; ; at++ {
			r := newRun(t, durable.OS)
			_, err := r.Write(manifest(1), contents(1))
			require.NoError(t, err)
			fs := &crashpoint.FS{At: at}
			r.fs = fs
			_, writeErr := r.Write(manifest(2), contents(2))
			pruneErr := r.Prune(Retention{Last: 1})
			r.fs = durable.OS
			if powerLoss {
				require.NoError(t, fs.Lose())
			}
			steps := verifyAll(t, r.Dir())
			require.NotEmpty(t, steps, "crash at operation %d", at)
			if writeErr == nil {
				require.Contains(t, steps, 2, "a checkpoint was reported as written and is gone after a crash at operation %d", at)
			}

			require.NoError(t, r.Close())
			again, err := OpenRun(durable.OS, r.Dir())
			require.NoError(t, err)
			leftovers, err := Leftovers(r.Dir())
			require.NoError(t, err)
			require.Empty(t, leftovers)
			_, err = again.Write(manifest(3), contents(3))
			require.NoError(t, err)
			require.NoError(t, again.Prune(Retention{Last: 1}))
			require.Equal(t, []int{3}, verifyAll(t, r.Dir()))
			require.NoError(t, again.Close())
			if !fs.Crashed() {
				require.NoError(t, errors.Join(writeErr, pruneErr))
				require.Greater(t, at, 10, "few operations: the disk under test was not used")
				break
			}
		}
	}
}

func TestFullDisk(t *testing.T) {
	free := uint64(100)
	r := newRun(t, durable.OS)
	_, err := r.Write(manifest(1), contents(1))
	require.NoError(t, err)
	r.fs = &crashpoint.FS{Free: &free}
	_, err = r.Write(manifest(2), contents(2))
	var space *durable.SpaceError
	require.ErrorAs(t, err, &space)
	assert.EqualValues(t, 100, space.Free)

	// The disk fills up while the files are written: the same checkpoint can be written once there is room.
	for at := 1; ; at++ {
		fs := &crashpoint.FS{At: at, Err: syscall.ENOSPC, Once: true}
		r.fs = fs
		_, err := r.Write(manifest(2), contents(2))
		if !fs.Crashed() {
			break
		}
		if err == nil {
			continue
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.Contains(t, verifyAll(t, r.Dir()), 1)
		if _, err := os.Stat(StepDir(r.Dir(), 2)); err == nil {
			require.NoError(t, os.RemoveAll(StepDir(r.Dir(), 2))) // committed; only the sync after it failed
		}
	}
	r.fs = durable.OS
	assert.Equal(t, []int{1, 2}, verifyAll(t, r.Dir()))
}

func TestOneWriter(t *testing.T) {
	r := newRun(t, durable.OS)
	_, err := OpenRun(durable.OS, r.Dir())
	var held *durable.HeldError
	require.ErrorAs(t, err, &held)
	assert.Contains(t, held.Holder, fmt.Sprintf("pid %d on ", os.Getpid()))
	holder, is := Holder(r.Dir())
	assert.True(t, is)
	assert.Equal(t, held.Holder, holder)

	require.NoError(t, r.Close())
	_, is = Holder(r.Dir())
	assert.False(t, is)
	again, err := OpenRun(durable.OS, r.Dir())
	require.NoError(t, err)
	require.NoError(t, again.Close())
}

func TestCreateRefusesAndAbandonsCleanly(t *testing.T) {
	r := newRun(t, durable.OS)
	_, err := Create(durable.OS, r.Dir())
	assert.ErrorIs(t, err, ErrExists)

	parent := t.TempDir()
	abandoned, err := Create(durable.OS, filepath.Join(parent, "a", "b"))
	require.NoError(t, err)
	abandoned.Abandon()
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	assert.Empty(t, entries)

	file := filepath.Join(parent, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Create(durable.OS, filepath.Join(file, "run"))
	assert.Error(t, err)
	_, err = Create(durable.OS, file)
	assert.ErrorContains(t, err, "there is a file of that name")
	_, err = OpenRun(durable.OS, parent)
	assert.ErrorIs(t, err, ErrNotFound)
}

func FuzzManifest(f *testing.F) {
	text, err := manifest(3).encode()
	require.NoError(f, err)
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		var m Manifest
		var err error
		testlimit.Bound(t, func() { m, err = ParseManifest(text) })
		if err != nil {
			return
		}
		again, err := m.encode()
		require.NoError(t, err)
		require.Equal(t, string(text), string(again))
	})
}
