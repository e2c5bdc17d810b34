package critic

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// RecordName is the record of a run in its folder: all that is needed to make it again.
const RecordName = "run.json"

const recordFormat = 1

// Settings are what is written down about a run.
type Settings struct {
	Fixed    map[string]any `json:"settings"` // what decides the texts: must be the same when a run goes on
	Versions map[string]any `json:"versions"` // of the program and its libraries
	Session  map[string]any `json:"session"`  // what may differ from one process to the next: budget, prices, limits
}

// record is the file.
type record struct {
	Format   int              `json:"format"`
	ID       string           `json:"id"` // random: idempotency keys of two runs never meet
	Created  time.Time        `json:"created"`
	Fixed    map[string]any   `json:"settings"`
	Sessions []map[string]any `json:"sessions"` // one for each process that worked on the run
}

// SettingsError says that a folder holds a run with other settings.
type SettingsError struct {
	Dir         string
	Differences []string // "name: has x, not y"
}

func (e *SettingsError) Error() string {
	return fmt.Sprintf("%s holds a run with other settings:\n  %s", e.Dir, strings.Join(e.Differences, "\n  "))
}

// ErrForeign says that a new run's folder has a file that a run would write over.
var ErrForeign = errors.New("is there already, and is not of a run")

// movable are the settings of a teacher that say how its model is reached: a server that comes back under another address goes
// on. Which model it is is said by its name.
var movable = []string{"url", "stream", "tokens_field"}

// settle writes down a run's settings, or compares them with what is there, and returns the run's id. moved names what has
// changed of how teachers are reached.
func settle(fs durable.FS, dir string, s Settings) (id string, moved []string, err error) {
	path := filepath.Join(dir, RecordName)
	fixed, err := plain(s.Fixed)
	if err != nil {
		return "", nil, fmt.Errorf("record: %w", err)
	}
	session, err := plain(map[string]any{"session": s.Session, "versions": s.Versions, "started": time.Now().UTC()})
	if err != nil {
		return "", nil, fmt.Errorf("record: %w", err)
	}
	var r record
	text, err := regular.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if _, err := os.Stat(filepath.Join(dir, JournalName)); err == nil {
			return "", nil, fmt.Errorf("%s: %w: there is a journal but no %s", dir, ErrCorrupt, RecordName)
		}
		for _, name := range []string{CritiquesName, SamplesName, ReportName} {
			if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
				return "", nil, fmt.Errorf("%s %w", filepath.Join(dir, name), ErrForeign)
			}
		}
		nonce := make([]byte, 16)
		rand.Read(nonce) // never fails
		r = record{Format: recordFormat, ID: hex.EncodeToString(nonce), Created: time.Now().UTC(), Fixed: fixed}
	case err != nil:
		return "", nil, fmt.Errorf("record: %w", err)
	default:
		if err := decode(text, &r); err != nil {
			return "", nil, fmt.Errorf("record %s: %w: %w", path, ErrCorrupt, err)
		}
		if r.Format != recordFormat {
			return "", nil, fmt.Errorf("record %s: format %d, this program reads %d", path, r.Format, recordFormat)
		}
		grow(r.Fixed, fixed)
		d := differences("", r.Fixed, fixed)
		for _, each := range d {
			if isMove(each) {
				moved = append(moved, each)
			}
		}
		if d = slices.DeleteFunc(d, isMove); len(d) > 0 {
			return "", nil, &SettingsError{dir, d}
		}
	}
	r.Sessions = append(r.Sessions, session)
	_, err = durable.ReplaceFile(fs, path, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(r)
	})
	return r.ID, moved, err
}

// grow takes more rows of the same data into a record: requests are numbered by row, so those that there are stay what they
// are. Fewer are a difference.
func grow(has, wants map[string]any) {
	old, _ := has["data"].(map[string]any)
	now, _ := wants["data"].(map[string]any)
	count := func(m map[string]any) int64 {
		n, _ := m["records"].(json.Number)
		value, _ := n.Int64()
		return value
	}
	if more := count(now) > count(old) && count(old) > 0; more {
		old["records"] = now["records"]
	}
}

// isMove says that a difference is of something movable.
func isMove(difference string) bool {
	name, _, _ := strings.Cut(difference, ": ")
	teacher, ok := strings.CutPrefix(name, "teachers.")
	return ok && slices.Contains(movable, teacher[strings.LastIndexByte(teacher, '.')+1:])
}

func decode(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(v)
}

// plain is a map as it comes back from a file.
func plain(m map[string]any) (map[string]any, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	var p map[string]any
	return p, decode(text, &p)
}

// differences names every value that two maps do not share.
func differences(prefix string, has, wants map[string]any) []string {
	var found []string
	keys := slices.Collect(maps.Keys(has))
	for k := range wants {
		if _, both := has[k]; !both {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		a, isMapA := has[k].(map[string]any)
		b, isMapB := wants[k].(map[string]any)
		if isMapA && isMapB {
			found = append(found, differences(prefix+k+".", a, b)...)
			continue
		}
		x, y := show(has[k]), show(wants[k])
		if x != y {
			found = append(found, fmt.Sprintf("%s%s: has %s, not %s", prefix, k, brief(x), brief(y)))
		}
	}
	return found
}

func show(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

func brief(text string) string {
	const most = 80
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + "..."
	}
	return text
}
