// family_file.h - tiny random models of every family of the table, as GGUF files.
#pragma once

#include "family.h"
#include "tiny_model.h"

namespace tiny {

struct family_sizes {
    int n_layer = 7, n_embd = 32, n_ff = 48, n_head = 4, n_head_kv = 2, head_dim = 16, n_vocab = 61, n_expert = 5, window = 6;
    float spread = 0.2f; // of matrices
    ggml_type type = GGML_TYPE_F32; // of layers' matrices; the router's is F32
    constexpr family_sizes() = default;
};

// A file of the family with all that its row in the table names.
class family_file : family_sizes {
  public:
    std::string path;

    explicit family_file(const cft::family &f, const model::customizer &customize = nullptr, const family_sizes &sizes = {})
        : family_sizes(sizes), f_(f), gguf_(gguf_init_empty()) {
        ctx_ = ggml_init({size_t(64) << 20, nullptr, false});
        keys();
        matrix("token_embd.weight", n_vocab, n_embd, 1, GGML_TYPE_F32);
        vector("output_norm.weight", n_embd);
        if (f.has(cft::rope_factors)) {
            vector("rope_freqs.weight", head_dim / 2);
        }
        if (f.has(cft::long_rope)) {
            vector("rope_factors_short.weight", head_dim / 2);
            vector("rope_factors_long.weight", head_dim / 2);
        }
        for (int i = 0; i < n_layer; i++) {
            layer("blk." + std::to_string(i) + ".");
        }
        if (customize) {
            customize(gguf_, ctx_);
        }
        static int n_files = 0; // one file each: they are mapped while others are written
        path = folder() + "/" + f.architecture + std::to_string(n_files++) + ".gguf";
        CHECK(gguf_write_to_file(gguf_, path.c_str(), false));
        gguf_free(gguf_);
        ggml_free(ctx_);
    }

  private:
    void keys() {
        const std::string prefix = std::string(f_.architecture) + ".";
        gguf_set_val_str(gguf_, "general.architecture", f_.architecture);
        const auto number = [&](const char *key, int value) { gguf_set_val_u32(gguf_, (prefix + key).c_str(), uint32_t(value)); };
        number("block_count", n_layer);
        number("context_length", 256);
        number("embedding_length", n_embd);
        number("feed_forward_length", n_ff);
        number("attention.head_count", n_head);
        number("attention.head_count_kv", n_head_kv);
        number("attention.key_length", head_dim);
        number("attention.value_length", head_dim);
        if (f_.has(cft::may_window)) {
            number("attention.sliding_window", window);
        }
        if (f_.has(cft::experts)) {
            number("expert_count", n_expert);
            number("expert_used_count", 2);
            number("expert_feed_forward_length", n_ff);
        }
        gguf_set_val_f32(gguf_, (prefix + "attention.layer_norm_rms_epsilon").c_str(), 1e-6f);
        if (f_.has(cft::attention_cap)) {
            gguf_set_val_f32(gguf_, (prefix + "attn_logit_softcapping").c_str(), 3.0f);
        }
        if (f_.has(cft::logit_cap) || f_.has(cft::may_logit_cap)) {
            gguf_set_val_f32(gguf_, (prefix + "final_logit_softcapping").c_str(), 4.0f);
        }
    }

    void layer(const std::string &p) {
        const int q = n_head * head_dim, kv = n_head_kv * head_dim;
        vector(p + "attn_norm.weight", n_embd);
        vector(p + "ffn_norm.weight", n_embd);
        if (f_.has(cft::fused_tensors)) {
            matrix(p + "attn_qkv.weight", q + 2 * kv, n_embd);
        } else {
            matrix(p + "attn_q.weight", q, n_embd);
            matrix(p + "attn_k.weight", kv, n_embd);
            matrix(p + "attn_v.weight", kv, n_embd);
        }
        matrix(p + "attn_output.weight", n_embd, q);
        if (f_.has(cft::qkv_bias) || f_.has(cft::may_qkv_bias)) {
            vector(p + "attn_q.bias", q);
            vector(p + "attn_k.bias", kv);
            vector(p + "attn_v.bias", kv);
        }
        if (f_.has(cft::head_norms)) {
            vector(p + "attn_q_norm.weight", head_dim);
            vector(p + "attn_k_norm.weight", head_dim);
        }
        if (f_.has(cft::post_norms)) {
            vector(p + "post_attention_norm.weight", n_embd);
            vector(p + "post_ffw_norm.weight", n_embd);
        }
        if (f_.has(cft::experts)) {
            matrix(p + "ffn_gate_inp.weight", n_expert, n_embd, 1, GGML_TYPE_F32);
            matrix(p + "ffn_gate_exps.weight", n_ff, n_embd, n_expert);
            matrix(p + "ffn_up_exps.weight", n_ff, n_embd, n_expert);
            matrix(p + "ffn_down_exps.weight", n_embd, n_ff, n_expert);
            return;
        }
        if (!f_.has(cft::fused_tensors)) {
            matrix(p + "ffn_gate.weight", n_ff, n_embd);
        }
        matrix(p + "ffn_up.weight", f_.has(cft::fused_tensors) ? 2 * n_ff : n_ff, n_embd);
        matrix(p + "ffn_down.weight", n_embd, n_ff);
    }

    void add(ggml_tensor *t, const std::string &name, float mean, float spread) {
        ggml_set_name(t, name.c_str());
        auto values = checks::random_floats(size_t(ggml_nelements(t)), spread);
        for (float &v : values) {
            v += mean;
        }
        ggml_quantize_chunk(t->type, values.data(), t->data, 0, ggml_nrows(t), t->ne[0], nullptr);
        gguf_add_tensor(gguf_, t);
    }
    void matrix(const std::string &name, int rows, int cols, int n = 1) { matrix(name, rows, cols, n, type); }
    void matrix(const std::string &name, int rows, int cols, int n, ggml_type t) {
        add(ggml_new_tensor_3d(ctx_, t, cols, rows, n), name, 0.0f, spread);
    }
    void vector(const std::string &name, int n) { add(ggml_new_tensor_1d(ctx_, GGML_TYPE_F32, n), name, 1.0f, 0.1f); }

    const cft::family &f_;
    gguf_context *gguf_;
    ggml_context *ctx_;
};

} // namespace tiny
