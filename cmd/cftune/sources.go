package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
)

// sourceHelp says what parseSource takes.
const sourceHelp = `a path, or a source as in data.sources: '{path: test.jsonl, format: cft, fields: {query: question, gold: answer}}'`

// namedSource is a source of the command line with the name that reports give it.
type namedSource struct {
	Name   string        `yaml:"name"`
	Path   string        `yaml:"path"`
	Format string        `yaml:"format"`
	Fields config.Fields `yaml:"fields"`
}

// parseSource reads a source of the command line: a path, or a YAML map. The format is cft unless it says another.
func parseSource(text string) (namedSource, error) {
	s := namedSource{Path: text}
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		s.Path = ""
		decoder := yaml.NewDecoder(bytes.NewReader([]byte(text)))
		decoder.KnownFields(true)
		if err := decoder.Decode(&s); err != nil {
			return s, codedError{fmt.Errorf("source %s: %w", text, err), codeUsage}
		}
	}
	if s.Path == "" {
		return s, codedError{fmt.Errorf("source %s: path is missing", text), codeUsage}
	}
	if s.Format == "" {
		s.Format = "cft"
	}
	if s.Name == "" {
		s.Name = s.Path
	}
	return s, nil
}

// open opens the records of sources as one set, which the caller closes.
func openSources(ctx context.Context, sources ...namedSource) (*dataset.Set, error) {
	var list []config.Source
	for _, s := range sources {
		list = append(list, config.Source{Path: s.Path, Format: s.Format, Weight: 1, Sample: 1, Fields: s.Fields})
	}
	return dataset.Open(ctx, list, dataset.Options{Cache: cacheFolder()})
}

// writeAside makes path hold what write writes, or leaves it as it was.
func writeAside(path string, write func(io.Writer) error) error {
	temp := path + ".tmp"
	file, err := os.Create(temp)
	if err != nil {
		return codedError{err, codeUsage}
	}
	defer os.Remove(temp) // gone when it was renamed
	w := bufio.NewWriter(file)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(temp, path)
}
