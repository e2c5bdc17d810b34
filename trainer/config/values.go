package config

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strings"
	"time"
)

// Defaults returns the configuration before file, environment and --set. It lacks model, output and sources.
func Defaults() Run {
	return Run{
		Seed:   42,
		Device: "auto",
		Data: Data{
			Validation: Validation{EverySteps: 50},
			Shuffle:    true,
			OverLong:   "refuse",
			Audit:      true,
		},
		Objective: Objective{Stages: []Stage{{Mix: map[string]float64{"cft": 1}}}, Turns: "all"},
		Adapter:   Adapter{Rank: 16, Alpha: 32, Targets: "all_linear"},
		Train: Train{
			SeqLen:          1024,
			GlobalBatch:     GlobalBatch{Examples: 32},
			Epochs:          1,
			SharePrefixes:   true,
			KeepActivations: "auto",
		},
		Optimizer: Optimizer{
			LR:          2e-4,
			Betas:       []float64{0.9, 0.999},
			Eps:         1e-8,
			MaxGradNorm: 1,
			Schedule:    "cosine",
			WarmupSteps: 10,
		},
		Checkpoint: Checkpoint{EverySteps: 50, KeepLast: 3, KeepBest: true, MirrorWait: "5m"},
		Health:     Health{MaxSkips: 3, OnSpike: "warn"},
	}
}

//go:embed example.yaml
var example string

// Example returns a commented configuration file with every key at its default.
func Example() string { return example }

// Digest returns the SHA-256 of the configuration's canonical JSON (keys in the order of Run, no spaces), as hex.
func (run Run) Digest() string {
	sum := sha256.Sum256(canonical(run))
	return hex.EncodeToString(sum[:])
}

// canonical is only given values that JSON has: Parse and Validate refuse NaN and infinities.
func canonical(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("config: canonical JSON: " + err.Error())
	}
	return text
}

// FieldDiff is a key on which two configurations differ, with both values as JSON.
type FieldDiff struct {
	Key string `json:"key"`
	A   string `json:"was"`
	B   string `json:"is"`
}

// Diff returns the keys on which two configurations differ, in the order of Run. Lists are compared whole.
func Diff(a, b Run) []FieldDiff {
	return diff(reflect.ValueOf(a), reflect.ValueOf(b), "")
}

func diff(a, b reflect.Value, prefix string) []FieldDiff {
	var diffs []FieldDiff
	for i := range a.NumField() {
		key := join(prefix, a.Type().Field(i).Tag.Get("mapstructure"))
		if a.Field(i).Kind() == reflect.Struct {
			diffs = append(diffs, diff(a.Field(i), b.Field(i), key)...)
			continue
		}
		textA, textB := string(canonical(a.Field(i).Interface())), string(canonical(b.Field(i).Interface()))
		if textA != textB {
			diffs = append(diffs, FieldDiff{Key: key, A: textA, B: textB})
		}
	}
	return diffs
}

// Setting is a key with its value as JSON.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Settings returns all keys of a configuration, in the order of Run. Lists are values whole.
func Settings(run Run) []Setting { return settings(reflect.ValueOf(run), "") }

func settings(v reflect.Value, prefix string) []Setting {
	var list []Setting
	for i := range v.NumField() {
		key := join(prefix, v.Type().Field(i).Tag.Get("mapstructure"))
		if v.Field(i).Kind() == reflect.Struct {
			list = append(list, settings(v.Field(i), key)...)
			continue
		}
		list = append(list, Setting{key, string(canonical(v.Field(i).Interface()))})
	}
	return list
}

// Duration returns max_time; 0 = no limit.
func (l Limits) Duration() (time.Duration, error) { return positiveDuration(l.MaxTime) }

func positiveDuration(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("must be a time above 0 such as 90m or 1h30m, got %q", text)
	}
	return d, nil
}

// Bytes returns memory in bytes; 0 = no limit.
func (l Limits) Bytes() (uint64, error) {
	if l.Memory == "" {
		return 0, nil
	}
	size, err := ParseSize(l.Memory)
	if err == nil && size == 0 {
		err = fmt.Errorf("must be above 0, got %q", l.Memory)
	}
	return size, err
}

var sizeUnits = map[string]int64{
	"": 1, "B": 1,
	"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// ParseSize reads a size in bytes: a decimal number with one of the units B, KB, MB, GB, TB (powers of 1000), KiB, MiB,
// GiB and TiB (powers of 1024), or none for bytes. A fraction of a byte is an error.
func ParseSize(text string) (uint64, error) {
	digits := strings.TrimRight(text, "BKMGTi ")
	unit, known := sizeUnits[strings.TrimSpace(text[len(digits):])]
	plain := digits != "" && strings.Trim(digits, "0123456789.") == "" && len(digits) < 30
	number, ok := new(big.Rat).SetString(digits)
	if !known || !plain || !ok {
		return 0, fmt.Errorf("must be a size such as 8GiB or 500MB, got %q", text)
	}
	number.Mul(number, new(big.Rat).SetInt64(unit))
	if !number.IsInt() || !number.Num().IsUint64() || number.Num().Uint64() > math.MaxInt64 {
		return 0, fmt.Errorf("must be a whole number of bytes below 2^63, got %q", text)
	}
	return number.Num().Uint64(), nil
}
