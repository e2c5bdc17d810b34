package trainer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
)

// touch gives a file a time of modification that it has not.
func touch(t *testing.T, path string) {
	t.Helper()
	at := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(path, at, at))
}

// Whatever is done to the model's file while a run trains, no step is made of other weights, and those before are saved.
func TestTheModelChangesWhileItTrains(t *testing.T) {
	const during = 7 // packs; the second step has more
	for _, c := range []struct {
		name   string
		change func(t *testing.T, path string)
		gone   string // empty: the run goes on
	}{
		{"cut off", func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 100)) }, "bytes, and has 100"},
		{"grown", func(t *testing.T, path string) { appendTo(t, path, "more") }, "was changed while it was in use: it had"},
		{"written over", func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			data[len(data)-1] ^= 1
			require.NoError(t, os.WriteFile(path, data, 0o600))
		}, "was changed while it was in use: it was written to at 20"},
		{"written over with itself", func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, data, 0o600))
		}, ""},
		{"touched", touch, ""},
		{"replaced", func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path+".new", []byte("another"), 0o600))
			require.NoError(t, os.Rename(path+".new", path))
		}, ""},
		{"removed", func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.run.Checkpoint.EverySteps, s.run.Data.Validation.EverySteps = 100, 100
			tr, err := s.begin(t)
			require.NoError(t, err)
			defer tr.Close()
			e := newFakeEngine()
			e.before = func(call int) error {
				if call == during {
					c.change(t, s.run.Model)
				}
				return nil
			}
			result, err := tr.Run(t.Context(), e)
			if c.gone == "" {
				require.NoError(t, err)
				assert.Equal(t, result.Steps, result.Step)
				return
			}
			require.ErrorIs(t, err, ErrModelGone)
			assert.ErrorContains(t, err, c.gone)
			assert.ErrorContains(t, err, s.run.Model)
			require.Positive(t, result.Step)
			assert.Less(t, result.Step, result.Steps)
			assert.Len(t, e.applied, result.Step, "no step of other weights")
			saved, _, err := checkpoint.Latest(s.run.Output, false)
			require.NoError(t, err)
			assert.Equal(t, result.Step, saved.Step)
		})
	}
}

// Where times change by themselves the file is not read for ever.
func TestTimesThatMeanNothing(t *testing.T) {
	s := newSite(t)
	h, err := HoldModel(s.run.Model)
	require.NoError(t, err)
	defer h.Close()
	for i := range mostVain + 3 {
		at := time.Now().Add(time.Duration(i) * time.Hour)
		require.NoError(t, os.Chtimes(s.run.Model, at, at))
		require.NoError(t, h.Check())
		assert.Equal(t, min(i+1, mostVain), h.vain)
	}
	appendTo(t, s.run.Model, "more")
	require.ErrorIs(t, h.Check(), ErrModelGone)
}

// What the engine says of a model whose file cannot be read counts as well.
func TestTheEngineLosesTheModel(t *testing.T) {
	s := newSite(t)
	s.run.Checkpoint.EverySteps, s.run.Data.Validation.EverySteps = 100, 100
	tr, err := s.begin(t)
	require.NoError(t, err)
	defer tr.Close()
	e := newFakeEngine()
	e.before = func(int) error {
		if e.steps == 3 {
			return fmt.Errorf("%w: bus error", ErrModelGone)
		}
		return nil
	}
	result, err := tr.Run(t.Context(), e)
	require.ErrorIs(t, err, ErrModelGone)
	assert.Equal(t, 3, result.Step)
	assert.Equal(t, filepath.Join(s.run.Output, "checkpoints", "step-00000003"), result.Checkpoint)
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}
