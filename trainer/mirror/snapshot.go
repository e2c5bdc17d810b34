package mirror

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"cftune/internal/regular"
	"cftune/trainer/checkpoint"
)

// Snapshot is a checkpoint, and what belongs to it, as it was when the snapshot was taken. It holds the files open: when
// they are removed or replaced later, it still has what they were.
type Snapshot struct {
	Step int

	keep  checkpoint.Retention
	run   string
	files []held
}

// held is the first bytes of a file, which do not change any more: the files of a checkpoint never do, and metrics and
// journal only grow.
type held struct {
	checkpoint.File // of a file that has no digest yet, it is empty
	f               *os.File
}

func (h held) reader() io.Reader { return io.NewSectionReader(h.f, 0, h.Bytes) }

// Take takes a snapshot of a run's checkpoint. It is called between two steps, when metrics and journal are those of the
// checkpoint, and only opens files. keep is what is to stay in the mirror once the snapshot is there.
func Take(dir string, step int, keep checkpoint.Retention) (*Snapshot, error) {
	s := &Snapshot{Step: step, keep: keep}
	if err := s.take(dir); err != nil {
		s.Close()
		return nil, fmt.Errorf("take a copy of step %d: %w", step, err)
	}
	return s, nil
}

func (s *Snapshot) take(dir string) error {
	m, err := checkpoint.ReadManifest(dir, s.Step)
	if err != nil {
		return err
	}
	folder := checkpoint.StepDir(dir, s.Step)
	for _, f := range m.Files {
		if err := s.hold(filepath.Join(folder, f.Name)); err != nil {
			return err
		}
		s.files[len(s.files)-1].File = f
	}
	for _, path := range []string{
		filepath.Join(folder, checkpoint.ManifestName), filepath.Join(dir, checkpoint.ConfigName),
		filepath.Join(dir, checkpoint.MetricsName), filepath.Join(dir, checkpoint.JournalName),
	} {
		err := s.hold(path)
		if errors.Is(err, os.ErrNotExist) && filepath.Base(path) == checkpoint.JournalName {
			continue // it is not there before the first change
		}
		if err != nil {
			return err
		}
	}
	config, err := regular.ReadFile(filepath.Join(dir, checkpoint.ConfigName))
	if err != nil {
		return err
	}
	if s.run, err = startedOf(config); err != nil {
		return fmt.Errorf("%s: %w", checkpoint.ConfigName, err)
	}
	slices.SortFunc(s.files, func(a, b held) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

func (s *Snapshot) hold(path string) error {
	f, err := regular.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.files = append(s.files, held{checkpoint.File{Name: filepath.Base(path), Bytes: info.Size()}, f})
	return nil
}

// digest fills in the digests that are not known from the manifest.
func (s *Snapshot) digest() error {
	for i := range s.files {
		h := &s.files[i]
		if h.SHA256 != "" {
			continue
		}
		sum := sha256.New()
		n, err := io.Copy(sum, h.reader())
		if err == nil && n != h.Bytes {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %w", errLocal, h.Name, err)
		}
		h.SHA256 = hex.EncodeToString(sum.Sum(nil))
	}
	return nil
}

func (s *Snapshot) entry() entry {
	e := entry{Format: FormatVersion, Run: s.run, Step: s.Step}
	for _, h := range s.files {
		e.Files = append(e.Files, h.File)
	}
	return e
}

// Close lets the files go. They were only read.
func (s *Snapshot) Close() {
	for _, h := range s.files {
		h.f.Close()
	}
	s.files = nil
}
