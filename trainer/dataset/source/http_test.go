package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/bucket"
)

// hurried is patience for tests: the same number of attempts, with little between them.
var hurried = patience{defaultPatience.attempts, bucket.Backoff{First: time.Microsecond, Longest: time.Millisecond}, 30 * time.Second}

// web serves one content and fails as told.
type web struct {
	content   []byte
	tagged    bool // gives an ETag
	noRanges  bool
	chunked   bool  // does not tell the size
	refusals  []int // statuses of the next answers
	breaks    []int // bytes after which the next bodies end; -1: they do not
	onRequest func(w *web)

	mu       sync.Mutex
	requests []string // their ranges
}

func (w *web) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = append(w.requests, r.Header.Get("Range"))
	if w.onRequest != nil {
		w.onRequest(w)
	}
	if len(w.refusals) > 0 {
		code := w.refusals[0]
		w.refusals = w.refusals[1:]
		http.Error(out, "refused", code)
		return
	}
	content, status := w.content, http.StatusOK
	if w.tagged {
		out.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprintf("%x", sha256.Sum256(content))))
	}
	if asked := r.Header.Get("Range"); asked != "" && !w.noRanges {
		first, last, _ := strings.Cut(strings.TrimPrefix(asked, "bytes="), "-")
		from, _ := strconv.Atoi(first)
		to := len(content) - 1
		if last != "" {
			to, _ = strconv.Atoi(last)
		}
		if from >= len(content) {
			out.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		to = min(to, len(content)-1)
		out.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(content)))
		content, status = content[from:to+1], http.StatusPartialContent
	}
	if !w.chunked {
		out.Header().Set("Content-Length", strconv.Itoa(len(content)))
	}
	out.WriteHeader(status)
	end := -1
	if len(w.breaks) > 0 && r.Header.Get("Range") != "bytes=0-0" {
		end, w.breaks = w.breaks[0], w.breaks[1:]
	}
	if end < 0 || end > len(content) {
		_, _ = out.Write(content) // the client may have gone
		return
	}
	_, _ = out.Write(content[:end])
	out.(http.Flusher).Flush()
	panic(http.ErrAbortHandler) // closes the connection
}

// serve starts the server; find expands a path on it.
func (w *web) serve(t testing.TB) (find func(path string) ([]File, error)) {
	t.Helper()
	server := httptest.NewServer(w)
	client := newWebClient()
	t.Cleanup(func() { client.CloseIdleConnections(); server.Close() })
	f := &finder{client: client, patience: hurried}
	return func(path string) ([]File, error) { return f.find(context.Background(), server.URL+path) }
}

func (w *web) file(t testing.TB, path string) File {
	t.Helper()
	files, err := w.serve(t)(path)
	require.NoError(t, err)
	require.Len(t, files, 1)
	return files[0]
}

func manyLines(n int) (content string, want []row) {
	var b strings.Builder
	for i := range n {
		text := fmt.Sprintf(`{"number": %d, "text": "%s"}`, i, strings.Repeat("x", i%97))
		want = append(want, row{text, i + 1})
		b.WriteString(text + "\n")
	}
	return b.String(), want
}

func TestWeb(t *testing.T) {
	content, want := manyLines(5000)
	for name, w := range map[string]*web{
		"plain":                       {content: []byte(content)},
		"gzip":                        {content: []byte(gzipped(t, content))},
		"of a size that is not known": {content: []byte(content), chunked: true, noRanges: true},
		"refused at first":            {content: []byte(content), refusals: []int{503, 429, 500, 502, 504}},
		"broken":                      {content: []byte(content), tagged: true, breaks: []int{0, 1, 100_000, 0, 0, 0, 0, 10, 100_000}},
		"broken and refused":          {content: []byte(content), tagged: true, breaks: []int{70_000, 90_000}, refusals: []int{500}},
		"broken without ranges":       {content: []byte(content), tagged: true, noRanges: true, breaks: []int{10_000, 200_000}},
		"broken at the end":           {content: []byte(content), tagged: true, breaks: []int{len(content)}},
		"broken, of no known size":    {content: []byte(content), tagged: true, chunked: true, noRanges: true, breaks: []int{10_000}},
		"packed and broken":           {content: []byte(zstandard(t, content)), tagged: true, breaks: []int{1000, 2000}},
	} {
		t.Run(name, func(t *testing.T) {
			f := w.file(t, "/folder/data.jsonl?key=secret")
			assert.True(t, strings.HasSuffix(f.Name, "/folder/data.jsonl"), "the name %s tells no secrets", f.Name)
			assert.False(t, f.Plain())
			size := int64(len(w.content))
			if w.chunked {
				size = -1
			}
			assert.Equal(t, size, f.Bytes())
			got, err := rows(t, f)
			require.NoError(t, err)
			assert.Equal(t, want, got)
			assert.Empty(t, w.breaks, "every break came to pass")
			stamp, ok, err := f.Stamp(t.Context())
			require.NoError(t, err)
			assert.Equal(t, w.tagged, ok)
			assert.Equal(t, w.tagged, stamp != "")
		})
	}
}

func TestWebGoesOnWhereItBroke(t *testing.T) {
	content, _ := manyLines(5000)
	w := &web{content: []byte(content), tagged: true, breaks: []int{100_000}}
	_, err := rows(t, w.file(t, "/data.jsonl"))
	require.NoError(t, err)
	require.Len(t, w.requests, 3)
	assert.Equal(t, []string{"bytes=0-0", ""}, w.requests[:2])
	var from int
	_, err = fmt.Sscanf(w.requests[2], "bytes=%d-", &from)
	require.NoError(t, err)
	assert.Positive(t, from)
	assert.LessOrEqual(t, from, 100_000)
}

func TestWebRefuses(t *testing.T) {
	content, _ := manyLines(5000)
	other := strings.Replace(content, "0", "1", 1)
	always := func(code int) func(*web) { return func(w *web) { w.refusals = []int{code} } }
	change := func(w *web) {
		if len(w.requests) == 3 {
			w.content = []byte(other)
		}
	}
	for name, tt := range map[string]struct {
		web      *web
		want     string
		requests int
	}{
		"missing":               {&web{onRequest: always(404)}, "the server says 404 Not Found", 1},
		"forbidden":             {&web{onRequest: always(403)}, "the server says 403 Forbidden", 1},
		"failing":               {&web{onRequest: always(500)}, "after 6 attempts: the server says 500 Internal Server Error", 6},
		"changed after a break": {&web{content: []byte(content), tagged: true, breaks: []int{9999}, onRequest: change}, "it changed while it was read: ", 3},
		"broken without a tag":  {&web{content: []byte(content), breaks: []int{9999}}, "does not tell whether the content is still the same", 3},
		"broken all the time":   {&web{content: []byte(content), tagged: true, breaks: make([]int, 100)}, "after 0 bytes and 6 attempts: ", 7},
		"empty":                 {&web{}, "is empty", 2},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := tt.web.serve(t)("/data.jsonl?key=secret")
			if err == nil {
				_, err = rows(t, files[0])
			}
			assert.ErrorContains(t, err, tt.want)
			assert.NotContains(t, fmt.Sprint(err), "secret")
			assert.Len(t, tt.web.requests, tt.requests)
		})
	}
	_, err := (&finder{client: newWebClient(), patience: hurried}).find(t.Context(), "http://127.0.0.1:1/data.jsonl?key=secret")
	assert.ErrorContains(t, err, "after 6 attempts: dial tcp 127.0.0.1:1")
	assert.NotContains(t, fmt.Sprint(err), "secret")
	_, err = Expand(t.Context(), "https://user:password@example.com/folder/?key=secret")
	assert.EqualError(t, err, "find https://example.com/folder: an http address must name a file: servers list no folders")
}

// A connection that gives nothing counts as broken.
func TestStalledConnection(t *testing.T) {
	content, want := manyLines(100)
	release := make(chan struct{})
	stalled := false
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		mu.Lock()
		first := !stalled && r.Header.Get("Range") == ""
		stalled = stalled || first
		mu.Unlock()
		out.Header().Set("ETag", `"1"`)
		if !first {
			http.ServeContent(out, r, "data.jsonl", time.Time{}, strings.NewReader(content))
			return
		}
		out.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = io.WriteString(out, content[:500])
		out.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	client := newWebClient()
	defer func() { close(release); client.CloseIdleConnections(); server.Close() }()
	short := hurried
	short.stall = 200 * time.Millisecond
	files, err := (&finder{client: client, patience: short}).find(t.Context(), server.URL+"/data.jsonl")
	require.NoError(t, err)
	got, err := rows(t, files[0])
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.True(t, stalled)
}

func TestWebParquet(t *testing.T) {
	list := make([]benchRow, 20_000)
	for i := range list {
		list[i] = newBenchRow(i)
	}
	var b bytes.Buffer
	require.NoError(t, parquet.Write(&b, list, parquet.MaxRowsPerRowGroup(6000)))
	want, err := rows(t, write(t, "data.parquet", b.String()))
	require.NoError(t, err)
	require.Len(t, want, len(list))

	w := &web{content: b.Bytes(), tagged: true, refusals: []int{503}, breaks: []int{-1, -1, 100, -1, 0}}
	got, err := rows(t, w.file(t, "/data.parquet"))
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.Empty(t, w.breaks)
	// Twice what it is of what size, the start, the footer's length twice, its text, and the rows; five of them again.
	assert.Len(t, w.requests, 10, "reads are gathered into ranges")

	w = &web{content: b.Bytes(), noRanges: true}
	_, err = rows(t, w.file(t, "/data.parquet"))
	assert.ErrorContains(t, err, "the server gives the file only as a whole; download it first")

	other := bytes.Clone(b.Bytes())
	other[0]++
	w = &web{content: b.Bytes(), tagged: true, onRequest: func(w *web) {
		if len(w.requests) == 6 {
			w.content = other
		}
	}}
	_, err = rows(t, w.file(t, "/data.parquet"))
	assert.ErrorContains(t, err, "it changed while it was read")
}

func TestContentRange(t *testing.T) {
	for header, want := range map[string][2]int64{"bytes 3-8/20": {3, 20}, "bytes 0-0/*": {0, -1}} {
		from, total, err := parseContentRange(header)
		require.NoError(t, err)
		assert.Equal(t, want, [2]int64{from, total}, header)
	}
	for _, header := range []string{"", "bytes", "bytes */20", "bytes x-8/20", "bytes 3-8/x"} {
		_, _, err := parseContentRange(header)
		assert.ErrorContains(t, err, "the server's Content-Range is", header)
	}
}
