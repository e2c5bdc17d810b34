package hub

import (
	"context"
	"crypto/sha1" // git's, for files that are not large
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// incompleteSuffix ends the name of a download that is not whole, as Hugging Face's libraries have it.
const incompleteSuffix = ".incomplete"

// lockPoll is how often a process that waits for another's download looks.
const lockPoll = 200 * time.Millisecond

// bring returns the file from the cache's blobs, or downloads it there, one process at a time.
func (s *Store) bring(ctx context.Context, r Reference, f remote) (cached, error) {
	blob := filepath.Join(s.Cache, r.folder(), "blobs", f.etag)
	if whole(blob, f.size) {
		return s.publish(r, f, blob)
	}
	locks := filepath.Join(s.Cache, ".locks", r.folder())
	for _, dir := range []string{filepath.Dir(blob), locks} {
		if err := durable.MkdirAll(durable.OS, dir); err != nil {
			return cached{}, err
		}
	}
	lock, err := s.lock(ctx, filepath.Join(locks, f.etag+".lock"), r.File)
	if err != nil {
		return cached{}, err
	}
	defer lock.Release()     // closing a lock's file cannot fail in a way that matters
	if whole(blob, f.size) { // another process has brought it
		return s.publish(r, f, blob)
	}
	n, err := s.download(ctx, r, f, blob)
	if err != nil {
		return cached{}, err
	}
	c, err := s.publish(r, f, blob)
	c.downloaded = n
	return c, err
}

func whole(path string, size int64) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// lock waits until no other process downloads the file.
func (s *Store) lock(ctx context.Context, path, file string) (*durable.Lock, error) {
	told := false
	for {
		lock, err := durable.Acquire(path)
		held, isHeld := errors.AsType[*durable.HeldError](err)
		if !isHeld {
			return lock, err
		}
		if !told {
			s.note("%s is being downloaded by another process (%s): waiting for it", file, held.Holder)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// download writes the blob: what an earlier download left is gone on with, and what does not verify is begun anew, once.
func (s *Store) download(ctx context.Context, r Reference, f remote, blob string) (int64, error) {
	part := blob + incompleteSuffix
	kept := int64(0)
	if info, err := os.Stat(part); err == nil {
		if kept = info.Size(); kept > f.size {
			kept = 0
			if err := os.Remove(part); err != nil {
				return 0, err
			}
		}
	}
	if err := durable.CheckSpace(durable.OS, filepath.Dir(blob), f.size-kept); err != nil {
		return 0, err
	}
	n, err := s.fill(ctx, r, f, part)
	if errors.Is(err, ErrDigest) && kept > 0 {
		s.note("what an earlier download left of %s is not of this file: beginning anew", r.File)
		var again int64
		again, err = s.fill(ctx, r, f, part) // verify has removed it
		n += again
	}
	if err != nil {
		return n, err
	}
	if err := os.Rename(part, blob); err != nil {
		return n, err
	}
	return n, durable.OS.SyncDir(filepath.Dir(blob))
}

// fill downloads what a part lacks, syncs and verifies it. What stays after a failure of the network can be gone on with.
func (s *Store) fill(ctx context.Context, r Reference, f remote, path string) (int64, error) {
	out, err := regular.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return 0, err
	}
	defer out.Close() // synced below
	p := &partial{file: out, sum: verifier(f)}
	if p.at, err = io.Copy(p.sum, out); err != nil {
		return 0, err
	}
	begin, fresh := p.at, int64(0)
	err = s.patiently(ctx, func() (bool, error) {
		before := fresh
		err := s.fetch(ctx, r, f, p, &fresh)
		return fresh > before, err
	})
	if err != nil {
		return fresh, errors.Join(err, out.Sync())
	}
	if begin < f.size && s.Progress != nil {
		s.Progress(r.File, p.at, f.size)
	}
	if err := out.Sync(); err != nil {
		return fresh, err
	}
	if want, got := f.etag, hex.EncodeToString(p.sum.Sum(nil)); verifiable(f) && got != want {
		return fresh, errors.Join(fmt.Errorf("%w: the digest of what arrived is %.16s, the hub says %.16s; it was removed", ErrDigest, got, want), os.Remove(path))
	}
	if !verifiable(f) {
		s.note("the hub gives no digest of %s: only its size was compared", r.File)
	}
	return fresh, nil
}

// partial is a file that grows, and the digest of what it has.
type partial struct {
	file *os.File
	sum  hash.Hash
	at   int64
}

func (p *partial) Write(b []byte) (int, error) {
	n, err := p.file.WriteAt(b, p.at)
	p.sum.Write(b[:n])
	p.at += int64(n)
	return n, err
}

// verifiable reports whether the ETag is a digest: SHA-256 of large files, git's of others.
func verifiable(f remote) bool {
	return sha256Hex.MatchString(f.etag) || commitHash.MatchString(f.etag)
}

func verifier(f remote) hash.Hash {
	if sha256Hex.MatchString(f.etag) {
		return sha256.New()
	}
	sum := sha1.New()
	fmt.Fprintf(sum, "blob %d\x00", f.size)
	return sum
}

// fetch makes one request for what is missing and writes what comes.
func (s *Store) fetch(ctx context.Context, r Reference, f remote, p *partial, fresh *int64) error {
	if p.at == f.size {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(s.Patience.Stall, func() { cancel(errStalled) })
	defer stall.Stop()
	req, err := s.request(ctx, http.MethodGet, f.url)
	if err != nil {
		return err
	}
	if p.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", p.at))
	}
	client := newHTTPClient(func(_, _ *url.URL) bool { return true })
	defer client.CloseIdleConnections()
	response, err := client.Do(req)
	if err != nil {
		return stalled(ctx, bare(err))
	}
	defer response.Body.Close()
	skip := int64(0)
	switch code := response.StatusCode; {
	case code == http.StatusOK:
		skip = p.at // the server gives all of it again
	case code != http.StatusPartialContent:
		return s.refusal(r, response)
	case !strings.HasPrefix(response.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", p.at)):
		return fmt.Errorf("the server gave %q, asked for the bytes from %d on", response.Header.Get("Content-Range"), p.at)
	}
	if err := s.copy(response.Body, f, p, skip, fresh, r.File, stall); err != nil {
		return stalled(ctx, err)
	}
	return nil
}

// stalled tells a connection that was given up from one that broke.
func stalled(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}

// copyBytes is how much is read at a time.
const copyBytes = 1 << 18

// copy writes what a body has beyond its first skip bytes; more than the file's size is an error.
func (s *Store) copy(body io.Reader, f remote, p *partial, skip int64, fresh *int64, name string, stall *time.Timer) error {
	buffer := make([]byte, copyBytes)
	for {
		n, err := body.Read(buffer)
		if n > 0 {
			stall.Reset(s.Patience.Stall)
		}
		passed := min(skip, int64(n))
		skip -= passed
		part := buffer[passed:n]
		if int64(len(part)) > f.size-p.at {
			return fmt.Errorf("%w: more bytes come than the %d that the hub announced", ErrDigest, f.size)
		}
		if _, failed := p.Write(part); failed != nil {
			return failed
		}
		*fresh += int64(len(part))
		if len(part) > 0 && s.Progress != nil {
			s.Progress(name, p.at, f.size)
		}
		switch {
		case err == io.EOF && p.at < f.size:
			return io.ErrUnexpectedEOF
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
