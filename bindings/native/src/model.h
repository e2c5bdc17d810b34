// model.h - a GGUF as training sees it: hyperparameters and frozen weights, used where they lie in the file.
#pragma once

#include "cft.h"
#include "cpu/attention.h"
#include "cpu/dequantize.h"
#include "family.h"
#include "rope.h"

#include <cstdint>
#include <string>
#include <deque>
#include <vector>

namespace cft {

struct gguf_outline;   // infer_file.h
struct device_library; // device_trainer.h

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
    weight  slice(int64_t row, int64_t n) const; // rows [row, row + n)
    bool    is_f32() const { return type == GGML_TYPE_F32; }
    const float *f32() const { return reinterpret_cast<const float *>(data); }
};

// The target modules of cft.h, by index of their bits.
enum module_id {
    module_q,
    module_k,
    module_v,
    module_attn_output,
    module_gate,
    module_up,
    module_down,
    module_qkv,
    n_target_modules, // of a layer
    module_token_embd = n_target_modules,
    module_output
};
const char *module_name(int module); // "attn_q", "token_embd"

// linear_part is one linear map of a layer: the rows of a target module's tensor, all of them or, where tensors are fused,
// some.
struct linear_part {
    int     module = 0;
    weight  w;
    int64_t first_row = 0;
};

struct layer_weights {
    linear_part q, k, v, output, gate, up, down;
    weight      modules[n_target_modules]; // whole tensors; no data where the model has no such module

    std::vector<float> attn_norm, ffn_norm;           // [n_embd]
    std::vector<float> q_bias, k_bias, v_bias;        // [q_width], [kv_width]; empty: none
    std::vector<float> q_norm, k_norm;                // [head_dim], of families with head_norms
    std::vector<float> attn_post_norm, ffn_post_norm; // [n_embd], with post_norms
    weight             router;                        // [n_expert][n_embd], with experts instead of gate, up and down:
    weight             gates, ups, downs;             // all experts' matrices one after the other

    bool local = false; // attention looks back over hp.window tokens only
};

struct hyperparameters {
    const family *fam;
    int   n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx_train, n_rot;
    int   n_expert, n_expert_used; // 0 without experts; n_ff is that of one expert
    int   window;                  // tokens that a query of a local layer sees, itself included; 0: there are no local layers
    float rope_freq_base, rms_eps;
    float attention_scale, attention_cap, logit_cap, embedding_scale; // caps: 0 is none
    bool  tied_output;

    int64_t              q_width() const { return int64_t(n_head) * head_dim; }
    int64_t              kv_width() const { return int64_t(n_head_kv) * head_dim; }
    int64_t              ffn_rows(int64_t t) const { return n_expert > 0 ? t * n_expert_used : t; } // of gate and up for t tokens
    cpu::attention_shape attention() const { return {n_head, n_head_kv, head_dim, attention_scale, attention_cap}; }
};

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

    std::deque<cft::mapping>        files; // one, or the shards in their order
    cft::hyperparameters            hp;
    std::string                     architecture;
    cft::weight                     token_embd, output; // output is token_embd where they are tied
    std::vector<float>              output_norm;        // [n_embd]
    cft::rope_sets                  rope;
    std::vector<cft::layer_weights> layers;
    uint64_t                        weight_bytes = 0, n_params = 0;
    const cft::device_library      *device = nullptr; // where trainers of this model compute; NULL: on the CPU
    int                             device_index = 0;

    // The modules that a set of CFT_TARGET_ bits means here: for CFT_TARGET_ALL_LINEAR all of them that the model has, otherwise
    // the set itself. Throws CFT_ERR_INVALID_ARGUMENT where the model lacks one of them.
    uint32_t targets(uint32_t wanted) const;

  private:
    cft_model(const std::string &path, const cft::gguf_outline &outline);
};
