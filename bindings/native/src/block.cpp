// block.cpp - see block.h.
#include "block.h"

#include "dora.h"

namespace cft {

activations::activations(const hyperparameters &hp, const adapter_widths &widths, size_t t, carver &from) {
    const size_t d = size_t(hp.n_embd), ff = size_t(hp.n_ff), q_width = size_t(hp.q_width()), kv_width = size_t(hp.kv_width());
    const bool   norms = hp.fam->has(post_norms);
    q         = from.take(t * q_width);
    k         = from.take(t * kv_width);
    v         = from.take(t * kv_width);
    attn      = from.take(t * q_width);
    lse       = from.take(t * size_t(hp.n_head));
    x_mid     = from.take(t * d);
    gate      = from.take(size_t(hp.ffn_rows(int64_t(t))) * ff);
    up        = from.take(size_t(hp.ffn_rows(int64_t(t))) * ff);
    attn_out  = norms ? from.take(t * d) : nullptr;
    ffn_out   = norms ? from.take(t * d) : nullptr;
    router    = hp.n_expert > 0 ? from.take(t * size_t(hp.n_expert)) : nullptr;
    h_qkv     = from.take(t * size_t(widths.qkv));
    h_output  = from.take(t * size_t(widths.output));
    h_gate_up = from.take(t * size_t(widths.gate_up));
    h_down    = from.take(t * size_t(widths.down));
}

workspace::workspace(const hyperparameters &hp, const adapter_widths &widths, size_t t, carver &from) {
    const size_t d = size_t(hp.n_embd), ff = size_t(hp.n_ff), q_width = size_t(hp.q_width()), kv_width = size_t(hp.kv_width());
    const bool   norms = hp.fam->has(head_norms), mixture = hp.n_expert > 0;
    x_norm = from.take(t * d);
    x_rows = from.take(t * d);
    d_mid  = from.take(t * d);
    d_rows = from.take(t * d);
    act    = from.take(t * ff);
    d_act  = from.take(t * ff);
    d_up   = from.take(t * ff);
    dq     = from.take(t * q_width);
    d_attn = from.take(t * q_width);
    dk     = from.take(t * kv_width);
    dv     = from.take(t * kv_width);
    u      = from.take(t * size_t(widths.widest));
    v      = from.take(t * size_t(widths.dora));
    h_head = from.take(t * size_t(widths.head));
    rope   = from.take(t * size_t(hp.n_rot));
    rope_local = hp.window > 0 && hp.fam->local_rope_base > 0 ? from.take(t * size_t(hp.n_rot)) : rope;
    q          = norms ? from.take(t * q_width) : nullptr;
    k          = norms ? from.take(t * kv_width) : nullptr;
    x_expert   = mixture ? from.take(t * d) : nullptr;
    y_expert   = mixture ? from.take(t * d) : nullptr;
    d_router   = mixture ? from.take(t * size_t(hp.n_expert)) : nullptr;
}

block::block(ops &o, const cft_model &model, int layer, const layer_groups &groups, const pack_view &pack, const activations &a,
             const workspace &w)
    : ops_(o), hp_(model.hp), weights_(model.layers[size_t(layer)]), groups_(groups), pack_(pack), a_(a), w_(w), drop_(pack.drop),
      lowest_(layer == pack.lowest), last_(layer == model.hp.n_layer - 1), t_(pack.t), n_(last_ ? int64_t(pack.rows.size()) : pack.t),
      shape_(model.hp.attention()),
      mask_(weights_.local ? (last_ ? pack.last_local : pack.all_local) : (last_ ? pack.last : pack.all)),
      row_tokens_(last_ ? pack.rows.data() : nullptr), rope_(weights_.local ? w.rope_local : w.rope), post_norms_(hp_.fam->has(post_norms)),
      head_norms_(hp_.fam->has(head_norms)), gelu_(hp_.fam->has(gelu)) {
    drop_.layer = layer;
}

void block::forward(const float *x, float *x_next) const {
    attention_forward(x);
    if (hp_.n_expert > 0) {
        feed_experts(x_next);
    } else {
        feed_forward(x_next);
    }
}

void block::backward(const float *x, float *d) const {
    if (hp_.n_expert > 0) {
        feed_experts_backward(d);
    } else {
        feed_forward_backward(d);
    }
    attention_backward(x, d);
}

void block::linear(group_id id, const float *x, int64_t t, float *const *y, bool add, float *h) const {
    dora_linear(ops_, group(id), drop_, x, t, y, add, h, w_.v);
}

void block::linear_backward(group_id id, const float *x, int64_t t, const float *const *dy, const float *h, float *dx) const {
    dora_linear_backward(ops_, group(id), drop_, x, t, dy, h, w_.u, dx, false, w_.v);
}

// q, k and v of x, biases included, and x_mid = x.
void block::project(const float *x) const {
    const int64_t d = hp_.n_embd;
    ops_.rmsnorm(x, weights_.attn_norm, t_, hp_.rms_eps, w_.x_norm);
    if (last_) {
        ops_.gather(w_.x_norm, pack_.rows, d, w_.x_rows);
        ops_.gather(x, pack_.rows, d, a_.x_mid);
        float *const q[] = {a_.q}, *const kv[] = {a_.k, a_.v};
        linear(group_q, w_.x_rows, n_, q, false, a_.h_qkv);
        linear(group_kv, w_.x_norm, t_, kv, false, a_.h_qkv + n_ * group(group_q).h_columns);
    } else {
        ops_.copy(x, t_ * d, a_.x_mid);
        float *const qkv[] = {a_.q, a_.k, a_.v};
        linear(group_qkv, w_.x_norm, t_, qkv, false, a_.h_qkv);
    }
    if (!weights_.q_bias.empty()) {
        ops_.add_bias(weights_.q_bias, n_, a_.q);
    }
    if (!weights_.k_bias.empty()) {
        ops_.add_bias(weights_.k_bias, t_, a_.k);
    }
    if (!weights_.v_bias.empty()) {
        ops_.add_bias(weights_.v_bias, t_, a_.v);
    }
}

void block::rotate(float *q, float *k, int direction) const {
    const bool halves = hp_.fam->has(rope_halves);
    ops_.rope(q, n_, row_tokens_, hp_.n_head, hp_.head_dim, hp_.n_rot, halves, rope_, direction);
    ops_.rope(k, t_, nullptr, hp_.n_head_kv, hp_.head_dim, hp_.n_rot, halves, rope_, direction);
}

// q and k as attention takes them. With norms of heads they are made from a_.q and a_.k, which stay.
void block::rotated(const float **q, const float **k) const {
    if (head_norms_) {
        ops_.rmsnorm(a_.q, weights_.q_norm, n_ * hp_.n_head, hp_.rms_eps, w_.q);
        ops_.rmsnorm(a_.k, weights_.k_norm, t_ * hp_.n_head_kv, hp_.rms_eps, w_.k);
        rotate(w_.q, w_.k, 1);
    }
    *q = head_norms_ ? w_.q : a_.q;
    *k = head_norms_ ? w_.k : a_.k;
}

// From the gradients in w_.dq and w_.dk to those before rotation and norms of heads, which are then w_.q and w_.k.
void block::unrotate(float **dq, float **dk) const {
    rotate(w_.dq, w_.dk, -1);
    *dq = w_.dq;
    *dk = w_.dk;
    if (head_norms_) {
        ops_.zero(w_.q, n_ * hp_.q_width());
        ops_.zero(w_.k, t_ * hp_.kv_width());
        ops_.rmsnorm_backward(w_.dq, a_.q, weights_.q_norm, n_ * hp_.n_head, hp_.rms_eps, w_.q);
        ops_.rmsnorm_backward(w_.dk, a_.k, weights_.k_norm, t_ * hp_.n_head_kv, hp_.rms_eps, w_.k);
        *dq = w_.q;
        *dk = w_.k;
    }
}

void block::attention_forward(const float *x) const {
    project(x);
    if (!head_norms_) {
        rotate(a_.q, a_.k, 1);
    }
    const float *q = nullptr, *k = nullptr;
    rotated(&q, &k);
    const size_t q_width = size_t(hp_.q_width()), kv_width = size_t(hp_.kv_width());
    ops_.attention(shape_, mask_, {q, k, a_.v, a_.attn, a_.lse, q_width, kv_width, kv_width, q_width});
    if (!post_norms_) {
        float *const out[] = {a_.x_mid};
        linear(group_output, a_.attn, n_, out, true, a_.h_output);
        return;
    }
    float *const out[] = {a_.attn_out};
    linear(group_output, a_.attn, n_, out, false, a_.h_output);
    ops_.rmsnorm(a_.attn_out, weights_.attn_post_norm, n_, hp_.rms_eps, w_.x_rows);
    ops_.add(w_.x_rows, n_ * hp_.n_embd, a_.x_mid);
}

void block::feed_forward(float *x_next) const {
    const int64_t floats = n_ * hp_.n_embd;
    ops_.rmsnorm(a_.x_mid, weights_.ffn_norm, n_, hp_.rms_eps, w_.x_rows);
    float *const gate_up[] = {a_.gate, a_.up};
    linear(group_gate_up, w_.x_rows, n_, gate_up, false, a_.h_gate_up);
    ops_.gated(gelu_, a_.gate, a_.up, n_ * hp_.n_ff, w_.act);
    if (post_norms_) {
        float *const out[] = {a_.ffn_out};
        linear(group_down, w_.act, n_, out, false, a_.h_down);
        if (x_next) {
            ops_.rmsnorm(a_.ffn_out, weights_.ffn_post_norm, n_, hp_.rms_eps, x_next);
            ops_.add(a_.x_mid, floats, x_next);
        }
        return;
    }
    if (!x_next) {
        linear(group_down, w_.act, n_, nullptr, false, a_.h_down);
        return;
    }
    ops_.copy(a_.x_mid, floats, x_next);
    float *const out[] = {x_next};
    linear(group_down, w_.act, n_, out, true, a_.h_down);
}

// The gradient at x of a norm whose output's is d, in w_.d_rows; without post_norms d itself.
const float *block::through_norm(const float *d, const float *x, const std::vector<float> &w) const {
    if (!post_norms_) {
        return d;
    }
    ops_.zero(w_.d_rows, n_ * hp_.n_embd);
    ops_.rmsnorm_backward(d, x, w, n_, hp_.rms_eps, w_.d_rows);
    return w_.d_rows;
}

void block::feed_forward_backward(float *d) const {
    ops_.gated(gelu_, a_.gate, a_.up, n_ * hp_.n_ff, w_.act);
    const float *const d_out[] = {through_norm(d, a_.ffn_out, weights_.ffn_post_norm)};
    linear_backward(group_down, w_.act, n_, d_out, a_.h_down, w_.d_act);
    ops_.gated_backward(gelu_, w_.d_act, a_.gate, a_.up, n_ * hp_.n_ff, w_.d_act, w_.d_up);
    ops_.rmsnorm(a_.x_mid, weights_.ffn_norm, n_, hp_.rms_eps, w_.x_rows);
    const float *const d_gate_up[] = {w_.d_act, w_.d_up};
    linear_backward(group_gate_up, w_.x_rows, n_, d_gate_up, a_.h_gate_up, w_.d_mid);
    ops_.rmsnorm_backward(w_.d_mid, a_.x_mid, weights_.ffn_norm, n_, hp_.rms_eps, d);
}

void block::attention_backward(const float *x, float *d) const {
    const float *const d_out[] = {through_norm(d, a_.attn_out, weights_.attn_post_norm)};
    linear_backward(group_output, a_.attn, n_, d_out, a_.h_output, w_.d_attn);
    const size_t q_width = size_t(hp_.q_width()), kv_width = size_t(hp_.kv_width());
    const float *q = nullptr, *k = nullptr;
    rotated(&q, &k);
    ops_.attention_backward(shape_, mask_, {q, k, a_.v, a_.attn, a_.lse, w_.d_attn, w_.dq, w_.dk, w_.dv, q_width, kv_width, kv_width,
                                            q_width, q_width, q_width, kv_width, kv_width});
    float *dq = nullptr, *dk = nullptr;
    unrotate(&dq, &dk);
    ops_.rmsnorm(x, weights_.attn_norm, t_, hp_.rms_eps, w_.x_norm);
    float *const dx = lowest_ ? nullptr : w_.d_mid;
    if (last_) {
        const float *const d_kv[] = {dk, w_.dv};
        linear_backward(group_kv, w_.x_norm, t_, d_kv, a_.h_qkv + n_ * group(group_q).h_columns, dx);
        query_backward_of_rows(dq, d);
    } else {
        const float *const d_qkv[] = {dq, dk, w_.dv};
        linear_backward(group_qkv, w_.x_norm, t_, d_qkv, a_.h_qkv, dx);
    }
    if (!lowest_) {
        ops_.rmsnorm_backward(w_.d_mid, x, weights_.attn_norm, t_, hp_.rms_eps, d);
    }
}

// Adds the rows' part to d_mid and spreads d from the rows to all tokens.
void block::query_backward_of_rows(const float *dq, float *d) const {
    const int64_t      columns = hp_.n_embd;
    const float *const d_q[]   = {dq};
    ops_.gather(w_.x_norm, pack_.rows, columns, w_.x_rows);
    linear_backward(group_q, w_.x_rows, n_, d_q, a_.h_qkv, lowest_ ? nullptr : w_.d_rows);
    if (lowest_) {
        return;
    }
    ops_.scatter_add(w_.d_rows, pack_.rows, columns, w_.d_mid);
    ops_.copy(d, n_ * columns, w_.d_rows);
    ops_.zero(d, t_ * columns);
    ops_.scatter_add(w_.d_rows, pack_.rows, columns, d);
}

} // namespace cft
