package llama_test

import (
	"io"

	"cftune/bindings/llama"
)

// The public API of go-skynet/go-llama.cpp, name by name with its type: this file stops compiling when one drifts.
var (
	_ func(string, ...llama.ModelOption) (*llama.LLama, error)                         = llama.New
	_ func(*llama.LLama)                                                               = (*llama.LLama).Free
	_ func(*llama.LLama, string, ...llama.PredictOption) (string, error)               = (*llama.LLama).Predict
	_ func(*llama.LLama, *llama.LLama, string, ...llama.PredictOption) (string, error) = (*llama.LLama).SpeculativeSampling
	_ func(*llama.LLama, string, ...llama.PredictOption) error                         = (*llama.LLama).Eval
	_ func(*llama.LLama, string, ...llama.PredictOption) ([]float32, error)            = (*llama.LLama).Embeddings
	_ func(*llama.LLama, []int, ...llama.PredictOption) ([]float32, error)             = (*llama.LLama).TokenEmbeddings
	_ func(*llama.LLama, string, ...llama.PredictOption) (int32, []int32, error)       = (*llama.LLama).TokenizeString
	_ func(*llama.LLama, string) error                                                 = (*llama.LLama).LoadState
	_ func(*llama.LLama, string) error                                                 = (*llama.LLama).SaveState
	_ func(*llama.LLama, func(string) bool)                                            = (*llama.LLama).SetTokenCallback
	_ func(...llama.ModelOption) llama.ModelOptions                                    = llama.NewModelOptions
	_ func(...llama.PredictOption) llama.PredictOptions                                = llama.NewPredictOptions
	_ llama.ModelOptions                                                               = llama.DefaultModelOptions
	_ llama.PredictOptions                                                             = llama.DefaultOptions
	_ io.Closer                                                                        = (*llama.LLama)(nil)
	_ []llama.ModelOption                                                              = []llama.ModelOption{llama.EnableF16Memory, llama.EnableEmbeddings, llama.EnableMLock, llama.EnableNUMA, llama.EnabelLowVRAM}
	_ []llama.PredictOption                                                            = []llama.PredictOption{llama.EnablePromptCacheAll, llama.EnablePromptCacheRO, llama.EnableF16KV, llama.IgnoreEOS, llama.Debug}
	_ []func(int) llama.ModelOption                                                    = []func(int) llama.ModelOption{llama.SetContext, llama.SetNBatch, llama.SetGPULayers, llama.SetModelSeed}
	_ []func(string) llama.ModelOption                                                 = []func(string) llama.ModelOption{llama.SetMainGPU, llama.SetTensorSplit, llama.SetLoraAdapter, llama.SetLoraBase}
	_ []func(bool) llama.ModelOption                                                   = []func(bool) llama.ModelOption{llama.SetMMap, llama.SetMulMatQ, llama.SetPerplexity}
	_ []func(float32) llama.ModelOption                                                = []func(float32) llama.ModelOption{llama.WithRopeFreqBase, llama.WithRopeFreqScale}
	_ []func(int) llama.PredictOption                                                  = []func(int) llama.PredictOption{llama.SetTokens, llama.SetThreads, llama.SetSeed, llama.SetTopK, llama.SetRepeat, llama.SetBatch, llama.SetNKeep, llama.SetMirostat, llama.SetNDraft}
	_ []func(float32) llama.PredictOption                                              = []func(float32) llama.PredictOption{
		llama.SetTopP, llama.SetTemperature, llama.SetPenalty, llama.SetTailFreeSamplingZ, llama.SetTypicalP, llama.SetFrequencyPenalty, llama.SetPresencePenalty,
		llama.SetMirostatETA, llama.SetMirostatTAU, llama.SetRopeFreqBase, llama.SetRopeFreqScale, llama.SetNegativePromptScale,
	}
	_ []func(string) llama.PredictOption = []func(string) llama.PredictOption{
		llama.SetLogitBias, llama.SetPathPromptCache, llama.SetPredictionMainGPU, llama.SetPredictionTensorSplit, llama.WithGrammar, llama.SetNegativePrompt,
	}
	_ []func(bool) llama.PredictOption            = []func(bool) llama.PredictOption{llama.SetPenalizeNL, llama.SetMlock, llama.SetMemoryMap}
	_ func(...string) llama.PredictOption         = llama.SetStopWords
	_ func(func(string) bool) llama.PredictOption = llama.SetTokenCallback
)
