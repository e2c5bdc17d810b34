package dashboard

import (
	"bytes"
	"context"
	"html/template"
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

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/metrics"
)

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
	answer := s.request("GET", "/")
	tag := answer.Header().Get("ETag")
	assert.Contains(t, answer.Body.String(), `data-tag="`+template.HTMLEscapeString(tag)+`"`, "the script asks with it the first time, too")
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

// stalled is a client that does not take what it is sent.
type stalled struct {
	*httptest.ResponseRecorder
	began, goOn chan struct{}
}

func (w stalled) Write(p []byte) (int, error) {
	close(w.began)
	<-w.goOn
	return len(p), nil
}

func TestASlowClientKeepsNobodyWaiting(t *testing.T) {
	folder := t.TempDir()
	begin(t, filepath.Join(folder, "run"), 10, nil).steps(1, 2)
	s := open(t, folder)
	w := stalled{httptest.NewRecorder(), make(chan struct{}), make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/", nil))
	}()
	<-w.began
	assert.Contains(t, s.page("/"), "1 run", "the first has not got its page yet")
	close(w.goOn)
	<-ended
}

func TestHostsOfAServerForAll(t *testing.T) {
	name, err := os.Hostname()
	require.NoError(t, err)
	s := Server{listener: everywhere{}, hosts: []string{"localhost", strings.ToLower(name)}}
	assert.False(t, s.Loopback())
	assert.Equal(t, "http://"+name+":8080/", s.URL())
	for host, want := range map[string]bool{name + ":8080": true, "192.168.0.7:8080": true, "[2001:db8::1]": true, "127.0.0.1": true, "evil.example": false, "": false} {
		assert.Equal(t, want, s.knows(host), host)
	}
}

// everywhere stands for a listener on all addresses, which a test does not open.
type everywhere struct{ net.Listener }

func (everywhere) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero, Port: 8080} }

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
