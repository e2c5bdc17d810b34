package hub

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeHub answers as the hub does: small files itself, large ones by a redirect to another host.
type fakeHub struct {
	t        *testing.T
	hub, cdn *httptest.Server

	mu      sync.Mutex
	commit  string
	files   map[string][]byte
	token   string // empty: anybody may read
	gets    int    // answered by the CDN with content
	heads   int
	ranges  []string
	onHead  func(w http.ResponseWriter) bool // true: it has answered
	onGet   func(w http.ResponseWriter, r *http.Request, data []byte) bool
	etag    string // instead of the file's digest
	leaked  []string
	toHTTPS bool
}

func newFakeHub(t *testing.T) *fakeHub {
	h := &fakeHub{t: t, commit: strings.Repeat("a", 40), files: map[string][]byte{}}
	h.hub = httptest.NewServer(http.HandlerFunc(h.serveHub))
	h.cdn = httptest.NewServer(http.HandlerFunc(h.serveCDN))
	t.Cleanup(func() { h.hub.Close(); h.cdn.Close() })
	return h
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (h *fakeHub) serveHub(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.token != "" && r.Header.Get("Authorization") != "Bearer "+h.token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodHead {
		h.heads++
		if h.onHead != nil && h.onHead(w) {
			return
		}
	}
	if strings.HasPrefix(r.URL.Path, "/api/models/o/m/revision/") {
		fmt.Fprint(w, `{"siblings": [{"rfilename": "README.md"}`)
		for name := range h.files {
			fmt.Fprintf(w, `, {"rfilename": %q}`, name)
		}
		fmt.Fprint(w, `]}`)
		return
	}
	if strings.HasPrefix(r.URL.Path, "/o/old/") { // a repository that got another name
		http.Redirect(w, r, strings.Replace(r.URL.Path, "/o/old/", "/o/m/", 1), http.StatusTemporaryRedirect)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), "/o/m/resolve/")
	if !ok {
		w.Header().Set("X-Error-Code", "RepoNotFound")
		w.WriteHeader(http.StatusNotFound)
		return
	}
	revision, file, _ := strings.Cut(rest, "/")
	data, there := h.files[file]
	switch {
	case revision != "main" && revision != h.commit && revision != "refs%2Fpr%2F1":
		w.Header().Set("X-Error-Code", "RevisionNotFound")
		w.WriteHeader(http.StatusNotFound)
		return
	case !there:
		w.Header().Set("X-Error-Code", "EntryNotFound")
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("X-Repo-Commit", h.commit)
	if !strings.HasSuffix(file, ".gguf") { // small: git's own digest
		sum := sha1.Sum(append([]byte(fmt.Sprintf("blob %d\x00", len(data))), data...))
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return
	}
	etag := h.etag
	if etag == "" {
		etag = digestOf(data)
	}
	w.Header().Set("X-Linked-Etag", `"`+etag+`"`)
	w.Header().Set("X-Linked-Size", strconv.Itoa(len(data)))
	http.Redirect(w, r, h.cdn.URL+"/"+file+"?signature=secret", http.StatusFound)
}

func (h *fakeHub) serveCDN(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := r.Header.Get("Authorization"); a != "" {
		h.leaked = append(h.leaked, a)
	}
	data := h.files[strings.TrimPrefix(r.URL.Path, "/")]
	h.gets++
	h.ranges = append(h.ranges, r.Header.Get("Range"))
	if h.onGet != nil && h.onGet(w, r, data) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// store is one that asks the fake hub, soon tired.
func (h *fakeHub) store() *Store {
	return &Store{
		Endpoint: h.hub.URL, Cache: h.t.TempDir(),
		Patience: Patience{Attempts: 3, First: time.Millisecond, Longest: 20 * time.Millisecond, Stall: 200 * time.Millisecond},
	}
}

// cutAfter gives n bytes of what was asked for and breaks the connection.
func cutAfter(n int) func(http.ResponseWriter, *http.Request, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		from := 0
		if text := strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"); text != "" {
			from, _ = strconv.Atoi(text)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(data[from:min(from+n, len(data))])
		if from+n < len(data) {
			panic(http.ErrAbortHandler)
		}
		return true
	}
}
