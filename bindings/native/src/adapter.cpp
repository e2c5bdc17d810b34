// adapter.cpp - see adapter.h.
#include "adapter.h"

#include "failure.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace cft {
namespace {

constexpr int max_rank = 4096;

[[noreturn]] void refuse(const std::string &what) { throw failure(CFT_ERR_INVALID_ARGUMENT, what); }

void check_rank(int rank, float alpha, const std::string &whose) {
    if (rank < 1 || rank > max_rank) {
        refuse(whose + "rank must be within 1.." + std::to_string(max_rank) + ", got " + std::to_string(rank));
    }
    if (!std::isfinite(alpha) || alpha <= 0) {
        refuse(whose + "alpha must be a positive number");
    }
}

adapter_module module_of(const cft_trainer_params &p, int rank, float alpha) {
    return {rank, p.rslora ? alpha / std::sqrt(float(rank)) : alpha / float(rank)};
}

} // namespace

float learning_rate(const cft_trainer_params &params, adapter_tensor kind, int module, float lr) {
    const float ratio = params.lora_plus_ratio > 0 ? params.lora_plus_ratio : 1.0f;
    return kind == matrix_a || module == module_token_embd ? lr : lr * ratio;
}

void check_params(const cft_trainer_params &p) {
    check_rank(p.rank, p.alpha, "");
    if (!(p.dropout >= 0 && p.dropout < 1)) {
        refuse("dropout must be within [0, 1)");
    }
    constexpr uint32_t all = CFT_TARGET_ALL_LINEAR | CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
    if ((p.targets & all) == 0 || (p.targets & ~all) != 0) {
        refuse("targets must be a non-empty set of CFT_TARGET_ bits");
    }
    if (p.dora && p.dropout > 0) {
        refuse("dora is not trained with dropout: set dropout to 0");
    }
    if (p.dora && p.targets & (CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT)) {
        refuse("dora is not trained on token_embd and output: leave them out of the targets");
    }
    if (!(p.lora_plus_ratio >= 0) || !std::isfinite(p.lora_plus_ratio)) {
        refuse("lora_plus_ratio must be a finite number of at least 0");
    }
    if (p.keep_activations < CFT_KEEP_AUTO || p.keep_activations > CFT_KEEP_LAYERS) {
        refuse("keep_activations must be auto, all or layers");
    }
    if (p.max_tokens < 1 || p.max_tokens > (1 << 24)) {
        refuse("max_tokens must be within 1..16777216, got " + std::to_string(p.max_tokens));
    }
    if (p.max_targets < 0 || p.max_targets > p.max_tokens) {
        refuse("max_targets must be within 0..max_tokens");
    }
    if (p.max_sequence < 0) {
        refuse("max_sequence must be at least 0, got " + std::to_string(p.max_sequence));
    }
    if (p.n_threads < 0 || p.n_threads > 1024) {
        refuse("n_threads must be within 0..1024");
    }
    if (!(p.beta1 >= 0 && p.beta1 < 1 && p.beta2 >= 0 && p.beta2 < 1 && p.eps > 0 && p.weight_decay >= 0) ||
        !std::isfinite(p.eps) || !std::isfinite(p.weight_decay)) {
        refuse("beta1 and beta2 must be within [0, 1), eps above 0, weight_decay at least 0");
    }
}

adapter_shape::adapter_shape(const cft_model &model, const cft_trainer_params &p, const cft_module *modules, size_t n_modules)
    : dora_(p.dora != 0) {
    check_params(p);
    if (n_modules > 0 && !modules) {
        refuse("modules is NULL");
    }
    targets_ = model.targets(p.targets);
    const adapter_module usual = module_of(p, p.rank, p.alpha);
    layers_.resize(size_t(model.hp.n_layer));
    for (auto &layer : layers_) {
        for (int m = 0; m < n_target_modules; m++) {
            layer[size_t(m)] = targets_ >> m & 1 ? usual : adapter_module();
        }
    }
    token_embd_ = targets_ & CFT_TARGET_TOKEN_EMBD ? usual : adapter_module();
    output_     = targets_ & CFT_TARGET_OUTPUT ? usual : adapter_module();
    for (size_t i = 0; i < n_modules; i++) {
        set(modules[i], p);
    }
    if (n_params(model) == 0) {
        refuse("no module is left that gets an adapter");
    }
}

void adapter_shape::set(const cft_module &m, const cft_trainer_params &p) {
    if (m.target == 0 || (m.target & (m.target - 1)) != 0 || (m.target & targets_) == 0) {
        refuse("a module set apart must be one of the targets");
    }
    const int  id  = __builtin_ctz(m.target);
    const bool end = id >= n_target_modules;
    if (end ? m.layer != -1 : (m.layer < 0 || m.layer >= int(layers_.size()))) {
        refuse(std::string(module_name(id)) + ": there is no layer " + std::to_string(m.layer));
    }
    adapter_module set;
    if (m.rank != 0) {
        check_rank(m.rank, m.alpha, end ? std::string(module_name(id)) + ": " : "blk." + std::to_string(m.layer) + "." + module_name(id) + ": ");
        set = module_of(p, m.rank, m.alpha);
    }
    (id == module_token_embd ? token_embd_ : id == module_output ? output_ : layers_[size_t(m.layer)][size_t(id)]) = set;
}

adapter_widths adapter_shape::widths(const cft_model &model) const {
    adapter_widths w;
    for (const auto &layer : layers_) {
        const auto rank = [&](int m) { return int64_t(layer[size_t(m)].rank); };
        // The last layer multiplies by the A of a fused tensor twice: for q, and for k and v.
        w.qkv     = std::max(w.qkv, rank(module_q) + rank(module_k) + rank(module_v) + 2 * rank(module_qkv));
        w.output  = std::max(w.output, rank(module_attn_output));
        w.gate_up = std::max(w.gate_up, rank(module_gate) + rank(module_up));
        w.down    = std::max(w.down, rank(module_down));
    }
    w.head   = output_.rank;
    w.widest = std::max({w.qkv, w.output, w.gate_up, w.down, w.head, int64_t(token_embd_.rank)});
    if (dora_) {
        const hyperparameters &hp = model.hp;
        w.dora                    = std::max({hp.q_width() + 2 * hp.kv_width(), int64_t(2) * hp.n_ff, int64_t(hp.n_embd)});
    }
    return w;
}

size_t adapter_shape::n_magnitudes(const cft_model &model) const {
    size_t n = 0;
    for (size_t layer = 0; dora_ && layer < layers_.size(); layer++) {
        for (int m = 0; m < n_target_modules; m++) {
            n += layers_[layer][size_t(m)].rank > 0 ? size_t(model.layers[layer].modules[m].rows) : 0;
        }
    }
    return n;
}

size_t adapter_shape::n_params(const cft_model &model) const {
    const auto pair = [](const adapter_module &m, const weight &w) { return size_t(m.rank) * size_t(w.rows + w.cols); };
    size_t     n    = n_magnitudes(model) + pair(token_embd_, model.token_embd) + pair(output_, model.output);
    for (size_t layer = 0; layer < layers_.size(); layer++) {
        for (int m = 0; m < n_target_modules; m++) {
            n += pair(layers_[layer][size_t(m)], model.layers[layer].modules[m]);
        }
    }
    return n;
}

int adapter_shape::lowest() const {
    if (token_embd_.rank > 0) {
        return -1;
    }
    int layer = 0;
    for (const auto &modules : layers_) {
        if (std::any_of(modules.begin(), modules.end(), [](const adapter_module &m) { return m.rank > 0; })) {
            break;
        }
        layer++;
    }
    return layer;
}

} // namespace cft
