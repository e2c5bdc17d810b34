package main

import (
	"runtime"

	"cftune/bindings/engine"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
)

// exportEngine lets exports use ggml's arithmetic and llama.cpp's quantizer.
type exportEngine struct{ threads int }

var _ export.Engine = exportEngine{}

func (e exportEngine) workers() int {
	if e.threads > 0 {
		return e.threads
	}
	return runtime.GOMAXPROCS(0)
}

func (e exportEngine) MergeRows(kind gguf.TensorType, raw []byte, rows, cols int, b, a []float32, rank int, scale float64, out []float32) error {
	var add *engine.LowRank
	if rank > 0 {
		add = &engine.LowRank{B: b, A: a, Rank: rank, Scale: scale}
	}
	return engineError(engine.MergeRows(uint32(kind), raw, rows, cols, add, e.workers(), out))
}

func (e exportEngine) Quantize(from, to string, t export.FileType, importance map[string][]float32) error {
	return engineError(engine.Requantize(from, to, engine.FileType(t.ID()), importance, e.workers()))
}
