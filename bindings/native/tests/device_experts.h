// device_experts.h - tiny mixtures of experts for tests of devices. bf16 rounds what a router sees, so that of two experts that are almost as
// likely the other one may be chosen than on the CPU; where choices matter to a test, they must be clear ones.
#pragma once

#include "device_fixture.h"

namespace tiny {

inline family_sizes expert_sizes() {
    family_sizes s;
    s.n_embd = 64, s.n_ff = 96, s.n_head = 4, s.head_dim = 64, s.spread = 0.14f, s.n_layer = 3, s.n_expert = 13;
    return s;
}

// A model whose router decides clearly: the first n_expert elements of a token's embedding are a ladder with steps of clear_step, turned by the
// token; no layer adds to them (beside an adapter, a little), and the router sees only them. With norms of weights near 1, steps of neighbours
// stay apart: see clear_step.
constexpr float clear_step = 0.5f, router_weight = 0.3f;

inline model::customizer clear_choices(int n_used, const family_sizes &s) {
    return [n_used, s](gguf_context *g, ggml_context *ctx) {
        gguf_set_val_u32(g, "qwen3moe.expert_used_count", uint32_t(n_used));
        float *const embedding = static_cast<float *>(ggml_get_tensor(ctx, "token_embd.weight")->data);
        for (int token = 0; token < s.n_vocab; token++) {
            for (int e = 0; e < s.n_expert; e++) {
                const int level = (e * 5 + token * 3) % s.n_expert; // 5 and 3 are prime to the numbers of experts in use
                embedding[token * s.n_embd + e] = clear_step * float(level + 1);
            }
        }
        for (int l = 0; l < s.n_layer; l++) {
            const std::string p = "blk." + std::to_string(l) + ".";
            const auto        tensor = [&](const char *name) { return ggml_get_tensor(ctx, (p + name).c_str()); };
            float *const      router = static_cast<float *>(tensor("ffn_gate_inp.weight")->data), *const norm = static_cast<float *>(tensor("ffn_norm.weight")->data);
            std::fill(router, router + s.n_expert * s.n_embd, 0.0f);
            for (int e = 0; e < s.n_expert; e++) {
                router[e * s.n_embd + e] = router_weight;
                norm[e]                  = 1.0f;
            }
            for (const char *name : {"attn_output.weight", "ffn_down_exps.weight"}) {
                const ggml_tensor *t = tensor(name);
                for (int64_t i = 0; i < t->ne[2]; i++) { // rows of zero bytes are zeros in every type
                    std::memset(static_cast<char *>(t->data) + size_t(i) * t->nb[2], 0, size_t(s.n_expert) * t->nb[1]);
                }
            }
        }
    };
}

// All experts are used: which is likelier does not matter.
inline model::customizer all_experts(const family_sizes &s) {
    return [n = s.n_expert](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "qwen3moe.expert_used_count", uint32_t(n)); };
}

inline const cft::family &expert_family() { return *cft::family_of("qwen3moe"); }

} // namespace tiny
