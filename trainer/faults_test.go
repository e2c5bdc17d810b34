package trainer

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/crashpoint"
)

// faultSchedules is how many schedules a plain test runs; SOAK_SCHEDULES asks for more (make soak).
const faultSchedules = 120

// Schedules of faults, each from its seed: a run lives up to four times, and in each life its disk fails in some way at
// some operation (full, an input/output error, a short write, for once or for good, or the process ends there), and
// then, perhaps, the power goes, and with it what was not synced. After every life each visible checkpoint is whole, the
// newest one from before is still there or a newer one is, and the error names the fault. In the end the run goes on to
// the bytes of the undisturbed one.
func TestStorageFaults(t *testing.T) {
	schedules := faultSchedules
	if text := os.Getenv("SOAK_SCHEDULES"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		schedules = n
	}
	s := newSite(t)
	s.run.Train.GlobalBatch.Examples = 8
	s.train(t, "straight")
	want := s.run.Output
	counts := map[string]int{}
	for seed := range schedules {
		faultSchedule(t, s, want, uint64(seed), counts)
		if t.Failed() {
			t.Fatalf("schedule %d", seed)
		}
	}
	t.Logf("%d schedules: %v", schedules, counts)
	for _, fault := range []string{"crash", "full", "i/o error", "short write", "power cut"} {
		assert.Positive(t, counts[fault], "no schedule had the fault: %s", fault)
	}
}

func faultSchedule(t *testing.T, s *site, want string, seed uint64, counts map[string]int) {
	rng := rand.New(rand.NewPCG(seed, 0xfa))
	name := fmt.Sprintf("schedule %d", seed)
	s.run.Output = filepath.Join(s.dir, name)
	for range 1 + rng.IntN(4) {
		fs := &crashpoint.FS{At: 1 + rng.IntN(160), Rand: rng}
		fault := crashpoint.ErrCrash
		switch rng.IntN(4) {
		case 0:
			counts["crash"]++
		case 1:
			fault, fs.Once = syscall.ENOSPC, rng.IntN(2) == 0
			counts["full"]++
		case 2:
			fault, fs.Once = syscall.EIO, rng.IntN(2) == 0
			counts["i/o error"]++
		case 3:
			fs.Short, fs.Once = true, true
			counts["short write"]++
		}
		fs.Err = fault
		before := newestStep(t, s.run.Output)
		err := faultyLife(t, s, fs)
		if err != nil {
			require.True(t, errors.Is(err, fault) || errors.Is(err, io.ErrShortWrite), "seed %d: %v", seed, err)
		}
		if rng.IntN(2) == 0 {
			counts["power cut"]++
			require.NoError(t, fs.Lose())
		}
		require.GreaterOrEqual(t, newestStep(t, s.run.Output), before, "seed %d: a checkpoint was lost", seed)
	}
	goOn(t, s, name)
	sameEnd(t, want, s.run.Output)
	require.NoError(t, os.RemoveAll(s.run.Output))
}

// newestStep verifies all that is visible and returns the step of the newest checkpoint, -1 if there is none.
func newestStep(t *testing.T, dir string) int {
	t.Helper()
	steps, err := checkpoint.List(dir)
	if errors.Is(err, checkpoint.ErrNotFound) {
		return -1
	}
	require.NoError(t, err)
	newest := -1
	for _, step := range steps {
		_, err := checkpoint.Open(dir, step)
		require.NoError(t, err, "a visible checkpoint is not whole")
		newest = step
	}
	return newest
}

// faultyLife begins the run, or goes on with it, on a disk with a fault.
func faultyLife(t *testing.T, s *site, fs *crashpoint.FS) error {
	if newestStep(t, s.run.Output) < 0 {
		require.NoError(t, os.RemoveAll(s.run.Output))
		return crashRun(t, s, fs)
	}
	o := s.options()
	o.fs = fs
	tr, err := Resume(t.Context(), s.run.Output, o)
	if err != nil {
		return err
	}
	_, err = tr.Run(t.Context(), newFakeEngine())
	require.NoError(t, tr.dir.Close())
	require.NoError(t, errors.Join(tr.set.Close(), tr.heldSet.Close()))
	return err
}

// flips is how many single bits are turned over in all files of a checkpoint, spread evenly; of the small files all are.
const flips = 2000

func TestEveryBitFlipAndTruncationIsFound(t *testing.T) {
	s := newSite(t)
	_, result := s.train(t, "run")
	entries, err := os.ReadDir(result.Checkpoint)
	require.NoError(t, err)
	require.Len(t, entries, 3)
	found := 0
	for _, entry := range entries {
		path := filepath.Join(result.Checkpoint, entry.Name())
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		missed := func(damage string, data []byte) {
			require.NoError(t, os.WriteFile(path, data, 0o600))
			_, err := checkpoint.Open(s.run.Output, result.Step)
			if !errors.Is(err, checkpoint.ErrCorrupt) && !errors.Is(err, checkpoint.ErrIncompatible) {
				t.Errorf("%s: %s was not found: %v", entry.Name(), damage, err)
				return
			}
			name := entry.Name()
			if name == "manifest.json" {
				name = "manifest"
			}
			assert.ErrorContains(t, err, name, damage)
			found++
		}
		bits := 8 * len(whole)
		stride := max(1, bits*len(entries)/flips)
		for bit := 0; bit < bits; bit += stride {
			damaged := append([]byte{}, whole...)
			damaged[bit/8] ^= 1 << (bit % 8)
			missed(fmt.Sprintf("bit %d of byte %d", bit%8, bit/8), damaged)
		}
		for n := 0; n < len(whole); n += max(1, len(whole)/50) {
			missed(fmt.Sprintf("cut to %d of %d bytes", n, len(whole)), whole[:n])
		}
		require.NoError(t, os.WriteFile(path, whole, 0o600))
	}
	_, err = checkpoint.Open(s.run.Output, result.Step)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, found, flips)
}
