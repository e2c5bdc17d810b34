package critic

import (
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/durable"
)

// boundedDisk is this machine's with so many bytes left for the files that are appended to. Like a disk, it takes what there is room for of a text.
type boundedDisk struct {
	durable.FS
	mu   sync.Mutex
	left int64
}

func (d *boundedDisk) Append(path string) (durable.File, error) {
	f, err := d.FS.Append(path)
	return &boundedFile{File: f, disk: d}, err
}

type boundedFile struct {
	durable.File
	disk     *boundedDisk
	reserved int64
}

func (f *boundedFile) Reserve(bytes int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if more := bytes - f.reserved; more > f.disk.left {
		return syscall.ENOSPC
	} else if more > 0 {
		f.disk.left, f.reserved = f.disk.left-more, bytes
	}
	return nil
}

func (f *boundedFile) Write(text []byte) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	n := min(int64(len(text)), f.reserved+f.disk.left)
	kept := min(n, f.reserved)
	f.reserved, f.disk.left = f.reserved-kept, f.disk.left-(n-kept)
	written, err := f.File.Write(text[:n])
	if err == nil && int(n) < len(text) {
		err = syscall.ENOSPC
	}
	return written, err
}

// Somebody else fills the disk while answers are on their way, which are paid: all of them can still be written down. What has not left does not.
func TestAnswersHaveRoomOnADiskThatFills(t *testing.T) {
	dir := t.TempDir()
	disk := &boundedDisk{FS: durable.OS, left: 1 << 30}
	j, err := openJournal(disk, dir, 20)
	require.NoError(t, err)
	text := strings.Repeat("a long answer ", 100_000/14)
	const room = 110_000
	for job := range 16 {
		require.NoError(t, j.appendWithRoom(Entry{Kind: kindIntent, Job: job, Worst: 5}, room))
	}
	disk.mu.Lock()
	disk.left = 0
	disk.mu.Unlock()
	var refused, answered sync.WaitGroup
	for job := 16; job < 20; job++ { // before an answer that is shorter than it might be makes room
		refused.Go(func() {
			err := j.appendWithRoom(Entry{Kind: kindIntent, Job: job, Worst: 5}, room)
			assert.ErrorIs(t, err, syscall.ENOSPC, "request %d left without room for its answer", job)
		})
	}
	refused.Wait()
	for job := range 16 {
		answered.Go(func() {
			if job == 7 {
				assert.NoError(t, j.append(Entry{Kind: kindFault, Job: job, Fault: FaultServer, Error: "500"}))
				return
			}
			assert.NoError(t, j.append(Entry{Kind: kindAnswer, Job: job, Text: text}), "answer %d is lost", job)
		})
	}
	answered.Wait()
	require.NoError(t, j.close())

	j, err = openJournal(durable.OS, dir, 20)
	require.NoError(t, err)
	totals := j.totals()
	assert.Equal(t, 15, totals.Answered)
	assert.Equal(t, 16, totals.Requests)
	assert.Zero(t, totals.Unknown)
	require.NoError(t, j.answers(func(e Entry) error {
		assert.Equal(t, text, e.Text)
		return nil
	}))
	require.NoError(t, j.close())
}
