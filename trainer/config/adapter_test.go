package config

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hasAll is a model of four layers without fused tensors.
func hasAll(module string) bool { return module != "attn_qkv" }

func adapterOf(change func(a *Adapter)) Adapter {
	a := Adapter{Rank: 16, Alpha: 32, Targets: "attn_q,ffn_down"}
	change(&a)
	return a
}

func TestModules(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(a *Adapter)
		want   []string // weight:rank:alpha
	}{
		{"layers from the end", func(a *Adapter) { a.Layers = "0, -1" },
			[]string{"blk.0.attn_q.weight:16:32", "blk.0.ffn_down.weight:16:32", "blk.3.attn_q.weight:16:32", "blk.3.ffn_down.weight:16:32"}},
		{"a range to the last", func(a *Adapter) { a.Layers, a.Targets = "-2--1", "attn_q" }, []string{"blk.2.attn_q.weight:16:32", "blk.3.attn_q.weight:16:32"}},
		{"the embedding is in no layer", func(a *Adapter) { a.Layers, a.Targets = "1", "attn_q,token_embd" },
			[]string{"token_embd.weight:16:32", "blk.1.attn_q.weight:16:32"}},
		{"the pattern that says more counts", func(a *Adapter) {
			a.Layers, a.RankPattern = "0-1", map[string]int{"attn_q": 4, "blk.1.attn_q": 2, "blk.0-1.ffn_down": 8}
			a.AlphaPattern = map[string]float64{"blk.1": 5}
		}, []string{"blk.0.attn_q.weight:4:32", "blk.0.ffn_down.weight:8:32", "blk.1.attn_q.weight:2:5", "blk.1.ffn_down.weight:8:5"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			modules, err := adapterOf(tt.change).Modules(4, hasAll)
			require.NoError(t, err)
			var got []string
			for _, m := range modules {
				got = append(got, fmt.Sprintf("%s:%d:%g", m.Weight(), m.Rank, m.Alpha))
			}
			assert.Equal(t, tt.want, got)
		})
	}
	modules, err := adapterOf(func(a *Adapter) { a.Targets = "all_linear,output" }).Modules(4, hasAll)
	require.NoError(t, err)
	assert.Len(t, modules, 4*7+1, "all_linear is what the model has")
}

func TestModulesThatAreRefused(t *testing.T) {
	for want, change := range map[string]func(a *Adapter){
		"adapter.layers: there is no layer 4: the model has 0 to 3, or -4 to -1":   func(a *Adapter) { a.Layers = "4" },
		"adapter.layers: there is no layer -5":                                     func(a *Adapter) { a.Layers = "-5" },
		"adapter.layers: layer 2 is named twice":                                   func(a *Adapter) { a.Layers = "2,-2" },
		"adapter.layers: 3-1 ends before it begins":                                func(a *Adapter) { a.Layers = "3-1" },
		"adapter.layers: must be layers such as":                                   func(a *Adapter) { a.Layers = "1,x" },
		"adapter.layers: chooses layers, but no target":                            func(a *Adapter) { a.Layers, a.Targets = "1", "output" },
		"adapter.rank_pattern: attn_k matches no module":                           func(a *Adapter) { a.RankPattern = map[string]int{"attn_k": 2} },
		"adapter.rank_pattern: blk.2 matches no module":                            func(a *Adapter) { a.Layers, a.RankPattern = "0-1", map[string]int{"blk.2": 2} },
		"adapter.rank_pattern: attn_q and blk.1 both match blk.1.attn_q":           func(a *Adapter) { a.RankPattern = map[string]int{"attn_q": 2, "blk.1": 3} },
		"adapter.alpha_pattern: \"q_proj\" must be a target module":                func(a *Adapter) { a.AlphaPattern = map[string]float64{"q_proj": 2} },
		"adapter.alpha_pattern: blk.9.attn_q: there is no layer 9":                 func(a *Adapter) { a.AlphaPattern = map[string]float64{"blk.9.attn_q": 2} },
		"adapter.alpha_pattern: \"blk..attn_q\" must be a target module":           func(a *Adapter) { a.AlphaPattern = map[string]float64{"blk..attn_q": 2} },
		"adapter.alpha_pattern: \"blk.0.token_embd\" must be a target module, blk": func(a *Adapter) { a.AlphaPattern = map[string]float64{"blk.0.token_embd": 2} },
	} {
		_, err := adapterOf(change).Modules(4, hasAll)
		var problems *Problems
		require.ErrorAs(t, err, &problems, want)
		assert.ErrorContains(t, err, want)
	}
}

// A run from before there were these settings has the digest that it had.
func TestSettingsThatAreNotSetAreNotInTheDigest(t *testing.T) {
	text := string(canonical(Defaults().Adapter))
	assert.Equal(t, `{"rank":16,"alpha":32,"dropout":0,"rslora":false,"targets":"all_linear","init_from":""}`, text)
}

func TestAdapterSettingsThatAreRefused(t *testing.T) {
	for set, want := range map[string]string{
		"adapter.lora_plus_ratio=-1":                    "adapter.lora_plus_ratio: must be a finite number above 0",
		"adapter.layers=1..2":                           "adapter.layers: must be layers such as",
		"adapter.rank_pattern={attn_q: 0}":              "adapter.rank_pattern.attn_q: must be within 1..4096",
		"adapter.rank_pattern={attn_x: 3}":              "adapter.rank_pattern: \"attn_x\" must be a target module",
		"adapter.rank_pattern={attn_q: 1.5}":            "adapter.rank_pattern.attn_q: must be a whole number",
		"adapter.alpha_pattern={attn_q: -1}":            "adapter.alpha_pattern.attn_q: must be a finite number above 0",
		"adapter.targets=all_linear,attn_q":             "attn_q is part of all_linear already",
		"adapter.dora=maybe":                            "adapter.dora: must be true or false",
		"adapter.targets=all_linear,token_embd,lm_head": "unknown target module \"lm_head\"",
	} {
		_, err := Parse([]byte(minimal), []string{set}, nil)
		assert.ErrorContains(t, err, want, set)
	}
	for _, sets := range [][]string{
		{"adapter.dora=true", "adapter.dropout=0.1"}, {"adapter.dora=true", "adapter.targets=all_linear,output"}, {"adapter.dora=true", "adapter.targets=token_embd"},
	} {
		_, err := Parse([]byte(minimal), sets, nil)
		assert.ErrorContains(t, err, "adapter.dora: is not trained", sets)
	}
}
