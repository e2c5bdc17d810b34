// Package export writes what a run has made for use elsewhere.
//
// It reads committed checkpoints, never a run in memory. A file appears under its name whole or not at all.
package export

import (
	"errors"
	"fmt"
	"io"

	"cftune/trainer/checkpoint"
	"cftune/trainer/gguf"
	"cftune/trainer/internal/durable"
)

// adapterName is the adapter's name in a checkpoint.
const adapterName = "adapter.gguf"

// ErrExists is wrapped by the error about an output that is there already.
var ErrExists = errors.New("already exists")

// ErrFolder is wrapped by the error about an output that is a folder.
var ErrFolder = errors.New("a folder is never replaced")

// Options of an export.
type Options struct {
	// F16 stores the adapter's numbers in 16 bits, rounded; otherwise they are exactly those of the training, in 32.
	F16 bool
	// Force replaces an existing file.
	Force bool

	fs durable.FS // nil means durable.OS
}

// Result tells what was written.
type Result struct {
	Path  string `json:"path"`
	Step  int    `json:"step"`
	Rank  int    `json:"rank"`
	Type  string `json:"type"`
	Bytes int64  `json:"bytes"`
}

// Adapter writes the adapter of a checkpoint to path, as a GGUF file that llama.cpp loads.
func Adapter(c *checkpoint.Checkpoint, path string, o Options) (Result, error) {
	if o.fs == nil {
		o.fs = durable.OS
	}
	if err := checkOutput(path, o.Force); err != nil {
		return Result{}, fmt.Errorf("export: %w", err)
	}
	a, err := gguf.ReadAdapter(c.Path(adapterName), nil)
	if err != nil {
		return Result{}, fmt.Errorf("export step %d: %w", c.Step, err)
	}
	if a, err = a.ForLlama(); err != nil {
		return Result{}, fmt.Errorf("export step %d: %w", c.Step, err)
	}
	kind := gguf.F32
	if o.F16 {
		kind = gguf.F16
	}
	written, err := durable.ReplaceFile(o.fs, path, func(w io.Writer) error { return gguf.WriteAdapter(w, a, kind) })
	if err != nil {
		return Result{}, fmt.Errorf("export step %d: %w", c.Step, err)
	}
	return Result{Path: path, Step: c.Step, Rank: a.Rank, Type: kind.String(), Bytes: written.Bytes}, nil
}

// AdapterOf is the path of a checkpoint's adapter.
func AdapterOf(c *checkpoint.Checkpoint) string { return c.Path(adapterName) }
