package llama

// ModelOptions say how a model is loaded.
type ModelOptions struct {
	ContextSize   int
	Seed          int // used where Predict is given none (-1)
	NBatch        int
	F16Memory     bool // the cache has 16 bits in any case: llama.cpp's default
	MLock         bool
	MMap          bool
	LowVRAM       bool
	Embeddings    bool
	NUMA          bool
	NGPULayers    int
	MainGPU       string
	TensorSplit   string
	FreqRopeBase  float32 // 10000: the model's
	FreqRopeScale float32 // 1: the model's
	MulMatQ       *bool
	LoraBase      string
	LoraAdapter   string
	Perplexity    bool // needed by nothing here: all logits that are wanted are there
}

// PredictOptions say how a prompt is answered.
type PredictOptions struct {
	Seed, Threads, Tokens, TopK, Repeat, Batch, NKeep int
	TopP, Temperature, Penalty                        float32
	NDraft                                            int
	F16KV                                             bool // the cache has 16 bits in any case
	DebugMode                                         bool // writes the answer to stdout as it comes
	StopPrompts                                       []string
	IgnoreEOS                                         bool

	TailFreeSamplingZ float32
	TypicalP          float32
	FrequencyPenalty  float32
	PresencePenalty   float32
	Mirostat          int
	MirostatETA       float32
	MirostatTAU       float32
	PenalizeNL        bool
	LogitBias         string // a token's number, a sign and a number: "15043+1.5"
	TokenCallback     func(string) bool

	PathPromptCache             string
	MLock, MMap, PromptCacheAll bool
	PromptCacheRO               bool
	Grammar                     string
	MainGPU                     string
	TensorSplit                 string

	RopeFreqBase        float32
	RopeFreqScale       float32
	NegativePromptScale float32
	NegativePrompt      string
}

// ModelOption changes one of the ModelOptions.
type ModelOption func(p *ModelOptions)

// PredictOption changes one of the PredictOptions.
type PredictOption func(p *PredictOptions)

// DefaultModelOptions are what New begins with.
var DefaultModelOptions = ModelOptions{
	ContextSize: 512, NBatch: 512, MMap: true, FreqRopeBase: 10000, FreqRopeScale: 1,
}

// DefaultOptions are what Predict begins with.
var DefaultOptions = PredictOptions{
	Seed: -1, Threads: 4, Tokens: 128, Penalty: 1.1, Repeat: 64, Batch: 512, NKeep: 64, TopK: 40, TopP: 0.95, TailFreeSamplingZ: 1,
	TypicalP: 1, Temperature: 0.8, MirostatTAU: 5, MirostatETA: 0.1, MMap: true, RopeFreqBase: 10000, RopeFreqScale: 1,
}

// NewModelOptions applies options to the defaults.
func NewModelOptions(opts ...ModelOption) ModelOptions {
	p := DefaultModelOptions
	for _, opt := range opts {
		opt(&p)
	}
	return p
}

// NewPredictOptions applies options to the defaults.
func NewPredictOptions(opts ...PredictOption) PredictOptions {
	p := DefaultOptions
	for _, opt := range opts {
		opt(&p)
	}
	return p
}

// Options of a model.

// SetContext sets the number of tokens that prompt and answer may have together.
func SetContext(c int) ModelOption { return func(p *ModelOptions) { p.ContextSize = c } }

// SetNBatch sets how many tokens are read at a time.
func SetNBatch(n int) ModelOption { return func(p *ModelOptions) { p.NBatch = n } }

// SetModelSeed sets the seed of answers that are given none.
func SetModelSeed(c int) ModelOption { return func(p *ModelOptions) { p.Seed = c } }

// SetMMap maps the file instead of reading it.
func SetMMap(b bool) ModelOption { return func(p *ModelOptions) { p.MMap = b } }

// SetGPULayers sets how many layers are computed on a GPU.
func SetGPULayers(n int) ModelOption { return func(p *ModelOptions) { p.NGPULayers = n } }

// SetMainGPU is not supported.
func SetMainGPU(gpu string) ModelOption { return func(p *ModelOptions) { p.MainGPU = gpu } }

// SetTensorSplit is not supported.
func SetTensorSplit(split string) ModelOption { return func(p *ModelOptions) { p.TensorSplit = split } }

// SetLoraAdapter loads a GGUF adapter with the model.
func SetLoraAdapter(s string) ModelOption { return func(p *ModelOptions) { p.LoraAdapter = s } }

// SetLoraBase is not supported: llama.cpp applies adapters as they are, to quantized models too.
func SetLoraBase(s string) ModelOption { return func(p *ModelOptions) { p.LoraBase = s } }

// SetMulMatQ is not supported: llama.cpp chooses its kernels.
func SetMulMatQ(b bool) ModelOption { return func(p *ModelOptions) { p.MulMatQ = &b } }

// SetPerplexity is kept for programs that set it; it changes nothing.
func SetPerplexity(b bool) ModelOption { return func(p *ModelOptions) { p.Perplexity = b } }

// WithRopeFreqBase replaces the model's base of rotary frequencies.
func WithRopeFreqBase(f float32) ModelOption { return func(p *ModelOptions) { p.FreqRopeBase = f } }

// WithRopeFreqScale replaces the model's scale of rotary frequencies.
func WithRopeFreqScale(f float32) ModelOption { return func(p *ModelOptions) { p.FreqRopeScale = f } }

// Switches of a model, used without parentheses.
var (
	EnableF16Memory  ModelOption = func(p *ModelOptions) { p.F16Memory = true }
	EnableEmbeddings ModelOption = func(p *ModelOptions) { p.Embeddings = true }
	EnableMLock      ModelOption = func(p *ModelOptions) { p.MLock = true }
	// EnableNUMA and EnableLowVRAM are not supported.
	EnableNUMA    ModelOption = func(p *ModelOptions) { p.NUMA = true }
	EnableLowVRAM ModelOption = func(p *ModelOptions) { p.LowVRAM = true }
	// Deprecated: EnabelLowVRAM is how it was spelt.
	EnabelLowVRAM = EnableLowVRAM
)

// Options of an answer.

// SetTokens sets how many tokens an answer may have; 0 is no limit but the context.
func SetTokens(tokens int) PredictOption { return func(p *PredictOptions) { p.Tokens = tokens } }

// SetThreads sets the number of threads that the first call makes the context with; 0 = all that the process may use.
func SetThreads(n int) PredictOption { return func(p *PredictOptions) { p.Threads = n } }

// SetSeed sets the seed; -1 is the model's, or the time where that is 0.
func SetSeed(seed int) PredictOption { return func(p *PredictOptions) { p.Seed = seed } }

// SetTopK draws from the k likeliest tokens only; 0 = all.
func SetTopK(k int) PredictOption { return func(p *PredictOptions) { p.TopK = k } }

// SetTopP draws from the fewest tokens that are this likely together.
func SetTopP(f float32) PredictOption { return func(p *PredictOptions) { p.TopP = f } }

// SetTemperature sets the temperature; 0 takes the likeliest token.
func SetTemperature(f float32) PredictOption { return func(p *PredictOptions) { p.Temperature = f } }

// SetPenalty sets what logits of repeated tokens are divided by (multiplied, where negative).
func SetPenalty(f float32) PredictOption { return func(p *PredictOptions) { p.Penalty = f } }

// SetRepeat sets how many of the last tokens count as repeated.
func SetRepeat(n int) PredictOption { return func(p *PredictOptions) { p.Repeat = n } }

// SetBatch sets how many tokens of the prompt are read at a time; more than the model's number changes nothing.
func SetBatch(n int) PredictOption { return func(p *PredictOptions) { p.Batch = n } }

// SetNKeep sets how much of a prompt stays when the context is full and the older half of the rest is dropped.
func SetNKeep(n int) PredictOption { return func(p *PredictOptions) { p.NKeep = n } }

// SetStopWords end an answer where they begin.
func SetStopWords(stop ...string) PredictOption {
	return func(p *PredictOptions) { p.StopPrompts = stop }
}

// SetTokenCallback gets each part of the answer; false ends it.
func SetTokenCallback(fn func(string) bool) PredictOption {
	return func(p *PredictOptions) { p.TokenCallback = fn }
}

// SetTailFreeSamplingZ is not supported: llama.cpp has dropped tail-free sampling.
func SetTailFreeSamplingZ(f float32) PredictOption {
	return func(p *PredictOptions) { p.TailFreeSamplingZ = f }
}

// SetTypicalP keeps the tokens whose surprise is nearest to what is expected (Meister et al. 2022); 1 = all.
func SetTypicalP(f float32) PredictOption { return func(p *PredictOptions) { p.TypicalP = f } }

// SetFrequencyPenalty takes this from a token's logit for each of its occurrences.
func SetFrequencyPenalty(f float32) PredictOption {
	return func(p *PredictOptions) { p.FrequencyPenalty = f }
}

// SetPresencePenalty takes this from a token's logit if it occurred.
func SetPresencePenalty(f float32) PredictOption {
	return func(p *PredictOptions) { p.PresencePenalty = f }
}

// SetMirostat draws so that surprise stays at a level (Basu et al. 2021): version 1 or 2; 0 is off.
func SetMirostat(m int) PredictOption { return func(p *PredictOptions) { p.Mirostat = m } }

// SetMirostatETA is mirostat's learning rate.
func SetMirostatETA(f float32) PredictOption { return func(p *PredictOptions) { p.MirostatETA = f } }

// SetMirostatTAU is the surprise that mirostat aims at, in bits.
func SetMirostatTAU(f float32) PredictOption { return func(p *PredictOptions) { p.MirostatTAU = f } }

// SetPenalizeNL lets newlines be penalized as other tokens are.
func SetPenalizeNL(b bool) PredictOption { return func(p *PredictOptions) { p.PenalizeNL = b } }

// SetLogitBias adds to a token's logit: "15043+1.5".
func SetLogitBias(s string) PredictOption { return func(p *PredictOptions) { p.LogitBias = s } }

// SetPathPromptCache is not supported; SaveState and LoadState keep what was read.
func SetPathPromptCache(s string) PredictOption {
	return func(p *PredictOptions) { p.PathPromptCache = s }
}

// SetMlock is the model's business: EnableMLock.
func SetMlock(b bool) PredictOption { return func(p *PredictOptions) { p.MLock = b } }

// SetMemoryMap is the model's business: SetMMap.
func SetMemoryMap(b bool) PredictOption { return func(p *PredictOptions) { p.MMap = b } }

// SetPredictionMainGPU is not supported.
func SetPredictionMainGPU(s string) PredictOption { return func(p *PredictOptions) { p.MainGPU = s } }

// SetPredictionTensorSplit is not supported.
func SetPredictionTensorSplit(s string) PredictOption {
	return func(p *PredictOptions) { p.TensorSplit = s }
}

// WithGrammar is not supported yet.
func WithGrammar(s string) PredictOption { return func(p *PredictOptions) { p.Grammar = s } }

// SetRopeFreqBase is the model's business: WithRopeFreqBase.
func SetRopeFreqBase(f float32) PredictOption { return func(p *PredictOptions) { p.RopeFreqBase = f } }

// SetRopeFreqScale is the model's business: WithRopeFreqScale.
func SetRopeFreqScale(f float32) PredictOption {
	return func(p *PredictOptions) { p.RopeFreqScale = f }
}

// SetNegativePrompt is not supported.
func SetNegativePrompt(s string) PredictOption {
	return func(p *PredictOptions) { p.NegativePrompt = s }
}

// SetNegativePromptScale is not supported.
func SetNegativePromptScale(f float32) PredictOption {
	return func(p *PredictOptions) { p.NegativePromptScale = f }
}

// SetNDraft sets how many tokens the draft model proposes at a time; 0 is 8.
func SetNDraft(n int) PredictOption { return func(p *PredictOptions) { p.NDraft = n } }

// Switches of an answer, used without parentheses.
var (
	EnableF16KV PredictOption = func(p *PredictOptions) { p.F16KV = true }
	IgnoreEOS   PredictOption = func(p *PredictOptions) { p.IgnoreEOS = true }
	Debug       PredictOption = func(p *PredictOptions) { p.DebugMode = true }
	// EnablePromptCacheAll and EnablePromptCacheRO are not supported.
	EnablePromptCacheAll PredictOption = func(p *PredictOptions) { p.PromptCacheAll = true }
	EnablePromptCacheRO  PredictOption = func(p *PredictOptions) { p.PromptCacheRO = true }
)
