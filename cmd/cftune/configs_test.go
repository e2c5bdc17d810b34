package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cftune/trainer/config"
)

// A shipped configuration that does not load is worse than none. Each opens with the command that runs it.
func TestShippedConfigsLoad(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("..", "..", "configs", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) < 4 {
		t.Fatalf("only %d configurations found", len(paths))
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			if _, err := config.Load(path, nil, nil); err != nil {
				t.Error(err)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(data), "\n")
			if want := "configs/" + filepath.Base(path); !strings.HasPrefix(first, "# cftune ") || !strings.Contains(first, want) {
				t.Errorf("it opens with %q, not with a command that names %s", first, want)
			}
		})
	}
}
