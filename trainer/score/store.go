package score

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"cftune/trainer/internal/durable"
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

// OpenStore opens the store in a folder, making it if needed. What a killed process left of a last line is removed.
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
	if s.file, err = durable.OS.Append(path); err != nil {
		lock.Release()
		return nil, fmt.Errorf("open scores: %w", err)
	}
	return s, nil
}

func (s *Store) read(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := bufio.NewReader(file)
	whole := int64(0)
	for number := 1; ; number++ {
		text, err := reader.ReadBytes('\n')
		if err != nil {
			break // the end, or a torn line
		}
		var l line
		if err := json.Unmarshal(text, &l); err != nil || l.Key == "" {
			return fmt.Errorf("%s: line %d is damaged; remove it to have its text written again", path, number)
		}
		s.lines[l.Key] = l
		whole += int64(len(text))
	}
	return file.Truncate(whole)
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
