// model.cpp - see model.h. Names and keys: llama.cpp's src/llama-arch.cpp and the GGUF specification in ggml's docs/gguf.md.
#include "model.h"

#include "failure.h"
#include "model_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

namespace cft {

void weight::dequantize(int64_t row, int64_t col, int64_t n, float *dst) const {
    const char *src = data + size_t(row) * row_bytes + size_t(col / block()) * ggml_type_size(type);
    if (is_f32()) {
        std::memcpy(dst, src, size_t(n) * sizeof(float));
        return;
    }
    to_float(src, dst, n);
}

weight weight::slice(int64_t row, int64_t n) const {
    weight part = *this;
    part.data += size_t(row) * row_bytes;
    part.rows = n;
    return part;
}

const char *module_name(int module) {
    constexpr const char *names[] = {"attn_q",   "attn_k",   "attn_v",     "attn_output", "ffn_gate", "ffn_up",
                                     "ffn_down", "attn_qkv", "token_embd", "output"};
    return names[module];
}

mapping::mapping(const std::string &path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        throw failure(CFT_ERR_IO, "open " + path + ": " + std::strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || st.st_size == 0) {
        close(fd);
        throw failure(CFT_ERR_IO, "open " + path + ": empty or unreadable");
    }
    size_   = size_t(st.st_size);
    void *p = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) {
        throw failure(CFT_ERR_IO, "map " + path + ": " + std::strerror(errno));
    }
    data_ = static_cast<char *>(p);
}

mapping::~mapping() {
    if (data_) {
        munmap(data_, size_);
    }
}

namespace {

constexpr int64_t max_dimension = 1 << 20; // of any one size; keeps products far from overflow
constexpr int     max_experts   = 512;     // as llama.cpp

void check_heads(model_file &in, const hyperparameters &hp) {
    if (hp.n_head % hp.n_head_kv != 0) {
        in.damaged(in.full("attention.head_count") + " is no multiple of " + in.full("attention.head_count_kv"));
    }
    if (hp.head_dim % 8 != 0 || hp.head_dim > 256) {
        in.unsupported("head size " + std::to_string(hp.head_dim) + " is no multiple of 8 up to 256");
    }
    if (hp.n_rot % 2 != 0 || hp.n_rot > hp.head_dim) {
        in.damaged(in.full("rope.dimension_count") + " is " + std::to_string(hp.n_rot) + ", not an even number up to the head size " +
                   std::to_string(hp.head_dim));
    }
}

void read_experts(model_file &in, hyperparameters &hp) {
    const int count = in.number("expert_count", max_experts, 0);
    if (!hp.fam->has(experts)) {
        if (count > 0) {
            in.unsupported(in.full("expert_count") + ": mixtures of experts of this architecture are not trained");
        }
        in.number("expert_used_count", max_experts, 0);
        return;
    }
    hp.n_expert      = in.number("expert_count", max_experts);
    hp.n_expert_used = in.number("expert_used_count", hp.n_expert);
    // As llama.cpp, which divides the width of all where that of one is missing.
    hp.n_ff = in.number("expert_feed_forward_length", max_dimension, hp.n_ff / hp.n_expert_used);
}

hyperparameters read_hyperparameters(model_file &in, const family &fam) {
    hyperparameters hp{};
    hp.fam            = &fam;
    hp.n_layer        = in.number("block_count", 4096);
    hp.n_embd         = in.number("embedding_length", max_dimension);
    hp.n_ff           = in.number("feed_forward_length", max_dimension);
    hp.n_head         = in.number("attention.head_count", 4096);
    hp.n_head_kv      = in.number("attention.head_count_kv", 4096, hp.n_head);
    hp.n_ctx_train    = in.number("context_length", int64_t(1) << 30);
    hp.head_dim       = in.number("attention.key_length", 4096, hp.n_embd / hp.n_head);
    hp.n_rot          = in.number("rope.dimension_count", 4096, hp.head_dim);
    hp.rope_freq_base = in.real("rope.freq_base", 10000.0f);
    hp.rms_eps        = in.real("attention.layer_norm_rms_epsilon", 0);
    if (in.number("attention.value_length", 4096, hp.head_dim) != hp.head_dim) {
        in.unsupported(in.full("attention.value_length") + " differs from " + in.full("attention.key_length"));
    }
    check_heads(in, hp);
    read_experts(in, hp);
    const bool wide    = fam.wide_scale_layers == hp.n_layer;
    hp.attention_scale = 1.0f / std::sqrt(float(wide ? hp.n_embd / hp.n_head : hp.head_dim));
    hp.embedding_scale = fam.has(scaled_embedding) ? std::sqrt(float(hp.n_embd)) : 1.0f;
    if (fam.has(may_window)) {
        hp.window = in.number("attention.sliding_window", int64_t(1) << 30, fam.window);
    }
    // llama.cpp's defaults.
    if (fam.has(attention_cap)) {
        hp.attention_cap = in.real("attn_logit_softcapping", 50.0f);
    }
    if (fam.has(logit_cap) || (fam.has(may_logit_cap) && in.has_key("final_logit_softcapping"))) {
        hp.logit_cap = in.real("final_logit_softcapping", 30.0f);
    }
    return hp;
}

// cut divides a fused tensor into linear maps of the given numbers of rows.
void cut(const weight &whole, int module, std::initializer_list<std::pair<linear_part *, int64_t>> parts) {
    int64_t row = 0;
    for (const auto &[part, rows] : parts) {
        *part = {module, whole.slice(row, rows), row};
        row += rows;
    }
}

void read_attention(model_file &in, const hyperparameters &hp, const std::string &prefix, layer_weights &w) {
    const int64_t q = hp.q_width(), kv = hp.kv_width();
    const auto    matrix = [&](linear_part &part, int module, int64_t rows, int64_t cols) {
        w.modules[module] = in.matrix(prefix + module_name(module) + ".weight", rows, cols);
        part              = {module, w.modules[module], 0};
    };
    w.attn_norm = in.vector(prefix + "attn_norm.weight", hp.n_embd);
    if (hp.fam->has(fused_tensors)) {
        w.modules[module_qkv] = in.matrix(prefix + "attn_qkv.weight", q + 2 * kv, hp.n_embd);
        cut(w.modules[module_qkv], module_qkv, {{&w.q, q}, {&w.k, kv}, {&w.v, kv}});
    } else {
        matrix(w.q, module_q, q, hp.n_embd);
        matrix(w.k, module_k, kv, hp.n_embd);
        matrix(w.v, module_v, kv, hp.n_embd);
    }
    matrix(w.output, module_attn_output, hp.n_embd, q);
    const bool must = hp.fam->has(qkv_bias);
    if (must || hp.fam->has(may_qkv_bias)) {
        w.q_bias = in.vector_if(prefix + "attn_q.bias", q, must);
        w.k_bias = in.vector_if(prefix + "attn_k.bias", kv, must);
        w.v_bias = in.vector_if(prefix + "attn_v.bias", kv, must);
    }
    if (hp.fam->has(head_norms)) {
        w.q_norm = in.vector(prefix + "attn_q_norm.weight", hp.head_dim);
        w.k_norm = in.vector(prefix + "attn_k_norm.weight", hp.head_dim);
    }
    if (hp.fam->has(post_norms)) {
        w.attn_post_norm = in.vector(prefix + "post_attention_norm.weight", hp.n_embd);
    }
}

void read_feed_forward(model_file &in, const hyperparameters &hp, const std::string &prefix, layer_weights &w) {
    w.ffn_norm = in.vector(prefix + "ffn_norm.weight", hp.n_embd);
    if (hp.fam->has(post_norms)) {
        w.ffn_post_norm = in.vector(prefix + "post_ffw_norm.weight", hp.n_embd);
    }
    if (hp.fam->has(experts)) {
        w.router = in.matrix(prefix + "ffn_gate_inp.weight", hp.n_expert, hp.n_embd);
        w.gates  = in.matrices(prefix + "ffn_gate_exps.weight", hp.n_expert, hp.n_ff, hp.n_embd);
        w.ups    = in.matrices(prefix + "ffn_up_exps.weight", hp.n_expert, hp.n_ff, hp.n_embd);
        w.downs  = in.matrices(prefix + "ffn_down_exps.weight", hp.n_expert, hp.n_embd, hp.n_ff);
        return;
    }
    const auto matrix = [&](int module, int64_t rows, int64_t cols) {
        return w.modules[module] = in.matrix(prefix + module_name(module) + ".weight", rows, cols);
    };
    if (hp.fam->has(fused_tensors)) {
        cut(matrix(module_up, 2 * hp.n_ff, hp.n_embd), module_up, {{&w.gate, hp.n_ff}, {&w.up, hp.n_ff}});
    } else {
        w.gate = {module_gate, matrix(module_gate, hp.n_ff, hp.n_embd), 0};
        w.up   = {module_up, matrix(module_up, hp.n_ff, hp.n_embd), 0};
    }
    w.down = {module_down, matrix(module_down, hp.n_embd, hp.n_ff), 0};
}

layer_weights read_layer(model_file &in, const hyperparameters &hp, int layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    layer_weights     w;
    read_attention(in, hp, prefix, w);
    read_feed_forward(in, hp, prefix, w);
    w.local = hp.window > 0 && hp.fam->local(layer);
    return w;
}

} // namespace
} // namespace cft

using namespace cft;

cft_model::cft_model(const std::string &path) : cft_model(path, check_gguf_file(path)) {}

cft_model::cft_model(const std::string &path, const gguf_outline &outline) {
    for (const std::string &part : outline.parts) {
        files.emplace_back(part);
    }
    model_file in(path, outline, files);
    architecture            = in.architecture();
    const family *const fam = family_of(architecture);
    if (!fam) {
        in.unsupported("general.architecture = " + architecture + " is not trained; these are: " + family_list());
    }
    hp         = read_hyperparameters(in, *fam);
    hp.n_vocab = int(std::min<int64_t>(in.rows_of("token_embd.weight"), int64_t(1) << 30));

    token_embd     = in.matrix("token_embd.weight", hp.n_vocab, hp.n_embd);
    output_norm    = in.vector("output_norm.weight", hp.n_embd);
    hp.tied_output = !in.has("output.weight");
    output         = hp.tied_output ? token_embd : in.matrix("output.weight", hp.n_vocab, hp.n_embd);
    rope           = read_rope(in, hp);
    for (int i = 0; i < hp.n_layer; i++) {
        layers.push_back(read_layer(in, hp, i));
    }
    in.refuse_others();
    weight_bytes = in.count_bytes(n_params);
}

uint32_t cft_model::targets(uint32_t wanted) const {
    uint32_t    have = 0;
    std::string names;
    for (int i = 0; i < n_target_modules; i++) {
        if (layers[0].modules[i].data) {
            have |= 1u << i;
            names += (names.empty() ? "" : ", ") + std::string(module_name(i));
        }
    }
    constexpr uint32_t ends = CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
    if (wanted & ends && hp.tied_output) {
        // llama.cpp looks a tensor's adapter up by name: that of token_embd would be applied to the head as well, in a shape that
        // does not fit there; and output has no tensor to be looked up for.
        throw failure(CFT_ERR_INVALID_ARGUMENT, std::string("target ") + module_name(wanted & CFT_TARGET_TOKEN_EMBD ? module_token_embd : module_output) +
                                                    ": the model's head is its embedding, one tensor: an adapter of one of them can "
                                                    "neither be served by llama.cpp nor merged; leave both out");
    }
    if ((wanted & CFT_TARGET_ALL_LINEAR) == CFT_TARGET_ALL_LINEAR) {
        return have | (wanted & ends);
    }
    for (int i = 0; i < n_target_modules; i++) {
        if ((wanted & ~have) >> i & 1) {
            throw failure(CFT_ERR_INVALID_ARGUMENT, std::string("target ") + module_name(i) + ": a model of architecture " + architecture +
                                                        " has no such module; it has " + names);
        }
    }
    return wanted;
}
