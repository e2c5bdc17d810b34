package tensorboard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cftune/internal/testevents"
	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/internal/durable"
	"cftune/trainer/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 11, 27, 1, 2, 3, 500_000_000, time.UTC)

func step(n int) metrics.Step {
	return metrics.Step{
		Step: n, Epoch: float64(n) / 7, Loss: 3 / float64(n), Targets: 10 + n, Tokens: 100 + n, Examples: 4, LR: 1e-4 * float64(n), GradNorm: 0.3,
		Objective: map[string]int{"cft": 3, "sft": 1}, TokensPerS: 812.5, TargetTokensPerS: 81.25, MemoryBytes: 1 << 33,
		Time: start.Add(time.Duration(n) * time.Second), Seconds: 0.25,
	}
}

func history(records ...metrics.Record) func(func(metrics.Record)) error {
	return func(show func(metrics.Record)) error {
		for _, r := range records {
			show(r)
		}
		return nil
	}
}

func mustOpen(t *testing.T, dir string, o Options) *Writer {
	t.Helper()
	w, err := Open(durable.OS, dir, o)
	require.NoError(t, err)
	return w
}

func read(t *testing.T, path string) []testevents.Event {
	t.Helper()
	events, err := testevents.File(path)
	require.NoError(t, err)
	return events
}

// RFC 3720, appendix B.4, has the checksum of "123456789"; a TensorFlow file begins with a record of 24 bytes.
func TestFrames(t *testing.T) {
	crc := uint32(0xe3069283)
	assert.Equal(t, (crc>>15|crc<<17)+maskDelta, maskedCRC([]byte("123456789")))
	first := appendRecord(nil, versionEvent(start))
	assert.Equal(t, "\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7fK\"", string(first[:12]))
	assert.Len(t, first, 12+24+4)
}

func TestEveryFigureIsWritten(t *testing.T) {
	w := mustOpen(t, t.TempDir(), Options{
		Config:  []byte("{\n  \"format\": 1\n}\n"),
		History: history(metrics.Validation{Step: 0, Loss: 4, Objective: "cft", Time: start}, step(1)),
	})
	w.Validation(metrics.Validation{Step: 1, Loss: 1.1, Time: start})
	w.Skip(metrics.Skip{Step: 2, Skipped: 1, Reason: "the loss is NaN", Examples: []string{"a:1", "a:2"}, Time: start})
	s := step(2)
	s.Objective = map[string]int{"cft": 4}
	w.Step(s)
	w.Close()
	events := read(t, w.Path())
	require.Len(t, events, 9)
	assert.Equal(t, "brain.Event:2", events[0].Version)
	assert.True(t, events[1].Start)
	assert.Zero(t, events[1].Step)
	assert.Equal(t, map[string]string{"configuration": "    {\n      \"format\": 1\n    }"}, events[2].Texts)
	assert.Equal(t, map[string]float32{"validation/loss/cft": 4}, events[3].Scalars)
	one := step(1)
	assert.Equal(t, testevents.Event{
		WallTime: float64(one.Time.UnixMilli()) / 1000, Step: 1, Texts: map[string]string{},
		Scalars: map[string]float32{
			"train/loss": float32(one.Loss), "train/learning_rate": float32(one.LR), "train/gradient_norm": float32(one.GradNorm),
			"train/epoch": float32(one.Epoch), "train/targets": 11, "train/tokens": 101, "speed/tokens_per_second": 812.5,
			"speed/target_tokens_per_second": 81.25, "speed/step_seconds": 0.25, "memory/bytes": 1 << 33, "objective/cft": 0.75, "objective/sft": 0.25,
		},
	}, events[4])
	assert.Equal(t, map[string]float32{"validation/loss": 1.1}, events[5].Scalars)
	assert.Equal(t, map[string]float32{"train/skipped": 1}, events[6].Scalars)
	assert.EqualValues(t, 2, events[6].Step)
	assert.Equal(t, map[string]string{"skipped": "    the loss is NaN\n    2 examples: a:1, a:2"}, events[7].Texts)
	assert.EqualValues(t, 1, events[8].Scalars["objective/cft"])
	sft, has := events[8].Scalars["objective/sft"]
	assert.True(t, has && sft == 0, "an objective that is trained no more must go to 0")
}

// Whoever has read the older file must forget all of it; files of others stay.
func TestAnewAfterACrash(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "tensorboard")
	first := mustOpen(t, dir, Options{History: history()})
	for n := range 9 {
		first.Step(step(n + 1))
	}
	first.Close()
	size := int64(len(mustRead(t, first.Path())))
	require.NoError(t, os.Truncate(first.Path(), size-3)) // torn
	_, err := testevents.File(first.Path())
	require.ErrorIs(t, err, testevents.ErrTorn)
	foreign := filepath.Join(dir, "events.out.tfevents.9999999999.host.1.0")
	require.NoError(t, os.WriteFile(foreign, []byte("theirs"), 0o600))

	second := mustOpen(t, dir, Options{History: history(step(1), step(2))})
	assert.Greater(t, second.Path(), first.Path(), "TensorBoard reads files in the order of their names")
	assert.Empty(t, mustRead(t, first.Path()), "its name must stay, its content go")
	assert.Equal(t, "theirs", mustRead(t, foreign))
	require.NoError(t, os.Remove(foreign))
	second.Step(step(3))
	second.Close()
	scalars, err := testevents.Folder(dir)
	require.NoError(t, err)
	assert.Equal(t, []testevents.Point{{Step: 1, Value: 3}, {Step: 2, Value: 1.5}, {Step: 3, Value: 1}}, scalars["train/loss"])
	names, err := Files(dir)
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Base(first.Path()), filepath.Base(second.Path())}, names)
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// Whatever operation the process ends at, power loss included, the next one makes the folder whole.
func TestEveryCrash(t *testing.T) {
	for _, powerLoss := range []bool{false, true} {
		for at := 1; ; at++ {
			dir := filepath.Join(t.TempDir(), "tensorboard")
			mustOpen(t, dir, Options{History: history(step(1), step(2), step(3))}).Close()
			fs := &crashpoint.FS{At: at}
			w, err := Open(fs, dir, Options{History: history(step(1)), Failed: func(error) {}})
			if err == nil {
				w.Step(step(2))
				w.Close()
			}
			if powerLoss {
				require.NoError(t, fs.Lose())
			}
			w = mustOpen(t, dir, Options{History: history(step(1))})
			w.Step(step(2))
			w.Close()
			scalars, err := testevents.Folder(dir)
			require.NoError(t, err)
			require.Equal(t, []testevents.Point{{Step: 1, Value: 3}, {Step: 2, Value: 1.5}}, scalars["train/loss"], "crash at operation %d", at)
			if !fs.Crashed() {
				require.Greater(t, at, 8)
				break
			}
		}
	}
}

// A disk that is full ends the file, is told once, and nothing else.
func TestFailureIsToldOnce(t *testing.T) {
	dir := t.TempDir()
	count := &crashpoint.FS{}
	w, err := Open(count, dir, Options{})
	require.NoError(t, err)
	w.Close()
	dir = t.TempDir()
	var told []error
	w, err = Open(&crashpoint.FS{At: count.Ops + 2, Err: syscall.ENOSPC, Once: true}, dir, Options{Failed: func(err error) { told = append(told, err) }})
	require.NoError(t, err)
	for n := range 5 {
		w.Step(step(n + 1))
	}
	w.Close()
	require.Len(t, told, 1)
	assert.ErrorIs(t, told[0], syscall.ENOSPC)
	assert.ErrorContains(t, told[0], w.Path())
	events, err := testevents.File(w.Path())
	assert.ErrorIs(t, err, testevents.ErrTorn)
	assert.EqualValues(t, 1, events[len(events)-1].Step, "what was written before the failure counts")
}

func TestHistoryThatCannotBeReadLeavesTheFolderAsItWas(t *testing.T) {
	dir := t.TempDir()
	w := mustOpen(t, dir, Options{History: history(step(1))})
	w.Close()
	before := mustRead(t, w.Path())
	reason := errors.New("line 7")
	_, err := Open(durable.OS, dir, Options{History: func(func(metrics.Record)) error { return reason }})
	assert.ErrorIs(t, err, reason)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, before, mustRead(t, w.Path()))
}

// Every bit counts: a flipped one is found by a reader.
func TestChecksumsCoverEveryBit(t *testing.T) {
	dir := t.TempDir()
	w := mustOpen(t, dir, Options{History: history(step(1))})
	w.Close()
	whole := []byte(mustRead(t, w.Path()))
	path := filepath.Join(dir, "damaged")
	for i := range whole {
		damaged := []byte(string(whole))
		damaged[i] ^= 1 << (i % 8)
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		_, err := testevents.File(path)
		require.ErrorIs(t, err, testevents.ErrChecksum, "byte %d", i)
	}
}

// A history that is longer than the buffer is written in several pieces, in order.
func TestLongHistory(t *testing.T) {
	const steps = 2000
	w := mustOpen(t, t.TempDir(), Options{History: func(show func(metrics.Record)) error {
		for n := range steps {
			show(step(n + 1))
		}
		return nil
	}})
	w.Close()
	events := read(t, w.Path())
	require.Len(t, events, steps+2)
	for i, e := range events[2:] {
		require.EqualValues(t, i+1, e.Step)
	}
	assert.Greater(t, len(mustRead(t, w.Path())), 4*flushBytes)
}

func TestNamesSortEvenWhereClocksGoBack(t *testing.T) {
	old := fmt.Sprintf("%s%010d%s", namePrefix, time.Now().Unix()+1000, nameSuffix)
	next := nextName([]string{"events.out.tfevents.odd.cftune", old})
	assert.Greater(t, next, old)
	assert.True(t, strings.HasSuffix(next, nameSuffix))
}
