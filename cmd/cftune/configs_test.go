package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
	"cftune/trainer/study"
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
			load := func() (err error) { _, err = config.Load(path, nil, nil); return err }
			if strings.HasPrefix(filepath.Base(path), "study-") {
				load = func() (err error) { _, err = study.Load(path, nil); return err }
			}
			if err := load(); err != nil {
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

// Configurations for published data sets lay out every record of them.
func TestShippedConfigsReadTheirData(t *testing.T) {
	shared := filepath.Join("..", "..", "..", "shared", "data")
	if _, err := os.Stat(shared); err != nil {
		t.Skipf("no data sets at %s", shared)
	}
	for name, want := range map[string]int{
		"gsm8k-sft": 7473, "svamp-sft": 1000 + 238 + 384, "mr-gsm8k-cft": 326 + 173, "prometheus-feedback": 320 + 160, "word-problems-mixed": 2000,
	} {
		t.Run(name, func(t *testing.T) {
			run, err := config.Load(filepath.Join("..", "..", "configs", name+".yaml"), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range run.Data.Sources {
				run.Data.Sources[i].Path = strings.Replace(s.Path, "data/", shared+"/", 1)
			}
			set, err := dataset.Open(t.Context(), run.Data.Sources, dataset.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer set.Close()
			if set.Len() != want {
				t.Errorf("%d records, want %d", set.Len(), want)
			}
			for i := range set.Len() {
				record, err := set.Record(i)
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range objective.Objectives(run.Objective.Stages...) {
					if _, err := objective.Layout(o, record); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

func TestInitRefusesNamesThatNoConfigurationHolds(t *testing.T) {
	assert.NoError(t, starter{format: "cft", data: "\u00fc {x}: y.jsonl"}.check())
	assert.EqualError(t, starter{format: "cft", data: "\xfc.jsonl"}.check(), `--data: a configuration is UTF-8, and "\xfc.jsonl" is not`)
}
