// family.cpp - the table. It follows the models' own code, and llama.cpp's llama-model.cpp where a GGUF does not say: it has no
// key for Gemma's query_pre_attn_scalar, which only the 27B models, known by their layers, set to other than the head size.
#include "family.h"

namespace cft {
namespace {

const family families[] = {
    {"llama", "Llama, SmolLM2, Mistral", rope_factors | may_qkv_bias | may_window | window_unserved, 0, 0, 0, 0},
    {"qwen2", "Qwen2, Qwen2.5", rope_halves | qkv_bias, 0, 0, 0, 0},
    {"qwen3", "Qwen3", rope_halves | head_norms, 0, 0, 0, 0},
    {"qwen3moe", "Qwen3 mixtures of experts", rope_halves | head_norms | experts, 0, 0, 0, 0},
    {"phi3", "Phi-3, Phi-4", rope_halves | long_rope | fused_tensors | may_window | window_unserved, 0, 0, 0, 0},
    {"gemma2", "Gemma 2", rope_halves | post_norms | gelu | scaled_embedding | attention_cap | logit_cap | may_window, 4096, 2, 0, 46},
    {"gemma3", "Gemma 3, text", rope_halves | head_norms | post_norms | gelu | scaled_embedding | may_logit_cap | may_window, 0, 6, 10000.0f, 62},
};

} // namespace

const family *family_of(const std::string &architecture) {
    for (const family &f : families) {
        if (architecture == f.architecture) {
            return &f;
        }
    }
    return nullptr;
}

std::string family_list() {
    std::string list;
    for (const family &f : families) {
        list += (list.empty() ? "" : ", ") + std::string(f.architecture) + " (" + f.covers + ")";
    }
    return list;
}

} // namespace cft
