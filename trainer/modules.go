package trainer

import (
	"fmt"
	"slices"

	"cftune/trainer/config"
	"cftune/trainer/gguf"
)

// AdapterModules returns the modules of a base model that get an adapter. Settings that match nothing in it are
// *config.Problems.
func AdapterModules(a config.Adapter, base *gguf.File) ([]config.Module, error) {
	layers, ok := base.Uint(base.Architecture() + ".block_count")
	if !ok {
		return nil, fmt.Errorf("base model %s: %w: %s.block_count is missing", base.Path, gguf.ErrFormat, base.Architecture())
	}
	return a.Modules(int(layers), func(module string) bool {
		return slices.ContainsFunc(base.Tensors, func(t gguf.TensorInfo) bool { return t.Name == "blk.0."+module+".weight" })
	})
}

// alphasOf are the alphas of the weights that have another than the configured one, as an adapter file says it.
func alphasOf(run config.Run, modules []config.Module) map[string]float64 {
	var alphas map[string]float64
	for _, m := range modules {
		if m.Alpha != run.Adapter.Alpha {
			if alphas == nil {
				alphas = map[string]float64{}
			}
			alphas[m.Weight()] = m.Alpha
		}
	}
	return alphas
}
