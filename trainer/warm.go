package trainer

import (
	"errors"
	"fmt"
	"maps"
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
func readWarmStart(run config.Run, base *gguf.File, modules []config.Module) (*gguf.Adapter, *Origin, error) {
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
	fields, err := unlike(run, a, modules)
	if err != nil {
		return nil, nil, err
	}
	if len(fields) > 0 {
		return nil, nil, &AdapterError{Path: from.Path, Fields: fields}
	}
	return &a, &from, nil
}

// unlike returns what of an adapter is not as configured. Layers that only one of them has show when the values are taken.
func unlike(run config.Run, a gguf.Adapter, modules []config.Module) ([]string, error) {
	pairs, err := a.Pairs()
	if err != nil {
		return nil, fmt.Errorf("adapter.init_from: %w", err)
	}
	var fields []string
	differs := func(key string, configured, found any) {
		fields = append(fields, fmt.Sprintf("%s is %v, the adapter has %v", key, configured, found))
	}
	if a.DoRA != run.Adapter.DoRA {
		differs("adapter.dora", run.Adapter.DoRA, a.DoRA)
	}
	ranks, scales := unlikeWeights(run, a, pairs, modules)
	patterns := len(run.Adapter.RankPattern)+len(run.Adapter.AlphaPattern)+len(a.Alphas) > 0 || slices.ContainsFunc(pairs, func(p gguf.Pair) bool { return p.Rank() != a.Rank })
	switch {
	case len(ranks) > 0 && !patterns:
		differs("adapter.rank", run.Adapter.Rank, a.Rank)
	case len(ranks) > 0:
		fields = append(fields, listed("adapter.rank and adapter.rank_pattern: ", ranks)...)
	case len(scales) > 0 && !patterns:
		differs("adapter.alpha", run.Adapter.Alpha, a.Alpha)
		if a.RSLoRA != run.Adapter.RSLoRA {
			differs("adapter.rslora", run.Adapter.RSLoRA, a.RSLoRA)
		}
	case len(scales) > 0:
		fields = append(fields, listed("adapter.alpha and adapter.alpha_pattern: ", scales)...)
	}
	if wanted, found := moduleNames(modules), a.Modules(); !slices.Equal(found, wanted) {
		differs("adapter.targets", strings.Join(wanted, ","), strings.Join(found, ","))
	}
	return fields, nil
}

// unlikeWeights tells the ranks and scales that differ, of the weights that both sides have.
func unlikeWeights(run config.Run, a gguf.Adapter, pairs []gguf.Pair, modules []config.Module) (ranks, scales []string) {
	configured := gguf.Adapter{Alpha: run.Adapter.Alpha, RSLoRA: run.Adapter.RSLoRA, Alphas: alphasOf(run, modules)}
	for _, p := range pairs {
		i := slices.IndexFunc(modules, func(m config.Module) bool { return m.Weight() == p.Weight })
		if i < 0 {
			continue
		}
		if modules[i].Rank != p.Rank() {
			ranks = append(ranks, fmt.Sprintf("%s has rank %d, the adapter's has %d", p.Weight, modules[i].Rank, p.Rank()))
		} else if want := configured.ScaleOf(p); math.Abs(a.ScaleOf(p)-want) > scaleTolerance*want {
			scales = append(scales, fmt.Sprintf("%s has the scale %.6g, the adapter's has %.6g (alpha %g)", p.Weight, want, a.ScaleOf(p), a.AlphaOf(p.Weight)))
		}
	}
	return ranks, scales
}

// listed are the first of the lines about a key, and how many there are.
func listed(key string, lines []string) []string {
	var out []string
	for _, line := range lines[:min(len(lines), maxNamed)] {
		out = append(out, key+line)
	}
	if more := len(lines) - maxNamed; more > 0 {
		out = append(out, fmt.Sprintf("%s%d more", key, more))
	}
	return out
}

func moduleNames(modules []config.Module) []string {
	names := map[string]bool{}
	for _, m := range modules {
		names[m.Name] = true
	}
	return slices.Sorted(maps.Keys(names))
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
