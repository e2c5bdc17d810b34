package config

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// AllLinear is the value of adapter.targets that stands for every linear module that the model has.
const AllLinear = "all_linear"

// The embedding and the head: targets that are in no layer and no part of all_linear.
const (
	TokenEmbd = "token_embd"
	Output    = "output"
)

// allLinear are the target modules of a layer in canonical order: that of a block's forward pass. No model has all: where q, k
// and v are one tensor, attn_qkv is in their place, and ffn_up then is gate and up.
var allLinear = []string{"attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}

var allTargets = append([]string{AllLinear}, append(slices.Clone(allLinear), TokenEmbd, Output)...)

// TargetsMask returns the target modules that adapter.targets names, in canonical order: a list separated by commas, in which
// all_linear stands for all modules of layers, of which no model has all.
func TargetsMask(spec string) ([]string, error) {
	if strings.TrimSpace(spec) == "" {
		return nil, errors.New("missing: all_linear or a list of target modules")
	}
	chosen := map[string]bool{}
	for name := range strings.SplitSeq(spec, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(allTargets, name) {
			meant := suggestion(name, allTargets)
			if here := modulesElsewhere[name]; here != "" {
				meant = fmt.Sprintf(" (did you mean %s?)", here)
			}
			return nil, fmt.Errorf("unknown target module %q: must be a list of %s%s", name, strings.Join(allTargets, ", "), meant)
		}
		if chosen[name] {
			return nil, fmt.Errorf("target module %s is named twice", name)
		}
		chosen[name] = true
	}
	var modules []string
	for _, name := range allTargets[1:] {
		linear := name != TokenEmbd && name != Output
		switch {
		case chosen[AllLinear] && linear && chosen[name]:
			return nil, fmt.Errorf("target module %s is part of all_linear already", name)
		case chosen[name] || chosen[AllLinear] && linear:
			modules = append(modules, name)
		}
	}
	return modules, nil
}

// NamesAllLinear reports whether the targets are those that the model has, whichever those are.
func (a Adapter) NamesAllLinear() bool {
	for name := range strings.SplitSeq(a.Targets, ",") {
		if strings.TrimSpace(name) == AllLinear {
			return true
		}
	}
	return false
}

// Describe tells people what is trained, in one line.
func (a Adapter) Describe() string {
	parts := []string{fmt.Sprintf("rank %d%s", a.Rank, patternText(a.RankPattern)), fmt.Sprintf("alpha %g%s", a.Alpha, patternText(a.AlphaPattern))}
	if a.DoRA {
		parts = append([]string{"dora"}, parts...)
	}
	if a.RSLoRA {
		parts = append(parts, "rslora")
	}
	parts = append(parts, a.Targets)
	if a.Layers != "" {
		parts = append(parts, "layers "+a.Layers)
	}
	if a.LoRAPlusRatio != 0 {
		parts = append(parts, fmt.Sprintf("lora_plus_ratio %g", a.LoRAPlusRatio))
	}
	return strings.Join(parts, ", ")
}

func patternText[V any](pattern map[string]V) string {
	if len(pattern) == 0 {
		return ""
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(pattern)) {
		parts = append(parts, fmt.Sprintf("%s %v", key, pattern[key]))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// Module is a module of the model that gets an adapter.
type Module struct {
	Layer int    // -1 for the embedding and the head
	Name  string // "attn_q"
	Rank  int
	Alpha float64
}

// Weight is the name of the module's tensor in the GGUF.
func (m Module) Weight() string {
	if m.Layer < 0 {
		return m.Name + ".weight"
	}
	return fmt.Sprintf("blk.%d.%s.weight", m.Layer, m.Name)
}

// Modules returns the modules that get an adapter in a model with so many layers, layer by layer. has says which modules the
// model has; all_linear means those. Layers and patterns that match nothing are *Problems.
func (a Adapter) Modules(layers int, has func(module string) bool) ([]Module, error) {
	var problems []Problem
	wrong := func(key string, err error) {
		problems = append(problems, Problem{Key: key, Message: err.Error()})
	}
	targets, err := TargetsMask(a.Targets)
	if err != nil {
		wrong("adapter.targets", err)
	}
	if a.NamesAllLinear() {
		targets = slices.DeleteFunc(targets, func(m string) bool { return slices.Contains(allLinear, m) && !has(m) })
	}
	chosen, err := parseLayers(a.Layers, layers)
	if err != nil {
		wrong("adapter.layers", err)
	}
	var modules []Module
	for layer := -1; layer < layers; layer++ {
		if layer >= 0 && chosen != nil && !chosen[layer] {
			continue
		}
		for _, name := range targets {
			if (layer < 0) == (name == TokenEmbd || name == Output) {
				modules = append(modules, Module{Layer: layer, Name: name, Rank: a.Rank, Alpha: a.Alpha})
			}
		}
	}
	if chosen != nil && !slices.ContainsFunc(modules, func(m Module) bool { return m.Layer >= 0 }) {
		wrong("adapter.layers", errors.New("chooses layers, but no target is a module of layers"))
	}
	if err := applyPattern(a.RankPattern, layers, modules, func(m *Module, rank int) { m.Rank = rank }); err != nil {
		wrong("adapter.rank_pattern", err)
	}
	if err := applyPattern(a.AlphaPattern, layers, modules, func(m *Module, alpha float64) { m.Alpha = alpha }); err != nil {
		wrong("adapter.alpha_pattern", err)
	}
	if len(problems) > 0 {
		return nil, &Problems{List: problems}
	}
	return modules, nil
}

var layerRange = regexp.MustCompile(`^(-?\d{1,5})(?:-(-?\d{1,5}))?$`)

// parseLayers reads "0-5,10,-1": numbers and ranges, those below 0 from the end. Empty is nil: all. With layers < 0 only the
// form is looked at.
func parseLayers(spec string, layers int) (map[int]bool, error) {
	if spec == "" {
		return nil, nil
	}
	chosen := map[int]bool{}
	for part := range strings.SplitSeq(spec, ",") {
		part = strings.TrimSpace(part)
		match := layerRange.FindStringSubmatch(part)
		if match == nil {
			return nil, fmt.Errorf("must be layers such as 0-5,10,-1 (the last), got %q", spec)
		}
		first, err := layerNumber(match[1], layers)
		if err != nil {
			return nil, err
		}
		last := first
		if match[2] != "" {
			if last, err = layerNumber(match[2], layers); err != nil {
				return nil, err
			}
		}
		if layers < 0 {
			continue
		}
		if last < first {
			return nil, fmt.Errorf("%s ends before it begins (layers %d and %d of %d)", part, first, last, layers)
		}
		for layer := first; layer <= last; layer++ {
			if chosen[layer] {
				return nil, fmt.Errorf("layer %d is named twice", layer)
			}
			chosen[layer] = true
		}
	}
	return chosen, nil
}

func layerNumber(text string, layers int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, err
	}
	if layers < 0 {
		return n, nil
	}
	if n < -layers || n >= layers {
		return 0, fmt.Errorf("there is no layer %d: the model has 0 to %d, or -%d to -1", n, layers-1, layers)
	}
	return (n + layers) % layers, nil
}

// modulePattern is a key of rank_pattern and alpha_pattern: MODULE, blk.LAYERS or blk.LAYERS.MODULE.
type modulePattern struct {
	layers map[int]bool // nil: all
	module string       // "": all
}

func (p modulePattern) matches(m Module) bool {
	return (p.module == "" || p.module == m.Name) && (p.layers == nil || p.layers[m.Layer])
}

// parts is how much a pattern says: more parts win.
func (p modulePattern) parts() int {
	n := 0
	if p.layers != nil {
		n++
	}
	if p.module != "" {
		n++
	}
	return n
}

// parsePattern reads a key; layers as for parseLayers.
func parsePattern(key string, layers int) (modulePattern, error) {
	fail := func() (modulePattern, error) {
		return modulePattern{}, fmt.Errorf("%q must be a target module, blk.LAYERS or blk.LAYERS.MODULE (attn_q, blk.0-3, blk.-1.ffn_down)%s", key, suggestion(key, allTargets[1:]))
	}
	rest, inLayers := strings.CutPrefix(key, "blk.")
	if !inLayers {
		if !slices.Contains(allTargets[1:], key) {
			return fail()
		}
		return modulePattern{module: key}, nil
	}
	spec, module, named := strings.Cut(rest, ".")
	if named && !slices.Contains(allLinear, module) || spec == "" {
		return fail()
	}
	chosen, err := parseLayers(spec, layers)
	if err != nil {
		return modulePattern{}, fmt.Errorf("%s: %w", key, err)
	}
	return modulePattern{layers: chosen, module: module}, nil
}

// applyPattern sets the value of each module that a key matches, the key with more parts where several do.
func applyPattern[V any](pattern map[string]V, layers int, modules []Module, set func(*Module, V)) error {
	patterns := map[string]modulePattern{}
	used := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(pattern)) {
		var err error
		if patterns[key], err = parsePattern(key, layers); err != nil {
			return err
		}
	}
	for i := range modules {
		best := ""
		for _, key := range slices.Sorted(maps.Keys(pattern)) {
			p := patterns[key]
			if !p.matches(modules[i]) {
				continue
			}
			used[key] = true
			switch {
			case best == "" || p.parts() > patterns[best].parts():
				best = key
			case p.parts() == patterns[best].parts():
				return fmt.Errorf("%s and %s both match %s: say which by blk.LAYERS.MODULE", best, key, strings.TrimSuffix(modules[i].Weight(), ".weight"))
			}
		}
		if best != "" {
			set(&modules[i], pattern[best])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(pattern)) {
		if !used[key] {
			return fmt.Errorf("%s matches no module that gets an adapter", key)
		}
	}
	return nil
}

func (r *reader) validateAdapter(a Adapter) {
	r.check(a.Rank >= 1 && a.Rank <= maxRank, "adapter.rank", "must be within 1..%d, got %d", maxRank, a.Rank)
	r.check(a.Alpha > 0 && finite(a.Alpha), "adapter.alpha", "must be a finite number above 0, got %v", a.Alpha)
	r.check(a.Dropout >= 0 && a.Dropout < 1, "adapter.dropout", "must be at least 0 and below 1, got %v", a.Dropout)
	targets, err := TargetsMask(a.Targets)
	if err != nil {
		r.check(false, "adapter.targets", "%v", err)
	}
	r.check(!a.DoRA || a.Dropout == 0, "adapter.dora", "is not trained with dropout: set adapter.dropout to 0")
	r.check(!a.DoRA || !slices.Contains(targets, TokenEmbd) && !slices.Contains(targets, Output), "adapter.dora",
		"is not trained on %s and %s: leave them out of adapter.targets", TokenEmbd, Output)
	r.check(a.LoRAPlusRatio >= 0 && finite(a.LoRAPlusRatio), "adapter.lora_plus_ratio", "must be a finite number above 0, or 0 (as 1), got %v", a.LoRAPlusRatio)
	if _, err := parseLayers(a.Layers, -1); err != nil {
		r.check(false, "adapter.layers", "%v", err)
	}
	for _, key := range slices.Sorted(maps.Keys(a.RankPattern)) {
		rank := a.RankPattern[key]
		r.check(rank >= 1 && rank <= maxRank, "adapter.rank_pattern."+key, "must be within 1..%d, got %d", maxRank, rank)
		if _, err := parsePattern(key, -1); err != nil {
			r.check(false, "adapter.rank_pattern", "%v", err)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a.AlphaPattern)) {
		alpha := a.AlphaPattern[key]
		r.check(alpha > 0 && finite(alpha), "adapter.alpha_pattern."+key, "must be a finite number above 0, got %v", alpha)
		if _, err := parsePattern(key, -1); err != nil {
			r.check(false, "adapter.alpha_pattern", "%v", err)
		}
	}
}
