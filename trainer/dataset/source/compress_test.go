package source

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func gzipped(t testing.TB, content string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}

func zstandard(t testing.TB, content string, options ...zstd.EOption) string {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, options...)
	require.NoError(t, err)
	_, err = io.WriteString(w, content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}

// pipeOf is content that comes as standard input does.
func pipeOf(t testing.TB, content string) File {
	t.Helper()
	in := &pipe{opener: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
	files, err := (&finder{stdin: in}).find(t.Context(), "-")
	require.NoError(t, err)
	require.Len(t, files, 1)
	return files[0]
}

func TestCompressed(t *testing.T) {
	const first, second = "{\"a\": 1}\n", "{\"a\": 2}\n"
	both := []row{{`{"a": 1}`, 1}, {`{"a": 2}`, 2}}
	skippable := "\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
	for name, tt := range map[string]struct {
		file, content string
	}{
		"gzip":                        {"data.jsonl.gz", gzipped(t, first+second)},
		"gzip of two members":         {"data.jsonl.gz", gzipped(t, first) + gzipped(t, second)},
		"zstd":                        {"data.jsonl.zst", zstandard(t, first+second)},
		"zstd of two frames":          {"data.jsonl.zst", zstandard(t, first) + zstandard(t, second)},
		"zstd after a frame to skip":  {"data.jsonl.zst", skippable + zstandard(t, first+second)},
		"gzip by another name":        {"data", gzipped(t, first+second)},
		"JSON by gzip":                {"data.json.GZ", gzipped(t, `[{"a": 1}, {"a": 2}]`)},
		"JSON object by zstd":         {"data.json.zstd", zstandard(t, `{"rows": [{"a": 1}, {"a": 2}]}`)},
		"zstd that says its checksum": {"data.jsonl.zst", zstandard(t, first+second, zstd.WithEncoderCRC(true))},
	} {
		t.Run(name, func(t *testing.T) {
			f := write(t, tt.file, tt.content)
			got, err := rows(t, f)
			require.NoError(t, err)
			assert.Equal(t, both, got)
			assert.False(t, f.Plain())
			assert.Equal(t, int64(len(tt.content)), f.Bytes())
			for r := range f.Rows(t.Context()) {
				assert.Equal(t, int64(-1), r.Offset)
			}
		})
	}
	got, err := rows(t, write(t, "data.csv.gz", gzipped(t, "a\n1\n")))
	require.NoError(t, err)
	assert.Equal(t, []row{{`{"a":"1"}`, 2}}, got)
}

func TestCompressedRefuses(t *testing.T) {
	content := strings.Repeat("{\"a\": \"some text\"}\n", 100_000)
	gz, zs := gzipped(t, content), zstandard(t, content)
	flipped := []byte(gz)
	flipped[len(gz)-8] ^= 1 // its checksum
	for name, tt := range map[string]struct{ content, want string }{
		"gzip cut off":             {gz[:len(gz)/2], "the gzip stream is cut off"},
		"gzip cut off in its end":  {gz[:len(gz)-3], "the gzip stream is cut off"},
		"gzip cut off at its head": {gz[:5], "the gzip stream is cut off"},
		"gzip damaged":             {string(flipped), "gzip: gzip: invalid checksum"},
		"more after gzip":          {gz + "more than that", "gzip: gzip: invalid header"},
		"zstd cut off":             {zs[:len(zs)/2], "the zstd stream is cut off"},
		"zstd cut off in its end":  {zs[:len(zs)-1], "the zstd stream is cut off"},
		"zstd cut off at its head": {zs[:5], "the zstd stream is cut off"},
		"more after zstd":          {zs + "more than that", "zstd: "},
		"gzip within zstd":         {zstandard(t, gz), "is gzip within zstd; unpack one of them first"},
		"nothing within gzip":      {gzipped(t, ""), "is empty"},
		"zip":                      {"PK\x03\x04abc", "looks like a zip archive; what can be read is"},
		"binary":                   {"ab\x00\x01", `looks like binary data that starts with "ab\x00\x01"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rows(t, write(t, "data.jsonl.x", tt.content))
			assert.ErrorContains(t, err, tt.want)
			assert.ErrorContains(t, err, "data.jsonl.x")
		})
	}
}

func TestReadingStopsEarly(t *testing.T) {
	content := strings.Repeat("{\"a\": \"some text\"}\n", 100_000)
	for name, packed := range map[string]string{"plain": content, "gzip": gzipped(t, content), "zstd": zstandard(t, content)} {
		f := write(t, "data.jsonl", packed)
		n := 0
		for _, err := range f.Rows(t.Context()) {
			require.NoError(t, err)
			if n++; n == 5 {
				break
			}
		}
		assert.Equal(t, 5, n, name)

		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		n = 0
		var err error
		for _, err = range f.Rows(ctx) {
			if n++; n == 5 {
				cancel()
			}
		}
		assert.ErrorIs(t, err, context.Canceled, name)
		assert.Less(t, n, 100_000, name)
	}
}

func TestStandardInputIsReadOnce(t *testing.T) {
	f := pipeOf(t, "{}\n")
	assert.Equal(t, "standard input", f.Name)
	assert.Equal(t, int64(-1), f.Bytes())
	assert.False(t, f.Plain(), "asking does not read")
	_, ok, err := f.Stamp(t.Context())
	require.NoError(t, err)
	assert.False(t, ok)
	got, err := rows(t, f)
	require.NoError(t, err)
	assert.Equal(t, []row{{"{}", 1}}, got)
	_, err = rows(t, f)
	assert.EqualError(t, err, "standard input: can be read only once, and was; save it to a file first")
}
