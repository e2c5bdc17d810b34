// family.h - the model families that can be trained: one row of switches each, and what a GGUF of the family says.
#pragma once

#include <cstdint>
#include <string>

namespace cft {

// What a family does beside the common layer (block.h).
enum trait : uint32_t {
    rope_halves      = 1 << 0,  // rotary pairs are (j, j + n_rot / 2); otherwise (2j, 2j + 1)
    rope_factors     = 1 << 1,  // may have rope_freqs.weight, which divides frequencies
    long_rope        = 1 << 2,  // may have rope_factors_short.weight and rope_factors_long.weight; no other scaling
    qkv_bias         = 1 << 3,  // q, k and v have biases
    may_qkv_bias     = 1 << 4,  // they may
    head_norms       = 1 << 5,  // RMS norms of each head of q and k, before rotation
    post_norms       = 1 << 6,  // RMS norms of what attention and feed-forward half add to the stream
    fused_tensors    = 1 << 7,  // attn_qkv holds q, k, v; ffn_up holds gate, up
    experts          = 1 << 8,  // feed-forward half is a router and experts, weights normalized over the chosen ones
    gelu             = 1 << 9,  // GELU (tanh form) on the gate; otherwise SiLU
    scaled_embedding = 1 << 10, // embeddings are multiplied by sqrt(n_embd)
    attention_cap    = 1 << 11, // scores go through cap * tanh(x / cap)
    logit_cap        = 1 << 12, // logits do
    may_logit_cap    = 1 << 13, // they do where the file has the key
    may_window       = 1 << 14, // attention.sliding_window is known
    window_unserved  = 1 << 15, // llama.cpp computes the family without it
};

struct family {
    const char *architecture; // general.architecture
    const char *covers;       // for people
    uint32_t    traits;
    int         window;          // tokens that a query sees where the file has no key; 0: all
    int         global_every;    // every n-th layer has no window; 0: all layers have one
    float       local_rope_base; // of layers with a window, which then have no scaling; 0: as the others
    int         wide_scale_layers; // with this many layers, scores are divided by sqrt(n_embd / n_head), not sqrt(head_dim)

    bool has(trait t) const { return (traits & t) != 0; }
    bool local(int layer) const { return global_every == 0 || (layer + 1) % global_every != 0; }
};

// The row of an architecture, or NULL.
const family *family_of(const std::string &architecture);

// "llama (Llama, SmolLM2, Mistral), qwen2 (...), ..."
std::string family_list();

} // namespace cft
