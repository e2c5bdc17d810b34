package export

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/regular"
	"cftune/internal/testmodel"
	"cftune/trainer/checkpoint"
	"cftune/trainer/gguf"
	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/internal/durable"
)

func adapter() gguf.Adapter {
	return gguf.Adapter{Architecture: "llama", Rank: 1, Alpha: 2, Step: 5, Tensors: []gguf.Tensor{
		{Name: "blk.0.attn_q.weight.lora_a", Rows: 1, Cols: 2, Data: []float32{0.1, 0.2}},
		{Name: "blk.0.attn_q.weight.lora_b", Rows: 2, Cols: 1, Data: []float32{0.3, 0.4}},
	}}
}

func newCheckpoint(t *testing.T) *checkpoint.Checkpoint {
	t.Helper()
	run, err := checkpoint.Create(durable.OS, filepath.Join(t.TempDir(), "run"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, run.Close()) })
	require.NoError(t, run.WriteConfig([]byte("{}")))
	_, err = run.Write(checkpoint.Manifest{Step: 5}, []checkpoint.Content{{Name: adapterName, Write: func(w io.Writer) error {
		return gguf.WriteAdapter(w, adapter(), gguf.F32)
	}}})
	require.NoError(t, err)
	c, err := checkpoint.Open(run.Dir(), 5)
	require.NoError(t, err)
	return c
}

func TestAdapter(t *testing.T) {
	c := newCheckpoint(t)
	path := filepath.Join(t.TempDir(), "adapter.gguf")
	result, err := Adapter(c, path, Options{})
	require.NoError(t, err)
	exported, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, Result{Path: path, Step: 5, Rank: 1, Type: "F32", Bytes: int64(len(exported))}, result)
	stored, err := os.ReadFile(c.Path(adapterName))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(stored, exported), "the export is not the checkpoint's adapter")

	_, err = Adapter(c, path, Options{F16: true})
	assert.ErrorIs(t, err, ErrExists)
	_, err = Adapter(c, path, Options{F16: true, Force: true})
	require.NoError(t, err)
	half, err := gguf.ReadAdapter(path, nil)
	require.NoError(t, err)
	const halfRounding = 1.0 / 2048 // half a unit in the last of 11 bits
	assert.InEpsilonSlice(t, adapter().Tensors[0].Data, half.Tensors[0].Data, halfRounding)
	assert.NotEqual(t, adapter().Tensors[0].Data, half.Tensors[0].Data)
}

func TestAFailedExportLeavesTheOldFile(t *testing.T) {
	c := newCheckpoint(t)
	for at := 1; ; at++ {
		path := filepath.Join(t.TempDir(), "adapter.gguf")
		require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
		fs := &crashpoint.FS{At: at}
		_, err := Adapter(c, path, Options{Force: true, fs: fs})
		require.NoError(t, fs.Lose())
		got, readErr := os.ReadFile(path)
		require.NoError(t, readErr)
		if string(got) != "old" {
			_, readErr = gguf.ReadAdapter(path, nil)
			require.NoError(t, readErr, "crash at operation %d left a broken file", at)
		}
		if !fs.Crashed() {
			require.NoError(t, err)
			require.NotEqual(t, "old", string(got))
			return
		}
	}
}

// brokenOff is an engine whose library cannot write, and does not say why.
type brokenOff struct{ Engine }

var errNoReason = errors.New("iostream error")

func (brokenOff) Quantize(string, string, FileType, map[string][]float32) error { return errNoReason }

// A disk that is full or failing is what quantize tells, where that is the reason; and else what the library said.
func TestQuantizeTellsOfTheDisk(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "model.gguf")
	require.NoError(t, testmodel.Write(from, testmodel.Options{}))
	source, err := gguf.Open(from)
	require.NoError(t, err)
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO, errNoReason} {
		o := Options{}
		if cause != errNoReason {
			o.fs = &crashpoint.FS{At: 2, Err: cause} // the write, after opening
		}
		_, err := Quantize(brokenOff{}, source, filepath.Join(dir, "to.gguf"), fileTypes[3], nil, o)
		require.ErrorIs(t, err, cause)
		require.Equal(t, cause == errNoReason, errors.Is(err, errNoReason))
	}
	assert.NoFileExists(t, filepath.Join(dir, "to.gguf"))
}

// meddled is an engine that writes any model, while somebody does something to the one that it is made of.
type meddled struct{ meddle func() }

func (m meddled) MergeRows(kind gguf.TensorType, raw []byte, rows, cols int, b, a []float32, rank int, scale float64, out []float32) error {
	m.meddle()
	return nil
}

func (m meddled) Quantize(from, to string, t FileType, importance map[string][]float32) error {
	m.meddle()
	return testmodel.Write(to, testmodel.Options{})
}

// other writes a file of the same size as another and with other contents, when the clock of the file system has moved on since that.
func other(to, like string) error {
	data, err := os.ReadFile(like)
	if err != nil {
		return err
	}
	was, err := os.Stat(like)
	if err != nil {
		return err
	}
	data[len(data)-1] ^= 1
	for {
		if err := os.WriteFile(to, data, 0o600); err != nil {
			return err
		}
		if is, err := os.Stat(to); err != nil || regular.Changed(is).After(regular.Changed(was)) {
			return err
		}
	}
}

// A model that is written over while it is merged or quantized would give one that is partly the one, partly the other.
func TestNothingIsMadeOfAModelThatChanges(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(path string) error
		words  string // empty: it is not changed
	}{
		{"untouched", func(string) error { return nil }, ""},
		{"written over", func(path string) error { return other(path, path) }, "was changed while it was in use, at 20"},
		{"written over, with the time that it had", func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(other(path, path), os.Chtimes(path, info.ModTime(), info.ModTime()))
		}, "was changed while it was in use, at 20"},
		{"replaced by another", func(path string) error {
			return errors.Join(other(path+".new", path), os.Rename(path+".new", path))
		}, "was changed while it was in use, at 20"},
		{"cut off", func(path string) error { return os.Truncate(path, 5000) }, "was changed while it was in use: it had "},
		{"removed", os.Remove, "was changed while it was in use: stat "},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path, out := filepath.Join(dir, "model-00001-of-00002.gguf"), filepath.Join(dir, "out.gguf")
			for name, do := range map[string]func(engine Engine, base *gguf.File) error{
				"merge": func(engine Engine, base *gguf.File) error {
					a := gguf.Adapter{Architecture: "llama", Rank: 1, Alpha: 2, Tensors: []gguf.Tensor{
						{Name: "blk.0.attn_q.weight.lora_a", Rows: 1, Cols: 64, Data: make([]float32, 64)},
						{Name: "blk.0.attn_q.weight.lora_b", Rows: 64, Cols: 1, Data: make([]float32, 64)},
					}}
					_, err := Merge(t.Context(), engine, base, a, out, MergeOptions{Type: fileTypes[0], AcceptQuantized: true})
					return err
				},
				"quantize": func(engine Engine, base *gguf.File) error {
					_, err := Quantize(engine, base, out, fileTypes[0], nil, Options{})
					return err
				},
			} {
				require.NoError(t, testmodel.Write(path, testmodel.Options{Seed: 1, Shards: 2}))
				base, err := gguf.Open(path)
				require.NoError(t, err)
				changed := base.Shards[1]
				done := false
				err = do(meddled{func() {
					if !done {
						done = true
						require.NoError(t, c.change(changed))
					}
				}}, base)
				if c.words == "" {
					require.NoError(t, err, name)
					require.NoError(t, os.Remove(out))
					continue
				}
				require.ErrorIs(t, err, gguf.ErrChanged, name)
				assert.ErrorContains(t, err, changed+" "+c.words, name)
				left, err := filepath.Glob(filepath.Join(dir, "out*"))
				require.NoError(t, err)
				assert.Empty(t, left, name)
			}
		})
	}
}

// Two that write one output at once: the second is told, and the first has its own.
func TestQuantizeWritesNoFileOfAnothers(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "model.gguf"), filepath.Join(dir, "out.gguf")
	require.NoError(t, testmodel.Write(from, testmodel.Options{}))
	source, err := gguf.Open(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to+durable.TempSuffix, []byte("left by one that was killed"), 0o600))
	var second error
	result, err := Quantize(meddled{func() {
		_, second = Quantize(meddled{func() { t.Error("it began") }}, source, to, fileTypes[0], nil, Options{})
	}}, source, to, fileTypes[0], nil, Options{})
	require.NoError(t, err)
	assert.Equal(t, to, result.Path)
	assert.EqualError(t, second, "quantize: write "+to+".tmp: another process writes it, too")
	left, err := filepath.Glob(to + "*")
	require.NoError(t, err)
	assert.Equal(t, []string{to}, left)
}
