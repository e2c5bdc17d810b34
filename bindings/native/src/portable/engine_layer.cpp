// engine_layer.cpp - one transformer layer as a graph, forward and backward: the same course as ../block.h's.
// The last layer computes q, attention, output and the feed-forward half for target rows only; of the lowest, below which
// nothing is trained, the gradient at its input is not computed.
#include "layer_graph.h"

#include "../cpu/rows.h"

#include <algorithm>

namespace cft::portable {

ggml_tensor *engine::layer_graph::part_of(const linear_part &part, ggml_tensor *b) const {
    return part.w.rows == b->ne[1] ? b : ggml_view_2d(c, b, b->ne[0], part.w.rows, b->nb[1], size_t(part.first_row) * b->nb[1]);
}

ggml_tensor *engine::layer_graph::lengths_of(const linear_part &part, ggml_tensor *v) const {
    return part.w.rows == v->ne[0] ? v : ggml_view_1d(c, v, part.w.rows, size_t(part.first_row) * sizeof(float));
}

// ---- linear maps: y = W x + scale B A x, with DoRA times gain, see dora.h

ggml_tensor *engine::layer_graph::linear(const linear_part &part, linear_input &in) {
    ggml_tensor *const y = product(c, widen(c, on.modules[size_t(part.module)], e.iota_, part.first_row, part.w.rows), in.x);
    const adapted     &m = on.adapters[size_t(part.module)];
    if (!m.a) {
        return y;
    }
    ggml_tensor *&h = in.h[part.module];
    if (!h) {
        h = ggml_scale(c, product(c, m.a, seen(part.module, in.x)), m.scale);
    }
    ggml_tensor *const sum = ggml_add(c, y, product(c, part_of(part, m.b), h));
    if (!m.gain) {
        return sum;
    }
    in.plain[&part] = sum;
    return ggml_mul(c, sum, lengths_of(part, m.gain));
}

// Returns dx plus the gradient at the input, where it is wanted.
ggml_tensor *engine::layer_graph::linear_backward(const linear_part &part, const linear_input &in, ggml_tensor *dy, ggml_tensor *dx, bool wanted) {
    const adapted &m = on.adapters[size_t(part.module)];
    if (m.gain) {
        gradient(lengths_of(part, m.d_magnitude), ggml_div(c, column_dots(c, in.plain.at(&part), dy), lengths_of(part, m.norm)));
        dy = ggml_mul(c, dy, lengths_of(part, m.gain));
    }
    if (m.a) {
        ggml_tensor *const u = ggml_scale(c, product(c, transposed(c, part_of(part, m.b)), dy), m.scale);
        gradient(m.da, product_over_rows(c, seen(part.module, in.x), u));
        gradient(part_of(part, m.db), product_over_rows(c, in.h.at(part.module), dy));
        if (wanted) {
            dx = sum(dx, seen(part.module, product(c, transposed(c, m.a), u)));
        }
    }
    if (!wanted) {
        return nullptr;
    }
    return sum(dx, product(c, transposed(c, widen(c, on.modules[size_t(part.module)], e.iota_, part.first_row, part.w.rows)), dy));
}

// ---- forward

void engine::layer_graph::project() {
    x       = e.slice(c, e.x_[size_t(layer)], 0, t);
    in_kv.x = rmsnorm(c, x, on.attn_norm, hp.rms_eps);
    in_q.x  = rows_of(in_kv.x);
    linear_input &of_q = last ? in_q : in_kv; // one input where both have the same rows: parts of fused tensors share h
    q = heads(biased(linear(w.q, of_q), on.q_bias), hp.n_head);
    k = heads(biased(linear(w.k, in_kv), on.k_bias), hp.n_head_kv);
    v = heads(biased(linear(w.v, in_kv), on.v_bias), hp.n_head_kv);
    q_turned = rotate(c, head_norms ? rmsnorm(c, q, on.q_norm, hp.rms_eps) : q, turn_q);
    k_turned = rotate(c, head_norms ? rmsnorm(c, k, on.k_norm, hp.rms_eps) : k, turn_k);
}

void engine::layer_graph::attend() {
    in_output.x = attention(c, shape, view, q_turned, k_turned, v);
    attn_out    = linear(w.output, in_output);
    mid = ggml_add(c, rows_of(x), post_norms ? rmsnorm(c, attn_out, on.attn_post_norm, hp.rms_eps) : attn_out);
}

void engine::layer_graph::feed_forward(bool to_the_end) {
    in_gate_up.x = rmsnorm(c, mid, on.ffn_norm, hp.rms_eps);
    gate         = linear(w.gate, in_gate_up);
    up           = linear(w.up, in_gate_up);
    in_down.x    = gated(c, gelu, gate, up);
    if (to_the_end || post_norms || on.adapters[module_down].gain) {
        ffn_out = linear(w.down, in_down);
    } else if (const adapted &m = on.adapters[module_down]; m.a) {
        in_down.h[module_down] = ggml_scale(c, product(c, m.a, seen(module_down, in_down.x)), m.scale);
    }
}

void engine::layer_graph::forward(bool to_the_end) {
    project();
    attend();
    feed_forward(to_the_end);
}

void engine::layer_graph::to_the_experts() {
    project();
    attend();
    in_gate_up.x = rmsnorm(c, mid, on.ffn_norm, hp.rms_eps);
}

// ---- backward

// What the experts' own graphs have left in mixture_, and what comes by the router.
ggml_tensor *engine::layer_graph::experts_backward(ggml_tensor *d) {
    ggml_tensor *const router = transposed(c, widen(c, on.router, e.iota_, 0, hp.n_expert));
    ggml_tensor *const dx     = ggml_add(c, e.slice(c, e.mixture_.d_x, 0, n), product(c, router, e.slice(c, e.mixture_.d_router, 0, n)));
    return ggml_add(c, d, rmsnorm_backward(c, dx, mid, on.ffn_norm, hp.rms_eps));
}

ggml_tensor *engine::layer_graph::feed_forward_backward(ggml_tensor *d) {
    ggml_tensor *const d_out = post_norms ? rmsnorm_backward(c, d, ffn_out, on.ffn_post_norm, hp.rms_eps) : d;
    ggml_tensor       *d_gate, *d_up;
    gated_backward(c, gelu, linear_backward(w.down, in_down, d_out, nullptr, true), gate, up, &d_gate, &d_up);
    ggml_tensor *dx = linear_backward(w.gate, in_gate_up, d_gate, nullptr, true);
    dx              = linear_backward(w.up, in_gate_up, d_up, dx, true);
    return ggml_add(c, d, rmsnorm_backward(c, dx, mid, on.ffn_norm, hp.rms_eps));
}

ggml_tensor *engine::layer_graph::attention_half_backward(ggml_tensor *d) {
    const bool         wanted = layer > e.lowest_;
    const bool         through_scores = wanted || adapts({module_q, module_k, module_v, module_qkv});
    ggml_tensor *const d_out  = post_norms ? rmsnorm_backward(c, d, attn_out, on.attn_post_norm, hp.rms_eps) : d;
    ggml_tensor *const d_attn = linear_backward(w.output, in_output, d_out, nullptr, through_scores);
    if (!through_scores) {
        return nullptr;
    }
    const attention_gradients a = attention_backward(c, shape, view, q_turned, k_turned, v, d_attn);
    ggml_tensor *dq = rotate(c, a.q, back(true)), *dk = rotate(c, a.k, back(false));
    if (head_norms) {
        dq = rmsnorm_backward(c, dq, q, on.q_norm, hp.rms_eps);
        dk = rmsnorm_backward(c, dk, k, on.k_norm, hp.rms_eps);
    }
    ggml_tensor *dx = linear_backward(w.k, in_kv, flat(dk), nullptr, wanted);
    dx              = linear_backward(w.v, in_kv, flat(a.v), dx, wanted);
    if (!last) {
        dx = linear_backward(w.q, in_kv, flat(dq), dx, wanted);
    } else {
        ggml_tensor *const of_rows = linear_backward(w.q, in_q, flat(dq), nullptr, wanted);
        dx = wanted ? ggml_add(c, dx, spread(c, of_rows, e.slice(c, e.rows_, 0, n), x)) : nullptr;
    }
    if (!wanted) {
        return nullptr;
    }
    ggml_tensor *const through = last ? spread(c, d, e.slice(c, e.rows_, 0, n), x) : d;
    return ggml_add(c, through, rmsnorm_backward(c, dx, x, on.attn_norm, hp.rms_eps));
}

ggml_tensor *engine::layer_graph::backward(ggml_tensor *d) {
    return attention_half_backward(hp.n_expert > 0 ? experts_backward(d) : feed_forward_backward(d));
}

// ---- one layer's turn

// Brings dropout's factors of one module's rows over: the numbers that the CPU engine draws.
void engine::draw(const journey &j, ggml_tensor *to, int layer, int module, int64_t first, int64_t rows) {
    if (!to || j.drop.probability <= 0 || !computes()) {
        return;
    }
    const uint32_t     threshold = cpu::dropout_threshold(j.drop.probability);
    const float        keep      = 1.0f / (1.0f - j.drop.probability);
    const size_t       in        = size_t(to->ne[0]);
    std::vector<float> factors(in * size_t(rows));
    for (size_t row = 0; row < size_t(rows); row++) {
        cpu::rows().dropout_mask(j.drop.seed, cpu::dropout_counter(j.drop.micro_batch, layer, module, uint32_t(size_t(first) + row)), threshold, keep, 0, in,
                                 factors.data() + row * in);
    }
    set(to, factors.data(), factors.size() * sizeof(float));
}

void engine::draw(const journey &j, int layer) {
    for (int m = 0; m < n_target_modules; m++) {
        draw(j, drawn_[size_t(m)], layer, m, 0, j.t);
    }
}

void engine::layer_forward(const journey &j, int layer, std::atomic<bool> &cancelled) {
    draw(j, layer);
    if (hp_.n_expert > 0) {
        experts_forward(j, layer, cancelled);
        return;
    }
    layer_graph l(*this, j, layer);
    l.forward(true);
    ggml_tensor *const add = l.post_norms ? rmsnorm(l.c, l.ffn_out, l.on.ffn_post_norm, hp_.rms_eps) : l.ffn_out;
    l.g.add(ggml_cpy(l.c, ggml_add(l.c, l.mid, add), slice(l.c, x_[size_t(layer) + 1], 0, l.n)));
    machine_.run(l.g);
}

void engine::layer_backward(const journey &j, int layer, std::atomic<bool> &cancelled) {
    draw(j, layer);
    if (hp_.n_expert > 0) {
        experts_backward(j, layer, cancelled);
    }
    layer_graph l(*this, j, layer);
    if (hp_.n_expert > 0) {
        l.to_the_experts();
    } else {
        l.forward(false);
    }
    ggml_tensor *const d = l.backward(slice(l.c, d_, 0, l.n));
    if (d) {
        l.g.add(ggml_cpy(l.c, d, slice(l.c, d_other_, 0, l.t)));
    }
    machine_.run(l.g);
    if (d) {
        std::swap(d_, d_other_);
    }
}

} // namespace cft::portable
