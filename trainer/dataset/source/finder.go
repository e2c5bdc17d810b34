package source

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	_ "gocloud.dev/blob/gcsblob"   // gs://
	_ "gocloud.dev/blob/s3blob"    // s3://

	"cftune/trainer/internal/bucket"
)

// finder finds files. Tests have their own.
type finder struct {
	stdin      place
	client     *http.Client
	openBucket func(ctx context.Context, url string) (*blob.Bucket, error)
	patience   patience
}

var defaultFinder = &finder{stdin: standardInput, client: newWebClient(), openBucket: blob.OpenBucket, patience: defaultPatience}

func (f *finder) findURL(ctx context.Context, scheme, rest string) ([]File, error) {
	switch scheme {
	case "http", "https":
		return f.findWeb(ctx, scheme+"://"+rest)
	case "file":
		return findFileURL(rest)
	}
	if !slices.Contains(bucket.Schemes, scheme) {
		return nil, fmt.Errorf("the scheme %s:// is not known; known are %s://, file://, http:// and https://", scheme, strings.Join(bucket.Schemes, "://, "))
	}
	return f.findObjects(ctx, scheme, rest)
}

// findFileURL takes file:///folder/file as the path /folder/file, so that it is read as any local file.
func findFileURL(rest string) ([]File, error) {
	path, err := bucket.FilePath(rest)
	if err != nil {
		return nil, err
	}
	return findLocal(path)
}
