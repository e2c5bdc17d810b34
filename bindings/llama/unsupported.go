package llama

import (
	"errors"
	"fmt"
)

// ErrUnsupported is wrapped by errors about options that are not supported.
var ErrUnsupported = errors.New("not supported")

// ErrFreed is returned by calls after Free.
var ErrFreed = errors.New("llama: the model was freed")

func unsupported(option, way string) error {
	return fmt.Errorf("llama: %s is %w: %s", option, ErrUnsupported, way)
}

type unmet struct {
	set         bool
	option, way string
}

func firstUnmet(list []unmet) error {
	for _, u := range list {
		if u.set {
			return unsupported(u.option, u.way)
		}
	}
	return nil
}

func (o ModelOptions) check() error {
	return firstUnmet([]unmet{
		{o.LowVRAM, "EnableLowVRAM", "SetGPULayers says what goes to the GPU"},
		{o.NUMA, "EnableNUMA", "bind the process to a node instead"},
		{o.MainGPU != "", "SetMainGPU", "CUDA_VISIBLE_DEVICES chooses devices"},
		{o.TensorSplit != "", "SetTensorSplit", "CUDA_VISIBLE_DEVICES chooses devices"},
		{o.MulMatQ != nil && !*o.MulMatQ, "SetMulMatQ(false)", "llama.cpp chooses its kernels"},
		{o.LoraBase != "", "SetLoraBase", "adapters are applied as they are, to quantized models too"},
	})
}

// check tells what of the options cannot be had, given what the model was loaded with.
func (o PredictOptions) check(model ModelOptions) error {
	return firstUnmet([]unmet{
		{o.TailFreeSamplingZ != 1, "SetTailFreeSamplingZ", "llama.cpp has dropped it; SetTopP or SetTypicalP cut the tail"},
		{o.PathPromptCache != "" || o.PromptCacheAll || o.PromptCacheRO, "a prompt cache", "Eval with SaveState and LoadState keep what was read"},
		{o.Grammar != "", "WithGrammar", "check the answer instead"},
		{o.MainGPU != "" || o.TensorSplit != "", "SetPredictionMainGPU or SetPredictionTensorSplit", "devices are chosen when the model is loaded"},
		{o.NegativePrompt != "" || o.NegativePromptScale != 0, "SetNegativePrompt", "two models' logits are not combined"},
		{o.MLock && !model.MLock, "SetMlock", "the model is loaded already: EnableMLock"},
		{o.MMap != model.MMap && !o.MMap, "SetMemoryMap(false)", "the model is loaded already: SetMMap(false)"},
		{o.RopeFreqBase != DefaultOptions.RopeFreqBase && o.RopeFreqBase != model.FreqRopeBase, "SetRopeFreqBase", "the model is loaded already: WithRopeFreqBase"},
		{o.RopeFreqScale != DefaultOptions.RopeFreqScale && o.RopeFreqScale != model.FreqRopeScale, "SetRopeFreqScale", "the model is loaded already: WithRopeFreqScale"},
		{o.Mirostat < 0 || o.Mirostat > 2, fmt.Sprintf("SetMirostat(%d)", o.Mirostat), "versions are 1 and 2"},
	})
}
