// engine.cpp - see engine.h: what a trainer holds, and a pack's way.
#include "journey.h"
#include "products.h"

#include "../cpu/rows.h"
#include "../failure.h"
#include "../trainer.h"

#include <algorithm>
#include <cmath>

namespace cft::portable {
namespace {

constexpr size_t tile_bytes  = size_t(32) << 20; // of one attention tile's scores, and of logits
constexpr int64_t tensors_per_layer = 10 + n_target_modules, tensors_per_expert = 3, tensors_per_adapter = 3 * n_target_modules, fixed_tensors = 32;

// What ggml divides its own frequencies by to get the engine's.
std::vector<float> factors_of(const rope_set &set, const hyperparameters &hp) {
    std::vector<float> factors;
    for (size_t i = 0; i < set.frequencies.size(); i++) {
        factors.push_back(float(std::pow(double(hp.rope_freq_base), -2.0 * double(i) / hp.n_rot) / double(set.frequencies[i])));
    }
    return factors;
}

} // namespace

int64_t rows_within(size_t bytes, int64_t width, int64_t n) {
    const int64_t fit = std::max<int64_t>(1, int64_t(bytes / sizeof(float)) / width);
    return fit >= n ? n : fit >= aligned_rows ? fit / aligned_rows * aligned_rows : fit;
}

void check_supported(const cft_model &model, const cft_trainer_params &params) {
    if (params.keep_activations == CFT_KEEP_ALL) {
        throw failure(CFT_ERR_UNSUPPORTED, "train.keep_activations: all is not for the portable path (vulkan, metal, hip), which keeps the layers' inputs: set auto or layers");
    }
    for (const layer_weights &l : model.layers) {
        for (const linear_part *part : {&l.q, &l.k, &l.v, &l.gate, &l.up}) {
            if (part->first_row % aligned_rows != 0) {
                throw failure(CFT_ERR_UNSUPPORTED, "fused tensors with parts that begin at rows other than multiples of 64 are not trained by the portable path (vulkan, "
                                                   "metal, hip); device: cpu trains them");
            }
        }
    }
    if (params.max_tokens < 1) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "max_tokens must be at least 1");
    }
}

engine::engine(const cft_model &model, const cft_trainer_params &params, const adapter_shape &shape, ggml_backend_dev_t device, bool only_measure, loss_tiles tiles)
    : model_(model), hp_(model.hp), params_(params), shape_(shape), lowest_(shape.lowest()), max_t_(params.max_tokens),
      max_n_(std::min<int64_t>(max_t_, params.max_targets > 0 ? params.max_targets : max_t_)), machine_(device, resolve_threads(params.n_threads), only_measure),
      weights_(fixed_tensors + (tensors_per_layer + tensors_per_expert * hp_.n_expert) * hp_.n_layer),
      values_(fixed_tensors + tensors_per_adapter * hp_.n_layer), gradients_(fixed_tensors + tensors_per_adapter * hp_.n_layer), lengths_(tensors_per_adapter * hp_.n_layer),
      inputs_(fixed_tensors), space_(fixed_tensors + hp_.n_layer), loss_(fixed_tensors), dropout_(fixed_tensors), experts_(fixed_tensors) {
    check_supported(model, params);
    loss_rows_  = tiles.rows > 0 ? std::min(tiles.rows, max_n_) : rows_within(tile_bytes, hp_.n_vocab, max_n_);
    vocab_rows_ = tiles.head_rows > 0 ? std::min<int64_t>(tiles.head_rows, hp_.n_vocab) : rows_within(widened_bytes, hp_.n_embd, hp_.n_vocab);
    place_weights();
    place_adapters();
    place_buffers();
    allocate(only_measure);
    if (!only_measure) {
        check_products(device);
        upload();
        value_.resize(n_values_), gradient_.resize(n_values_), moment1_.resize(n_values_), moment2_.resize(n_values_);
        machine_.way = course::reserve;
    }
    rehearse();
    machine_.way = only_measure ? course::measure : course::run;
}

// ---- what lies on the device

ggml_tensor *engine::place_vector(const std::vector<float> &v) {
    if (v.empty()) {
        return nullptr;
    }
    ggml_tensor *const t = weights_.tensor(GGML_TYPE_F32, int64_t(v.size()));
    uploads_.push_back({t, {v.data(), v.size() * sizeof(float)}});
    return t;
}

ggml_tensor *engine::place_matrix(const weight &w) {
    if (!w.data) {
        return nullptr;
    }
    ggml_tensor *const t = weights_.tensor(w.type, w.cols, w.rows);
    uploads_.push_back({t, {w.data, w.row_bytes * size_t(w.rows)}});
    return t;
}

void engine::place_weights() {
    for (const layer_weights &w : model_.layers) {
        layer_tensors l{};
        l.attn_norm      = place_vector(w.attn_norm);
        l.ffn_norm       = place_vector(w.ffn_norm);
        l.q_bias         = place_vector(w.q_bias);
        l.k_bias         = place_vector(w.k_bias);
        l.v_bias         = place_vector(w.v_bias);
        l.q_norm         = place_vector(w.q_norm);
        l.k_norm         = place_vector(w.k_norm);
        l.attn_post_norm = place_vector(w.attn_post_norm);
        l.ffn_post_norm  = place_vector(w.ffn_post_norm);
        for (int m = 0; m < n_target_modules; m++) {
            l.modules[size_t(m)] = place_matrix(w.modules[m]);
        }
        if (hp_.n_expert > 0) {
            place_experts(w, l);
        }
        layers_.push_back(std::move(l));
    }
    token_embd_  = place_matrix(model_.token_embd);
    output_      = hp_.tied_output ? token_embd_ : place_matrix(model_.output);
    output_norm_ = place_vector(model_.output_norm);
    const rope_set &global = model_.rope.global_for(params_), &local = model_.rope.local;
    host_factors_    = factors_of(global, hp_);
    factors_         = place_vector(host_factors_);
    amplitude_       = global.amplitude;
    host_factors_local_ = factors_of(local, hp_);
    factors_local_   = local.frequencies.empty() ? factors_ : place_vector(host_factors_local_);
    amplitude_local_ = local.frequencies.empty() ? amplitude_ : local.amplitude;
}

void engine::place_buffers() {
    int64_t most_rows = std::max<int64_t>({hp_.n_vocab, max_t_, hp_.n_embd, hp_.n_ff, hp_.n_expert});
    for (const layer_tensors &l : layers_) {
        for (const ggml_tensor *w : l.modules) {
            most_rows = std::max(most_rows, w ? w->ne[1] : 0);
        }
    }
    const auto numbers = [&](int64_t n) { return inputs_.tensor(GGML_TYPE_I32, n); };
    iota_ = numbers(most_rows);
    tokens_ = numbers(max_t_), positions_ = numbers(max_t_), back_ = numbers(max_t_);
    row_positions_ = numbers(max_n_), row_back_ = numbers(max_n_), rows_ = numbers(max_n_);
    target_at_      = numbers(loss_rows_);
    target_weights_ = inputs_.tensor(GGML_TYPE_F32, 1, loss_rows_);
    for (int layer = 0; layer <= hp_.n_layer; layer++) {
        x_.push_back(space_.tensor(GGML_TYPE_F32, hp_.n_embd, layer < hp_.n_layer ? max_t_ : max_n_));
    }
    d_       = space_.tensor(GGML_TYPE_F32, hp_.n_embd, max_t_);
    d_other_ = space_.tensor(GGML_TYPE_F32, hp_.n_embd, max_t_);
    if (head_.a && params_.dropout > 0) {
        head_drawn_ = dropout_.tensor(GGML_TYPE_F32, hp_.n_embd, loss_rows_);
    }
    if (embedding_.a) {
        embedding_u_ = inputs_.tensor(GGML_TYPE_F32, shape_.token_embd().rank, max_t_);
        distinct_    = numbers(max_t_);
    }
    place_mixture();
    logits_  = loss_.tensor(GGML_TYPE_F32, hp_.n_vocab, loss_rows_);
    for (size_t m = 0; m < n_target_modules && params_.dropout > 0; m++) {
        for (const layer_tensors &l : layers_) {
            if (const ggml_tensor *const a = l.adapters[m].a; a && !drawn_[m]) {
                drawn_[m] = dropout_.tensor(GGML_TYPE_F32, a->ne[0], max_t_);
            }
        }
    }
}

void engine::allocate(bool only_measure) {
    const auto take = [&](store &s, const char *what) { return uint64_t(s.allocate(machine_.device(), only_measure, what)); };
    bytes_.weights     = take(weights_, "weights");
    bytes_.adapter     = take(values_, "the adapter") + take(lengths_, "the lengths of the adapter's rows");
    bytes_.gradients   = take(gradients_, "gradients");
    bytes_.activations = take(space_, "the layers' inputs (train.seq_len makes them less)");
    bytes_.loss        = take(loss_, "logits");
    bytes_.workspace   = take(inputs_, "a pack's numbers") + take(dropout_, "dropout (adapter.dropout: 0 needs none)") +
                         take(experts_, "experts' rows (train.seq_len makes them less)");
}

void engine::set(ggml_tensor *t, const void *data, size_t bytes) const {
    if (computes() && bytes > 0) {
        ggml_backend_tensor_set(t, data, 0, bytes);
    }
}

void engine::upload() {
    for (const auto &[tensor, bytes] : uploads_) {
        ggml_backend_tensor_set(tensor, bytes.first, 0, bytes.second);
    }
    std::vector<int32_t> iota(static_cast<size_t>(iota_->ne[0]));
    for (size_t i = 0; i < iota.size(); i++) {
        iota[i] = int32_t(i);
    }
    ggml_backend_tensor_set(iota_, iota.data(), 0, iota.size() * sizeof(int32_t));
}

// Goes through the longest pack, one example with as many targets as there may be, without computing: so that every op that
// will be needed is asked for, and memory counted or taken.
void engine::rehearse() {
    std::vector<int32_t> tokens(static_cast<size_t>(max_t_)), positions(tokens), until(tokens.size(), int32_t(max_t_)), rows, targets(static_cast<size_t>(max_n_));
    std::vector<float>   weights(static_cast<size_t>(max_n_), 1.0f);
    for (int64_t i = 0; i < max_t_; i++) {
        positions[size_t(i)] = int32_t(i);
    }
    for (int64_t i = max_t_ - max_n_; i < max_t_; i++) {
        rows.push_back(int32_t(i));
    }
    std::atomic<bool> never{false};
    run({tokens.data(), positions.data(), until.data(), max_t_, rows, targets, weights, dropout{params_.dropout, params_.seed, 0, 0}}, true, never);
}

cft_memory_estimate engine::estimate() const {
    cft_memory_estimate e = bytes_;
    e.workspace += n_masks_ * sizeof(ggml_fp16_t) + machine_.work_bytes();
    e.moments          = 0; // the host's
    e.total            = e.weights + e.adapter + e.gradients + e.activations + e.workspace + e.loss;
    e.keep_activations = CFT_KEEP_LAYERS;
    return e;
}

// ---- a pack

void engine::stop_if(std::atomic<bool> &cancelled) const {
    if (cancelled.exchange(false)) {
        throw failure(CFT_ERR_CANCELLED, "cancelled");
    }
}

ggml_tensor *engine::slice(ggml_context *c, ggml_tensor *x, int64_t first, int64_t n) const {
    return x->type == GGML_TYPE_I32 ? ggml_view_1d(c, x, n, size_t(first) * x->nb[0]) : ggml_view_2d(c, x, x->ne[0], n, x->nb[1], size_t(first) * x->nb[1]);
}

engine::journey engine::begin(const device_pack &p) {
    const int64_t t = p.t, n = int64_t(p.rows.size());
    if (t > max_t_ || n > max_n_) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "the pack is longer, or has more rows, than the trainer was made for");
    }
    journey j{t, n, {p.tokens, p.tokens + t}, pack_tiles(p.positions, p.visible_until, t, p.rows, hp_.window, hp_.n_head, tile_bytes, computes()), p.targets, p.weights, p.drop};
    if (j.tiles.n_masks > n_masks_) {
        masks_store_.reset();
        masks_store_ = std::make_unique<store>(1);
        n_masks_     = j.tiles.n_masks;
        masks_       = masks_store_->tensor(GGML_TYPE_F16, int64_t(n_masks_));
        masks_store_->allocate(machine_.device(), machine_.way == course::measure, "attention masks (train.seq_len makes them less)");
    }
    std::vector<int32_t> back, row_positions, row_back;
    for (int64_t i = 0; i < t; i++) {
        back.push_back(-p.positions[i]);
    }
    for (int32_t row : p.rows) {
        row_positions.push_back(p.positions[row]);
        row_back.push_back(-p.positions[row]);
    }
    const auto numbers = [&](ggml_tensor *to, const int32_t *from, int64_t count) { set(to, from, size_t(count) * sizeof(int32_t)); };
    numbers(tokens_, p.tokens, t), numbers(positions_, p.positions, t), numbers(back_, back.data(), t);
    numbers(rows_, p.rows.data(), n), numbers(row_positions_, row_positions.data(), n), numbers(row_back_, row_back.data(), n);
    set(masks_, j.tiles.masks.data(), j.tiles.masks.size() * sizeof(ggml_fp16_t));
    return j;
}

void engine::forward(const journey &j, std::atomic<bool> &cancelled) {
    refresh_gains();
    embed(j);
    for (int layer = 0; layer < hp_.n_layer; layer++) {
        stop_if(cancelled);
        layer_forward(j, layer, cancelled);
    }
}

double engine::run(const device_pack &pack, bool backward, std::atomic<bool> &cancelled) {
    const journey j = begin(pack);
    forward(j, cancelled);
    double sum = 0;
    for (int64_t first = 0; first < j.n; first += loss_rows_) {
        stop_if(cancelled);
        const int64_t n = std::min(loss_rows_, j.n - first);
        head(j, first, n);
        sum += loss_chunk(j, first, n, backward);
    }
    if (!backward || !std::isfinite(sum)) {
        return sum;
    }
    gradient_fetched_ = false;
    for (int layer = hp_.n_layer - 1; layer >= std::max(lowest_, 0); layer--) {
        stop_if(cancelled);
        layer_backward(j, layer, cancelled);
    }
    if (embedding_.a) {
        embed_backward(j);
    }
    return sum;
}

void engine::logits(const device_pack &pack, float *out, std::atomic<bool> &cancelled) {
    const journey j = begin(pack);
    forward(j, cancelled);
    for (int64_t first = 0; first < j.n; first += loss_rows_) {
        stop_if(cancelled);
        const int64_t n = std::min(loss_rows_, j.n - first);
        head(j, first, n);
        float *const to = out + first * hp_.n_vocab;
        ggml_backend_tensor_get(logits_, to, 0, size_t(n * hp_.n_vocab) * sizeof(float));
        if (hp_.logit_cap > 0) {
            cpu::rows().soft_cap(to, size_t(n * hp_.n_vocab), hp_.logit_cap);
        }
    }
}

} // namespace cft::portable
