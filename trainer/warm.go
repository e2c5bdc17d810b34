package trainer

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"cftune/trainer/config"
	"cftune/trainer/gguf"
)

// scaleTolerance is how far the scale of an adapter to start from may be from the configured one: alpha is stored in 32
// bits.
const scaleTolerance = 1e-6

// readWarmStart reads the adapter that adapter.init_from names and compares it with the configuration, field by field.
// It returns nil where there is none.
func readWarmStart(run config.Run, base *gguf.File) (*gguf.Adapter, *Origin, error) {
	path := run.Adapter.InitFrom
	if path == "" {
		return nil, nil, nil
	}
	a, from, err := readOrigin(path, base)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, &config.Problems{List: []config.Problem{{Key: "adapter.init_from", Message: err.Error()}}}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("adapter.init_from: %w", err)
	}
	fields, err := unlike(run, a, base)
	if err != nil {
		return nil, nil, err
	}
	if len(fields) > 0 {
		return nil, nil, &AdapterError{Path: from.Path, Fields: fields}
	}
	return &a, &from, nil
}

// unlike returns what of an adapter for a base model is not as configured.
func unlike(run config.Run, a gguf.Adapter, base *gguf.File) ([]string, error) {
	wanted, err := config.TargetsMask(run.Adapter.Targets)
	if err != nil {
		return nil, fmt.Errorf("adapter.targets: %w", err)
	}
	if strings.TrimSpace(run.Adapter.Targets) == config.AllLinear {
		wanted = slices.DeleteFunc(wanted, func(module string) bool {
			return !slices.ContainsFunc(base.Tensors, func(t gguf.TensorInfo) bool { return t.Name == "blk.0."+module+".weight" })
		})
	}
	slices.Sort(wanted)
	var fields []string
	differs := func(key string, configured, found any) {
		fields = append(fields, fmt.Sprintf("%s is %v, the adapter has %v", key, configured, found))
	}
	if a.Rank != run.Adapter.Rank {
		differs("adapter.rank", run.Adapter.Rank, a.Rank)
	}
	configured := gguf.Adapter{Rank: run.Adapter.Rank, Alpha: run.Adapter.Alpha, RSLoRA: run.Adapter.RSLoRA}
	if a.Rank == run.Adapter.Rank && math.Abs(a.Scale()-configured.Scale()) > scaleTolerance*configured.Scale() {
		differs("adapter.alpha", run.Adapter.Alpha, a.Alpha)
		if a.RSLoRA != run.Adapter.RSLoRA {
			differs("adapter.rslora", run.Adapter.RSLoRA, a.RSLoRA)
		}
	}
	if found := a.Modules(); !slices.Equal(found, wanted) {
		differs("adapter.targets", strings.Join(wanted, ","), strings.Join(found, ","))
	}
	return fields, nil
}

// warmStart puts an adapter's values into the engine; moments and counters stay at zero.
func warmStart(engine Engine, path string, a *gguf.Adapter) error {
	s, err := engine.State()
	if err != nil {
		return fmt.Errorf("adapter.init_from: %w", err)
	}
	values := make(map[string]gguf.Tensor, len(a.Tensors))
	for _, t := range a.Tensors {
		values[t.Name] = t
	}
	var fields []string
	for i := range s.Tensors {
		t := &s.Tensors[i]
		v, ok := values[t.Name]
		delete(values, t.Name)
		switch {
		case !ok:
			fields = append(fields, fmt.Sprintf("%s is not in the adapter", t.Name))
		case v.Rows != t.Rows || v.Cols != t.Cols:
			fields = append(fields, fmt.Sprintf("%s is %d x %d, the adapter has %d x %d", t.Name, t.Rows, t.Cols, v.Rows, v.Cols))
		}
		t.Value, t.Moment1, t.Moment2 = v.Data, nil, nil
	}
	for name := range values {
		fields = append(fields, fmt.Sprintf("the base model has no place for %s", name))
	}
	if len(fields) > 0 {
		slices.Sort(fields)
		return &AdapterError{Path: path, Fields: fields[:min(len(fields), maxNamed)]}
	}
	if err := engine.Restore(State{Tensors: s.Tensors}); err != nil {
		return fmt.Errorf("adapter.init_from: %w", err)
	}
	return nil
}
