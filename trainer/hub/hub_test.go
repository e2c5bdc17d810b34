package hub

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/durable"
)

func model(n int) []byte { return bytes.Repeat([]byte("GGUF0123456789ab"), n/16) }

func find(t *testing.T, s *Store, name string) Found {
	t.Helper()
	found, err := s.Find(context.Background(), name)
	require.NoError(t, err)
	return found
}

func TestAFileComesIntoTheStandardCache(t *testing.T) {
	h := newFakeHub(t)
	data := model(1 << 20)
	h.files["sub/m.gguf"] = data
	s := h.store()
	found := find(t, s, "hf://o/m/sub/m.gguf")
	assert.Equal(t, int64(len(data)), found.Downloaded)
	assert.Equal(t, []string{digestOf(data)}, found.SHA256)
	got, err := os.ReadFile(found.Path)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(data, got))

	repo := filepath.Join(s.Cache, "models--o--m")
	assert.Equal(t, filepath.Join(repo, "snapshots", h.commit, "sub", "m.gguf"), found.Path)
	link, err := os.Readlink(found.Path)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join("..", "..", "..", "blobs", digestOf(data)), link)
	ref, err := os.ReadFile(filepath.Join(repo, "refs", "main"))
	require.NoError(t, err)
	assert.Equal(t, h.commit, string(ref))

	again := find(t, s, "hf://o/m/sub/m.gguf")
	assert.Equal(t, found.Path, again.Path)
	assert.Zero(t, again.Downloaded)
	assert.Equal(t, 1, h.gets)
	pinned := find(t, s, "hf://o/m/sub/m.gguf@"+h.commit)
	assert.Equal(t, found.Path, pinned.Path)
	assert.Equal(t, 2, h.heads, "a commit that is cached needs no question")
	require.NoError(t, found.Verify())
}

func TestSmallFilesVerifyByGitsDigest(t *testing.T) {
	h := newFakeHub(t)
	h.files["tokens.txt"] = []byte("a small file\n")
	found := find(t, h.store(), "hf://o/m/tokens.txt")
	got, err := os.ReadFile(found.Path)
	require.NoError(t, err)
	assert.Equal(t, "a small file\n", string(got))
}

func TestARenamedRepositoryAndARevisionWithSlashes(t *testing.T) {
	h := newFakeHub(t)
	h.files["m.gguf"] = model(4096)
	assert.Equal(t, int64(4096), find(t, h.store(), "hf://o/old/m.gguf").Bytes)
	s := h.store()
	find(t, s, "hf://o/m/m.gguf@refs/pr/1")
	assert.FileExists(t, filepath.Join(s.Cache, "models--o--m", "refs", "refs", "pr", "1"))
}

func TestACutDownloadGoesOnWhereItEnded(t *testing.T) {
	h := newFakeHub(t)
	data := model(1 << 20)
	h.files["m.gguf"] = data
	h.onGet = cutAfter(300_000)
	found := find(t, h.store(), "hf://o/m/m.gguf")
	assert.Equal(t, int64(len(data)), found.Downloaded)
	require.Greater(t, len(h.ranges), 2)
	assert.Equal(t, "", h.ranges[0])
	for _, r := range h.ranges[1:] {
		assert.Regexp(t, `^bytes=[1-9]\d*-$`, r)
	}
}

func TestALaterProcessGoesOnWithWhatIsThere(t *testing.T) {
	h := newFakeHub(t)
	data := model(1 << 20)
	h.files["m.gguf"] = data
	s := h.store()
	h.onGet = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if h.gets > 1 {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return cutAfter(500_000)(w, r, data)
	}
	_, err := s.Find(context.Background(), "hf://o/m/m.gguf")
	require.ErrorIs(t, err, ErrUnreachable)
	part := filepath.Join(s.Cache, "models--o--m", "blobs", digestOf(data)+incompleteSuffix)
	info, err := os.Stat(part)
	require.NoError(t, err)
	require.NoDirExists(t, filepath.Join(s.Cache, "models--o--m", "snapshots"))
	h.onGet = nil
	found := find(t, s, "hf://o/m/m.gguf")
	assert.Equal(t, int64(len(data))-info.Size(), found.Downloaded)
	require.NoError(t, found.Verify())
	assert.NoFileExists(t, part)
}

func TestAServerWithoutRangesIsReadFromTheBeginning(t *testing.T) {
	h := newFakeHub(t)
	data := model(1 << 20)
	h.files["m.gguf"] = data
	cut := cutAfter(400_000)
	h.onGet = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if h.gets == 1 {
			return cut(w, r, data)
		}
		w.Write(data)
		return true
	}
	require.NoError(t, find(t, h.store(), "hf://o/m/m.gguf").Verify())
}

func TestAStalledConnectionIsGivenUp(t *testing.T) {
	h := newFakeHub(t)
	data := model(1 << 20)
	h.files["m.gguf"] = data
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	h.onGet = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if h.gets > 1 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:1000])
		w.(http.Flusher).Flush()
		h.mu.Unlock()
		select {
		case <-r.Context().Done():
		case <-stop:
		}
		h.mu.Lock()
		return true
	}
	require.NoError(t, find(t, h.store(), "hf://o/m/m.gguf").Verify())
	assert.Equal(t, 2, h.gets)
}

func TestLeftoversOfAnotherFileAreBegunAnew(t *testing.T) {
	h := newFakeHub(t)
	data := model(1 << 16)
	h.files["m.gguf"] = data
	for name, left := range map[string][]byte{"shorter": []byte("other bytes"), "longer": bytes.Repeat([]byte("x"), len(data)+1), "as long": bytes.Repeat([]byte("x"), len(data))} {
		t.Run(name, func(t *testing.T) {
			s := h.store()
			blobs := filepath.Join(s.Cache, "models--o--m", "blobs")
			require.NoError(t, os.MkdirAll(blobs, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(blobs, digestOf(data)+incompleteSuffix), left, 0o644))
			require.NoError(t, find(t, s, "hf://o/m/m.gguf").Verify())
		})
	}
}

func TestWhatIsNotTheAnnouncedFileIsRemoved(t *testing.T) {
	h := newFakeHub(t)
	h.files["m.gguf"] = model(1 << 16)
	h.etag = strings.Repeat("0", 64)
	s := h.store()
	_, err := s.Find(context.Background(), "hf://o/m/m.gguf")
	require.ErrorIs(t, err, ErrDigest)
	entries, err := os.ReadDir(filepath.Join(s.Cache, "models--o--m", "blobs"))
	require.NoError(t, err)
	assert.Empty(t, entries)
	assert.NoDirExists(t, filepath.Join(s.Cache, "models--o--m", "snapshots"))

	h.etag = ""
	h.onGet = func(w http.ResponseWriter, _ *http.Request, data []byte) bool {
		w.Write(append(bytes.Clone(data), 'x')) // longer than announced
		return true
	}
	_, err = h.store().Find(context.Background(), "hf://o/m/m.gguf")
	require.ErrorIs(t, err, ErrDigest)
}

func TestAServerThatIsNoHubNamesNoFiles(t *testing.T) {
	for name, change := range map[string]func(h http.Header){
		"no commit":   func(h http.Header) { h.Del("X-Repo-Commit") },
		"commit path": func(h http.Header) { h.Set("X-Repo-Commit", "../../../etc") },
		"etag path":   func(h http.Header) { h.Set("X-Linked-Etag", `"../../x"`) },
		"no size":     func(h http.Header) { h.Set("X-Linked-Size", "much") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHub(t)
			h.onHead = func(w http.ResponseWriter) bool {
				w.Header().Set("X-Repo-Commit", h.commit)
				w.Header().Set("X-Linked-Etag", strings.Repeat("b", 64))
				w.Header().Set("X-Linked-Size", "10")
				change(w.Header())
				return true
			}
			s := h.store()
			_, err := s.Find(context.Background(), "hf://o/m/m.gguf")
			require.Error(t, err)
			entries, err := os.ReadDir(s.Cache)
			require.NoError(t, err)
			assert.Empty(t, entries)
		})
	}
}

func TestRefusalsAreTold(t *testing.T) {
	h := newFakeHub(t)
	h.files["m.gguf"] = model(4096)
	find404 := func(name, says string) {
		t.Helper()
		_, err := h.store().Find(context.Background(), name)
		require.ErrorIs(t, err, ErrNotFound)
		assert.ErrorContains(t, err, says)
	}
	find404("hf://o/none/m.gguf", "repository o/none")
	find404("hf://o/m/none.gguf", "file none.gguf")
	find404("hf://o/m/m.gguf@v9", "revision v9")
	_, err := h.store().Find(context.Background(), "hf://o/m")
	assert.ErrorContains(t, err, "there are m.gguf")

	h.token = "right"
	s := h.store()
	_, err = s.Find(context.Background(), "hf://o/m/m.gguf")
	require.ErrorIs(t, err, ErrDenied)
	assert.ErrorContains(t, err, "HF_TOKEN is not set")
	s.Token = "wrong"
	_, err = s.Find(context.Background(), "hf://o/m/m.gguf")
	require.ErrorIs(t, err, ErrDenied)
	assert.NotContains(t, err.Error(), "wrong")
	s.Token = "right"
	find(t, s, "hf://o/m/m.gguf")
	assert.Empty(t, h.leaked, "the other host got the token")

	h.onHead = func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusForbidden); return true }
	_, err = s.Find(context.Background(), "hf://o/m/m.gguf@main")
	require.ErrorIs(t, err, ErrDenied)
	assert.ErrorContains(t, err, "terms")
}

func TestABusyHubIsAskedAgain(t *testing.T) {
	h := newFakeHub(t)
	h.files["m.gguf"] = model(4096)
	h.onHead = func(w http.ResponseWriter) bool {
		switch h.heads {
		case 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			return false
		}
		return true
	}
	find(t, h.store(), "hf://o/m/m.gguf")
	assert.Equal(t, 3, h.heads)
	h.onHead = func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusServiceUnavailable); return true }
	_, err := h.store().Find(context.Background(), "hf://o/m/m.gguf")
	require.ErrorIs(t, err, ErrUnreachable)
}

func TestWithoutAHubTheCacheIsTaken(t *testing.T) {
	h := newFakeHub(t)
	h.files["m.gguf"] = model(4096)
	s := h.store()
	found := find(t, s, "hf://o/m/m.gguf")
	h.hub.Close()
	var notes []string
	s.Note = func(text string) { notes = append(notes, text) }
	assert.Equal(t, found.Path, find(t, s, "hf://o/m/m.gguf").Path)
	require.Len(t, notes, 1)
	assert.Contains(t, notes[0], "cannot be reached")
	s.Offline = true
	assert.Equal(t, found.Path, find(t, s, "hf://o/m/m.gguf").Path)
	_, err := s.Find(context.Background(), "hf://o/m/other.gguf")
	require.ErrorIs(t, err, ErrNotFound)
	assert.ErrorContains(t, err, "HF_HUB_OFFLINE")
}

func TestShardsComeTogether(t *testing.T) {
	h := newFakeHub(t)
	for i := 1; i <= 3; i++ {
		h.files[fmt.Sprintf("m-0000%d-of-00003.gguf", i)] = model(4096 * i)
	}
	found := find(t, h.store(), "hf://o/m/m-00001-of-00003.gguf")
	assert.Len(t, found.Files, 3)
	assert.Equal(t, found.Files[0], found.Path)
	assert.Equal(t, int64(6*4096), found.Bytes)
	_, err := h.store().Find(context.Background(), "hf://o/m/m-00002-of-00003.gguf")
	assert.ErrorContains(t, err, "m-00001-of-00003.gguf")
	delete(h.files, "m-00003-of-00003.gguf")
	_, err = h.store().Find(context.Background(), "hf://o/m/m-00001-of-00003.gguf")
	require.ErrorIs(t, err, ErrNotFound)
	assert.ErrorContains(t, err, "m-00003-of-00003.gguf")
}

func TestOneDownloadsAndOthersWait(t *testing.T) {
	h := newFakeHub(t)
	data := model(1 << 18)
	h.files["m.gguf"] = data
	s := h.store()
	h.onGet = func(http.ResponseWriter, *http.Request, []byte) bool {
		time.Sleep(50 * time.Millisecond) // others ask meanwhile
		return false
	}
	var group sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		group.Go(func() { _, errs[i] = s.Find(context.Background(), "hf://o/m/m.gguf") })
	}
	group.Wait()
	for _, err := range errs {
		assert.NoError(t, err)
	}
	assert.Equal(t, 1, h.gets)
}

func TestACancelledDownloadEnds(t *testing.T) {
	h := newFakeHub(t)
	h.files["m.gguf"] = model(1 << 20)
	ctx, cancel := context.WithCancel(context.Background())
	s := h.store()
	s.Progress = func(string, int64, int64) { cancel() }
	_, err := s.Find(ctx, "hf://o/m/m.gguf")
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrUnreachable)
}

func TestReferences(t *testing.T) {
	for text, want := range map[string]Reference{
		"hf://o/m/f.gguf":                     {"o", "m", "f.gguf", "main"},
		"hf://o/m/a/b/f.gguf@v1.0":            {"o", "m", "a/b/f.gguf", "v1.0"},
		"hf://o/m/f.gguf@refs/pr/1":           {"o", "m", "f.gguf", "refs/pr/1"},
		"hf://O-1/m_2.x/Q4 K_M.gguf":          {"O-1", "m_2.x", "Q4 K_M.gguf", "main"},
		"hf://o/m@" + strings.Repeat("c", 40): {"o", "m", "", strings.Repeat("c", 40)},
	} {
		got, err := ParseReference(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got)
	}
	for _, text := range []string{"hf://", "hf://o", "hf:///m/f", "hf://../m/f", "hf://o/../f.gguf", "hf://o/m/../f", "hf://o/m/a//f", "hf://o/m/f@../x", "hf://o/m/f@", "hf://o/m/f?x=1", "s3://o/m/f"} {
		_, err := ParseReference(text)
		assert.Error(t, err, text)
	}
}

func TestTheEnvironmentSaysWhereThingsAre(t *testing.T) {
	env := map[string]string{}
	get := func(key string) string { return env[key] }
	s := FromEnvironment(get, "/home/x")
	assert.Equal(t, "/home/x/.cache/huggingface/hub", s.Cache)
	assert.Equal(t, "https://huggingface.co", s.Endpoint)
	assert.Contains(t, s.Ollama, "/home/x/.ollama/models")
	env["XDG_CACHE_HOME"] = "/c"
	assert.Equal(t, "/c/huggingface/hub", FromEnvironment(get, "/home/x").Cache)
	env["HF_HOME"] = t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(env["HF_HOME"], "token"), []byte("stored\n"), 0o600))
	s = FromEnvironment(get, "/home/x")
	assert.Equal(t, filepath.Join(env["HF_HOME"], "hub"), s.Cache)
	assert.Equal(t, "stored", s.Token)
	env["HF_TOKEN"], env["HF_HUB_CACHE"], env["HF_ENDPOINT"], env["HF_HUB_OFFLINE"] = "given", "/h", "https://mirror", "1"
	s = FromEnvironment(get, "/home/x")
	assert.Equal(t, "given", s.Token)
	assert.Equal(t, "/h", s.Cache)
	assert.Equal(t, "https://mirror", s.Endpoint)
	assert.True(t, s.Offline)
}

func TestTokensGoOverNoOpenWire(t *testing.T) {
	s := &Store{Endpoint: "http://hub.example", Token: "t"}
	for at, want := range map[string]string{"http://hub.example/x": "", "https://hub.example/x": "Bearer t", "http://127.0.0.1:9/x": "Bearer t"} {
		req, err := s.request(context.Background(), http.MethodHead, at)
		require.NoError(t, err)
		assert.Equal(t, want, req.Header.Get("Authorization"), at)
	}
}

func TestADiskThatIsTooSmallIsFoundBeforeTheDownload(t *testing.T) {
	h := newFakeHub(t)
	h.files["m.gguf"] = model(4096)
	h.onHead = func(w http.ResponseWriter) bool {
		w.Header().Set("X-Repo-Commit", h.commit)
		w.Header().Set("X-Linked-Etag", strings.Repeat("b", 64))
		w.Header().Set("X-Linked-Size", fmt.Sprint(int64(1)<<60))
		return true
	}
	_, err := h.store().Find(context.Background(), "hf://o/m/m.gguf")
	var space *durable.SpaceError
	require.ErrorAs(t, err, &space)
	assert.Zero(t, h.gets)
}
