package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/memblob"

	"cftune/trainer/internal/bucket"
)

// buckets are the stores that need no network, each empty.
func buckets(t *testing.T) map[string]*blob.Bucket {
	t.Helper()
	inFolder, err := fileblob.OpenBucket(t.TempDir(), nil)
	require.NoError(t, err)
	all := map[string]*blob.Bucket{"memory": memblob.OpenBucket(nil), "folder": inFolder}
	t.Cleanup(func() {
		for name, b := range all {
			assert.NoError(t, b.Close(), name)
		}
	})
	return all
}

// in expands URLs of the scheme s3 within a bucket, whatever it really is.
func in(t *testing.T, b *blob.Bucket) *finder {
	return &finder{patience: hurried, openBucket: func(_ context.Context, address string) (*blob.Bucket, error) {
		u, err := url.Parse(address)
		require.NoError(t, err)
		if u.Host != "bucket" {
			return nil, errors.New("no such bucket")
		}
		assert.Empty(t, u.Path)
		return b, nil
	}}
}

func names(files []File) (list []string) {
	for _, f := range files {
		list = append(list, f.Name)
	}
	return list
}

func TestBuckets(t *testing.T) {
	for name, b := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			for _, key := range []string{"data/a.jsonl", "data/b.json.gz", "data/deep/c d#.csv", "data/README.md", "data/_logs/x.jsonl", "data/.x.jsonl", "other/a.jsonl", "data2.jsonl"} {
				require.NoError(t, b.WriteAll(t.Context(), key, []byte(fmt.Sprintf("{\"key\": %q}\n", key)), nil))
			}
			f := in(t, b)
			for path, want := range map[string][]string{
				"s3://bucket/data/a.jsonl":              {"s3://bucket/data/a.jsonl"},
				"s3://bucket/data/a.jsonl?region=north": {"s3://bucket/data/a.jsonl"},
				"s3://bucket/data/README.md":            {"s3://bucket/data/README.md"},
				"s3://bucket/data/":                     {"s3://bucket/data/a.jsonl", "s3://bucket/data/b.json.gz", "s3://bucket/data/deep/c d#.csv"},
				"s3://bucket/data":                      {"s3://bucket/data/a.jsonl", "s3://bucket/data/b.json.gz", "s3://bucket/data/deep/c d#.csv"},
				"s3://bucket/data/*":                    {"s3://bucket/data/.x.jsonl", "s3://bucket/data/README.md", "s3://bucket/data/a.jsonl", "s3://bucket/data/b.json.gz"},
				"s3://bucket/*/[ab].jsonl":              {"s3://bucket/data/a.jsonl", "s3://bucket/other/a.jsonl"},
				"s3://bucket/**/*.csv":                  {"s3://bucket/data/deep/c d#.csv"},
				"s3://bucket/data*.jsonl":               {"s3://bucket/data2.jsonl"},
			} {
				files, err := f.find(t.Context(), path)
				require.NoError(t, err, path)
				assert.ElementsMatch(t, want, names(files), path)
			}
			for path, want := range map[string]string{
				"s3://bucket/none":           "there is no such object, nor any below it",
				"s3://bucket/none/":          "there are no objects below it",
				"s3://bucket/none*":          "no file matches the pattern",
				"s3://bucket/data/[a":        "syntax error in pattern",
				"s3://bucket/data/x**":       "** must stand alone between slashes",
				"s3://elsewhere/x":           "open bucket: no such bucket",
				"s3:///x":                    "the address has no bucket",
				"ftp://bucket/x":             "the scheme ftp:// is not known; known are s3://, gs://, azblob://, file://, http:// and https://",
				"s3://bucket/data/deep/c d#": "there is no such object, nor any below it",
			} {
				_, err := f.find(t.Context(), path)
				assert.ErrorContains(t, err, want, path)
			}
			require.NoError(t, b.WriteAll(t.Context(), "data/z.jsonl.xz", []byte("x"), nil))
			_, err := f.find(t.Context(), "s3://bucket/data")
			assert.ErrorContains(t, err, "data/z.jsonl.xz cannot be read")
		})
	}
}

func TestBucketRows(t *testing.T) {
	content, want := manyLines(5000)
	list := make([]benchRow, 5000)
	for i := range list {
		list[i] = newBenchRow(i)
	}
	packed := parquetBytes(t, list, parquet.MaxRowsPerRowGroup(1700))
	fromParquet, err := rows(t, write(t, "data.parquet", string(packed)))
	require.NoError(t, err)
	for name, b := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			for key, c := range map[string]struct {
				content string
				want    []row
			}{
				"a.jsonl":     {content, want},
				"a.jsonl.zst": {zstandard(t, content), want},
				"a.parquet":   {string(packed), fromParquet},
			} {
				require.NoError(t, b.WriteAll(t.Context(), key, []byte(c.content), nil))
				files, err := in(t, b).find(t.Context(), "s3://bucket/"+key)
				require.NoError(t, err)
				require.Len(t, files, 1)
				f := files[0]
				assert.Equal(t, int64(len(c.content)), f.Bytes())
				assert.False(t, f.Plain())
				got, err := rows(t, f)
				require.NoError(t, err)
				assert.Equal(t, c.want, got)

				stamp, ok, err := f.Stamp(t.Context())
				require.NoError(t, err)
				assert.True(t, ok)
				require.NoError(t, b.WriteAll(t.Context(), key, []byte("{}"), nil))
				changed, _, err := f.Stamp(t.Context())
				require.NoError(t, err)
				assert.NotEqual(t, stamp, changed)
				require.NoError(t, b.Delete(t.Context(), key))
				_, err = rows(t, f)
				assert.ErrorContains(t, err, "s3://bucket/"+key+": ")
				_, _, err = f.Stamp(t.Context())
				assert.ErrorContains(t, err, "s3://bucket/"+key+": stamp: ")
			}
		})
	}
}

// What a broken read goes on with is known to be the same: parts have the version of the whole.
func TestVersionOfParts(t *testing.T) {
	for name, b := range buckets(t) {
		require.NoError(t, b.WriteAll(t.Context(), "key", []byte("some content"), nil))
		o := &bucketObject{b, "key"}
		all, first, _, err := o.fetch(t.Context(), 0, -1)
		require.NoError(t, err)
		require.NoError(t, all.Close())
		body, part, whole, err := o.fetch(t.Context(), 5, 3)
		require.NoError(t, err)
		text, err := io.ReadAll(body)
		require.NoError(t, err)
		require.NoError(t, body.Close())
		assert.Equal(t, "con", string(text), name)
		assert.Equal(t, first, part, name)
		assert.Equal(t, int64(12), part.bytes, name)
		assert.NotEmpty(t, part.tag, name)
		assert.False(t, whole, name)
	}
}

func TestNamesTellNoSecrets(t *testing.T) {
	for name, want := range map[string]string{
		"folder/a?b.jsonl":                       "folder/a?b.jsonl",
		"s3://bucket/a#b.jsonl?key=secret":       "s3://bucket/a#b.jsonl",
		"https://me:secret@host/a.jsonl?k=s#t":   "https://host/a.jsonl",
		"https://host/user@example.com/a.jsonl#": "https://host/user@example.com/a.jsonl",
	} {
		assert.Equal(t, want, shownName(name))
	}
}

// Real stores are asked for their credentials only when a URL of theirs is used, and the drivers are there.
func TestStoresAreLinkedIn(t *testing.T) {
	for _, scheme := range bucket.Schemes {
		assert.True(t, blob.DefaultURLMux().ValidBucketScheme(scheme), scheme)
	}
}

func TestFileURLs(t *testing.T) {
	f := write(t, "data file.jsonl", "{}\n")
	files, err := Expand(t.Context(), "file://"+strings.ReplaceAll(filepath.ToSlash(f.Path()), " ", "%20"))
	require.NoError(t, err)
	assert.Equal(t, []File{f}, files)
	assert.True(t, files[0].Plain())
	_, err = Expand(t.Context(), "file://folder/data.jsonl")
	assert.ErrorContains(t, err, "names the machine folder; three slashes begin a path of this one")
}
