package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// FormatVersion is the version of the run directory that is written. Readers take this one only.
const FormatVersion = 1

// Manifest says what a checkpoint is of. Write fills in Format, Files and Digest.
type Manifest struct {
	Format       int    `json:"format"`
	Step         int    `json:"step"`   // optimizer steps taken
	Cursor       Cursor `json:"cursor"` // the next record
	Seed         uint64 `json:"seed"`
	ConfigDigest string `json:"config_digest"` // of the settings that must not change
	ModelDigest  string `json:"model_sha256"`
	DataDigest   string `json:"data_digest"`

	Counters Counters `json:"counters"`
	// ValidatedStep is the step of the last validation, -1 if there was none.
	ValidatedStep int   `json:"validated_step"`
	Best          *Best `json:"best,omitempty"`
	// Objective is where the run's course of objectives stands; nil is its start.
	Objective *Objective `json:"objective,omitempty"`

	Files []File `json:"files"` // in the order of their names
	// Digest is the SHA-256 of this JSON with an empty digest.
	Digest string `json:"digest"`
}

// Cursor is a place in the run's order of records.
type Cursor struct {
	Epoch int `json:"epoch"`
	Index int `json:"index"`
}

// Counters are sums over the run's steps.
type Counters struct {
	Examples     int64  `json:"examples"`
	Tokens       int64  `json:"tokens"`
	Targets      int64  `json:"targets"`
	MicroBatches uint64 `json:"micro_batches"`
	// Skipped is how many groups of examples were left out because their loss or gradient was no good.
	Skipped int64 `json:"skipped,omitempty"`
}

// Best is the lowest validation loss so far.
type Best struct {
	Step int     `json:"step"`
	Loss float64 `json:"loss"`
	// Stale is the number of validations since.
	Stale int `json:"stale,omitempty"`
}

// Objective is a place in the course of objectives: the k-th change of the journal (0: the configuration's stages) and the
// stage within it, with the lowest validation loss since the stage began and the number of validations after it.
type Objective struct {
	Change int      `json:"change"`
	Stage  int      `json:"stage"`
	Best   *float64 `json:"best,omitempty"`
	Stale  int      `json:"stale"`
}

// File is a file of a checkpoint.
type File struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Errors that callers tell apart; others are of the disk.
var (
	ErrNotFound = errors.New("not found")
	// ErrNone says that a run has no checkpoint at all.
	ErrNone         = fmt.Errorf("there is none: %w", ErrNotFound)
	ErrCorrupt      = errors.New("damaged")
	ErrIncompatible = errors.New("incompatible")
	ErrExists       = errors.New("already holds a run")
)

// Undecodable says what is wrong with a file that cannot be decoded strictly and has no digest. A field that is not known is a newer version's,
// as far as anyone can tell, and nothing may be removed on its account.
func Undecodable(err error) error {
	if strings.HasPrefix(err.Error(), "json: unknown field ") { // package json has no type for it
		return fmt.Errorf("%w: %w, which a newer version of cftune may have written", ErrIncompatible, err)
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// encode returns the manifest's JSON with its digest.
func (m Manifest) encode() ([]byte, error) {
	m.Digest = ""
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	sum := sha256.Sum256(text)
	m.Digest = hex.EncodeToString(sum[:])
	if text, err = json.MarshalIndent(m, "", "  "); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return append(text, '\n'), nil
}

// ParseManifest reads a manifest strictly and checks its digest.
func ParseManifest(text []byte) (Manifest, error) {
	var version struct {
		Format int    `json:"format"`
		Digest string `json:"digest"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return Manifest{}, corrupt("manifest: %v", err)
	}
	// What is not as this version writes it, though it is as it was written, is another version's.
	bad := corrupt
	if isDigest(version.Digest, text) {
		bad = func(format string, args ...any) error {
			return fmt.Errorf("%w: another version of cftune wrote it: %s", ErrIncompatible, fmt.Sprintf(format, args...))
		}
	}
	if version.Format != FormatVersion {
		return Manifest{}, fmt.Errorf("%w: manifest: format %d is not %d, the one this version reads", ErrIncompatible, version.Format, FormatVersion)
	}
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return Manifest{}, bad("manifest: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Manifest{}, corrupt("manifest: more text after the object")
	}
	again, err := m.encode()
	if err != nil {
		return Manifest{}, corrupt("%v", err)
	}
	if !bytes.Equal(again, text) {
		return Manifest{}, bad("manifest: its digest differs from its content")
	}
	return m, nil
}

// isDigest reports whether a manifest's text has its own digest, whatever else is in it.
func isDigest(digest string, text []byte) bool {
	const key = `"digest": "`
	sum := sha256.Sum256(bytes.Replace(bytes.TrimSuffix(text, []byte("\n")), []byte(key+digest), []byte(key), 1))
	return digest == hex.EncodeToString(sum[:])
}
