package trainer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"cftune/trainer/checkpoint"
	"cftune/trainer/gguf"
	"cftune/trainer/internal/durable"
)

// Origin is where a run's first adapter came from (adapter.init_from): a warm start takes its values and nothing else of
// the run that made it; moments, counters and the order of the records begin anew.
type Origin struct {
	Path   string `json:"path"` // the adapter that was read: a GGUF file or a PEFT folder
	SHA256 string `json:"sha256,omitempty"`
	// Run and Step name the checkpoint, where it is a run's.
	Run  string `json:"run,omitempty"`
	Step int    `json:"step,omitempty"`
	// ModelSHA256 is of the base model that the adapter was trained on, as far as it says.
	ModelSHA256 string `json:"model_sha256,omitempty"`
}

// findOrigin takes adapter.init_from for what it names: a GGUF adapter, a PEFT folder, a run (its newest checkpoint, which
// must be whole), or one checkpoint of a run.
func findOrigin(path string) (Origin, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return Origin{Path: path}, nil // what is wrong with it shows when it is read
	}
	run, step, isStep := checkpoint.SplitStep(path)
	switch _, err := os.Lstat(filepath.Join(path, checkpoint.ConfigName)); {
	case isStep:
	case errors.Is(err, fs.ErrNotExist):
		return Origin{Path: path}, nil
	case err != nil:
		return Origin{}, err
	default:
		latest, _, err := checkpoint.Latest(path, false)
		if err != nil {
			return Origin{}, err
		}
		run, step = path, latest.Step
	}
	c, err := checkpoint.Open(run, step)
	if err != nil {
		return Origin{}, err
	}
	if run, err = filepath.Abs(run); err != nil {
		return Origin{}, err
	}
	return Origin{Path: c.Path(adapterName), Run: run, Step: step}, nil
}

// readOrigin reads the adapter of an origin and completes what is known of it.
func readOrigin(path string, base *gguf.File) (gguf.Adapter, Origin, error) {
	fail := func(err error) (gguf.Adapter, Origin, error) { return gguf.Adapter{}, Origin{}, err }
	from, err := findOrigin(path)
	if err != nil {
		return fail(err)
	}
	a, err := gguf.ReadAdapter(from.Path, base)
	if err != nil {
		return fail(err)
	}
	from.ModelSHA256 = a.ModelDigest
	written, err := durable.Digest(gguf.AdapterFile(from.Path))
	if err != nil {
		return fail(err)
	}
	from.SHA256 = written.SHA256
	return a, from, nil
}
