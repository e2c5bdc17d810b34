package mirror

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"cftune/trainer/checkpoint"
)

func TestCopiesAreKeptAsTheRunKeepsThem(t *testing.T) {
	folder, _ := inFolder(t, true)
	memory, _ := inMemory(t)
	for name, s := range map[string]*Store{"folder": folder, "memory": memory} {
		t.Run(name, func(t *testing.T) {
			r := newRun(t, firstRun)
			require.NoError(t, os.WriteFile(filepath.Join(r.dir, checkpoint.JournalName), []byte("a line\n"), 0o600))
			report := r.mirrored(t, s, 2, 4, 6)
			assert.Equal(t, 6, report.Step)
			assert.Equal(t, 3, report.Uploaded)
			assert.Zero(t, report.Failed+report.Skipped)
			assert.False(t, report.Behind())
			var want []string
			for _, step := range []string{"step-00000004", "step-00000006"} {
				for _, file := range []string{"adapter.gguf", "config.json", "journal.jsonl", "manifest.json", "metrics.jsonl", "mirror.json", "optimizer.bin"} {
					want = append(want, "checkpoints/"+step+"/"+file)
				}
			}
			assert.Equal(t, append(want, "run.json"), keys(t, s.objects, ""))
			state, err := s.Check(t.Context())
			require.NoError(t, err)
			assert.Empty(t, state.Problems)
			assert.Empty(t, state.Notes)
			assert.Equal(t, firstRun, state.Run)
			require.Len(t, state.Checkpoints, 2)
			dir := filepath.Join(t.TempDir(), "deep", "run")
			restored, said, err := restore(t, s, dir)
			require.NoError(t, err)
			assert.Equal(t, Restored{Dir: dir, Step: 6}, restored)
			assert.Empty(t, said)
			r.same(t, dir, 6)
			journal, err := os.ReadFile(filepath.Join(dir, checkpoint.JournalName))
			require.NoError(t, err)
			assert.Equal(t, "a line\n", string(journal))
		})
	}
}

// gate is a store whose next Put waits until it is let go, or its context ends.
type gate struct {
	Objects
	reached, open chan struct{}
}

func (g *gate) Put(ctx context.Context, key string, r io.Reader) error {
	select {
	case g.reached <- struct{}{}:
	default:
	}
	select {
	case <-g.open:
	case <-ctx.Done():
		return ctx.Err()
	}
	return g.Objects.Put(ctx, key, r)
}

func gated(t *testing.T) (*Store, *gate) {
	t.Helper()
	s, objects := inMemory(t)
	g := &gate{objects, make(chan struct{}, 1), make(chan struct{})}
	return &Store{s.name, g, s.patience}, g
}

// claimed claims the mirror behind a gate, before it is closed.
func (r *testRun) claimed(t *testing.T, g *gate, s *Store) *Worker {
	t.Helper()
	c, err := New("mem://", g.Objects, hurried).Claim(t.Context(), r.name, 0)
	require.NoError(t, err)
	c.store = s
	return Start(c, nil)
}

// While one is under way, only the newest of the others waits, and what the run removes meanwhile is still copied whole.
func TestTheNewestWinsAndNothingWaits(t *testing.T) {
	s, g := gated(t)
	r := newRun(t, firstRun)
	w := r.claimed(t, g, s)
	for step := 1; step <= 5; step++ {
		r.save(t, step)
		w.Offer(r.take(t, step))
		if step == 1 {
			<-g.reached
		}
		require.NoError(t, r.run.Prune(checkpoint.Retention{Last: 1}))
	}
	steps, err := checkpoint.List(r.dir)
	require.NoError(t, err)
	require.Equal(t, []int{5}, steps, "the first one is gone while it is copied")
	pending, is := w.Pending()
	assert.True(t, is)
	assert.Equal(t, 5, pending)
	close(g.open)
	report := w.Finish(t.Context(), finishLimit)
	assert.Equal(t, 2, report.Uploaded)
	assert.Equal(t, 3, report.Skipped)
	assert.Equal(t, 5, report.Step)
	assert.Len(t, w.Notes(), 3)
	state, err := s.Check(t.Context())
	require.NoError(t, err)
	assert.Empty(t, state.Problems)
	require.Len(t, state.Checkpoints, 2)
	assert.Equal(t, 1, state.Checkpoints[0].Step)
}

func TestFinishWaitsNoLongerThanItsLimit(t *testing.T) {
	s, g := gated(t)
	r := newRun(t, firstRun)
	w := r.claimed(t, g, s)
	r.save(t, 3)
	w.Offer(r.take(t, 3))
	<-g.reached
	report := w.Finish(t.Context(), time.Millisecond)
	assert.True(t, report.Behind())
	assert.Equal(t, "mirror mem://: it has NO checkpoint, step 3 should be there; copied 0, passed over 0, failed attempts 0: it was not done within 1ms", report.String())
	state, err := New("mem://", g.Objects, hurried).Check(t.Context())
	require.NoError(t, err)
	assert.Empty(t, state.Checkpoints)
}

func TestAMirrorIsOfOneRunAndOneProcess(t *testing.T) {
	s, objects := inMemory(t)
	r := newRun(t, firstRun)
	r.mirrored(t, s, 2, 4)
	_, err := s.Claim(t.Context(), "2027-01-01T00:00:00Z", 9)
	assert.ErrorIs(t, err, ErrForeign)
	assert.ErrorContains(t, err, "began "+firstRun)
	_, err = s.Claim(t.Context(), firstRun, 3)
	assert.ErrorIs(t, err, ErrAhead)
	assert.ErrorContains(t, err, "holds step 4, the run stands at step 3")

	// One that is ahead but damaged is in nobody's way.
	require.NoError(t, objects.Put(t.Context(), "checkpoints/step-00000004/metrics.jsonl", strings.NewReader("other")))
	mine, err := s.Claim(t.Context(), firstRun, 3)
	require.NoError(t, err)
	assert.Equal(t, 2, mine.Newest())
	require.Len(t, mine.Notes, 1)
	assert.Contains(t, mine.Notes[0], "step 4 was damaged")
	assert.Empty(t, keys(t, objects, "checkpoints/step-00000004/"))

	theirs, err := s.Claim(t.Context(), firstRun, 4)
	require.NoError(t, err)
	r.save(t, 6)
	w := Start(mine, nil)
	w.Offer(r.take(t, 6))
	report := w.Finish(t.Context(), finishLimit)
	assert.True(t, report.Behind())
	assert.Contains(t, report.Error, "another process has taken it over (pid ")
	assert.Empty(t, keys(t, objects, "checkpoints/step-00000006/"))
	w = Start(theirs, nil)
	w.Offer(r.take(t, 6))
	assert.False(t, w.Finish(t.Context(), finishLimit).Behind())
}

// What was copied before a restart is verified and not copied again; what is damaged is.
func TestWhatIsThereIsNotCopiedAgain(t *testing.T) {
	s, objects := inMemory(t)
	r := newRun(t, firstRun)
	r.mirrored(t, s, 2)
	again := func() Report {
		c, err := s.Claim(t.Context(), r.name, 2)
		require.NoError(t, err)
		w := Start(c, nil)
		w.Offer(r.take(t, 2))
		return w.Finish(t.Context(), finishLimit)
	}
	report := again()
	assert.Equal(t, 2, report.Step)
	assert.Zero(t, report.Uploaded)
	require.NoError(t, objects.Delete(t.Context(), "checkpoints/step-00000002/adapter.gguf"))
	report = again()
	assert.Equal(t, 2, report.Step)
	assert.Equal(t, 1, report.Uploaded)
}

func TestADamagedLocalFileIsNotCopied(t *testing.T) {
	s, objects := inMemory(t)
	r := newRun(t, firstRun)
	r.save(t, 2)
	path := filepath.Join(checkpoint.StepDir(r.dir, 2), "adapter.gguf")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	text[5] ^= 1
	require.NoError(t, os.WriteFile(path, text, 0o600))
	c, err := s.Claim(t.Context(), r.name, 0)
	require.NoError(t, err)
	w := Start(c, nil)
	w.Offer(r.take(t, 2))
	report := w.Finish(t.Context(), finishLimit)
	assert.Contains(t, report.Error, "step 2: adapter.gguf: the local file: it is not what its manifest says")
	assert.NotContains(t, keys(t, objects, ""), "checkpoints/step-00000002/mirror.json")
}

// faultSchedules is how many schedules a plain test runs; SOAK_SCHEDULES asks for more.
const faultSchedules = 40

// Schedules of faults, each from its seed. Whatever the store does, a copy whose mirror.json is one is whole, the report tells
// the newest of them, and that is what comes back.
func TestStoreFaults(t *testing.T) {
	schedules := faultSchedules
	if text := os.Getenv("SOAK_SCHEDULES"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		schedules = n
	}
	counts, failed, behind := map[string]int{}, 0, 0
	for seed := range schedules {
		report := storeFaults(t, uint64(seed), counts)
		failed += report.Failed
		if report.Behind() {
			behind++
		}
		if t.Failed() {
			t.Fatalf("schedule %d", seed)
		}
	}
	t.Logf("%d schedules, %d attempts failed, %d ended behind: %v", schedules, failed, behind, counts)
	for _, fault := range []string{"refused", "said to fail", "cut", "lost", "half given"} {
		assert.Positive(t, counts[fault], "no schedule had the fault: %s", fault)
	}
	assert.Positive(t, failed)
}

func storeFaults(t *testing.T, seed uint64, counts map[string]int) Report {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0x1))
	objects := blobs{memblob.OpenBucket(nil)}
	defer objects.Close()
	sound := New("mem://", objects, hurried)
	f := &faulty{Objects: objects, rng: rand.New(rand.NewPCG(seed, 0x2)), counts: counts}
	r := newRun(t, firstRun)
	c, err := sound.Claim(t.Context(), r.name, 0)
	require.NoError(t, err)
	c.store = New("mem://", f, hurried)
	f.odds = 2 + rng.IntN(12)
	w := Start(c, nil)
	last := 1 + rng.IntN(6)
	for step := 1; step <= last; step++ {
		r.save(t, step)
		w.Offer(r.take(t, step))
		if rng.IntN(2) == 0 {
			time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond) // so that some come to their turn
		}
	}
	report := w.Finish(t.Context(), time.Duration(rng.IntN(100))*time.Millisecond)
	steps, _, err := sound.steps(t.Context())
	require.NoError(t, err)
	newest := -1
	for _, step := range steps {
		if _, err := sound.entry(t.Context(), step); err != nil {
			continue // it says itself that it is none
		}
		_, err := sound.whole(t.Context(), step)
		require.NoError(t, err, "a copy that counts is not whole")
		newest = step
	}
	// The end may come between a copy and its report.
	require.GreaterOrEqual(t, newest, report.Step)
	if newest < 0 {
		return report
	}
	dir := filepath.Join(t.TempDir(), fmt.Sprint(seed))
	restored, _, err := restore(t, sound, dir)
	require.NoError(t, err)
	require.Equal(t, newest, restored.Step)
	r.same(t, dir, newest)
	return report
}
