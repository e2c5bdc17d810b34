package source

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	largeRows = 150_000
	// largeText makes the source 300 MB of text.
	largeText = 2000
	// maxGrowth is far below the source's size, and above what windows, decompressors and pages take with the garbage
	// that the collector lets gather.
	maxGrowth = 64 << 20
)

var filler = strings.Repeat("many words ", largeText/11+1)[:largeText]

// generated writes rows by a form with places for a number and a text.
func generated(w io.Writer, before, form, between, after string) error {
	b := bufio.NewWriter(w)
	b.WriteString(before)
	for i := range largeRows {
		if i > 0 {
			b.WriteString(between)
		}
		fmt.Fprintf(b, form, i, filler)
	}
	b.WriteString(after)
	return b.Flush() // remembers the first error
}

// piped is a source that is made while it is read.
func piped(before, form, between, after string) File {
	return File{"data.csv", &pipe{opener: func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(generated(w, before, form, between, after)) }()
		return r, nil
	}}}
}

func largeZstd(t *testing.T) File {
	path := filepath.Join(t.TempDir(), "data.jsonl.zst")
	out, err := os.Create(path)
	require.NoError(t, err)
	w, err := zstd.NewWriter(out)
	require.NoError(t, err)
	require.NoError(t, generated(w, "", `{"number": %d, "text": "%s"}`, "\n", ""))
	require.NoError(t, w.Close())
	require.NoError(t, out.Close())
	return only(t, path)
}

func largeParquet(t *testing.T) File {
	type large struct {
		Number int64  `parquet:"number"`
		Text   string `parquet:"text"`
	}
	path := filepath.Join(t.TempDir(), "data.parquet")
	out, err := os.Create(path)
	require.NoError(t, err)
	w := parquet.NewGenericWriter[large](out, parquet.Compression(&parquet.Snappy), parquet.PageBufferSize(1<<20), parquet.MaxRowsPerRowGroup(50_000))
	for i := range largeRows {
		_, err := w.Write([]large{{int64(i), filler}})
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.NoError(t, out.Close())
	return only(t, path)
}

// Memory does not grow with the source.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("large sources")
	}
	const object = `{"number": %d, "text": "%s"}`
	for name, source := range map[string]func() File{
		"lines":   func() File { return piped("", object, "\n", "\n") },
		"array":   func() File { return piped("[", object, ",\n", "]") },
		"csv":     func() File { return piped("number,text\n", "%d,%s", "\n", "") },
		"zstd":    func() File { return largeZstd(t) },
		"parquet": func() File { return largeParquet(t) },
	} {
		t.Run(name, func(t *testing.T) {
			f := source()
			base, most, rows, size := heap(), uint64(0), 0, 0
			for r, err := range f.Rows(t.Context()) {
				require.NoError(t, err)
				if rows++; rows%10_000 == 0 {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					most = max(most, m.HeapAlloc)
				}
				size += len(r.Text)
			}
			assert.Equal(t, largeRows, rows)
			assert.Greater(t, size, largeRows*largeText)
			assert.Less(t, int64(most)-int64(base), int64(maxGrowth))
			t.Logf("read %d MB of text, the heap grew by %.1f MB", size/1e6, (float64(most)-float64(base))/1e6)
		})
	}
}

// heap is what is in use once garbage is collected.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
