package trainer

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testevents"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/internal/durable"
	"cftune/trainer/metrics"
)

func watched(m config.Metrics) func(*Options) { return func(o *Options) { o.Config.Metrics = m } }

// eventsAreTheMetrics requires that TensorBoard shows what metrics.jsonl has, no more and no less.
func eventsAreTheMetrics(t testing.TB, run, folder string) {
	t.Helper()
	want := map[string][]testevents.Point{}
	add := func(tag string, line map[string]any, key string) {
		want[tag] = append(want[tag], testevents.Point{Step: int64(line["step"].(float64)), Value: float32(line[key].(float64))})
	}
	for _, line := range readLines(t, filepath.Join(run, "metrics.jsonl")) {
		switch {
		case line["skipped"] != nil:
			add("train/skipped", line, "skipped")
		case line["loss"] == nil:
			add("validation/loss", line, "validation_loss")
		default:
			for tag, key := range map[string]string{
				"train/loss": "loss", "train/learning_rate": "lr", "train/gradient_norm": "grad_norm", "train/epoch": "epoch",
				"train/targets": "targets", "train/tokens": "tokens", "speed/tokens_per_second": "tokens_per_s",
				"speed/target_tokens_per_second": "target_tokens_per_s", "speed/step_seconds": "seconds", "memory/bytes": "memory_bytes",
			} {
				add(tag, line, key)
			}
			want["objective/tokenized"] = append(want["objective/tokenized"], testevents.Point{Step: int64(line["step"].(float64)), Value: 1})
		}
	}
	got, err := testevents.Folder(folder)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// scrape is what Prometheus would get.
func scrape(t testing.TB, url string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	return string(body)
}

var metricsURL = regexp.MustCompile(`http://\S+/metrics`)

// Whoever watches, and whether anybody does, the run comes to the same bytes; and settings of metrics may change on the way.
func TestWatchingChangesNothing(t *testing.T) {
	s := newSite(t)
	s.train(t, "straight")
	want := s.run.Output
	e := newFakeEngine()
	said := &notes{}
	var seen []string
	e.before = func(int) error {
		if url := metricsURL.FindString(said.String()); url != "" {
			seen = append(seen, scrape(t, url))
		}
		return nil
	}
	result, err := life(t, s, "watched", e, stopAfter(4), listen(said), watched(config.Metrics{TensorBoard: true, Listen: "127.0.0.1:0"}))
	require.NoError(t, err)
	require.Equal(t, 4, result.Step)
	require.Len(t, seen, e.calls)
	assert.Contains(t, seen[0], "\ncftune_step 0\n")
	assert.NotContains(t, seen[0], "\ncftune_loss ")
	last := seen[len(seen)-1]
	for _, line := range []string{
		"cftune_step 3", "cftune_planned_steps 10", "cftune_checkpoint_step 2", `cftune_validation_loss{objective="all"} `, "cftune_loss ",
		`cftune_examples_total{objective="tokenized"} 15`, `cftune_info{device="auto",`,
	} {
		assert.Contains(t, last, "\n"+line)
	}
	_, err = net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(metricsURL.FindString(said.String()), "http://"), "/metrics"))
	assert.Error(t, err, "the server must end with the run")
	dir := filepath.Join(s.dir, "watched")
	eventsAreTheMetrics(t, dir, filepath.Join(dir, checkpoint.TensorBoardName))

	// Then nobody, then Prometheus, which begins to count anew, then TensorBoard again, which has all of it.
	s.resume(t, "watched", stopAfter(2))
	said, seen = &notes{}, nil
	e = newFakeEngine()
	e.before = func(int) error {
		seen = append(seen, scrape(t, metricsURL.FindString(said.String())))
		return nil
	}
	_, err = life(t, s, "watched", e, stopAfter(1), listen(said), watched(config.Metrics{Listen: "localhost:0"}))
	require.NoError(t, err)
	assert.Contains(t, seen[0], "\ncftune_step 6\n")
	assert.Contains(t, seen[0], "\ncftune_checkpoint_step 6\n")
	assert.Contains(t, seen[0], "\ncftune_tokens_total 0\n")
	s.resume(t, "watched", watched(config.Metrics{TensorBoard: true}))
	sameEnd(t, want, dir)
	eventsAreTheMetrics(t, dir, filepath.Join(dir, checkpoint.TensorBoardName))
}

// Skips and validations that lie at a checkpoint's step, or just after it, are there once after a resume.
func TestEventsOfSkippedSteps(t *testing.T) {
	s := newSite(t)
	s.run.Data.Shuffle = false
	s.run.Train.GlobalBatch.Examples = 4
	s.run.Health.MaxSkips = 6
	s.run.Metrics.TensorBoard = true
	sick := func() *sickEngine {
		return &sickEngine{fakeEngine: newFakeEngine(), poison: map[int32]bool{firstToken(0): true, firstToken(13): true}}
	}
	dir := filepath.Join(s.dir, "run")
	for {
		result, err := life(t, s, "run", sick(), stopAfter(1))
		require.NoError(t, err)
		eventsAreTheMetrics(t, dir, filepath.Join(dir, checkpoint.TensorBoardName))
		if result.Stopped == "" {
			break
		}
	}
	scalars, err := testevents.Folder(filepath.Join(dir, checkpoint.TensorBoardName))
	require.NoError(t, err)
	assert.Len(t, scalars["train/skipped"], 4)
}

// At whatever operation the run ends, after a resume TensorBoard shows what the log has.
func TestEventsAfterEveryCrash(t *testing.T) {
	s := newSite(t)
	s.run.Train.GlobalBatch.Examples = 12
	s.run.Metrics.TensorBoard = true
	s.train(t, "straight")
	want := s.run.Output
	stride := 1
	if testing.Short() {
		stride = 5
	}
	for at := 1; ; at += stride {
		s.run.Output = filepath.Join(s.dir, "crashed")
		fs := &crashpoint.FS{At: at}
		err := crashRun(t, s, fs)
		if at%2 == 0 {
			require.NoError(t, fs.Lose())
		}
		if fs.Crashed() {
			goOn(t, s, "crashed")
		} else {
			require.NoError(t, err)
		}
		sameEnd(t, want, s.run.Output)
		eventsAreTheMetrics(t, s.run.Output, filepath.Join(s.run.Output, checkpoint.TensorBoardName))
		require.NoError(t, os.RemoveAll(s.run.Output))
		if !fs.Crashed() {
			require.Greater(t, at, 60)
			return
		}
	}
}

// badFolder is a disk on which nothing can be written to TensorBoard's files once it is broken.
type badFolder struct {
	durable.FS
	broken bool
}

func (fs *badFolder) Create(path string) (durable.File, error) {
	f, err := fs.FS.Create(path)
	if err == nil && filepath.Base(filepath.Dir(path)) == checkpoint.TensorBoardName {
		return badFile{f, fs}, nil
	}
	return f, err
}

type badFile struct {
	durable.File
	fs *badFolder
}

func (f badFile) Write(p []byte) (int, error) {
	if f.fs.broken {
		return 0, syscall.EIO
	}
	return f.File.Write(p)
}

// Event files that cannot be written before the first step are an error; later the run goes on without them.
func TestEventFilesThatCannotBeWritten(t *testing.T) {
	s := newSite(t)
	s.train(t, "straight")
	want := s.run.Output
	s.run.Metrics.TensorBoard = true
	fs := &badFolder{FS: durable.OS, broken: true}
	_, err := life(t, s, "broken", newFakeEngine(), func(o *Options) { o.fs = fs })
	require.ErrorIs(t, err, syscall.EIO)
	assert.ErrorContains(t, err, "metrics.tensorboard: ")

	said := &notes{}
	e := newFakeEngine()
	fs.broken = false
	e.before = func(call int) error {
		fs.broken = call > 6
		return nil
	}
	_, err = life(t, s, "breaks", e, listen(said), func(o *Options) { o.fs = fs })
	require.NoError(t, err)
	dir := filepath.Join(s.dir, "breaks")
	sameEnd(t, want, dir)
	assert.Equal(t, 1, strings.Count(said.String(), "warning: write event file "), said.String())
	folder := filepath.Join(dir, checkpoint.TensorBoardName)
	scalars, err := testevents.Folder(folder)
	require.NoError(t, err)
	assert.Less(t, len(scalars["train/loss"]), 10)
	_, err = WriteEvents(dir, folder, true)
	require.NoError(t, err)
	eventsAreTheMetrics(t, dir, folder)
}

func TestAddressThatIsTaken(t *testing.T) {
	s := newSite(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	taken := watched(config.Metrics{Listen: l.Addr().String()})
	s.run.Output = filepath.Join(s.dir, "new")
	_, err = s.begin(t, taken)
	var listenError *ListenError
	require.ErrorAs(t, err, &listenError)
	assert.ErrorContains(t, err, "metrics.listen: ")
	assert.NoFileExists(t, s.run.Output, "nothing may be left of a run that did not begin")

	s.train(t, "run", stopAfter(1))
	before := readLines(t, filepath.Join(s.dir, "run", "metrics.jsonl"))
	_, err = life(t, s, "run", newFakeEngine(), taken)
	require.ErrorAs(t, err, &listenError)
	assert.Equal(t, before, readLines(t, filepath.Join(s.dir, "run", "metrics.jsonl")))
}

func TestWriteEvents(t *testing.T) {
	s := newSite(t)
	s.train(t, "run")
	folder := filepath.Join(s.dir, "elsewhere", "events")
	written, err := WriteEvents(s.run.Output, folder, false)
	require.NoError(t, err)
	assert.Equal(t, WrittenEvents{File: written.File, Steps: 10, Validations: 5}, written)
	assert.Equal(t, folder, filepath.Dir(written.File))
	eventsAreTheMetrics(t, s.run.Output, folder)
	_, err = WriteEvents(s.run.Output, folder, false)
	assert.ErrorIs(t, err, ErrEventsExist)
	_, err = WriteEvents(s.dir, folder, true)
	assert.ErrorIs(t, err, checkpoint.ErrNotFound)

	// Whoever trains the run has its own folder, by whatever name it is called.
	own := filepath.Join(s.run.Output, checkpoint.TensorBoardName)
	r, err := checkpoint.OpenRun(nil, s.run.Output)
	require.NoError(t, err)
	_, err = WriteEvents(s.run.Output, filepath.Join(s.run.Output, "checkpoints", "..", checkpoint.TensorBoardName), true)
	var held *checkpoint.HeldError
	assert.ErrorAs(t, err, &held)
	assert.NoFileExists(t, own)
	_, err = WriteEvents(s.run.Output, folder, true)
	assert.NoError(t, err)
	require.NoError(t, r.Close())
	_, err = WriteEvents(s.run.Output, own, true)
	require.NoError(t, err)
	eventsAreTheMetrics(t, s.run.Output, own)

	// What is damaged is not passed over.
	path := filepath.Join(s.run.Output, "metrics.jsonl")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text[:len(text)-5], 0o600))
	written, err = WriteEvents(s.run.Output, own, true)
	require.NoError(t, err)
	assert.True(t, written.Torn)
	assert.Equal(t, 4, written.Validations)
	require.NoError(t, os.WriteFile(path, append(text[10:], text...), 0o600))
	_, err = WriteEvents(s.run.Output, own, true)
	assert.ErrorIs(t, err, metrics.ErrCorrupt)
}
