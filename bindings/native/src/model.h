// model.h - a llama-family GGUF as training sees it: hyperparameters and frozen weights, used where they lie in the file.
#pragma once

#include "cft.h"
#include "cpu/attention.h"
#include "cpu/dequantize.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace cft {

struct gguf_outline; // infer_file.h

// weight is a frozen matrix [rows][cols] of any GGUF type, in the mapped file.
struct weight {
    const char      *data      = nullptr;
    ggml_type        type      = GGML_TYPE_F32;
    int64_t          rows      = 0;
    int64_t          cols      = 0;
    size_t           row_bytes = 0;
    cpu::dequantize_function to_float = nullptr; // NULL for F32

    // dequantize writes columns [col, col + n) of one row to dst; col and n are multiples of block().
    void    dequantize(int64_t row, int64_t col, int64_t n, float *dst) const;
    int64_t block() const { return ggml_blck_size(type); }
    bool    is_f32() const { return type == GGML_TYPE_F32; }
    const float *f32() const { return reinterpret_cast<const float *>(data); }
};

struct layer_weights {
    weight attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down;
    std::vector<float> attn_norm, ffn_norm; // [n_embd]
};

struct hyperparameters {
    int   n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx_train, n_rot;
    float rope_freq_base, rope_freq_scale, rms_eps;
    bool  tied_output;

    int64_t              q_width() const { return int64_t(n_head) * head_dim; }
    int64_t              kv_width() const { return int64_t(n_head_kv) * head_dim; }
    cpu::attention_shape attention() const { return {n_head, n_head_kv, head_dim, 1.0f / std::sqrt(float(head_dim))}; }
};

// The target modules of cft.h.
constexpr int n_target_modules = 7;

// mapping is a file mapped read-only.
class mapping {
  public:
    explicit mapping(const std::string &path);
    ~mapping();
    mapping(const mapping &)            = delete;
    mapping &operator=(const mapping &) = delete;
    const char *data() const { return data_; }
    size_t      size() const { return size_; }

  private:
    char  *data_ = nullptr;
    size_t size_ = 0;
};

} // namespace cft

// The opaque handle of cft.h.
struct cft_model {
    explicit cft_model(const std::string &path); // throws failure

    cft::mapping                    file;
    cft::hyperparameters            hp;
    std::string                     architecture;
    cft::weight                     token_embd, output; // output is token_embd where they are tied
    std::vector<float>              output_norm;        // [n_embd]
    std::vector<float>              rope_frequencies;   // [n_rot / 2], radians per position
    std::vector<cft::layer_weights> layers;
    uint64_t                        weight_bytes = 0, n_params = 0;

  private:
    cft_model(const std::string &path, const cft::gguf_outline &outline);
};
