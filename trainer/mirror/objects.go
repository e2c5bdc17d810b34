package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	"gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/gcsblob" // gs://
	_ "gocloud.dev/blob/s3blob"  // s3://
	"gocloud.dev/gcerrors"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/bucket"
)

// Objects is a store of objects by key, or a part of one. Errors about an object that is not there wrap fs.ErrNotExist.
type Objects interface {
	// Put makes key hold what r gives, or leaves it as it was.
	Put(ctx context.Context, key string, r io.Reader) error
	Get(ctx context.Context, key string) (io.ReadCloser, error)
	// List calls visit for every key that begins with prefix.
	List(ctx context.Context, prefix string, visit func(key string) error) error
	Delete(ctx context.Context, key string) error
	Close() error
}

// IsURL reports whether text is a URL rather than a path.
func IsURL(text string) bool { return strings.Contains(text, "://") }

// LastPart is the last part of a URL's path, a name for what lies there; empty if there is none.
func LastPart(url string) string {
	a, err := bucket.ParseURL(url)
	if err != nil {
		return ""
	}
	return a.LastPart()
}

// open connects to the store. make says that a folder is made if it is not there.
func open(ctx context.Context, a bucket.Address, make bool) (Objects, error) {
	if a.Scheme == bucket.FileScheme {
		if _, err := os.Stat(a.Path); errors.Is(err, fs.ErrNotExist) && !make {
			return nil, fmt.Errorf("there is no such folder: %w", checkpoint.ErrNotFound)
		}
		// Temporary files next to the real ones: a rename does not leave a file system.
		b, err := fileblob.OpenBucket(a.Path, &fileblob.Options{
			CreateDir: make, DirFileMode: 0o755, NoTempDir: true, Metadata: fileblob.MetadataDontWrite,
		})
		if err != nil {
			return nil, err
		}
		return &folder{blobs{b}, a.Path}, nil
	}
	b, err := blob.OpenBucket(ctx, withoutChecksums(a).Bucket())
	if err != nil {
		return nil, err
	}
	if key := strings.Trim(a.Key, "/"); key != "" {
		b = blob.PrefixedBucket(b, key+"/")
	}
	return blobs{b}, nil
}

// withoutChecksums turns the checksums off that S3's client adds by itself, unless the URL asks for them. Everything is
// read back and compared with its SHA-256 anyway; and stores that speak S3's protocol but not its newer checksums refuse
// them, or have the client warn at each object.
func withoutChecksums(a bucket.Address) bucket.Address {
	if a.Scheme != "s3" {
		return a
	}
	for _, key := range []string{"request_checksum_calculation", "response_checksum_validation"} {
		if strings.Contains(a.Options, key+"=") {
			continue
		}
		if a.Options != "" {
			a.Options += "&"
		}
		a.Options += key + "=when_required"
	}
	return a
}

// guard makes an error of a panic: a store's driver that trips over an answer it did not expect must not end a run.
func guard(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the store's driver cannot cope with its answer: %v", r)
	}
}

// blobs are Objects of a bucket.
type blobs struct{ bucket *blob.Bucket }

// Of an upload in parts, so much is held in memory: two parts, and one that is being filled.
const (
	partBytes     = 8 << 20
	partsAtOnce   = 2
	contentOfFile = "application/octet-stream"
)

func (b blobs) Put(ctx context.Context, key string, r io.Reader) (err error) {
	defer guard(&err)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := b.bucket.NewWriter(ctx, key, &blob.WriterOptions{ContentType: contentOfFile, BufferSize: partBytes, MaxConcurrency: partsAtOnce})
	if err != nil {
		return notExist(err)
	}
	_, err = io.Copy(w, r)
	if err != nil {
		cancel() // so that closing does not store what was written
	}
	if closeErr := w.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (b blobs) Get(ctx context.Context, key string) (_ io.ReadCloser, err error) {
	defer guard(&err)
	r, err := b.bucket.NewReader(ctx, key, nil)
	if err != nil {
		return nil, notExist(err)
	}
	return r, nil
}

func (b blobs) List(ctx context.Context, prefix string, visit func(key string) error) (err error) {
	defer guard(&err)
	for objects := b.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := objects.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = visit(o.Key)
		}
		if err != nil {
			return err
		}
	}
}

func (b blobs) Delete(ctx context.Context, key string) error {
	return notExist(b.bucket.Delete(ctx, key))
}

func (b blobs) Close() error { return b.bucket.Close() }

func notExist(err error) error {
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// folder is a bucket in a folder, whose objects are synced: what was read back from memory may not be on the disk.
type folder struct {
	blobs
	root string
}

func (f *folder) Put(ctx context.Context, key string, r io.Reader) error {
	if err := f.blobs.Put(ctx, key, r); err != nil {
		return err
	}
	for name := key; ; name = path.Dir(name) {
		if err := syncPath(filepath.Join(f.root, filepath.FromSlash(name))); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		if name == "." {
			return nil
		}
	}
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Delete also removes the folders that are empty then.
func (f *folder) Delete(ctx context.Context, key string) error {
	if err := f.blobs.Delete(ctx, key); err != nil {
		return err
	}
	for name := path.Dir(key); name != "."; name = path.Dir(name) {
		if os.Remove(filepath.Join(f.root, filepath.FromSlash(name))) != nil {
			return nil // it holds something else
		}
	}
	return nil
}
