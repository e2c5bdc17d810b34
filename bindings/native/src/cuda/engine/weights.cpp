// weights.cpp - a model's way to the device.
#include "engine.h"

#include "../../failure.h"

#include <algorithm>
#include <cmath>

namespace cft::cuda {
namespace {

matrix on_host(const weight &w) { return {w.type, static_cast<const char *>(w.data), w.rows, w.cols, w.row_bytes}; }

} // namespace

weights::weights(const plan &p, stream &s) : plan_(p), stream_(s), memory_(p.weight_bytes), from_(memory_.data()) {
    const cft_model &m = *p.model;
    const weight    &router = m.layers[0].router;
    const memory     staging(std::max(p.resident() ? p.stage_bytes : 0, router.row_bytes * size_t(router.rows)));
    token_embd  = p.embedding_stays ? on_host(m.token_embd) : raw(m.token_embd);
    output_norm = norm(m.output_norm);
    for (size_t l = 0; l < m.layers.size(); l++) {
        const layer_weights &w = m.layers[l];
        device_layer         d{};
        d.attn_norm      = norm(w.attn_norm);
        d.ffn_norm       = norm(w.ffn_norm);
        d.q_bias         = vector(w.q_bias);
        d.k_bias         = vector(w.k_bias);
        d.v_bias         = vector(w.v_bias);
        d.q_norm         = vector(w.q_norm); // heads keep what their norm has had
        d.k_norm         = vector(w.k_norm);
        d.attn_post_norm = norm(w.attn_post_norm);
        d.ffn_post_norm  = norm(w.ffn_post_norm);
        layers.push_back(d);
        for (int kind = 0; kind < kind_count; kind++) {
            upload_group(w, l, kind, staging.data());
        }
        if (w.router.data) {
            upload_experts(w, l, staging.data());
        }
    }
    if (p.resident()) {
        const int64_t ld = p.head_ld();
        head             = from_.take<bf16>(p.vocab8 * ld);
        zero(head + m.output.rows * ld, size_t(p.vocab8 - m.output.rows) * size_t(ld) * sizeof(bf16), s.get());
        widen(m.output, head, ld, staging.data());
    } else {
        output = m.hp.tied_output ? token_embd : raw(m.output);
    }
    if (from_.used() > memory_.size()) {
        throw failure(CFT_ERR_INTERNAL, "weights take more memory than was planned");
    }
    s.wait(); // staging goes
}

const float *weights::vector(const std::vector<float> &v) {
    if (v.empty()) {
        return nullptr;
    }
    float *const to = from_.take<float>(int64_t(v.size()));
    to_device(to, v.data(), v.size() * sizeof(float), stream_.get());
    return to;
}

// A norm's weights. Its way back divides by them (norm_output), so those next to 0 become 2^-60: what that adds to an output is nothing in bf16 beside any other.
const float *weights::norm(std::vector<float> v) {
    constexpr float least = 0x1p-60f;
    for (float &w : v) {
        w = std::fabs(w) < least ? std::copysign(least, w) : w;
    }
    const float *const to = vector(v);
    stream_.wait(); // v goes
    return to;
}

matrix weights::raw(const weight &w) {
    const size_t bytes = w.row_bytes * size_t(w.rows);
    char *const  to    = from_.take<char>(int64_t(bytes));
    to_device_from_file(to, w.data, bytes, stream_.get());
    return {w.type, to, w.rows, w.cols, w.row_bytes};
}

void weights::widen(const weight &w, bf16 *to, int64_t ld, char *staging) {
    to_device_from_file(staging, w.data, w.row_bytes * size_t(w.rows), stream_.get());
    dequantize(w.type, staging, w.row_bytes, w.rows, w.cols, to, ld, stream_.get());
}

void weights::upload_experts(const layer_weights &from, size_t layer, char *staging) {
    device_layer &to   = layers[layer];
    bf16 *const   rows = from_.take<bf16>(plan_.experts8 * from.router.cols);
    zero(rows + from.router.rows * from.router.cols, size_t((plan_.experts8 - from.router.rows) * from.router.cols) * sizeof(bf16), stream_.get());
    widen(from.router, rows, from.router.cols, staging);
    to.router = rows;
    if (!plan_.resident()) {
        const bool stays = plan_.place == weight_place::host;
        to.gates         = stays ? on_host(from.gates) : raw(from.gates);
        to.ups           = stays ? on_host(from.ups) : raw(from.ups);
        to.downs         = stays ? on_host(from.downs) : raw(from.downs);
        return;
    }
    const hyperparameters &hp      = plan_.model->hp;
    bf16 *const            gate_up = from_.take<bf16>(2 * from.gates.rows * from.gates.cols), *const down = from_.take<bf16>(from.downs.rows * from.downs.cols);
    for (const weight *w : {&from.gates, &from.ups}) {
        to_device_from_file(staging, w->data, w->row_bytes * size_t(w->rows), stream_.get());
        widen_halves({w->type, staging, w->rows, w->cols, w->row_bytes}, 0, hp.n_expert, hp.n_expert, gate_up + (w == &from.ups ? hp.n_ff * w->cols : 0), stream_);
    }
    widen(from.downs, down, from.downs.cols, staging);
    to.gate_up = gate_up, to.down = down;
}

void weights::upload_group(const layer_weights &from, size_t layer, int kind, char *staging) {
    const group  &g  = plan_.layers[layer].of[kind];
    device_layer &to = layers[layer];
    to.w[kind]       = plan_.resident() ? from_.take<bf16>((g.outputs + g.columns) * g.ld()) : nullptr;
    if (plan_.resident()) { // what no copy of an adapter writes must be 0
        zero(to.w[kind], size_t(g.outputs + g.columns) * size_t(g.ld()) * sizeof(bf16), stream_.get());
    }
    static const std::vector<int> modules[kind_count] = {
        {module_q, module_k, module_v, module_qkv}, {module_attn_output}, {module_gate, module_up}, {module_down}};
    int64_t row = 0;
    for (int id : modules[kind]) {
        const weight &w = from.modules[id];
        if (!w.data) {
            continue;
        }
        if (plan_.resident()) {
            widen(w, to.w[kind] + row * g.ld(), g.ld(), staging);
        } else if (plan_.place == weight_place::packed) {
            to.sources[kind].push_back(raw(w));
        } else {
            to.sources[kind].push_back(on_host(w));
        }
        row += w.rows;
    }
}

} // namespace cft::cuda
