package dashboard

import (
	"bytes"
	"context"
	"fmt"
	"net"
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
		"1 steps were skipped", "step 21: the loss is NaN", "1 loss spikes: more than 3 times", "step 21: 50, the median",
		"3 examples are longer than a pack (the longest has 5000 tokens): they were dropped", "train.jsonl:8", "failed-step-00000031.json",
		"from step 25: objective: refine", "best checkpoint, step 20", "changed by hand from step 25", "skipped before step 21", "from step 21: cft",
		"cftune resume " + f.dir, "cftune export " + f.dir + " --output adapter.gguf", "--checkpoint best",
		"{cft: 1, sft: 1} until step 20", "adapter.rank", "The curves as a table",
	} {
		assert.Contains(t, page, want)
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

func TestIdlePagesAreNotSentAgain(t *testing.T) {
	folder := t.TempDir()
	f := begin(t, filepath.Join(folder, "run"), 9, nil).steps(1, 3)
	s := open(t, folder)
	for _, path := range []string{"/", "/run/" + s.id("run"), "/compare?run=" + s.id("run"), "/style.css", "/page.js"} {
		tag := s.request("GET", path).Header().Get("ETag")
		require.NotEmpty(t, tag, path)
		w := s.request("GET", path, "If-None-Match", tag)
		assert.Equal(t, http.StatusNotModified, w.Code, path)
		assert.Zero(t, w.Body.Len(), path)
	}
	tag := s.request("GET", "/").Header().Get("ETag")
	f.steps(4, 4)
	w := s.request("GET", "/", "If-None-Match", tag)
	assert.Equal(t, http.StatusOK, w.Code, "a step was made")
	assert.Contains(t, w.Body.String(), "4 of 9")
	tag = w.Header().Get("ETag")
	begin(t, filepath.Join(folder, "new"), 9, nil)
	w = s.request("GET", "/", "If-None-Match", tag)
	assert.Equal(t, http.StatusOK, w.Code, "a run has begun")
	assert.Contains(t, w.Body.String(), "2 runs")
	require.NoError(t, os.RemoveAll(filepath.Join(folder, "new")))
	assert.Contains(t, s.page("/"), "1 run")
}

func TestStates(t *testing.T) {
	folder := t.TempDir()
	f := begin(t, filepath.Join(folder, "run"), 10, nil).steps(1, 4)
	assert.Equal(t, runs.Stopped, look(f.dir).state)

	lock, err := checkpoint.OpenRun(nil, f.dir)
	require.NoError(t, err)
	r := look(f.dir)
	assert.Equal(t, runs.Running, r.state)
	assert.Contains(t, r.holder, fmt.Sprintf("pid %d on ", os.Getpid()))
	assert.Equal(t, 12*time.Second, r.left(), "six steps of two seconds")
	f.add(`{"step":5,"lo`)
	assert.Empty(t, look(f.dir).torn, "it is being written")
	require.NoError(t, lock.Close())
	r = look(f.dir)
	assert.Equal(t, runs.Stopped, r.state)
	assert.Equal(t, []string{checkpoint.MetricsName}, r.torn)
	assert.Zero(t, r.left())

	f.write(checkpoint.LockName, "pid 5 on another-machine\n")
	assert.Equal(t, runs.Running, look(f.dir).state, "it was written to just now, and not from here")
	past := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(filepath.Join(f.dir, checkpoint.MetricsName), past, past))
	assert.Equal(t, runs.Stopped, look(f.dir).state)
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

const hostile = `"><script>alert(1)</script><img src=x onerror=alert(2)>'` + "`{{.}}"

func TestHostileTextsAreTexts(t *testing.T) {
	folder := t.TempDir()
	name := strings.ReplaceAll(hostile, "/", "∕")
	f := begin(t, filepath.Join(folder, name), 10, func(r *trainer.Record) {
		r.Model.Path, r.Config.Model, r.Version = "/models/"+hostile+".gguf", hostile, hostile
		r.Config.Chat.System = hostile
		r.Config.Data.Sources[0].Path = hostile
		r.WarmStart = &trainer.Origin{Path: hostile}
		r.Plan.OverLong = trainer.OverLong{Policy: hostile, Count: 1, First: []string{hostile}}
	})
	step := f.step(1)
	step.Objective = map[string]int{hostile: 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1}
	f.add(line1(t, step) + line1(t, metrics.Validation{Step: 1, Loss: 1, Targets: 1, Objective: hostile}) +
		line1(t, metrics.Skip{Step: 2, Skipped: 1, Reason: hostile, Examples: []string{hostile}}))
	f.steps(2, 3)
	f.write("failed-step-"+name, "")
	f.write(checkpoint.LockName, "pid 1 on "+hostile)
	begin(t, filepath.Join(folder, "other"), 3, nil).steps(1, 2)

	s := open(t, folder)
	var static bytes.Buffer
	require.NoError(t, s.index.WriteStatic(&static))
	texts := map[string]string{"list": s.page("/"), "run": s.page("/run/" + s.id(name)), "static": static.String(),
		"compare": s.page("/compare?run=" + s.id(name) + "&run=" + s.id("other"))}
	for page, text := range texts {
		text = strings.Replace(text, "<script>"+pageScript+"</script>", "", 1) // the page's own
		assert.NotContains(t, text, "<script>", page)
		assert.NotContains(t, text, "<img", page)
		assert.Contains(t, text, "&lt;script&gt;", page)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	folder := t.TempDir()
	f := begin(t, filepath.Join(folder, "run"), 10, func(r *trainer.Record) {
		r.Config.Data.Sources[0].Path = "https://me:hunter2@host/train.jsonl?X-Amz-Signature=deadbeef&a=1"
		r.Config.Checkpoint.Mirror = "s3://bucket/run?secret_key=abc123&region=x"
		r.Config.Chat.System = "use hf_abcdefghijklmnop and api_key=qwerty99"
	})
	f.steps(1, 2)
	begin(t, filepath.Join(folder, "other"), 10, nil)
	f.write(trainer.MirrorStateName, `{"url":"s3://bucket/run","step":-1,"wanted":2,"error":"PUT https://u:hunter2@host/x?sig=deadbeef: no"}`)
	s := open(t, folder)
	text := s.page("/run/"+s.id("run")) + s.page("/compare?run="+s.id("run")+"&run="+s.id("other"))
	assert.Contains(t, text, "host/train.jsonl", "the rest is shown")
	assert.Contains(t, text, "s3://bucket/run")
	for _, secret := range []string{"hunter2", "deadbeef", "abc123", "abcdefghijklmnop", "qwerty99"} {
		assert.NotContains(t, text, secret)
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	folder := t.TempDir()
	begin(t, filepath.Join(folder, "run"), 10, nil).steps(1, 2)
	s := open(t, folder)
	for _, x := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/", "localhost:8080", 200},
		{"GET", "/", "127.0.0.1", 200},
		{"GET", "/", "[::1]:80", 200},
		{"GET", "/", "LOCALHOST.", 200},
		{"HEAD", "/", "localhost", 200},
		{"GET", "/", "evil.example", 403},
		{"GET", "/", "evil.example:8080", 403},
		{"GET", "/", "localhost.evil.example", 403},
		{"GET", "/", "192.168.0.7", 403},
		{"GET", "/style.css", "evil.example", 403},
		{"POST", "/", "localhost", 405},
		{"DELETE", "/run/x", "localhost", 405},
		{"GET", "/run/unknown", "localhost", 404},
		{"GET", "/run/..%2f..%2fetc%2fpasswd", "localhost", 404},
		{"GET", "/run/", "localhost", 404},
		{"GET", "/config.json", "localhost", 404},
		{"GET", "/compare", "localhost", 404},
		{"GET", "/compare?run=" + filepath.Join(folder, "run"), "localhost", 404},
	} {
		w := s.request(x.method, x.path, "Host", x.host)
		assert.Equal(t, x.want, w.Code, "%s %s of %s", x.method, x.path, x.host)
		assert.Equal(t, policy, w.Header().Get("Content-Security-Policy"))
		assert.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	}
	assert.NotContains(t, policy, "unsafe")
	text := s.page("/") + s.page("/run/"+s.id("run"))
	for _, refused := range []string{" style=", " onclick=", "javascript:", "http:", "https:"} {
		assert.NotContains(t, text, refused, "the policy would refuse it")
	}
}

func TestMoreHosts(t *testing.T) {
	index, err := NewIndex(t.TempDir())
	require.NoError(t, err)
	s, err := Listen(index, "127.0.0.1:0", "Proxy.example")
	require.NoError(t, err)
	defer s.listener.Close()
	assert.True(t, s.knows("proxy.example:443"))
	assert.False(t, s.knows("other.example"))
	assert.True(t, s.Loopback())
}

func TestStaticPageStandsAlone(t *testing.T) {
	folder := t.TempDir()
	begin(t, filepath.Join(folder, "one"), 10, nil).steps(1, 9)
	begin(t, filepath.Join(folder, "two"), 10, nil).steps(1, 5)
	for _, folders := range [][]string{{filepath.Join(folder, "one")}, {folder}, {filepath.Join(folder, "two"), filepath.Join(folder, "one")}} {
		index, err := NewIndex(folders...)
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "page.html")
		require.NoError(t, index.WriteFile(path))
		read, err := os.ReadFile(path)
		require.NoError(t, err)
		text := string(read)
		assert.Equal(t, index.Len(), strings.Count(text, "<article>"))
		assert.Equal(t, index.Len() > 1, strings.Contains(text, "What differs in their configurations"))
		assert.Contains(t, text, "script-src &#39;sha256-")
		assert.Contains(t, text, "<script>"+pageScript+"</script>", "the digest is of this text")
		own := strings.ReplaceAll(text, "http://www.w3.org/2000/svg", "") // a name, not an address
		for _, outside := range []string{"http:", "https:", "src=", "@import", "url(", `href="/`, "<link"} {
			assert.NotContains(t, own, outside)
		}
		for _, m := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(text, -1) {
			assert.Contains(t, text, `id="`+m[1]+`"`)
		}
	}
}

// longRun is as many steps as a large run has. Nothing is timed; what is asserted is what the time depends on.
const longRun = 100_000

func TestLongRunsStaySmall(t *testing.T) {
	folder := t.TempDir()
	f := begin(t, filepath.Join(folder, "long"), longRun, nil).steps(1, 99_000)
	s := open(t, folder)
	path := "/run/" + s.id("long")
	page := s.page(path)
	r := s.index.run(s.id("long"))
	assert.LessOrEqual(t, len(r.series.steps.buckets), maxBuckets)
	assert.Less(t, len(page), 200_000, "bytes of the page")
	for _, d := range regexp.MustCompile(` d="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		assert.LessOrEqual(t, strings.Count(d[1], "L")+strings.Count(d[1], "V"), 2*wideColumns+2, "points of a curve")
	}
	total := 0
	for _, b := range r.series.steps.buckets {
		total += b.n
	}
	assert.Equal(t, 99_000, total)

	read := r.follower.Offset()
	f.steps(99_001, longRun)
	assert.Contains(t, s.page(path), "of 100000")
	assert.Equal(t, longRun, r.series.last.Step)
	assert.Equal(t, int64(longRun*500), r.series.tokens)
	assert.Greater(t, r.follower.Offset(), read)
}

func TestExtremesSurviveThinning(t *testing.T) {
	var c curve
	for n := 1; n <= 50_000; n++ {
		v := 1.0
		switch n {
		case 31_234:
			v = 77
		case 44_444:
			v = 0.01
		}
		c.add(sample{step: n, values: []float64{v}})
	}
	low, high, steps := 9.0, 0.0, 0
	for _, b := range c.thin(100, overSteps) {
		low, high, steps = min(low, b.stats[0].low), max(high, b.stats[0].high), steps+b.n
	}
	assert.Equal(t, []float64{0.01, 77}, []float64{low, high}, "a column has its least and greatest value")
	assert.Equal(t, 50_000, steps)
	before := len(c.buckets)
	c.thin(10, overSteps)
	assert.Len(t, c.buckets, before)
	assert.Equal(t, 1.0, c.buckets[0].stats[0].high, "thinning does not change the curve")
}

func TestSmoothing(t *testing.T) {
	var c curve
	for n := 1; n <= 400; n++ {
		c.add(sample{step: n, values: []float64{2 + float64(n%2)}})
	}
	smoothed := smooth(c.buckets, 0)
	assert.InDelta(t, 2.5, smoothed[len(smoothed)-1], 0.06, "what alternates is levelled")
	assert.Equal(t, 3.0, smoothed[0], "the first is not drawn to zero")
}

func TestServeEnds(t *testing.T) {
	folder := t.TempDir()
	begin(t, filepath.Join(folder, "run"), 10, nil).steps(1, 2)
	index, err := NewIndex(folder)
	require.NoError(t, err)
	s, err := Listen(index, "127.0.0.1:0")
	require.NoError(t, err)
	_, err = Listen(index, s.listener.Addr().String())
	assert.ErrorAs(t, err, new(*ListenError), "the port is taken")

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx) }()
	client := &http.Client{Transport: &http.Transport{}}
	answer, err := client.Get(s.URL())
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	assert.Equal(t, http.StatusOK, answer.StatusCode)
	cancel()
	assert.NoError(t, <-ended)
	client.CloseIdleConnections()
	_, err = net.DialTimeout("tcp", s.listener.Addr().String(), time.Second)
	assert.Error(t, err, "nobody listens any more")
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
