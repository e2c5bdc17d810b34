package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/bucket"
)

// Errors that callers tell apart, beside those of checkpoint.
var (
	// ErrForeign says that a mirror holds another run.
	ErrForeign = errors.New("holds another run")
	// ErrAhead says that a mirror holds whole checkpoints of steps that the run has not come to.
	ErrAhead = errors.New("is ahead of the run")
	// ErrTaken says that another process copies to the mirror now.
	ErrTaken = errors.New("another process has taken it over")
)

// errLocal is about the files that are to be copied; another attempt does not mend them.
var errLocal = errors.New("the local file")

// Patience says how failures of a store are met.
type Patience struct {
	Attempts int // for one object
	bucket.Backoff
	// Object bounds one attempt at an object: this time, and a second for every slowest bytes.
	Object time.Duration
	// Again is how long a checkpoint that could not be copied waits for its next turn.
	Again time.Duration
}

// DefaultPatience goes on for about a minute and a half with one object.
var DefaultPatience = Patience{
	Attempts: 8, Backoff: bucket.Backoff{First: time.Second, Longest: 30 * time.Second}, Object: 2 * time.Minute, Again: time.Minute,
}

// slowest is the speed, in bytes a second, below which a connection counts as lost.
const slowest = 32 << 10

// Store is a mirror's place.
type Store struct {
	name     string
	objects  Objects
	patience Patience
}

// New is a mirror in a store of objects; name is what people are told of it.
func New(name string, objects Objects, p Patience) *Store { return &Store{name, objects, p} }

// Open connects to the mirror at a URL: s3://, gs://, azblob:// or file://. make says that a folder is made.
func Open(ctx context.Context, url string, make bool) (*Store, error) {
	a, err := bucket.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("mirror %q: %w", url, err)
	}
	objects, err := open(ctx, a, make)
	if err != nil {
		return nil, fmt.Errorf("mirror %s: %w", a, err)
	}
	return New(a.String(), objects, DefaultPatience), nil
}

// Name is the mirror's URL, less its options.
func (s *Store) Name() string { return s.name }

// Close ends the connection.
func (s *Store) Close() error { return s.objects.Close() }

// settledError is not met with another attempt.
type settledError struct{ error }

func (e settledError) Unwrap() error { return e.error }

// differsError says that an object is not what it should be; once it is looked at again, as the connection may be at
// fault.
type differsError struct{ error }

func (e differsError) Unwrap() error { return e.error }

// try repeats what fails, for an object of so many bytes.
func (s *Store) try(ctx context.Context, size int64, do func(ctx context.Context) error) (err error) {
	differed := false
	for attempt := range s.patience.Attempts {
		if ended := s.patience.Wait(ctx, attempt); ended != nil {
			return errors.Join(ended, err)
		}
		limit := s.patience.Object + time.Duration(size/slowest)*time.Second
		one, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %v", limit))
		err = do(one)
		if err != nil && one.Err() != nil && ctx.Err() == nil {
			err = context.Cause(one)
		}
		cancel()
		switch settled, differs := (settledError{}), (differsError{}); {
		case err == nil:
			return nil
		case errors.As(err, &settled):
			return settled.error
		case errors.Is(err, fs.ErrNotExist):
			return err
		case errors.As(err, &differs):
			if differed {
				return differs.error
			}
			differed = true
		}
	}
	return fmt.Errorf("after %d attempts: %w", s.patience.Attempts, err)
}

// read returns a small object.
func (s *Store) read(ctx context.Context, key string, limit int64) (text []byte, err error) {
	err = s.try(ctx, limit, func(ctx context.Context) error {
		r, err := s.objects.Get(ctx, key)
		if err != nil {
			return err
		}
		text, err = io.ReadAll(io.LimitReader(r, limit+1))
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		if int64(len(text)) > limit {
			return settledError{corrupt("it has more than %d bytes", limit)}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return text, nil
}

// copyOut writes an object to w and compares it with what it should be. No more than its bytes, and one, are asked for.
func (s *Store) copyOut(ctx context.Context, key string, f checkpoint.File, w io.Writer) error {
	r, err := s.objects.Get(ctx, key)
	if err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(r, f.Bytes))
	more := 0
	if err == nil && n == f.Bytes {
		more, err = r.Read(make([]byte, 1))
		if err == io.EOF {
			err = nil
		}
	}
	if closeErr := r.Close(); err == nil && more == 0 {
		err = closeErr
	}
	switch {
	case err != nil:
		return err
	case more > 0:
		return differsError{corrupt("%s has more than the %d bytes it should have", f.Name, f.Bytes)}
	case n != f.Bytes:
		return differsError{corrupt("%s has %d bytes, it should have %d", f.Name, n, f.Bytes)}
	case hex.EncodeToString(sum.Sum(nil)) != f.SHA256:
		return differsError{corrupt("%s: its checksum differs", f.Name)}
	}
	return nil
}

// verify reads an object back.
func (s *Store) verify(ctx context.Context, folder string, f checkpoint.File) error {
	err := s.try(ctx, f.Bytes, func(ctx context.Context) error { return s.copyOut(ctx, folder+f.Name, f, io.Discard) })
	if errors.Is(err, fs.ErrNotExist) {
		return corrupt("%s is missing", f.Name)
	}
	return err
}

// put writes an object and reads it back until it is there whole. open gives the content anew for each attempt; content
// that is not what f says is the fault of the local disk, and settled.
func (s *Store) put(ctx context.Context, folder string, f checkpoint.File, open func() io.Reader) error {
	err := s.try(ctx, 2*f.Bytes, func(ctx context.Context) error {
		sum := sha256.New()
		count := &counted{r: io.TeeReader(open(), sum)}
		if err := s.objects.Put(ctx, folder+f.Name, count); err != nil {
			if count.failed != nil {
				return settledError{fmt.Errorf("%w: %w", errLocal, count.failed)}
			}
			return fmt.Errorf("write: %w", err)
		}
		if count.n != f.Bytes || hex.EncodeToString(sum.Sum(nil)) != f.SHA256 {
			return settledError{fmt.Errorf("%w: it is not what its manifest says", errLocal)}
		}
		if err := s.copyOut(ctx, folder+f.Name, f, io.Discard); err != nil {
			return fmt.Errorf("read back: %v", err) // in words only: whatever it is, it is written again
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return nil
}

// counted counts what is read, and keeps an error of the reading.
type counted struct {
	r      io.Reader
	n      int64
	failed error
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.failed = err
	}
	return n, err
}

func (s *Store) putBytes(ctx context.Context, folder, name string, text []byte) error {
	return s.put(ctx, folder, fileOf(name, text), func() io.Reader { return bytes.NewReader(text) })
}

func fileOf(name string, text []byte) checkpoint.File {
	sum := sha256.Sum256(text)
	return checkpoint.File{Name: name, Bytes: int64(len(text)), SHA256: hex.EncodeToString(sum[:])}
}

// steps returns the steps that have a mirror.json, ascending, and those that have only something else.
func (s *Store) steps(ctx context.Context) (committed, left []int, err error) {
	var found map[int]bool
	err = s.try(ctx, 0, func(ctx context.Context) error {
		found = map[int]bool{}
		keys := 0
		return s.objects.List(ctx, folderName+"/", func(key string) error {
			if keys++; keys > maxKeys {
				return settledError{corrupt("it has more than %d objects", maxKeys)}
			}
			if step, name, ok := splitKey(key); ok {
				found[step] = found[step] || name == entryName
			}
			return nil
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list: %w", err)
	}
	for step, whole := range found {
		if whole {
			committed = append(committed, step)
		} else {
			left = append(left, step)
		}
	}
	slices.Sort(committed)
	slices.Sort(left)
	return committed, left, nil
}

// entry reads a step's mirror.json. The error wraps checkpoint.ErrCorrupt or ErrIncompatible where that is no good.
func (s *Store) entry(ctx context.Context, step int) (entry, error) {
	text, err := s.read(ctx, stepFolder(step)+entryName, maxEntryBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return entry{}, corrupt("%s is missing", entryName)
	}
	if err != nil {
		return entry{}, err
	}
	return parseEntry(text, step)
}

// whole reads all of a step's copy.
func (s *Store) whole(ctx context.Context, step int) (entry, error) {
	e, err := s.entry(ctx, step)
	if err != nil {
		return entry{}, err
	}
	for _, f := range e.Files {
		if err := s.verify(ctx, stepFolder(step), f); err != nil {
			return entry{}, err
		}
	}
	return e, nil
}

// damaged reports whether an error is about what a mirror holds, and not about reaching it. What a newer version wrote is not
// damaged: it is neither passed over nor removed.
func damaged(err error) bool {
	return errors.Is(err, checkpoint.ErrCorrupt) && !errors.Is(err, checkpoint.ErrIncompatible)
}

// remove takes a step's copy away, mirror.json first, so that no copy that counts lacks anything.
func (s *Store) remove(ctx context.Context, step int) error {
	folder := stepFolder(step)
	err := s.try(ctx, 0, func(ctx context.Context) error {
		if err := s.objects.Delete(ctx, folder+entryName); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		var keys []string
		if err := s.objects.List(ctx, folder, func(key string) error { keys = append(keys, key); return nil }); err != nil {
			return err
		}
		for _, key := range keys {
			if err := s.objects.Delete(ctx, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove step %d: %w", step, err)
	}
	return nil
}
