package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const envPrefix = "CFTUNE_"

// otherVariables are variables with the prefix that are no keys of the configuration. CFTUNE_MODEL is one of them: it
// says where the tests' and the demo's model is, and must not replace the model of a run by accident.
var otherVariables = map[string]string{
	"CFTUNE_CACHE":    "where built libraries and fetched files are kept",
	"CFTUNE_MODEL":    "the model of the tests and the demo; a run's is set by --set model=...",
	"CFTUNE_PORTABLE": "1 builds libraries that run on any machine of this kind",
}

// OtherVariables returns the CFTUNE_ variables that are no keys of the configuration, each with its meaning.
func OtherVariables() map[string]string { return maps.Clone(otherVariables) }

// envKeys maps the names of variables to keys: CFTUNE_TRAIN__SEQ_LEN and CFTUNE_TRAIN_SEQ_LEN are train.seq_len.
var envKeys = func() map[string]string {
	m := map[string]string{}
	for _, key := range allKeys {
		for _, dot := range []string{"__", "_"} {
			name := envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", dot))
			if _, other := otherVariables[name]; !other {
				m[name] = key
			}
		}
	}
	return m
}()

// readEnviron reads the variables that begin with CFTUNE_, in the order of their keys.
func (r *reader) readEnviron(environ []string) []map[string]any {
	values := map[string]string{} // key -> value
	names := map[string]string{}  // key -> variable
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if _, other := otherVariables[name]; other || !strings.HasPrefix(name, envPrefix) {
			continue
		}
		r.source = func(*yaml.Node) string { return name }
		key, known := envKeys[name]
		if !known {
			r.add(nil, "", "unknown variable"+suggestion(name, slices.Sorted(maps.Keys(envKeys))))
			continue
		}
		if first, twice := names[key]; twice && first != name {
			r.add(nil, key, fmt.Sprintf("set by %s as well", first))
			continue
		}
		values[key], names[key] = value, name
	}
	var layers []map[string]any
	for _, key := range allKeys { // parents come before their children
		value, set := values[key]
		if !set {
			continue
		}
		r.source = func(*yaml.Node) string { return names[key] }
		if layer, ok := r.readValue(key, value, typeOf(key)); ok {
			layers = append(layers, layer)
		}
	}
	return layers
}
