package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cftune/bindings/engine"
	"cftune/trainer/checkpoint"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
)

// newSession opens a session whose adapter may be whatever holds one: llama.cpp's GGUF, a checkpoint's file, a PEFT folder, or a run,
// which stands for its newest checkpoint. What llama.cpp computes in another way is handed to it in a temporary file.
func newSession(model, adapter string, p engine.SessionParams) (*engine.Session, error) {
	adapter, remove, err := forLlama(model, adapter)
	if err != nil {
		return nil, err
	}
	defer remove()
	return engine.NewSession(model, adapter, p)
}

// adapterFile is the file of a run's newest checkpoint, where path is a run; otherwise it is path.
func adapterFile(path string) (string, error) {
	if !isFolder(path) {
		return path, nil
	}
	c, _, err := checkpoint.Latest(path, false)
	switch {
	case err == nil:
		return export.AdapterOf(c), nil
	case errors.Is(err, checkpoint.ErrNotFound), errors.Is(err, os.ErrNotExist): // no run
		return path, nil
	}
	return "", err
}

// forLlama returns a file that llama.cpp reads as the adapter at path, and what removes it if it is a temporary one.
func forLlama(model, path string) (file string, remove func(), err error) {
	remove = func() {}
	if path == "" {
		return "", remove, nil
	}
	if path, err = adapterFile(path); err != nil {
		return "", remove, err
	}
	if !isFolder(path) {
		// What cannot be read here is llama.cpp's to refuse.
		f, err := gguf.Open(path)
		if err != nil {
			return path, remove, nil
		}
		if kind, _ := f.String("adapter.type"); kind != "cftune" {
			return path, remove, nil
		}
	}
	base, err := gguf.Open(model)
	if err != nil {
		return "", remove, err
	}
	a, err := gguf.ReadAdapter(path, base)
	if err == nil {
		a, err = a.ForLlama()
	}
	if err != nil {
		return "", remove, codedError{fmt.Errorf("adapter %s: %w", path, err), codeData}
	}
	dir, err := os.MkdirTemp("", "cftune-adapter-*")
	if err != nil {
		return "", remove, err
	}
	remove = func() { os.RemoveAll(dir) }
	file = filepath.Join(dir, "adapter.gguf")
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(gguf.WriteAdapter(f, a, gguf.F32), f.Close())
	}
	if err != nil {
		remove()
		return "", func() {}, err
	}
	return file, remove, nil
}
