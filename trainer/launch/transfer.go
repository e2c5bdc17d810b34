package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"

	"cftune/internal/spell"
	"cftune/trainer/internal/durable"
)

// partSuffix ends the name of a file that is on its way. Another attempt goes on behind what is there of it.
const partSuffix = ".part"

// stepBack is how much of a part is sent again: writes in flight when a connection ended may have left holes there.
const stepBack = 8 << 20

// digestScript prints the SHA-256 of its input, on whichever system.
const digestScript = `if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi <`

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}`)

// hostDigest returns the SHA-256 of a host's file.
func hostDigest(ctx context.Context, h Host, path string) (string, error) {
	out, err := h.Run(ctx, digestScript+spell.Quote(path), nil, nil)
	if err != nil {
		return "", fmt.Errorf("checksum of %s: %w", path, err)
	}
	sum := hexDigest.Find(out)
	if sum == nil {
		return "", fmt.Errorf("checksum of %s on %s: it answers %q", path, h.Name(), lastLines(string(out), 2))
	}
	return string(sum), nil
}

// put sends a file. It appears under its name when it is whole and has the digest that is wanted; what an earlier
// attempt has sent is not sent again. A file that is there with the right size and digest stays.
func put(ctx context.Context, h Host, local, remote string, want durable.Written, mode fs.FileMode) error {
	fail := func(err error) error { return fmt.Errorf("send %s to %s: %w", local, h.Name(), err) }
	if info, err := h.Stat(remote); err == nil && info.Size() == want.Bytes {
		if sum, err := hostDigest(ctx, h, remote); err != nil || sum == want.SHA256 {
			return err
		}
	}
	if err := h.MkdirAll(path.Dir(remote)); err != nil {
		return fail(err)
	}
	part := remote + partSuffix
	var offset int64
	if info, err := h.Stat(part); err == nil && info.Size() <= want.Bytes {
		offset = max(0, info.Size()-stepBack)
		if info.Size() == want.Bytes {
			offset = want.Bytes // it may only lack its name
		}
	}
	for {
		if err := sendFrom(ctx, h, local, part, offset); err != nil {
			return fail(err)
		}
		sum, err := hostDigest(ctx, h, part)
		if err != nil {
			return fail(err)
		}
		if sum == want.SHA256 {
			break
		}
		if offset == 0 {
			return fail(errors.Join(fmt.Errorf("what arrived has another checksum than the file had (did it change meanwhile?)"), h.Remove(part)))
		}
		offset = 0 // the part was of something else
	}
	if err := h.Chmod(part, mode); err != nil {
		return fail(err)
	}
	if err := h.Rename(part, remote); err != nil {
		return fail(err)
	}
	return nil
}

func sendFrom(ctx context.Context, h Host, local, part string, offset int64) error {
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	w, err := h.WriteFrom(part, offset)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, &contextReader{ctx, f})
	return errors.Join(err, w.Close())
}

// contextReader ends a copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// get fetches a file, as put sends one. It is replaced if it is there and differs.
func get(ctx context.Context, h Host, remote, local string) error {
	fail := func(err error) error { return fmt.Errorf("fetch %s from %s: %w", remote, h.Name(), err) }
	info, err := h.Stat(remote)
	if err != nil {
		return fail(err)
	}
	want, err := hostDigest(ctx, h, remote)
	if err != nil {
		return fail(err)
	}
	if have, err := durable.Digest(local); err == nil && have.SHA256 == want {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(local), privateDir); err != nil {
		return fail(err)
	}
	part := local + partSuffix
	var offset int64
	if have, err := os.Stat(part); err == nil && have.Size() <= info.Size() {
		offset = have.Size()
	}
	for {
		if err := fetchFrom(ctx, h, remote, part, offset); err != nil {
			return fail(err)
		}
		have, err := durable.Digest(part)
		if err != nil {
			return fail(err)
		}
		if have.SHA256 == want {
			break
		}
		if offset == 0 {
			return fail(errors.Join(errors.New("what arrived has another checksum than the file had there (it changed meanwhile?)"), os.Remove(part)))
		}
		offset = 0
	}
	if err := os.Rename(part, local); err != nil {
		return fail(err)
	}
	return nil
}

func fetchFrom(ctx context.Context, h Host, remote, part string, offset int64) error {
	r, err := h.Open(remote)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	f, err := (localHost{}).WriteFrom(part, offset)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, &contextReader{ctx, r})
	return errors.Join(err, f.Close())
}

// readSmall reads a file whole that must not be large.
func readSmall(h Host, path string, limit int64) ([]byte, error) {
	f, err := h.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s on %s: it has more than %d bytes", path, h.Name(), limit)
	}
	return text, err
}

// putText replaces a small file, all at once.
func putText(h Host, path string, text []byte, mode fs.FileMode) error {
	temp := path + durable.TempSuffix
	w, err := h.WriteFrom(temp, 0)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	if err = errors.Join(err, w.Close()); err == nil {
		err = h.Chmod(temp, mode)
	}
	if err == nil {
		err = h.Rename(temp, path)
	}
	if err != nil {
		return fmt.Errorf("write %s on %s: %w", path, h.Name(), err)
	}
	return nil
}
