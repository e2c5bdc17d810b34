package dashboard

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/metrics"
	"cftune/trainer/runs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a server over a folder, asked without a network.
type site struct {
	t *testing.T
	*Server
}

func open(t *testing.T, folders ...string) site {
	t.Helper()
	index, err := NewIndex(folders...)
	require.NoError(t, err)
	s, err := Listen(index, "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { s.listener.Close() })
	return site{t, s}
}

func (s site) request(method, path string, header ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	s.index.mu.Lock()
	s.index.looked, s.index.found = time.Time{}, time.Time{} // look again
	s.index.mu.Unlock()
	r := httptest.NewRequest(method, "http://localhost"+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

func (s site) page(path string) string {
	s.t.Helper()
	w := s.request("GET", path)
	require.Equal(s.t, http.StatusOK, w.Code, path)
	return w.Body.String()
}

func (s site) id(name string) string {
	s.t.Helper()
	for _, r := range s.index.runs {
		if r.name == name {
			return r.id
		}
	}
	s.t.Fatalf("no run %s", name)
	return ""
}

func TestListAndRunPages(t *testing.T) {
	folder := t.TempDir()
	f := begin(t, filepath.Join(folder, "group", "first"), 100, func(r *trainer.Record) {
		r.Config.Objective.Stages = []config.Stage{{Mix: map[string]float64{"cft": 1, "sft": 1}, Until: config.Until{Steps: 20}}, {Mix: map[string]float64{"cft": 1}}}
		r.Config.Adapter.Rank = 7
		r.Plan.OverLong = trainer.OverLong{Policy: "drop", Count: 3, Longest: 5000, First: []string{"train.jsonl:8"}}
	})
	f.steps(1, 20)
	f.add(line1(t, metrics.Validation{Step: 20, Loss: 2.5, Targets: 10, Objective: "cft", Time: f.time}))
	f.add(line1(t, metrics.Validation{Step: 20, Loss: 2.25, Targets: 20, Time: f.time}))
	f.checkpoint(20, &checkpoint.Best{Step: 20, Loss: 2.25})
	f.add(line1(t, metrics.Skip{Step: 21, Skipped: 1, Reason: "the loss is NaN", Examples: []string{"a"}, Time: f.time}))
	spike := f.step(21)
	spike.Loss, spike.Stage = 50, 1
	f.add(line1(t, spike))
	f.steps(22, 30)
	f.write(checkpoint.JournalName, `{"step":25,"stages":[{"mix":{"refine":1},"until":{"steps":0,"epochs":0,"tokens":0,"plateau":0}}],"time":"2026-11-01T12:00:00Z"}`+"\n")
	f.write("failed-step-00000031.json", "{}")
	begin(t, filepath.Join(folder, "second"), 5, nil).steps(1, 5).checkpoint(5, nil)
	begin(t, filepath.Join(folder, "empty"), 5, nil)
	before := listing(t, folder)

	s := open(t, folder)
	list := s.page("/")
	for _, want := range []string{
		"3 runs", "group/first", "30 of 100", "state stopped", "state done", "best validation", "2.2500", "Small.Q4", "rank 7", `class="spark"`, `data-refresh="20"`,
	} {
		assert.Contains(t, list, want)
	}
	page := s.page("/run/" + s.id("group/first"))
	for _, want := range []string{
		"learning rate by step", "gradient norm by step", "validation loss by step", "memory by step", "targets per second by step",
		"1 step was skipped", "step 21: the loss is NaN", "1 loss spike: more than 3 times", "step 21: 50, the median",
		"3 examples are longer than a pack (the longest has 5000 tokens): dropped", "train.jsonl:8", "failed-step-00000031.json",
		"from step 25: objective: refine", "best checkpoint, step 20", "changed by hand from step 25", "skipped before step 21", "from step 21: cft",
		"cftune resume " + f.dir, "cftune export " + f.dir + " --output adapter.gguf", "--checkpoint best",
		"{cft: 1, sft: 1} until step 20", "adapter.rank", "The curves as a table",
	} {
		assert.Contains(t, page, want)
	}
	for _, mark := range []string{"changed by hand from step 25", "skipped before step 21"} {
		assert.Equal(t, 2, strings.Count(page, "<title>"+mark), "%s: over the loss, and over the objectives", mark)
	}
	assert.Contains(t, s.page("/run/"+s.id("empty")), "None yet.", "a run without a step has a page")
	compared := s.page("/compare?run=" + s.id("group/first") + "&run=" + s.id("second") + "&run=unknown&run=" + s.id("second"))
	for _, want := range []string{"2 runs compared", "loss of the runs by step", "loss of the runs by tokens", "loss of the runs by time", "adapter.rank", "objective.stages"} {
		assert.Contains(t, compared, want)
	}
	assert.NotContains(t, compared, "train.epochs", "it is alike")
	assert.Equal(t, before, listing(t, folder), "nothing was written")
}

func TestSorting(t *testing.T) {
	folder := t.TempDir()
	begin(t, filepath.Join(folder, "b"), 9, nil).steps(1, 3)
	begin(t, filepath.Join(folder, "a"), 9, nil).steps(1, 8)
	begin(t, filepath.Join(folder, "c"), 9, nil)
	s := open(t, folder)
	for sort, want := range map[string]string{"name": "abc", "-name": "cba", "step": "abc", "-step": "cba", "loss": "abc", "-loss": "cba"} {
		got := ""
		for _, m := range regexp.MustCompile(`aria-label="compare (\w)"`).FindAllStringSubmatch(s.page("/?sort="+sort), -1) {
			got += m[1]
		}
		assert.Equal(t, want, got, sort)
	}
	assert.Contains(t, s.page("/?sort=name"), `aria-sort="ascending"><a href="/?sort=-name"`)
	assert.NotContains(t, s.page(`/?sort="><script>`), "<script>", "unknown orders are not shown")
}

func TestStates(t *testing.T) {
	folder := t.TempDir()
	f := begin(t, filepath.Join(folder, "run"), 10, nil).steps(1, 4)
	assert.Equal(t, runs.Stopped, look(f.dir).standing.State)

	lock, err := checkpoint.OpenRun(nil, f.dir)
	require.NoError(t, err)
	r := look(f.dir)
	assert.Equal(t, runs.Running, r.standing.State)
	assert.Contains(t, r.holder, fmt.Sprintf("pid %d on ", os.Getpid()))
	assert.Equal(t, 12*time.Second, r.left(), "six steps of two seconds")
	f.add(`{"step":5,"lo`)
	assert.Empty(t, look(f.dir).torn, "it is being written")
	require.NoError(t, lock.Close())
	r = look(f.dir)
	assert.Equal(t, runs.Stopped, r.standing.State)
	assert.Equal(t, []string{checkpoint.MetricsName}, r.torn)
	assert.Zero(t, r.left())

	f.write(checkpoint.LockName, "pid 5 on another-machine\n")
	assert.Equal(t, runs.Stopped, look(f.dir).standing.State, "the file is young, its last step is not: it was copied")
	f.time = time.Now()
	f.replace(strings.TrimSuffix(f.read(), `{"step":5,"lo`) + line1(t, f.step(5)) + `{"step":6,`)
	assert.Equal(t, runs.Running, look(f.dir).standing.State, "a step was recorded just now, and not from here")
	past := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(filepath.Join(f.dir, checkpoint.MetricsName), past, past))
	assert.Equal(t, runs.Stopped, look(f.dir).standing.State)
}

// Why a run ended is said wherever its state is; one that ended by patience is not to be resumed.
func TestEnds(t *testing.T) {
	folder := t.TempDir()
	f := begin(t, filepath.Join(folder, "run"), 10, nil).steps(1, 4)
	f.checkpoint(4, nil)
	s := open(t, folder)
	page := func() string { return s.page("/run/" + s.id("run")) }
	assert.Contains(t, page(), "cftune resume")
	f.write(checkpoint.EndName, `{"step":4,"checkpoint":4,"reason":"max_time"}`)
	assert.Contains(t, page(), `<span class="state stopped">stopped: max_time</span>`)
	assert.Contains(t, page(), "cftune resume")
	f.write(checkpoint.EndName, `{"step":4,"checkpoint":4,"reason":"patience"}`)
	assert.Contains(t, page(), `<span class="state ended">ended: patience</span>`)
	assert.Contains(t, s.page("/"), `<span class="state ended">ended: patience</span>`)
	assert.NotContains(t, page(), "cftune resume")
	f.write(checkpoint.EndName, `{"step":4,"checkpoint":4,"reason":"error","error":"step 5: <b> is not finite"}`)
	assert.Contains(t, page(), "stopped: error")
	assert.Contains(t, page(), "step 5: &lt;b&gt; is not finite")
}

func TestDamagedRuns(t *testing.T) {
	for name, damage := range map[string]func(f *fixture){
		"config.json":   func(f *fixture) { f.write(checkpoint.ConfigName, `{"format":1,`) },
		"format 9":      func(f *fixture) { f.write(checkpoint.ConfigName, `{"format":9}`) },
		"metrics.jsonl": func(f *fixture) { f.add("}{\n"); f.steps(5, 6) },
		"journal":       func(f *fixture) { f.write(checkpoint.JournalName, "what\n") },
		"manifest": func(f *fixture) {
			f.write(filepath.Join("checkpoints", "step-00000003", checkpoint.ManifestName), `{"format":1}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			f := begin(t, filepath.Join(folder, "run"), 10, nil).steps(1, 4)
			damage(f)
			s := open(t, folder)
			list := s.page("/")
			assert.Contains(t, list, "state damaged")
			page := s.page("/run/" + s.id("run"))
			assert.Contains(t, page, "damaged: ")
			assert.Contains(t, page, "cftune check ")
			assert.Contains(t, page, `aria-label="loss by step"`, "what can be read is shown")
		})
	}
}

func TestARewoundRunIsReadAgain(t *testing.T) {
	f := begin(t, filepath.Join(t.TempDir(), "run"), 100, nil).steps(1, 10)
	r := look(f.dir)
	whole := f.read()
	version := r.version
	f.replace(strings.Join(strings.SplitAfter(whole, "\n")[:6], ""))
	r.refresh()
	assert.Equal(t, 6, r.series.last.Step)
	assert.Greater(t, r.version, version)
	f.steps(7, 12)
	r.refresh()
	assert.Equal(t, 12, r.series.last.Step)
	assert.Equal(t, int64(12*500), r.series.tokens, "no step counts twice")
}

func TestFoldersThatAreMissing(t *testing.T) {
	_, err := NewIndex(filepath.Join(t.TempDir(), "none"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	folder := t.TempDir()
	s := open(t, folder)
	assert.Contains(t, s.page("/"), "No run yet")
	require.NoError(t, os.Remove(folder))
	assert.Contains(t, s.page("/"), "no such file", "it went away: the page says so")
}

func TestSpikesAreAboveTheMedian(t *testing.T) {
	s := series{spikeFactor: 3}
	for n := range metrics.SpikeWindow {
		s.Step(metrics.Step{Step: n + 1, Loss: []float64{1, 4}[min(n, 1)]})
	}
	s.Step(metrics.Step{Step: 21, Loss: 11}) // above three times the least, not above three times the median
	assert.Zero(t, s.spikes.total)
	s.Step(metrics.Step{Step: 22, Loss: 13})
	assert.Equal(t, 1, s.spikes.total)
	assert.Equal(t, 22, s.spikes.list[0].step)
}
