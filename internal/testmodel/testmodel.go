// Package testmodel writes tiny models with random weights as GGUF files, for tests: llama, or a mixture of experts.
//
// The files are complete: libllama loads them, their tokenizer covers every byte string, and they carry a ChatML
// template. The same options give the same bytes. What such a model generates means nothing.
package testmodel

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Type is how matrices are stored. Vectors are always F32.
type Type uint32

// The types that this package can encode, with GGUF's numbers.
const (
	F32  Type = 0
	F16  Type = 1
	Q4_0 Type = 2
	Q4_1 Type = 3
	Q8_0 Type = 8
)

// Options describe a model; the zero value of a field takes what Write says in its comment.
type Options struct {
	Layers  int // 2
	Embd    int // 64; a multiple of 32
	Heads   int // 4
	KVHeads int // 2; divides Heads
	HeadDim int // Embd / Heads; even
	FF      int // 128; a multiple of 32; with experts, of one of them
	Vocab   int // MinVocab(); larger ones are filled with unused tokens
	Context int // 2048: the context length that the metadata states

	Type   Type // of all matrices
	Untied bool // with an output head of its own
	// Pre names another pre-tokenizer than SmolLM's. The vocabulary then has merges across spaces too, which no expression
	// of a pre-tokenizer should let happen: Vocab must be at least MinVocabAcross().
	Pre string
	// SentencePiece makes a vocabulary of Llama 2's kind: scored pieces, a byte as fallback, a space put before text, BOS.
	SentencePiece bool
	// RopeFreqs adds Llama 3's frequency factors, so that rotary angles differ from the plain ones.
	RopeFreqs bool
	Seed      uint64

	// Experts makes a mixture of so many experts, ExpertsUsed (2) of them for each token: a model of architecture qwen3moe.
	Experts, ExpertsUsed int

	// Architecture is written in the place of llama, to make files that are refused.
	Architecture string
	// Shards, if above 1, divides the model: path must end in -00001-of-0000N.gguf, the others are written beside it.
	Shards int
	// Alignment is where tensors may begin, a power of two; 0 is the format's 32, unsaid. Not with Shards.
	Alignment int
	// NaN makes one weight of the first layer's ffn_down not a number, so that every loss is.
	NaN bool
}

func (o Options) withDefaults() Options {
	set := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	set(&o.Layers, 2)
	set(&o.Embd, 64)
	set(&o.Heads, 4)
	set(&o.KVHeads, 2)
	set(&o.HeadDim, o.Embd/o.Heads)
	set(&o.FF, 128)
	set(&o.Vocab, o.minVocab())
	set(&o.Context, 2048)
	if o.Experts > 0 {
		set(&o.ExpertsUsed, 2)
	}
	if o.Architecture == "" && o.Experts > 0 {
		o.Architecture = "qwen3moe"
	}
	if o.Architecture == "" {
		o.Architecture = "llama"
	}
	return o
}

func (o Options) minVocab() int {
	if o.SentencePiece {
		return MinVocabSentencePiece()
	}
	return MinVocab()
}

func (o Options) validate() error {
	switch {
	case o.Embd%blockSize != 0 || o.FF%blockSize != 0 || (o.Heads*o.HeadDim)%blockSize != 0:
		return fmt.Errorf("embd %d, ff %d and heads x head dim %d must be multiples of %d", o.Embd, o.FF, o.Heads*o.HeadDim, blockSize)
	case o.Heads%o.KVHeads != 0:
		return fmt.Errorf("%d kv heads do not divide %d heads", o.KVHeads, o.Heads)
	case o.ExpertsUsed > o.Experts:
		return fmt.Errorf("%d experts used of %d", o.ExpertsUsed, o.Experts)
	case o.Alignment&(o.Alignment-1) != 0 || o.Alignment != 0 && o.Shards > 1:
		return fmt.Errorf("alignment %d is no power of two, or of a model in %d shards", o.Alignment, o.Shards)
	case o.HeadDim%2 != 0:
		return fmt.Errorf("head dim %d is odd", o.HeadDim)
	case o.Vocab < o.minVocab():
		return fmt.Errorf("vocab %d is below the tokenizer's %d", o.Vocab, o.minVocab())
	}
	return nil
}

// Write writes a model to path.
func Write(path string, o Options) error {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return fmt.Errorf("write test model: %w", err)
	}
	f := newFile()
	if o.Alignment != 0 {
		f.align(o.Alignment)
	}
	o.metadata(f)
	if err := o.tensors(f); err != nil {
		return fmt.Errorf("write test model: %w", err)
	}
	write := f.write
	if o.Shards > 1 {
		write = func(path string) error { return f.writeShards(path, o.Shards) }
	}
	if err := write(path); err != nil {
		return fmt.Errorf("write test model: %w", err)
	}
	return nil
}

func (o Options) metadata(f *file) {
	arch := o.Architecture
	f.str("general.architecture", arch)
	f.str("general.name", "test model")
	f.u32("general.quantization_version", 2)
	f.u32("general.file_type", map[Type]uint32{F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q8_0: 7}[o.Type])
	f.u32(arch+".block_count", uint32(o.Layers))
	f.u32(arch+".context_length", uint32(o.Context))
	f.u32(arch+".embedding_length", uint32(o.Embd))
	f.u32(arch+".feed_forward_length", uint32(o.FF))
	f.u32(arch+".attention.head_count", uint32(o.Heads))
	f.u32(arch+".attention.head_count_kv", uint32(o.KVHeads))
	f.u32(arch+".attention.key_length", uint32(o.HeadDim))
	f.u32(arch+".attention.value_length", uint32(o.HeadDim))
	f.f32(arch+".attention.layer_norm_rms_epsilon", 1e-5)
	f.f32(arch+".rope.freq_base", 10000)
	f.u32(arch+".rope.dimension_count", uint32(o.HeadDim))
	f.u32(arch+".vocab_size", uint32(o.Vocab))
	if o.Experts > 0 {
		f.u32(arch+".expert_count", uint32(o.Experts))
		f.u32(arch+".expert_used_count", uint32(o.ExpertsUsed))
		f.u32(arch+".expert_feed_forward_length", uint32(o.FF))
	}
	if o.SentencePiece {
		sentencePieceMetadata(f, o.Vocab)
		return
	}
	tokenizerMetadata(f, o.Vocab, o.Pre)
}

// tensors adds the weights in the order of a converted model. Every matrix is drawn with a standard deviation of
// 1/sqrt(in), which keeps activations near unit size through the layers and the logits far from uniform.
func (o Options) tensors(f *file) error {
	rng := rand.New(rand.NewPCG(o.Seed, 0x7e57))
	var failed error
	matrices := func(name string, t Type, out, in int, poison bool, shape []int) {
		x := normal(rng, out*in, 1/math.Sqrt(float64(in)), 0)
		if poison {
			x[len(x)/2] = float32(math.NaN())
		}
		data, err := encode(t, x)
		if err != nil && failed == nil {
			failed = fmt.Errorf("%s: %w", name, err)
		}
		f.tensor(name, t, shape, data)
	}
	matrix := func(name string, out, in int, poison bool) { matrices(name, o.Type, out, in, poison, []int{in, out}) }
	experts := func(name string, out, in int) {
		matrices(name, o.Type, o.Experts*out, in, false, []int{in, out, o.Experts})
	}
	vector := func(name string, x []float32) { f.tensor(name, F32, []int{len(x)}, encodeF32(x)) }
	norm := func(name string) { vector(name, normal(rng, o.Embd, 0.1, 1)) }

	matrix("token_embd.weight", o.Vocab, o.Embd, false)
	if o.RopeFreqs {
		vector("rope_freqs.weight", ropeFactors(o.HeadDim/2))
	}
	q, kv := o.Heads*o.HeadDim, o.KVHeads*o.HeadDim
	for l := range o.Layers {
		p := fmt.Sprintf("blk.%d.", l)
		norm(p + "attn_norm.weight")
		matrix(p+"attn_q.weight", q, o.Embd, false)
		matrix(p+"attn_k.weight", kv, o.Embd, false)
		matrix(p+"attn_v.weight", kv, o.Embd, false)
		matrix(p+"attn_output.weight", o.Embd, q, false)
		norm(p + "ffn_norm.weight")
		if o.Experts > 0 {
			vector(p+"attn_q_norm.weight", normal(rng, o.HeadDim, 0.1, 1))
			vector(p+"attn_k_norm.weight", normal(rng, o.HeadDim, 0.1, 1))
			matrices(p+"ffn_gate_inp.weight", F32, o.Experts, o.Embd, false, []int{o.Embd, o.Experts}) // routers stay F32
			experts(p+"ffn_gate_exps.weight", o.FF, o.Embd)
			experts(p+"ffn_up_exps.weight", o.FF, o.Embd)
			experts(p+"ffn_down_exps.weight", o.Embd, o.FF)
			continue
		}
		matrix(p+"ffn_gate.weight", o.FF, o.Embd, false)
		matrix(p+"ffn_up.weight", o.FF, o.Embd, false)
		matrix(p+"ffn_down.weight", o.Embd, o.FF, o.NaN && l == 0)
	}
	norm("output_norm.weight")
	if o.Untied {
		matrix("output.weight", o.Vocab, o.Embd, false)
	}
	return failed
}

func normal(rng *rand.Rand, n int, sigma, mean float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(mean + sigma*rng.NormFloat64())
	}
	return x
}

// ropeFactors has the shape of Llama 3's: 1 for the fast pairs, 8 for the slow ones, a slope in between.
func ropeFactors(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		share := min(max((float64(i)/float64(n)-0.25)*2, 0), 1)
		x[i] = float32(1 + 7*share)
	}
	return x
}
