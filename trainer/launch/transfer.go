package launch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"

	"cftune/internal/regular"
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
//
// Several launches may send the same file at once. Its folder is named by its content, so all write the same bytes to the same part, which
// nobody cuts off; who has it whole first gives it its name, and the others find it there.
func put(ctx context.Context, h Host, local, remote string, want durable.Written, mode fs.FileMode) error {
	for attempt := 1; ; attempt++ {
		if is, err := there(ctx, h, remote, want); is || err != nil {
			return errors.Join(err, removePart(h, remote))
		}
		err := putPart(ctx, h, local, remote, want, mode)
		if err == nil || ctx.Err() != nil || attempt == meetings {
			return err
		}
		// Where the part has gone, another launch has given it its name, or has begun it anew.
		if _, statErr := h.Stat(remote + partSuffix); !errors.Is(err, errSentMeanwhile) && !errors.Is(statErr, fs.ErrNotExist) {
			return err
		}
	}
}

// meetings is how often a launch gives way to others that send the same file.
const meetings = 8

func removePart(h Host, remote string) error {
	if err := h.Remove(remote + partSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// there reports whether a host has a file under its name.
func there(ctx context.Context, h Host, remote string, want durable.Written) (bool, error) {
	if info, err := h.Stat(remote); err != nil || info.Size() != want.Bytes {
		return false, nil // what is wrong with it shows when it is written
	}
	sum, err := hostDigest(ctx, h, remote)
	return sum == want.SHA256, err
}

// putPart sends what a part lacks, and gives it its name.
func putPart(ctx context.Context, h Host, local, remote string, want durable.Written, mode fs.FileMode) error {
	fail := func(err error) error { return fmt.Errorf("send %s to %s: %w", local, h.Name(), err) }
	if err := h.MkdirAll(path.Dir(remote)); err != nil {
		return fail(err)
	}
	part := remote + partSuffix
	_, err := h.Stat(remote)
	alone := err == nil // it is damaged, and shows nothing about others
	var offset int64
	switch info, err := h.Stat(part); {
	case err == nil && info.Size() > want.Bytes:
		if err := removePart(h, remote); err != nil {
			return fail(err)
		}
	case err == nil && info.Size() == want.Bytes:
		offset = want.Bytes // it may only lack its name
	case err == nil:
		offset = max(0, info.Size()-stepBack)
	}
	for {
		if err := sendFrom(ctx, h, local, remote, offset, alone); err != nil {
			return fail(err)
		}
		whole, err := nameChecked(ctx, h, remote, want, mode)
		if whole {
			return nil
		}
		if err != nil {
			return fail(err)
		}
		if offset == 0 {
			if now, err := durable.Digest(local); err == nil && now == want {
				return fail(errSentMeanwhile) // the part was another launch's, begun anew
			}
			return fail(errors.Join(fmt.Errorf("what arrived has another checksum than the file had (did it change meanwhile?)"), removePart(h, remote)))
		}
		offset = 0 // the part was of something else
	}
}

// nameChecked gives the part its name if it is whole. What has been checked must be what gets the name, and another launch may give the name
// to the part, and a third begin a new one, in between: so it is taken aside first, under a name that nobody else has.
func nameChecked(ctx context.Context, h Host, remote string, want durable.Written, mode fs.FileMode) (whole bool, err error) {
	part := remote + partSuffix
	aside := part + "." + rand.Text()
	if err := h.Rename(part, aside); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errSentMeanwhile
		}
		return false, err
	}
	sum, err := hostDigest(ctx, h, aside)
	if err == nil && sum == want.SHA256 {
		if err = h.Chmod(aside, mode); err == nil {
			err = h.Rename(aside, remote)
		}
		if err == nil {
			return true, nil
		}
	}
	return false, errors.Join(err, h.Rename(aside, part)) // to be gone on with
}

// chunk is how much is sent before a look whether another launch has sent the file meanwhile: a program that somebody still writes cannot
// be started.
const chunk = 16 << 20

var errSentMeanwhile = errors.New("another launch has sent it meanwhile")

// sendFrom writes a file's bytes from an offset on to its part; alone says that nobody is looked for.
func sendFrom(ctx context.Context, h Host, local, remote string, offset int64, alone bool) error {
	f, err := regular.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	w, err := h.WriteFrom(remote+partSuffix, offset)
	if err != nil {
		return err
	}
	for n := int64(chunk); err == nil && n == chunk; {
		if n, err = io.Copy(w, &contextReader{ctx, io.LimitReader(f, chunk), chunk}); err == nil && n == chunk && !alone {
			if _, statErr := h.Stat(remote); statErr == nil {
				err = errSentMeanwhile
			}
		}
	}
	return errors.Join(err, w.Close())
}

// contextReader ends a copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
	// most is how much it may give. SFTP writes packet by packet, each after the answer to the one before, unless it is told.
	most int64
}

// Size is for SFTP's writer.
func (c *contextReader) Size() int64 { return c.most }

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
	switch have, err := os.Stat(part); {
	case err == nil && have.Size() > info.Size():
		if err := os.Remove(part); err != nil {
			return fail(err)
		}
	case err == nil:
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
	_, err = io.Copy(&contextWriter{ctx, f}, r) // SFTP's reader asks for several packets at once
	return errors.Join(err, f.Close())
}

// contextWriter ends a copy when its context ends.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
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
	temp := path + "." + rand.Text() + durable.TempSuffix // several launches may write it at once
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
