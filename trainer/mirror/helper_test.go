package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"gocloud.dev/blob/memblob"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/bucket"
	"cftune/trainer/internal/durable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hurried is patience for tests: with little between the attempts.
var hurried = Patience{
	Attempts: 4, Backoff: bucket.Backoff{First: time.Microsecond, Longest: time.Millisecond}, Object: 30 * time.Second, Again: time.Millisecond,
}

// finishLimit is more than any test's copies take.
const finishLimit = time.Minute

// testRun is a run directory whose checkpoints are made by hand.
type testRun struct {
	dir  string
	name string
	run  *checkpoint.Run
}

func newRun(t *testing.T, started string) *testRun {
	t.Helper()
	r := &testRun{dir: filepath.Join(t.TempDir(), "run"), name: started}
	var err error
	r.run, err = checkpoint.Create(durable.OS, r.dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.run.Close()) })
	require.NoError(t, r.run.WriteConfig([]byte(fmt.Sprintf(`{"started": %q}`, started))))
	return r
}

// firstRun began so.
const firstRun = "2026-01-02T03:04:05.000000006Z"

// firstTime is when the objects of fake stores were changed.
var firstTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// save takes steps up to one and writes its checkpoint.
func (r *testRun) save(t *testing.T, step int) {
	t.Helper()
	require.NoError(t, appendText(r.dir, fmt.Sprintf(`{"step": %d}`+"\n", step)))
	_, err := r.run.Write(checkpoint.Manifest{Step: step}, []checkpoint.Content{
		{Name: "adapter.gguf", Write: written(strings.Repeat(fmt.Sprintf("adapter %d ", step), 100))},
		{Name: "optimizer.bin", Write: written(strings.Repeat(fmt.Sprintf("moments %d ", step), 200))},
	})
	require.NoError(t, err)
}

// appendText adds to a run's metrics.
func appendText(dir, text string) error {
	f, err := os.OpenFile(filepath.Join(dir, checkpoint.MetricsName), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, text)
	return errors.Join(err, f.Close())
}

func written(text string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
}

var keepTwo = checkpoint.Retention{Last: 2}

func (r *testRun) take(t *testing.T, step int) *Snapshot {
	t.Helper()
	s, err := Take(r.dir, step, keepTwo)
	require.NoError(t, err)
	return s
}

// mirrored claims a store and copies steps, one after the other.
func (r *testRun) mirrored(t *testing.T, s *Store, steps ...int) Report {
	t.Helper()
	c, err := s.Claim(t.Context(), r.name, 0)
	require.NoError(t, err)
	w := Start(c, nil)
	for _, step := range steps {
		r.save(t, step)
		w.Offer(r.take(t, step))
		require.Eventually(t, func() bool { _, is := w.Pending(); return !is }, finishLimit, time.Millisecond)
	}
	return w.Finish(t.Context(), finishLimit)
}

func inMemory(t *testing.T) (*Store, Objects) {
	t.Helper()
	objects := blobs{memblob.OpenBucket(nil)}
	t.Cleanup(func() { assert.NoError(t, objects.Close()) })
	return New("mem://", objects, hurried), objects
}

func inFolder(t *testing.T, make bool) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mirror")
	s, err := Open(t.Context(), "file://"+filepath.ToSlash(dir), make)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	s.patience = hurried
	return s, dir
}

func keys(t *testing.T, o Objects, prefix string) (list []string) {
	t.Helper()
	require.NoError(t, o.List(t.Context(), prefix, func(key string) error { list = append(list, key); return nil }))
	return list
}

// restore brings a run back to a folder beside the test's.
func restore(t *testing.T, s *Store, dir string) (Restored, []string, error) {
	t.Helper()
	var said []string
	r, err := s.Restore(t.Context(), RestoreOptions{
		Dir: dir, Check: func(string) error { return nil }, Say: func(text string) { said = append(said, text) },
	})
	return r, said, err
}

// same requires a run directory to be as the original was at a step.
func (r *testRun) same(t *testing.T, dir string, step int) {
	t.Helper()
	c, err := checkpoint.Open(dir, step)
	require.NoError(t, err)
	for _, name := range []string{"adapter.gguf", "optimizer.bin", checkpoint.ManifestName} {
		want, err := os.ReadFile(filepath.Join(checkpoint.StepDir(r.dir, step), name))
		require.NoError(t, err)
		got, err := os.ReadFile(c.Path(name))
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got), name)
	}
	config, err := os.ReadFile(filepath.Join(dir, checkpoint.ConfigName))
	require.NoError(t, err)
	assert.Contains(t, string(config), r.name)
	metrics, err := os.ReadFile(filepath.Join(dir, checkpoint.MetricsName))
	require.NoError(t, err)
	assert.True(t, strings.HasSuffix(string(metrics), fmt.Sprintf(`{"step": %d}`+"\n", step)), "metrics end otherwise: %s", metrics)
}

var errFault = errors.New("the store is out of order")

// faulty is a store that fails now and then: it refuses, says that it failed though it did not, keeps half of what it was
// given or nothing of it, or gives half of what it holds.
type faulty struct {
	Objects
	mu   sync.Mutex
	rng  *rand.Rand
	odds int // one in so many operations fails; 0: none
	// counts of each fault
	counts map[string]int
}

func (f *faulty) draw(faults ...string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.odds == 0 || f.rng.IntN(f.odds) > 0 {
		return ""
	}
	fault := faults[f.rng.IntN(len(faults))]
	f.counts[fault]++
	return fault
}

func (f *faulty) Put(ctx context.Context, key string, r io.Reader) error {
	switch f.draw("refused", "said to fail", "cut", "lost") {
	case "refused":
		return errFault
	case "said to fail":
		return errors.Join(f.Objects.Put(ctx, key, r), errFault)
	case "cut":
		text, err := io.ReadAll(r)
		return errors.Join(err, f.Objects.Put(ctx, key, strings.NewReader(string(text[:len(text)/2]))))
	case "lost":
		_, err := io.Copy(io.Discard, r)
		return err
	}
	return f.Objects.Put(ctx, key, r)
}

func (f *faulty) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	switch f.draw("refused", "half given") {
	case "refused":
		return nil, errFault
	case "half given":
		r, err := f.Objects.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(r)
		return io.NopCloser(strings.NewReader(string(text[:len(text)/2]))), errors.Join(err, r.Close())
	}
	return f.Objects.Get(ctx, key)
}

func (f *faulty) List(ctx context.Context, prefix string, visit func(key string) error) error {
	if f.draw("refused") != "" {
		return errFault
	}
	return f.Objects.List(ctx, prefix, visit)
}

func (f *faulty) Delete(ctx context.Context, key string) error {
	switch f.draw("refused", "said to fail") {
	case "refused":
		return errFault
	case "said to fail":
		return errors.Join(f.Objects.Delete(ctx, key), errFault)
	}
	return f.Objects.Delete(ctx, key)
}
