package export

import (
	"fmt"
	"path/filepath"

	"cftune/trainer/checkpoint"
	"cftune/trainer/gguf"
	"cftune/trainer/internal/durable"
)

// PEFT writes the adapter of a checkpoint as a folder that Hugging Face's PEFT loads. model is the base model's GGUF, for
// the order of rows; baseName is what the model is called where transformers can load it.
func PEFT(c *checkpoint.Checkpoint, model, baseName, path string, o Options) (Result, error) {
	fail := func(err error) (Result, error) { return Result{}, fmt.Errorf("export step %d: %w", c.Step, err) }
	if o.fs == nil {
		o.fs = durable.OS
	}
	if err := checkFolder(path); err != nil {
		return fail(err)
	}
	a, err := gguf.ReadAdapter(c.Path(adapterName), nil)
	if err != nil {
		return fail(err)
	}
	base, err := open(model)
	if err != nil {
		return fail(err)
	}
	p, err := gguf.ToPEFT(a, base, baseName)
	if err != nil {
		return fail(err)
	}
	temp := path + durable.TempSuffix
	if err := o.fs.RemoveAll(temp); err != nil {
		return fail(err)
	}
	if err := durable.MkdirAll(o.fs, filepath.Dir(path)); err != nil {
		return fail(err)
	}
	if err := o.fs.Mkdir(temp); err != nil {
		return fail(err)
	}
	defer o.fs.RemoveAll(temp)
	tensors, err := durable.WriteFile(o.fs, filepath.Join(temp, gguf.PEFTTensorsName), p.WriteTensors)
	if err != nil {
		return fail(err)
	}
	config, err := durable.WriteFile(o.fs, filepath.Join(temp, gguf.PEFTConfigName), p.WriteConfig)
	if err != nil {
		return fail(err)
	}
	if err := durable.Commit(o.fs, temp, path); err != nil {
		return fail(err)
	}
	return Result{Path: path, Step: c.Step, Rank: a.Rank, Type: gguf.F32.String(), Bytes: tensors.Bytes + config.Bytes}, nil
}
