package mirror

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"cftune/trainer/checkpoint"
)

// FormatVersion is the version of the mirror's layout. Readers take this one only.
const FormatVersion = 1

// Keys in a mirror. Those of a step's objects are FOLDER/step-00000050/NAME.
const (
	claimName  = "run.json"
	entryName  = "mirror.json"
	folderName = "checkpoints"
	stepPrefix = "step-"
)

// Bounds of what is read from a mirror: what is read into memory is small, and no mirror fills a disk or a list without end.
const (
	maxEntryBytes   = 1 << 20 // also of run.json and manifest.json
	maxConfigBytes  = 64 << 20
	maxJournalBytes = 64 << 20
	maxMetricsBytes = 4 << 30
	maxFileBytes    = 1 << 45 // of anything else
	maxFiles        = 64
	maxKeys         = 1 << 20
)

// entry is a step's mirror.json: what its copy consists of.
type entry struct {
	Format int               `json:"format"`
	Run    string            `json:"run"` // when the run began, to the nanosecond: what tells it from others
	Step   int               `json:"step"`
	Files  []checkpoint.File `json:"files"` // in the order of their names
	// Digest is the SHA-256 of this JSON with an empty digest.
	Digest string `json:"digest"`
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", checkpoint.ErrCorrupt, fmt.Sprintf(format, args...))
}

func (e entry) encode() ([]byte, error) {
	e.Digest = ""
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	e.Digest = hex.EncodeToString(sum[:])
	text, err = json.MarshalIndent(e, "", "  ")
	return append(text, '\n'), err
}

// parseEntry reads a step's mirror.json strictly.
func parseEntry(text []byte, step int) (entry, error) {
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return entry{}, corrupt("%s: %v", entryName, err)
	}
	if version.Format != FormatVersion {
		return entry{}, fmt.Errorf("%w: %s: format %d is not %d, the one this version reads", checkpoint.ErrIncompatible, entryName, version.Format, FormatVersion)
	}
	var e entry
	if err := decodeStrictly(text, &e); err != nil {
		return entry{}, corrupt("%s: %v", entryName, err)
	}
	again, err := e.encode()
	if err != nil || !bytes.Equal(again, text) {
		return entry{}, corrupt("%s: its digest differs from its content", entryName)
	}
	if e.Step != step {
		return entry{}, corrupt("%s: it is of step %d", entryName, e.Step)
	}
	if err := e.checkFiles(); err != nil {
		return entry{}, corrupt("%s: %v", entryName, err)
	}
	return e, nil
}

func decodeStrictly(text []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more text after the object")
	}
	return nil
}

// plainName is what a file of a mirror may be called: nothing that leads out of a folder, or that a file system or a
// shell takes for something else.
var plainName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

var sha256Text = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (e entry) checkFiles() error {
	if len(e.Files) > maxFiles {
		return fmt.Errorf("%d files, more than %d", len(e.Files), maxFiles)
	}
	before := ""
	for _, f := range e.Files {
		switch {
		case !plainName.MatchString(f.Name) || f.Name == entryName || strings.HasSuffix(f.Name, ".tmp"):
			return fmt.Errorf("file name %.80q", f.Name)
		case f.Name <= before:
			return fmt.Errorf("file %s after %s", f.Name, before)
		case f.Bytes < 0 || f.Bytes > limitOf(f.Name):
			return fmt.Errorf("%s: %d bytes", f.Name, f.Bytes)
		case !sha256Text.MatchString(f.SHA256):
			return fmt.Errorf("%s: its digest is none", f.Name)
		}
		before = f.Name
	}
	for _, name := range []string{checkpoint.ConfigName, checkpoint.MetricsName, checkpoint.ManifestName} {
		if !e.has(name) {
			return fmt.Errorf("it lacks %s", name)
		}
	}
	return nil
}

func (e entry) has(name string) bool {
	for _, f := range e.Files {
		if f.Name == name {
			return true
		}
	}
	return false
}

func (e entry) bytes() (sum int64) {
	for _, f := range e.Files {
		sum += f.Bytes // at most maxFiles * maxFileBytes: no overflow
	}
	return sum
}

func limitOf(name string) int64 {
	switch name {
	case checkpoint.ManifestName:
		return maxEntryBytes
	case checkpoint.ConfigName:
		return maxConfigBytes
	case checkpoint.JournalName:
		return maxJournalBytes
	case checkpoint.MetricsName:
		return maxMetricsBytes
	}
	return maxFileBytes
}

// ofRun reports whether a file belongs to the run's folder rather than to the checkpoint's.
func ofRun(name string) bool {
	return name == checkpoint.ConfigName || name == checkpoint.MetricsName || name == checkpoint.JournalName
}

// claim is a mirror's run.json: whose it is.
type claim struct {
	Format int    `json:"format"`
	Run    string `json:"run"`
	// Writer is a random name for the process that copies to it now.
	Writer string    `json:"writer"`
	Holder string    `json:"holder"` // that process, for people
	Since  time.Time `json:"since"`
}

func (c claim) encode() ([]byte, error) {
	text, err := json.MarshalIndent(c, "", "  ")
	return append(text, '\n'), err
}

func parseClaim(text []byte) (claim, error) {
	var c claim
	if err := decodeStrictly(text, &c); err != nil {
		return claim{}, corrupt("%s: %v", claimName, err)
	}
	if c.Format != FormatVersion {
		return claim{}, fmt.Errorf("%w: %s: format %d is not %d, the one this version reads", checkpoint.ErrIncompatible, claimName, c.Format, FormatVersion)
	}
	return c, nil
}

// stepFolder is the key prefix of a step's objects.
func stepFolder(step int) string {
	return path.Join(folderName, filepath.Base(checkpoint.StepDir("", step))) + "/"
}

// splitKey takes the key of a step's object apart.
func splitKey(key string) (step int, name string, ok bool) {
	rest, below := strings.CutPrefix(key, folderName+"/"+stepPrefix)
	digits, name, ok := strings.Cut(rest, "/")
	step, err := strconv.Atoi(digits)
	if !below || !ok || err != nil || step < 0 || stepFolder(step)+name != key {
		return 0, "", false
	}
	return step, name, true
}

// startedOf reads from a run's config.json what tells it from other runs.
func startedOf(config []byte) (string, error) {
	var run struct {
		Started time.Time `json:"started"`
	}
	if err := json.Unmarshal(config, &run); err != nil {
		return "", err
	}
	return RunName(run.Started), nil
}

// RunName is what tells a run from others: the time at which it began.
func RunName(started time.Time) string { return started.UTC().Format(time.RFC3339Nano) }
