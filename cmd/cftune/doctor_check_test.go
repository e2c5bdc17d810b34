package main

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/bindings/engine"
)

// What is compared: a large tensor, a small one, and one that weighs next to nothing.
func gradientForCheck() gradientOf {
	g := gradientOf{loss: 20, infos: []engine.TensorInfo{{Name: "large", Rows: 10, Cols: 10}, {Name: "small", Rows: 2, Cols: 2}, {Name: "noise", Rows: 1, Cols: 2}}}
	for i := range 100 {
		g.all = append(g.all, float32(i%7)-3)
	}
	g.all = append(g.all, 0.3, -0.2, 0.1, 0.4, 1e-6, 2e-6)
	return g
}

func TestCheckOfADevice(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*gradientOf)
		wrong  []string
		worst  string
	}{
		"the same":                  {change: func(*gradientOf) {}},
		"rounded":                   {change: func(g *gradientOf) { g.loss = 20.1; g.all[0] *= 1.01 }, worst: "large"},
		"noise":                     {change: func(g *gradientOf) { g.all[104], g.all[105] = -1e-6, 5e-6 }},
		"one tensor turned round":   {change: func(g *gradientOf) { scale(g.all[100:104], -1) }, wrong: []string{"small has a cosine of -1.0000"}, worst: "small"},
		"one tensor left out":       {change: func(g *gradientOf) { clear(g.all[100:104]) }, wrong: []string{"small has a cosine of 0.0000"}, worst: "small"},
		"one tensor's scale":        {change: func(g *gradientOf) { scale(g.all[100:104], 1.5) }, wrong: []string{"small has 1.5000 times the norm"}},
		"every scale":               {change: func(g *gradientOf) { scale(g.all, 0.8) }, wrong: []string{"the whole gradient has 0.8000 times the norm"}},
		"two values change places":  {change: func(g *gradientOf) { g.all[0], g.all[6] = g.all[6], g.all[0] }, wrong: []string{"the whole gradient has a cosine of 0.9"}, worst: "large"},
		"a value that is no number": {change: func(g *gradientOf) { g.all[3] = float32(math.NaN()) }, wrong: []string{"the whole gradient has a cosine of 0.0000", "large has a cosine of 0.0000"}, worst: "large"},
		"another loss":              {change: func(g *gradientOf) { g.loss = 21 }, wrong: []string{"the loss is 2.1000 instead of 2.0000"}},
		"a loss that is no number":  {change: func(g *gradientOf) { g.loss = math.NaN() }, wrong: []string{"the loss is NaN instead of 2.0000"}},
		"nothing":                   {change: func(g *gradientOf) { clear(g.all) }, wrong: []string{"the whole gradient", "large has", "small has"}, worst: "large"},
	} {
		t.Run(name, func(t *testing.T) {
			device := gradientForCheck()
			tt.change(&device)
			a := agreement{Device: "cuda", Tokens: 20, Targets: 10}
			a.compare(device, gradientForCheck(), nearDense)
			require.Len(t, a.Wrong, len(tt.wrong), "%v", a.Wrong)
			for i, want := range tt.wrong {
				assert.Contains(t, a.Wrong[i], want)
				assert.ErrorContains(t, a.err(), want)
			}
			if tt.worst != "" {
				assert.Equal(t, tt.worst, a.Worst)
			}
			_, err := json.Marshal(a)
			assert.NoError(t, err)
		})
	}
}

func scale(x []float32, by float32) {
	for i := range x {
		x[i] *= by
	}
}
