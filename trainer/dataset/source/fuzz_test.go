package source

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"

	"cftune/internal/testlimit"
)

// maxFuzzedText bounds the text that a small packed file is unpacked to: that takes no more memory, but time.
const maxFuzzedText = 8 << 20

// maxFuzzedTime tells a hang from a slow machine: these files are read in milliseconds.
const maxFuzzedTime = 30 * time.Second

// readWhole reads all rows of a file with the given bytes. Whatever they are, it must come to an end, with rows that begin
// as JSON objects (what is wrong further on is found where they are decoded) or with an error of the file, and without taking much memory.
func readWhole(t *testing.T, name string, content []byte) {
	if len(content) > testlimit.SmallFile {
		t.Skip("no small file")
	}
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	defer time.AfterFunc(maxFuzzedTime, func() { panic("a small file is read for too long") }).Stop()
	testlimit.Bound(t, func() {
		files, err := Expand(t.Context(), path)
		require.NoError(t, err)
		text := 0
		for row, err := range files[0].Rows(t.Context()) {
			if err != nil {
				var fault *Error
				require.ErrorAs(t, err, &fault)
				require.Equal(t, path, fault.File)
				return
			}
			require.Equal(t, byte('{'), row.Text[0])
			if text += len(row.Text); text > maxFuzzedText {
				return
			}
		}
	})
}

func FuzzParquet(f *testing.F) {
	type row struct {
		Query  string   `parquet:"query,dict"`
		Answer *string  `parquet:"answer,optional,zstd"`
		Turns  []string `parquet:"turns,list"`
		Score  float64  `parquet:"score"`
		Right  bool     `parquet:"right,snappy"`
		N      int64    `parquet:"n,delta"`
	}
	text := "4"
	for _, rows := range [][]row{nil, {{"1 + 1?", nil, nil, 1, true, 1}, {"2 + 2?", &text, []string{"a", "b"}, 0.5, false, -7}}} {
		var b bytes.Buffer
		w := parquet.NewGenericWriter[row](&b)
		_, err := w.Write(rows)
		require.NoError(f, err)
		require.NoError(f, w.Close())
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		// Only what is taken for Parquet is of interest here.
		if !bytes.HasPrefix(content, []byte("PAR1")) {
			content = append([]byte("PAR1"), content...)
		}
		readWhole(t, "data.parquet", content)
	})
}

func FuzzPacked(f *testing.F) {
	rows := bytes.Repeat([]byte(`{"query": "1 + 1?", "answer": "2"}`+"\n"), 3)
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	_, err := g.Write(rows)
	require.NoError(f, err)
	require.NoError(f, g.Close())
	z, err := zstd.NewWriter(&zs, zstd.WithWindowSize(1<<20))
	require.NoError(f, err)
	_, err = z.Write(rows)
	require.NoError(f, err)
	require.NoError(f, z.Close())
	f.Add(gz.Bytes())
	f.Add(zs.Bytes())
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88, 1, 0, 0, 'a'}) // a window of 128 MiB
	f.Fuzz(func(t *testing.T, content []byte) { readWhole(t, "data.jsonl.zst", content) })
}

func FuzzText(f *testing.F) {
	f.Add("data.jsonl", []byte("{\"a\": 1}\n{\"a\": 2}\n"))
	f.Add("data.json", []byte(`[{"a": [1, {"b": null}]}, {"a": "\u00e9"}]`))
	f.Add("data.json", []byte(`{"data": [{"a": 1}]}`))
	f.Add("data.csv", []byte("a,b\n1,\"x\ny\"\n"))
	f.Add("data.tsv", []byte("a\tb\n1\t2\n"))
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		switch filepath.Ext(name) {
		case ".jsonl", ".json", ".csv", ".tsv":
			readWhole(t, "data"+filepath.Ext(name), content)
		}
	})
}
