package trainer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/gguf"
)

// ErrModelGone is wrapped by errors that say that the base model, which was there, cannot be used any more: it was changed in its place, cut
// off, or its disk fails.
var ErrModelGone = errors.New("the base model is not what it was")

// HeldModel is a base model's files while they are mapped, to tell whether somebody writes into them: what is mapped changes with the file.
// A file that is replaced by another of its name stays the one that is held.
type HeldModel struct {
	known ModelFile
	files []*os.File
	vain  int // times that the files were read again and found as they were
}

// mostVain is how often the files are read again for nothing: on a file system whose times change by themselves, each step would read a
// model. Its size is looked at then.
const mostVain = 8

// HoldModel opens the files of a base model and digests them.
func HoldModel(path string) (*HeldModel, error) {
	base, err := gguf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("base model: %w", err)
	}
	known, err := identify(base, ModelFile{})
	if err != nil {
		return nil, err
	}
	return holdFiles(known, base.Shards)
}

// holdFiles opens the files of the model that is known.
func holdFiles(known ModelFile, paths []string) (*HeldModel, error) {
	h := &HeldModel{known: known}
	for _, path := range paths {
		f, err := regular.Open(path)
		if err != nil {
			h.Close()
			return nil, fmt.Errorf("base model: %w", err)
		}
		h.files = append(h.files, f)
	}
	return h, nil
}

// SHA256 is the digest of the files.
func (h *HeldModel) SHA256() string { return h.known.SHA256 }

// Check is an error that wraps ErrModelGone if the files are not what they were. It is cheap while nobody touches them; where their times
// have changed they are read again.
func (h *HeldModel) Check() error {
	bytes, modified, err := h.stamp()
	if err != nil {
		return err
	}
	if bytes == h.known.Bytes && modified.Equal(h.known.Modified) {
		return nil
	}
	if bytes != h.known.Bytes {
		return h.gone(fmt.Sprintf("it had %d bytes, and has %d", h.known.Bytes, bytes))
	}
	if h.vain == mostVain {
		return nil
	}
	sum := sha256.New()
	for _, f := range h.files {
		if _, err := io.Copy(sum, io.NewSectionReader(f, 0, bytes)); err != nil {
			return fmt.Errorf("base model: %w: %w", ErrModelGone, err)
		}
	}
	if hex.EncodeToString(sum.Sum(nil)) != h.known.SHA256 {
		return h.gone("it was written to at " + modified.Local().Format(time.DateTime))
	}
	h.vain++
	h.known.Modified = modified // a chmod, another name, a touch
	return nil
}

func (h *HeldModel) gone(how string) error {
	return fmt.Errorf("%w: %s was changed while it was in use: %s", ErrModelGone, h.known.Path, how)
}

// stamp is what identify has of the files.
func (h *HeldModel) stamp() (bytes int64, modified time.Time, err error) {
	for _, f := range h.files {
		info, err := f.Stat()
		if err != nil {
			return 0, modified, fmt.Errorf("base model: %w: %w", ErrModelGone, err)
		}
		bytes += info.Size()
		modified = lastChange(info, modified)
	}
	return bytes, modified, nil
}

// lastChange is when a file was modified or changed otherwise, if that is later than the time that is given.
func lastChange(info os.FileInfo, since time.Time) time.Time {
	for _, t := range []time.Time{info.ModTime().UTC(), regular.Changed(info).UTC()} { // an image, or a copy, may give all files one time of modification
		if t.After(since) {
			since = t // of the newest
		}
	}
	return since
}

// Close closes the files.
func (h *HeldModel) Close() {
	for _, f := range h.files {
		f.Close()
	}
}
