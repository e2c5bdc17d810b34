package launch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/durable"
)

// renamingHost holds each rename up until others have begun to write.
type renamingHost struct {
	localHost
	writers atomic.Int32
}

func (h *renamingHost) WriteFrom(path string, offset int64) (io.WriteCloser, error) {
	h.writers.Add(1)
	return h.localHost.WriteFrom(path, offset)
}

// Several launches that send the same files at once all succeed, and no file has its name before it is whole.
func TestSeveralLaunchesSendTheSameFile(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), (40<<20)/16)
	local, remote := filepath.Join(dir, "file"), filepath.Join(dir, "far", "file")
	require.NoError(t, os.WriteFile(local, content, 0o600))
	want, err := durable.Digest(local)
	require.NoError(t, err)
	for _, left := range []int{0, 1, 30 << 20, len(content), len(content) + 5} {
		require.NoError(t, os.RemoveAll(filepath.Dir(remote)))
		require.NoError(t, os.MkdirAll(filepath.Dir(remote), 0o700))
		if left > 0 { // of another attempt
			require.NoError(t, os.WriteFile(remote+partSuffix, bytes.Repeat([]byte("x"), left), 0o600))
		}
		h := &renamingHost{}
		errs := make([]error, 6)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() {
				errs[i] = put(t.Context(), h, local, remote, want, privateFile)
				have, err := durable.Digest(remote)
				assert.NoError(t, err)
				assert.Equal(t, want, have)
			})
		}
		all.Wait()
		for _, err := range errs {
			require.NoError(t, err, "%d bytes were there", left)
		}
		assert.NoFileExists(t, remote+partSuffix)
	}
	// Damaged, it is replaced, and nobody is waited for.
	require.NoError(t, os.WriteFile(remote, content[:1000], 0o600))
	require.NoError(t, put(t.Context(), localHost{}, local, remote, want, privateFile))
	have, err := durable.Digest(remote)
	require.NoError(t, err)
	assert.Equal(t, want, have)
}

// overtakenHost lets others come in between when a file that has been sent is first renamed: one gives the part its name, another begins a new one.
type overtakenHost struct {
	localHost
	remote  string
	content []byte
	once    sync.Once
}

func (h *overtakenHost) Rename(from, to string) error {
	h.once.Do(func() {
		_ = os.Rename(h.remote+partSuffix, h.remote)
		_ = os.WriteFile(h.remote+partSuffix, h.content[:len(h.content)/3], 0o600)
	})
	return h.localHost.Rename(from, to)
}

// What gets the name is what was checked, not the part that somebody else has begun since.
func TestAPartThatWasBegunAnewGetsNoName(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	local, remote := filepath.Join(dir, "file"), filepath.Join(dir, "far", "file")
	require.NoError(t, os.WriteFile(local, content, 0o600))
	want, err := durable.Digest(local)
	require.NoError(t, err)
	for _, left := range []int{0, 1000} {
		require.NoError(t, os.RemoveAll(filepath.Dir(remote)))
		require.NoError(t, os.MkdirAll(filepath.Dir(remote), 0o700))
		if left > 0 {
			require.NoError(t, os.WriteFile(remote+partSuffix, content[:left], 0o600))
		}
		require.NoError(t, put(t.Context(), &overtakenHost{remote: remote, content: content}, local, remote, want, privateFile))
		have, err := durable.Digest(remote)
		require.NoError(t, err)
		assert.Equal(t, want, have, "%d bytes were there", left)
		files, err := os.ReadDir(filepath.Dir(remote))
		require.NoError(t, err)
		assert.Len(t, files, 1, "nothing else is left")
	}
}

// twoAtOnce is a file that answers a request only when another one is under way.
type twoAtOnce struct {
	local   string
	content []byte
	mu      sync.Mutex
	waiting chan struct{}
	alone   bool
}

func (f *twoAtOnce) meet() error {
	f.mu.Lock()
	if other := f.waiting; other != nil {
		f.waiting = nil
		f.mu.Unlock()
		close(other)
		return nil
	}
	mine := make(chan struct{})
	if f.alone {
		f.mu.Unlock()
		return nil
	}
	f.waiting = mine
	f.mu.Unlock()
	const patience = 10 * time.Second
	select {
	case <-mine:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("no second request in %v", patience)
	}
}

func (f *twoAtOnce) WriteAt(p []byte, at int64) (int, error) {
	if err := f.meet(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.alone = true // once is enough
	return copy(f.content[at:], p), nil
}

func (f *twoAtOnce) ReadAt(p []byte, at int64) (int, error) {
	if err := f.meet(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.alone = true
	return bytes.NewReader(f.content).ReadAt(p, at)
}

func (f *twoAtOnce) Fileread(*sftp.Request) (io.ReaderAt, error)   { return f, nil }
func (f *twoAtOnce) Filewrite(*sftp.Request) (io.WriterAt, error)  { return f, nil }
func (f *twoAtOnce) Filecmd(*sftp.Request) error                   { return nil }
func (f *twoAtOnce) Filelist(*sftp.Request) (sftp.ListerAt, error) { return f, nil }

// ListAt lists the file alone, as the local one that it is a copy of.
func (f *twoAtOnce) ListAt(list []os.FileInfo, _ int64) (int, error) {
	info, err := os.Stat(f.local)
	if err != nil {
		return 0, err
	}
	list[0] = info
	return 1, io.EOF
}

// A far host is sent to, and fetched from, without waiting for the answer to each packet: each would take the time of a round trip.
func TestPacketsDoNotWaitForEachOther(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("packets"), 100_000)
	local := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(local, content, 0o600))
	serve := func(f *twoAtOnce) *sshHost {
		here, far := net.Pipe()
		server := sftp.NewRequestServer(far, sftp.Handlers{FileGet: f, FilePut: f, FileCmd: f, FileList: f})
		go func() { _ = server.Serve() }()
		client, err := newFiles(func(o ...sftp.ClientOption) (*sftp.Client, error) { return sftp.NewClientPipe(here, here, o...) })
		require.NoError(t, err)
		t.Cleanup(func() { _, _, _ = client.Close(), server.Close(), here.Close() })
		return &sshHost{name: "far", files: client}
	}
	sent := &twoAtOnce{local: local, content: make([]byte, len(content))}
	require.NoError(t, sendFrom(context.Background(), serve(sent), local, "/file", 0, true))
	assert.True(t, bytes.Equal(content, sent.content))

	back := filepath.Join(dir, "back")
	require.NoError(t, fetchFrom(t.Context(), serve(&twoAtOnce{local: local, content: content}), "/file", back, 0))
	have, err := os.ReadFile(back)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(content, have))
}
