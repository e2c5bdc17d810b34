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

// adapterFile is the file of a checkpoint, or of a run's newest one, where path is such a folder; otherwise it is path.
func adapterFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	if run, step, ok := checkpoint.SplitStep(path); ok {
		c, err := checkpoint.Open(run, step)
		if err != nil {
			return "", err
		}
		return export.AdapterOf(c), nil
	}
	if _, err := os.Stat(path); err != nil {
		return "", codedError{fmt.Errorf("adapter: %w", err), codeData}
	}
	if !isFolder(path) {
		return path, nil
	}
	c, _, err := checkpoint.Latest(path, false)
	switch {
	case err == nil:
		return export.AdapterOf(c), nil
	case errors.Is(err, checkpoint.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return path, notEmptyHanded(path, err)
	}
	return "", err
}

// notEmptyHanded refuses a folder that is no run with a checkpoint, unless it is a PEFT adapter.
func notEmptyHanded(folder string, noRun error) error {
	if _, err := os.Stat(filepath.Join(folder, "adapter_config.json")); err == nil {
		return nil
	}
	if _, err := os.Stat(filepath.Join(folder, checkpoint.ConfigName)); err == nil {
		return fmt.Errorf("adapter %s: the run has no checkpoint: %w", folder, noRun)
	}
	return codedError{fmt.Errorf("adapter %s: it is neither a run (no %s) nor a PEFT adapter (no adapter_config.json)", folder, checkpoint.ConfigName), codeData}
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
