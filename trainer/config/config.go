package config

import "errors"

var errUnfinished = errors.New("config: being written")

// Defaults returns the configuration before file, environment and --set.
func Defaults() Run { return Run{} }

// Load reads the file at path; see Parse.
func Load(path string, sets []string, environ []string) (Run, error) { return Run{}, errUnfinished }

// Parse reads a configuration: defaults < data (YAML) < environ (CFTUNE_*) < sets ("key=value").
// Errors are *Problems.
func Parse(data []byte, sets []string, environ []string) (Run, error) { return Run{}, errUnfinished }

// Validate checks every field. Errors are *Problems.
func (r Run) Validate() error { return errUnfinished }

// Problem is one fault of a configuration.
type Problem struct {
	Key     string // "train.seq_len"
	Where   string // "line 12", "environment CFTUNE_TRAIN_SEQ_LEN", "--set"; empty where unknown
	Message string
}

// Problems is every fault of a configuration. cmd exits with 2 for it.
type Problems struct {
	File string // path of the file, empty where there is none
	List []Problem
}

func (p *Problems) Error() string { return "" }

// Digest returns the SHA-256 of the configuration's canonical JSON, as hex.
func (r Run) Digest() string { return "" }

// FieldDiff is a key on which two configurations differ, with both values as JSON.
type FieldDiff struct{ Key, A, B string }

// Diff returns the keys on which two configurations differ, in the order of the keys.
func Diff(a, b Run) []FieldDiff { return nil }

// TargetsMask returns the target modules that adapter.targets names, in canonical order.
func TargetsMask(spec string) ([]string, error) { return nil, errUnfinished }

// ParseSize reads a size in bytes: a number with an optional unit B, KB, MB, GB, TB, KiB, MiB, GiB, TiB.
func ParseSize(text string) (uint64, error) { return 0, errUnfinished }

// Example returns a commented configuration file.
func Example() string { return "" }
