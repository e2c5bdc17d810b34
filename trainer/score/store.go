package score

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
	"cftune/trainer/shard"
)

// TextsName is the file of texts and losses in an output folder.
const TextsName = "texts.jsonl"

// line is a text or a loss. In the file its last field is "sum", the CRC-32C of what stands before it in the line, which is not decoded.
type line struct {
	Key     string  `json:"key"`
	Subject string  `json:"subject"`
	Set     string  `json:"set,omitempty"`
	Task    string  `json:"task"`
	Item    int     `json:"item"`
	Text    string  `json:"text,omitempty"`
	Tokens  int     `json:"tokens"`
	Ended   bool    `json:"ended,omitempty"`
	Loss    float64 `json:"loss,omitempty"` // summed over the tokens
}

// Store keeps what models have written.
type Store struct {
	file      durable.File
	lines     map[string]line
	unchecked int // lines that have no checksum
	lock      *durable.Lock
}

// ErrCorrupt says that a store has what no crash leaves.
var ErrCorrupt = errors.New("damaged")

// Unchecked returns how many lines have no checksum: earlier versions wrote none.
func (s *Store) Unchecked() int { return s.unchecked }

// OpenStore opens the store in a folder, making it if needed. What a killed process left of a last line is removed. What shards
// have written in folders of their own below it is there as well.
func OpenStore(dir string) (*Store, error) {
	if err := durable.MkdirAll(durable.OS, dir); err != nil {
		return nil, fmt.Errorf("open scores: %w", err)
	}
	lock, err := durable.Acquire(filepath.Join(dir, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("open scores: %w", err)
	}
	s := &Store{lines: map[string]line{}, lock: lock}
	path := filepath.Join(dir, TextsName)
	if err := s.read(path); err != nil {
		lock.Release()
		return nil, fmt.Errorf("open scores: %w", err)
	}
	if err := s.readShards(dir); err != nil {
		lock.Release()
		return nil, fmt.Errorf("open scores: %w", err)
	}
	if s.file, err = durable.OS.Append(path); err != nil {
		lock.Release()
		return nil, fmt.Errorf("open scores: %w", err)
	}
	return s, nil
}

func (s *Store) read(path string) error {
	file, err := regular.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	whole, err := s.readLines(file, path)
	if err != nil {
		return err
	}
	return file.Truncate(whole)
}

// readShards reads what shards have written, perhaps while they still write.
func (s *Store) readShards(dir string) error {
	paths, err := filepath.Glob(filepath.Join(escaped(dir), shard.Folders, TextsName))
	if err != nil {
		return err
	}
	for _, path := range paths {
		file, err := regular.Open(path)
		if err != nil {
			return err
		}
		_, err = s.readLines(file, path)
		file.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// escaped makes a path a pattern of itself.
func escaped(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// readLines takes all whole lines and gives the bytes that they have. Lines without a checksum are those of an earlier version, so none
// follows one that has it. All that is damaged is told at once.
func (s *Store) readLines(file io.Reader, path string) (whole int64, err error) {
	reader := bufio.NewReader(file)
	var bad damage
	checked := false
	for number := 1; ; number++ {
		text, err := reader.ReadBytes('\n')
		if err == io.EOF {
			return whole, bad.err(path) // or a torn line
		}
		if err != nil {
			return whole, fmt.Errorf("%s: %w", path, err) // what lies behind it must not be cut off
		}
		whole += int64(len(text))
		l, summed, problem := parseLine(text)
		switch {
		case problem != "":
			bad.add(number, problem)
		case checked && !summed:
			bad.add(number, "it has no checksum, and lines before it have theirs")
		default:
			checked = checked || summed
			if !summed {
				s.unchecked++
			}
			s.lines[l.Key] = l
		}
	}
}

// damage is what is wrong with the lines of a file.
type damage struct {
	first   string
	numbers []string
}

func (d *damage) add(number int, problem string) {
	if d.first == "" {
		d.first = problem
	}
	d.numbers = append(d.numbers, fmt.Sprint(number))
}

// mostNumbers bounds the lines that an error names.
const mostNumbers = 10

func (d *damage) err(path string) error {
	switch n := len(d.numbers); {
	case n == 0:
		return nil
	case n == 1:
		return fmt.Errorf("%s: line %s is %w: %s", path, d.numbers[0], ErrCorrupt, d.first)
	case n <= mostNumbers:
		return fmt.Errorf("%s: lines %s are %w; of the first: %s", path, strings.Join(d.numbers, ", "), ErrCorrupt, d.first)
	default:
		return fmt.Errorf("%s: lines %s and %d others are %w; of the first: %s", path, strings.Join(d.numbers[:mostNumbers], ", "), n-mostNumbers, ErrCorrupt, d.first)
	}
}

// What a line ends with: the checksum's field, its eight digits between these.
const (
	sumOpens  = `,"sum":"`
	sumCloses = "\"}\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sumOf(body []byte) string { return fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)) }

// formatLine gives a line with its checksum and its newline.
func formatLine(l line) ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	body := text[:len(text)-1] // without the brace
	sum := sumOf(body)
	return append(append(append(body, sumOpens...), sum...), sumCloses...), nil
}

// parseLine reads a line, and tells whether it has a checksum, or what is wrong. A line that does not end as those with one do must be
// what an earlier version wrote, to the names of its fields: else damage to the checksum's name would hide the checksum.
func parseLine(text []byte) (l line, summed bool, problem string) {
	at := len(text) - len(sumOpens) - 8 - len(sumCloses)
	summed = at > 0 && bytes.HasPrefix(text[at:], []byte(sumOpens)) && bytes.HasSuffix(text, []byte(sumCloses))
	if summed && string(text[at+len(sumOpens):len(text)-len(sumCloses)]) != sumOf(text[:at]) {
		return l, true, "its checksum is not that of the line"
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if !summed {
		decoder.DisallowUnknownFields()
	}
	if err := decoder.Decode(&l); err != nil || l.Key == "" {
		return l, summed, "it is not what was written"
	}
	if _, err := decoder.Token(); err != io.EOF {
		return l, summed, "something stands behind it"
	}
	return l, summed, ""
}

func (s *Store) put(l line) error {
	text, err := formatLine(l)
	if err != nil {
		return err
	}
	if _, err := s.file.Write(text); err != nil {
		return fmt.Errorf("keep text: %w", err)
	}
	s.lines[l.Key] = l
	return nil
}

// Close syncs and closes the file.
func (s *Store) Close() error {
	err := s.file.Sync()
	if closeErr := s.file.Close(); err == nil {
		err = closeErr
	}
	if lockErr := s.lock.Release(); err == nil {
		err = lockErr
	}
	return err
}

// keyOf is the digest of everything that decides a text.
func keyOf(parts ...any) string {
	text, err := json.Marshal(parts)
	if err != nil {
		panic(err) // plain values only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}
