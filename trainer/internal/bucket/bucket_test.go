package bucket_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/bucket"
)

func TestParse(t *testing.T) {
	a, err := bucket.Parse("s3", "name/a/b#c%20.jsonl?region=north&key=secret")
	require.NoError(t, err)
	assert.Equal(t, bucket.Address{Scheme: "s3", Name: "name", Key: "a/b#c%20.jsonl", Options: "region=north&key=secret"}, a)
	assert.Equal(t, "s3://name", a.Base())
	assert.Equal(t, "s3://name?region=north&key=secret", a.Bucket())
	a, err = bucket.Parse("gs", "name")
	require.NoError(t, err)
	assert.Equal(t, "gs://name", a.Bucket())
	_, err = bucket.Parse("s3", "/key")
	assert.EqualError(t, err, "the address has no bucket")
}

func TestParseURL(t *testing.T) {
	for text, want := range map[string][2]string{
		"s3://name/a/run/?region=x&key=secret": {"s3://name/a/run", "run"},
		"gs://name":                            {"gs://name", ""},
		"azblob://name/..":                     {"azblob://name/..", ""},
		"file:///a/b%20c/":                     {"file:///a/b c", "b c"},
		"file:///run":                          {"file:///run", "run"},
	} {
		a, err := bucket.ParseURL(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, [2]string{a.String(), a.LastPart()}, text)
	}
	for text, want := range map[string]string{
		"":                     "must begin with s3://, gs://, azblob:// or file://",
		"runs/x":               "must begin with",
		"ftp://name/x":         "must begin with",
		"mem://":               "must begin with",
		"s3:///x":              "the address has no bucket",
		"s3://user:word@name/": "has more than a bucket's name",
		"file://":              "names no folder",
		"file:///":             "names no folder",
		"file://host/x":        "names the machine host",
	} {
		_, err := bucket.ParseURL(text)
		assert.ErrorContains(t, err, want, text)
	}
}

func TestFilePath(t *testing.T) {
	path, err := bucket.FilePath("/a/b%20c")
	require.NoError(t, err)
	assert.Equal(t, "/a/b c", path)
	_, err = bucket.FilePath("host/a")
	assert.ErrorContains(t, err, "names the machine host; three slashes")
	_, err = bucket.FilePath("/a%zz")
	assert.ErrorContains(t, err, "invalid URL escape")
}

func TestWaitEndsWithItsContext(t *testing.T) {
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	b := bucket.Backoff{First: time.Hour, Longest: time.Hour}
	assert.NoError(t, b.Wait(ctx, 0), "the first attempt does not wait")
	cancel(gone)
	assert.ErrorIs(t, b.Wait(ctx, 0), gone)
	for _, attempt := range []int{1, 7, 63, 64, 1000} {
		assert.ErrorIs(t, b.Wait(ctx, attempt), gone)
	}
	short := bucket.Backoff{First: time.Nanosecond, Longest: time.Microsecond}
	assert.NoError(t, short.Wait(t.Context(), 1000))
}
