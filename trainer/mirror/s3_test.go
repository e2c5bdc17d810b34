package mirror

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
)

// fakeS3 speaks as much of S3's protocol as a mirror uses: GET, HEAD, PUT and DELETE of objects, uploads in parts, and
// lists, two keys to a page. Signatures are not looked at.
type fakeS3 struct {
	mu      sync.Mutex
	objects map[string][]byte         // by "bucket/key"
	parts   map[string]map[int][]byte // of uploads, by their ID
	calls   map[string]int
	// fault, if not nil, is asked before every call; a status above 0 is the answer.
	fault func(method, key string) int
	bare  bool // lists without what a store should give: the client's driver trips over it
}

const keysToAPage = 2

func newFakeS3(t *testing.T) (*fakeS3, string) {
	t.Helper()
	f := &fakeS3{objects: map[string][]byte{}, parts: map[string]map[int][]byte{}, calls: map[string]int{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	for key, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "nowhere", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": filepath.Join(t.TempDir(), "none"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(t.TempDir(), "none"),
	} {
		t.Setenv(key, value)
	}
	return f, "s3://bucket/some/run?use_path_style=true&endpoint=" + server.URL
}

func (f *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key, query := strings.TrimPrefix(r.URL.Path, "/"), r.URL.Query()
	if f.fault != nil {
		if status := f.fault(r.Method, key); status > 0 {
			f.calls[strconv.Itoa(status)]++
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>Fault%d</Code><Message>on purpose</Message></Error>", status)
			return
		}
	}
	switch {
	case r.Method == http.MethodGet && query.Has("list-type"):
		f.list(w, key, query.Get("prefix"), query.Get("continuation-token"))
	case query.Has("uploads"), query.Has("uploadId"):
		f.upload(w, r, key, body)
	case r.Method == http.MethodPut:
		f.calls["PUT"]++
		f.objects[key] = body
		tag(w, body)
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		f.get(w, r, key)
	case r.Method == http.MethodDelete:
		f.calls["DELETE"]++
		delete(f.objects, key)
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(http.StatusNotImplemented)
	}
}

func tag(w http.ResponseWriter, body []byte) {
	sum := md5.Sum(body)
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
}

func (f *fakeS3) get(w http.ResponseWriter, r *http.Request, key string) {
	f.calls[r.Method]++
	body, is := f.objects[key]
	if !is {
		w.WriteHeader(http.StatusNotFound)
		if r.Method == http.MethodGet {
			fmt.Fprint(w, "<Error><Code>NoSuchKey</Code><Message>it is not here</Message></Error>")
		}
		return
	}
	tag(w, body)
	http.ServeContent(w, r, "", firstTime, bytes.NewReader(body))
}

func (f *fakeS3) list(w http.ResponseWriter, bucket, prefix, after string) {
	f.calls["LIST"]++
	type object struct {
		Key          string
		Size         int
		ETag         string     `xml:",omitempty"`
		LastModified *time.Time `xml:",omitempty"`
	}
	var page struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string
		Contents              []object
	}
	var keys []string
	for key := range f.objects {
		if key, ok := strings.CutPrefix(key, strings.TrimSuffix(bucket, "/")+"/"); ok && strings.HasPrefix(key, prefix) && key > after {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if page.IsTruncated = len(page.Contents) == keysToAPage; page.IsTruncated {
			page.NextContinuationToken = page.Contents[keysToAPage-1].Key
			break
		}
		o := object{Key: key, Size: len(f.objects[strings.TrimSuffix(bucket, "/")+"/"+key])}
		if !f.bare {
			o.ETag, o.LastModified = `"tag"`, &firstTime
		}
		page.Contents = append(page.Contents, o)
	}
	_ = xml.NewEncoder(w).Encode(page) // the client went away
}

// upload is a call of an upload in parts.
func (f *fakeS3) upload(w http.ResponseWriter, r *http.Request, key string, body []byte) {
	id := r.URL.Query().Get("uploadId")
	switch {
	case r.URL.Query().Has("uploads"):
		id = fmt.Sprintf("upload-%d", len(f.parts))
		f.parts[id] = map[int][]byte{}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case r.Method == http.MethodPut:
		f.calls["PART"]++
		number, err := strconv.Atoi(r.URL.Query().Get("partNumber"))
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		f.parts[id][number] = body
		tag(w, body)
	case r.Method == http.MethodPost:
		f.calls["COMPLETE"]++
		var whole []byte
		for number := 1; number <= len(f.parts[id]); number++ {
			whole = append(whole, f.parts[id][number]...)
		}
		f.objects[key] = whole
		delete(f.parts, id)
		fmt.Fprint(w, `<CompleteMultipartUploadResult><ETag>"whole"</ETag></CompleteMultipartUploadResult>`)
	case r.Method == http.MethodDelete:
		f.calls["ABORT"]++
		delete(f.parts, id)
		w.WriteHeader(http.StatusNoContent)
	}
}

func openS3(t *testing.T, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), url, true)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	s.patience = hurried
	return s
}

func TestS3(t *testing.T) {
	f, url := newFakeS3(t)
	s := openS3(t, url)
	assert.Equal(t, "s3://bucket/some/run", s.Name())
	r := newRun(t, firstRun)
	report := r.mirrored(t, s, 1, 2, 3)
	assert.Equal(t, 3, report.Step)
	assert.Zero(t, report.Failed, report.Error)
	for key := range f.objects {
		assert.True(t, strings.HasPrefix(key, "bucket/some/run/"), key)
	}
	assert.Equal(t, 1+2*6, len(f.objects))
	state, err := openS3(t, url).Check(t.Context())
	require.NoError(t, err)
	assert.Empty(t, append(state.Problems, state.Notes...))
	dir := filepath.Join(t.TempDir(), "run")
	restored, said, err := restore(t, s, dir)
	require.NoError(t, err)
	assert.Empty(t, said)
	assert.Equal(t, 3, restored.Step)
	r.same(t, dir, 3)
	for _, call := range []string{"PUT", "GET", "LIST", "DELETE"} {
		assert.Positive(t, f.calls[call], call)
	}
}

// What is larger than a part goes up in parts, and is visible when all of them are there.
func TestS3InParts(t *testing.T) {
	f, url := newFakeS3(t)
	s := openS3(t, url)
	large := bytes.Repeat([]byte("0123456789abcdef"), (2*partBytes+partBytes/2)/16)
	file := fileOf("adapter.gguf", large)
	refused := 0
	f.fault = func(method, key string) int {
		if method == http.MethodPost && len(f.parts) > 0 && refused < 1 { // not to begin, but to complete
			refused++
			return http.StatusForbidden
		}
		return 0
	}
	require.NoError(t, s.put(t.Context(), "checkpoints/step-00000001/", file, func() io.Reader { return bytes.NewReader(large) }))
	assert.Equal(t, 1, refused)
	assert.Equal(t, 2*3, f.calls["PART"], "three parts, twice")
	assert.Equal(t, 1, f.calls["COMPLETE"])
	assert.Equal(t, 1, f.calls["ABORT"], "the parts of the first attempt are not left to be paid for")
	assert.Empty(t, f.parts)
	assert.True(t, bytes.Equal(large, f.objects["bucket/some/run/checkpoints/step-00000001/adapter.gguf"]))
}

func TestS3Faults(t *testing.T) {
	f, url := newFakeS3(t)
	s := openS3(t, url)
	r := newRun(t, firstRun)
	calls := 0
	f.fault = func(string, string) int { // every third call fails, one way or the other
		if calls++; calls%3 > 0 {
			return 0
		}
		return []int{http.StatusForbidden, http.StatusNotImplemented, http.StatusConflict}[calls/3%3]
	}
	c, err := s.Claim(t.Context(), r.name, 0)
	require.NoError(t, err)
	w := Start(c, nil)
	for step := 1; step <= 3; step++ {
		r.save(t, step)
		w.Offer(r.take(t, step))
	}
	report := w.Finish(t.Context(), finishLimit)
	assert.Equal(t, 3, report.Step, report.Error)
	f.fault = nil
	f.bare = true
	_, err = s.Check(t.Context())
	assert.ErrorContains(t, err, "the store's driver cannot cope with its answer")
	f.bare = false
	state, err := s.Check(t.Context())
	require.NoError(t, err)
	assert.Empty(t, state.Problems)

	// A bucket that nobody may write to is found out by the claim.
	f.fault = func(method, _ string) int {
		if method == http.MethodPut {
			return http.StatusForbidden
		}
		return 0
	}
	_, err = s.Claim(t.Context(), r.name, 3)
	assert.ErrorContains(t, err, "mirror s3://bucket/some/run: run.json: after 4 attempts: write: ")
	assert.ErrorContains(t, err, "Fault403")
	_, err = openS3(t, strings.Replace(url, "/run?", "/nothing?", 1)).Check(t.Context())
	assert.ErrorIs(t, err, checkpoint.ErrNotFound)
}
