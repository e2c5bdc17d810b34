package score

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
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

// line is a text or a loss.
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
	file  durable.File
	lines map[string]line
	lock  *durable.Lock
}

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

// readLines takes all whole lines and gives the bytes that they have.
func (s *Store) readLines(file io.Reader, path string) (whole int64, err error) {
	reader := bufio.NewReader(file)
	for number := 1; ; number++ {
		text, err := reader.ReadBytes('\n')
		if err == io.EOF {
			return whole, nil // or a torn line
		}
		if err != nil {
			return whole, fmt.Errorf("%s: %w", path, err) // what lies behind it must not be cut off
		}
		var l line
		if err := json.Unmarshal(text, &l); err != nil || l.Key == "" {
			return whole, fmt.Errorf("%s: line %d is damaged; remove it to have its text written again", path, number)
		}
		s.lines[l.Key] = l
		whole += int64(len(text))
	}
}

func (s *Store) put(l line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if _, err := s.file.Write(append(text, '\n')); err != nil {
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
