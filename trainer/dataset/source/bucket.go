package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"cftune/trainer/internal/bucket"
)

// bucketObject is an object of a bucket. All files of one Expand share the bucket, which holds nothing that must be closed
// but idle connections.
type bucketObject struct {
	bucket *blob.Bucket
	key    string
}

func (o *bucketObject) fetch(ctx context.Context, offset, n int64) (io.ReadCloser, version, bool, error) {
	r, err := o.bucket.NewRangeReader(ctx, o.key, offset, n, nil)
	if err != nil {
		if offset == 0 {
			err = &settledError{err}
		}
		return nil, version{bytes: -1}, false, err
	}
	// A reader gives no ETag, and of some stores the time in seconds.
	return r, version{timeTag(r.ModTime().Truncate(time.Second)), r.Size()}, false, nil
}

func (o *bucketObject) stat(ctx context.Context) (version, error) {
	a, err := o.bucket.Attributes(ctx, o.key)
	if err != nil {
		return version{bytes: -1}, &settledError{err}
	}
	if a.ETag != "" {
		return version{a.ETag, a.Size}, nil
	}
	return version{timeTag(a.ModTime), a.Size}, nil
}

func timeTag(changed time.Time) string {
	if changed.IsZero() {
		return ""
	}
	return changed.UTC().Format(time.RFC3339Nano)
}

// findObjects lists the objects that a URL names: its bucket, key and, after "?", the bucket's options.
func (f *finder) findObjects(ctx context.Context, scheme, rest string) ([]File, error) {
	address, err := bucket.Parse(scheme, rest)
	if err != nil {
		return nil, err
	}
	key := address.Key
	b := &bucketFinder{finder: f, base: address.Base()}
	if b.bucket, err = f.openBucket(ctx, address.Bucket()); err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	switch {
	case isPattern(key):
		return b.byPattern(ctx, key)
	case key == "" || strings.HasSuffix(key, "/"):
		return b.folder(ctx, key)
	}
	a, err := b.bucket.Attributes(ctx, key)
	if err == nil {
		return []File{b.file(key, a.Size)}, nil
	}
	if gcerrors.Code(err) != gcerrors.NotFound {
		return nil, err
	}
	files, err := b.folder(ctx, key+"/")
	if errors.Is(err, errNothingBelow) {
		return nil, errors.New("there is no such object, nor any below it")
	}
	return files, err
}

// bucketFinder finds objects of one bucket.
type bucketFinder struct {
	finder *finder
	bucket *blob.Bucket
	base   string // the bucket's URL, less its options
}

func (b *bucketFinder) file(key string, bytes int64) File {
	return File{b.base + "/" + key, &remoteFile{store: &bucketObject{b.bucket, key}, bytes: bytes, patience: b.finder.patience}}
}

// list calls do for every object below a prefix, but for those that mark folders.
func (b *bucketFinder) list(ctx context.Context, prefix string, do func(key string, bytes int64) error) error {
	for objects := b.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := objects.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if strings.HasSuffix(o.Key, "/") {
			continue
		}
		if err := do(o.Key, o.Size); err != nil {
			return err
		}
	}
}

var errNothingBelow = errors.New("there are no objects below it")

// folder lists the data files below a prefix, by the same names as in local folders.
func (b *bucketFinder) folder(ctx context.Context, prefix string) ([]File, error) {
	var files []File
	others := 0
	err := b.list(ctx, prefix, func(key string, bytes int64) error {
		for part := range strings.SplitSeq(strings.TrimPrefix(key, prefix), "/") {
			if hidden(part) {
				return nil
			}
		}
		isData, err := dataByName(key)
		if err != nil {
			return err
		}
		if isData {
			files = append(files, b.file(key, bytes))
		} else {
			others++
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case len(files) == 0 && others == 0:
		return nil, errNothingBelow
	case len(files) == 0:
		return nil, noData(others)
	}
	return files, nil
}

// byPattern lists the objects that match a pattern.
func (b *bucketFinder) byPattern(ctx context.Context, pattern string) ([]File, error) {
	if err := checkPattern(pattern); err != nil {
		return nil, err
	}
	prefix := pattern[:strings.IndexAny(pattern, "*?[\\")]
	parts := strings.Split(pattern, "/")
	var files []File
	err := b.list(ctx, prefix, func(key string, bytes int64) error {
		if ok, err := matchPath(parts, strings.Split(key, "/")); err != nil || !ok {
			return err
		}
		files = append(files, b.file(key, bytes))
		return nil
	})
	if err == nil && len(files) == 0 {
		err = errNoMatch
	}
	return files, err
}
