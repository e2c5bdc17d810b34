package gguf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// peftConfig is what of adapter_config.json says how the tensors are meant.
type peftConfig struct {
	Type          string       `json:"peft_type"`
	Rank          int          `json:"r"`
	Alpha         float64      `json:"lora_alpha"`
	RSLoRA        bool         `json:"use_rslora"`
	DoRA          bool         `json:"use_dora"`
	RankPattern   peftPatterns `json:"rank_pattern"`
	AlphaPattern  peftPatterns `json:"alpha_pattern"`
	LayersAllowed peftLayers   `json:"layers_to_transform"`
}

// peftExtras are settings that make an adapter more than a pair of matrices for each module, beside those whose names
// begin with use_ or end in _config.
var peftExtras = []string{
	"modules_to_save", "bias", "lora_bias", "fan_in_fan_out", "trainable_token_indices", "target_parameters", "layer_replication",
	"alora_invocation_tokens",
}

// peftKnown are settings named like those, that are understood: EVA's say how first values were made, of the adapter alone.
var peftKnown = []string{"use_rslora", "use_dora", "eva_config"}

// plainInits are the ways to make an adapter's first values that leave the base model's weights alone.
var plainInits = []string{"true", "false", `"gaussian"`, `"eva"`, `"orthogonal"`}

// parsePEFTConfig reads adapter_config.json, and refuses every setting that is not understood and changes what is computed.
func parsePEFTConfig(text []byte) (peftConfig, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return peftConfig{}, bad("no JSON object: %v", err)
	}
	var c peftConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return peftConfig{}, bad("%v", err)
	}
	if c.Type != "LORA" {
		return peftConfig{}, bad("peft_type is %q, not LORA", c.Type)
	}
	if c.Rank < 1 {
		return peftConfig{}, bad("r is %d", c.Rank)
	}
	unset := []string{"null", "false", "[]", "{}", `"none"`, `""`, "0"}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		named := strings.HasPrefix(key, "use_") || strings.HasSuffix(key, "_config") || slices.Contains(peftExtras, key)
		variant := named && !slices.Contains(peftKnown, key)
		if value := compact(fields[key]); variant && !slices.Contains(unset, value) {
			return peftConfig{}, bad("%s is %s, which is not supported", key, value)
		}
	}
	if value, there := fields["init_lora_weights"]; there && !slices.Contains(plainInits, compact(value)) {
		return peftConfig{}, bad("init_lora_weights is %s: such an adapter belongs to changed base weights", compact(value))
	}
	return c, nil
}

// peftPatterns is rank_pattern or alpha_pattern: numbers by patterns of modules' names, of which the first that matches counts.
type peftPatterns []peftPattern

type peftPattern struct {
	key   string
	match *regexp.Regexp
	value float64
}

// UnmarshalJSON keeps the order of the keys, which matters.
func (p *peftPatterns) UnmarshalJSON(text []byte) error {
	*p = nil
	if string(bytes.TrimSpace(text)) == "null" {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return fmt.Errorf("a pattern of ranks or alphas is no object")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		pattern := peftPattern{key: key.(string)}
		if err := d.Decode(&pattern.value); err != nil {
			return fmt.Errorf("pattern %q: %w", pattern.key, err)
		}
		// As PEFT's get_pattern_key: the whole name, or its end after a dot.
		if pattern.match, err = regexp.Compile(`^(?:.*\.)?(?:` + pattern.key + `)$`); err != nil {
			return fmt.Errorf("pattern %q is not understood: %w", pattern.key, err)
		}
		*p = append(*p, pattern)
	}
	return nil
}

// of returns the value for a module, by its name within the model ("model.layers.0.self_attn.q_proj").
func (p peftPatterns) of(module string, otherwise float64) float64 {
	for _, pattern := range p {
		if pattern.match.MatchString(module) {
			return pattern.value
		}
	}
	return otherwise
}

// peftLayers is layers_to_transform: null, a number or a list of numbers.
type peftLayers []int

func (l *peftLayers) UnmarshalJSON(text []byte) error {
	var one int
	*l = nil
	if string(bytes.TrimSpace(text)) != "null" && json.Unmarshal(text, &one) == nil {
		*l = []int{one}
		return nil
	}
	return json.Unmarshal(text, (*[]int)(l))
}

// allows reports whether a layer may have tensors.
func (l peftLayers) allows(layer int) bool { return len(l) == 0 || slices.Contains(l, layer) }

// compact returns a JSON value without white space.
func compact(value json.RawMessage) string {
	var v any
	if json.Unmarshal(value, &v) != nil {
		return string(value)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return string(value)
	}
	return string(text)
}
