// layer.cpp - one transformer layer on a device, forward and backward: the same course as block.h's, with fewer passes over memory.
// The last layer computes q, attention, output and the feed-forward half for target rows only; of the lowest, below which
// nothing is trained, the gradient at its input is not computed. What a layer's level leaves out is made again on the way back, where
// possible in the pass that reads its source anyway.
#include "engine.h"

#include "../../failure.h"

namespace cft::cuda {

// layer_view is one layer and one pack.
struct engine::layer_view {
    const journey        &j;
    int                   layer;
    bool                  first, last, post_norms, head_norms, gelu, halves;
    int64_t               t, n, d, ff, q_width, kv_width; // n: rows that go on after attention
    const device_layer   &w;
    const layer_groups   &groups;
    const activations    &a;
    cft::dropout          drop;
    cpu::attention_shape  shape;
    const attention_view &view;
    const int32_t        *row_tokens; // NULL: all
    const float          *rope;
    bf16                 *q, *k, *v;
    int64_t               ld_q, ld_kv;
    bf16                 *turned_q, *turned_k; // as attention takes them
    int64_t               ld_turned_q, ld_turned_k;
    addends<float>        mid; // the stream between the halves

    layer_view(const engine &e, const journey &j_, int layer_)
        : j(j_), layer(layer_), first(layer_ == e.plan_.lowest && e.plan_.embedding.rank == 0), last(layer_ == e.hp_.n_layer - 1), post_norms(e.hp_.fam->has(cft::post_norms)),
          head_norms(e.hp_.fam->has(cft::head_norms)), gelu(e.hp_.fam->has(cft::gelu)), halves(e.hp_.fam->has(rope_halves)), t(j_.t),
          n(last ? j_.n : j_.t), d(e.hp_.n_embd), ff(e.hp_.n_ff), q_width(e.hp_.q_width()), kv_width(e.hp_.kv_width()),
          w(e.weights_.layers[size_t(layer_)]), groups(e.plan_.layers[size_t(layer_)]), a(e.layers_[size_t(layer_)]), drop(j_.drop),
          shape(e.hp_.attention()), view(j_.view(local(e), last)), row_tokens(last ? j_.rows : nullptr),
          rope(local(e) ? e.w_->rope_local : e.w_->rope) {
        drop.layer = layer;
        q          = a.qkv;
        k          = last ? a.qkv + n * q_width : a.qkv + q_width;
        ld_q       = last ? q_width : q_width + 2 * kv_width;
        ld_kv      = last ? 2 * kv_width : ld_q;
        v          = k + kv_width;
        turned_q = head_norms ? a.q : q, ld_turned_q = head_norms ? q_width : ld_q;
        turned_k = head_norms ? a.k : k, ld_turned_k = head_norms ? kv_width : ld_kv;
        mid = {last ? e.w_->rows_x : a.x, a.attn_add};
    }
    bool local(const engine &e) const { return e.plan_.model->layers[size_t(layer)].local; }
    int64_t ld(group_kind kind) const { return groups.of[kind].ld(); }
    int64_t columns(group_kind kind) const { return groups.of[kind].columns; }
    int64_t ld_gate_up() const { return 2 * ff + columns(kind_gate_up); }
};

void engine::layer_forward(const journey &j, int layer, bool entered, bool products_only) {
    const layer_view  v(*this, j, layer);
    const activations &a = v.a;
    addends<float>     x = {a.x};
    if (entered) { // what the layer before adds to the stream is still in delta
        const activations &below = layers_[size_t(layer - 1)];
        x = {below.x, below.attn_add, w_->delta};
    }
    add_rmsnorm<float>(x, entered ? a.x : nullptr, v.w.attn_norm, v.t, v.d, hp_.rms_eps, a.norm, v.ld(kind_qkv), a.rstd, stream_.get());
    mark("norm");
    project(v);
    attend(v);
    feed_forward(v, products_only);
}

// q, k and v, biases included; of the last layer, the target rows of x to mid.
void engine::project(const layer_view &v) {
    const activations &a = v.a;
    const int64_t      all = v.q_width + 2 * v.kv_width;
    if (v.last) {
        gather<bf16, bf16>(a.norm, v.ld(kind_qkv), v.j.rows, v.n, v.d, w_->rows_norm, v.ld(kind_qkv), stream_.get());
        gather<float, float>(a.x, v.d, v.j.rows, v.n, v.d, w_->rows_x, v.d, stream_.get());
        linear_forward({v.layer, kind_qkv, 0, v.q_width, v.n, w_->rows_norm}, v.drop, v.q, v.ld_q);
        linear_forward({v.layer, kind_qkv, v.q_width, all, v.t, a.norm}, v.drop, v.k, v.ld_kv);
    } else {
        linear_forward({v.layer, kind_qkv, 0, all, v.t, a.norm}, v.drop, a.qkv, all);
    }
    mark("products qkv");
    if (v.w.q_bias) {
        add_bias(v.w.q_bias, v.n, v.q_width, v.q, v.ld_q, stream_.get());
    }
    if (v.w.k_bias) {
        add_bias(v.w.k_bias, v.t, v.kv_width, v.k, v.ld_kv, stream_.get());
    }
    if (v.w.v_bias) {
        add_bias(v.w.v_bias, v.t, v.kv_width, v.v, v.ld_kv, stream_.get());
    }
    if (!v.head_norms) {
        turn_heads(query_heads(v), v.q, v.ld_q, v.n, v.q, v.ld_q, stream_.get());
        turn_heads(key_heads(v), v.k, v.ld_kv, v.t, v.k, v.ld_kv, stream_.get());
    }
}

head_map engine::query_heads(const layer_view &v) const {
    return {hp_.n_head, hp_.head_dim, v.head_norms ? v.w.q_norm : nullptr, hp_.rms_eps, v.a.q_rstd, hp_.n_rot, v.halves, v.rope, v.row_tokens};
}
head_map engine::key_heads(const layer_view &v) const {
    return {hp_.n_head_kv, hp_.head_dim, v.head_norms ? v.w.k_norm : nullptr, hp_.rms_eps, v.a.k_rstd, hp_.n_rot, v.halves, v.rope, nullptr};
}

// q and k as attention takes them, where heads have norms: apart from the products.
void engine::norm_heads(const layer_view &v) {
    if (v.head_norms) {
        turn_heads(query_heads(v), v.q, v.ld_q, v.n, v.turned_q, v.ld_turned_q, stream_.get());
        turn_heads(key_heads(v), v.k, v.ld_kv, v.t, v.turned_k, v.ld_turned_k, stream_.get());
    }
}

void engine::attend(const layer_view &v) {
    const activations &a = v.a;
    norm_heads(v);
    mark("heads, rope");
    attention(v.shape, v.view, v.turned_q, v.ld_turned_q, v.turned_k, v.ld_turned_k, v.v, v.ld_kv, a.attn, v.ld(kind_output), a.lse, stream_.get(),
              heads_in_pairs_);
    mark("attention");
    linear_forward({v.layer, kind_output, 0, v.d, v.n, a.attn}, v.drop, v.post_norms ? a.attn_out : a.attn_add, v.d);
    mark("products output");
    if (v.post_norms) {
        add_rmsnorm<bf16>({a.attn_out}, nullptr, v.w.attn_post_norm, v.n, v.d, hp_.rms_eps, a.attn_add, v.d, a.attn_rstd, stream_.get());
    }
    norm_mid(v);
}

void engine::norm_mid(const layer_view &v) {
    add_rmsnorm<float>(v.mid, nullptr, v.w.ffn_norm, v.n, v.d, hp_.rms_eps, v.a.mid_norm, v.ld(kind_gate_up), v.a.mid_rstd, stream_.get());
    mark("norm");
}

engine::linear engine::gate_up_of(const layer_view &v) const { return {v.layer, kind_gate_up, 0, 2 * v.ff, v.n, v.a.mid_norm}; }
engine::linear engine::down_of(const layer_view &v) const { return {v.layer, kind_down, 0, v.d, v.n, v.a.act}; }

// Leaves in delta what the layer adds to the stream. products_only: where the backward pass does not need the last product,
// it is left out.
void engine::feed_forward(const layer_view &v, bool products_only) {
    if (hp_.n_expert > 0) {
        feed_experts(v.layer, v.n, products_only);
        return;
    }
    const activations &a = v.a;
    if (offload_) {
        offload_->enter(v.layer, stream_);
    }
    linear_forward(gate_up_of(v), v.drop, a.gate_up, v.ld_gate_up());
    mark("products gate_up");
    gated(v.gelu, a.gate_up, v.ld_gate_up(), a.gate_up + v.ff, v.ld_gate_up(), v.n, v.ff, a.act, v.ld(kind_down), stream_.get());
    mark("gated");
    if (offload_ && v.j.backward) {
        offload_->leave(v.layer, v.n, stream_);
    }
    linear_forward(down_of(v), v.drop, v.post_norms ? a.ffn_out : w_->delta, v.d, products_only && !v.post_norms);
    mark("products down");
    if (v.post_norms) {
        add_rmsnorm<bf16>({a.ffn_out}, nullptr, v.w.ffn_post_norm, v.n, v.d, hp_.rms_eps, w_->delta, v.d, a.ffn_rstd, stream_.get());
    }
}

void engine::layer_backward(const journey &j, int layer) {
    const layer_view v(*this, j, layer);
    keep_level       missing = plan_.missing(size_t(layer));
    if (missing == keep_inputs) {
        join_side();
        layer_forward(j, layer, false, true);
        missing = keep_everything;
    }
    if (offload_) {
        offload_->await(layer, stream_);
    }
    feed_forward_backward(v, missing);
    if (offload_) {
        join_side();
        offload_->release(layer, v.n, stream_);
    }
    if (!v.first || v.columns(kind_qkv) + v.columns(kind_output) > 0) {
        attention_half_backward(v, missing);
    }
}

// Adds to the stream's gradient what comes through a norm of the stream. Where the half below has no norm of its own, what it begins
// with is the same as bf16, in rows with room for u: columns of that half's adapters behind them. normed (NULL: not wanted) is the norm again.
void engine::into_stream(const addends<float> &x, const float *w, const float *rstd, int64_t n, const float *d_add, int64_t columns_below,
                         bf16 *normed, int64_t ld_normed) {
    const int64_t d = hp_.n_embd;
    bf16 *const   dy = hp_.fam->has(cft::post_norms) ? nullptr : w_->dy;
    rmsnorm_backward<bf16, float, float>(w_->d_norm, d, x, w, rstd, n, d, d_add, w_->d, {dy, d + columns_below, normed, ld_normed}, stream_.get());
}

// The stream's gradient as bf16, through the half's own norm, in rows with room for u. Without such a norm, into_stream has left it there.
void engine::into_dy(const layer_view &v, const bf16 *out, const float *w, const float *rstd, int64_t ld) {
    if (v.post_norms) {
        rmsnorm_backward<float, bf16, bf16>(w_->d, v.d, {out}, w, rstd, v.n, v.d, nullptr, nullptr, {w_->dy, ld, nullptr, 0}, stream_.get());
    }
}

// Norms and the gated unit, where the way back through gains needs them before anything else.
void engine::inputs_again(const layer_view &v, keep_level missing) {
    if (missing == keep_products) {
        norm_mid(v);
    }
    gated(v.gelu, v.a.gate_up, v.ld_gate_up(), v.a.gate_up + v.ff, v.ld_gate_up(), v.n, v.ff, v.a.act, v.ld(kind_down), stream_.get());
    mark("backward: inputs again");
}

// Where the gradient at act goes: where act is or, if the layer above has one of its own and is done with it, there, so that the gradient of down's A,
// which reads act, need not come first.
bf16 *engine::room_for_d_act(const layer_view &v, keep_level missing) const {
    const size_t above = size_t(v.layer) + 1;
    const bool   whole = above + 1 < layers_.size() && missing == keep_everything && plan_.missing(above) == keep_everything; // the last has rows of targets only
    return whole && plan_.layers[above].of[kind_down].ld() == v.ld(kind_down) ? layers_[above].act : v.a.act;
}

// From d_act to the gradients of gate and up in their place. Where the products that read these are in one pass, they are made with it.
void engine::gated_unit_backward(const layer_view &v, bf16 *d_act, bool act_again) {
    const activations &a = v.a;
    const int64_t      ld = v.ld_gate_up(), ld_act = v.ld(kind_down);
    bf16 *const        act = act_again ? a.act : nullptr;
    if (const group &g = v.groups.of[kind_gate_up]; gated_in_one_pass(g)) {
        const bf16 *const w = group_weights(v.layer, kind_gate_up);
        gated_gradient    gradient{v.gelu, v.n, v.ff, d_act, ld_act, a.gate_up, ld, act, ld_act, {}, g.ld(), g.ld()};
        for (size_t i = 0; i < 2; i++) {
            const part &p        = g.parts[i];
            const auto  at       = g.inputs + p.column; // behind rows of w and of x
            gradient.adapters[i] = {p.rank8, p.scale, w + p.row * g.ld() + at, a.mid_norm + at, a.gate_up + g.outputs + p.column, gradient_ + p.b};
        }
        gated_backward_adapters(gradient, w_->products, products_workspace_bytes, stream_.get());
    } else {
        gated_backward(v.gelu, d_act, ld_act, a.gate_up, ld, a.gate_up + v.ff, ld, v.n, v.ff, a.gate_up, ld, a.gate_up + v.ff, ld, act, ld_act, stream_.get());
    }
}

void engine::feed_forward_backward(const layer_view &v, keep_level missing) {
    const activations &a  = v.a;
    const bool         dora = plan_.dora, no_act = missing >= keep_products && !dora, no_norm = missing == keep_products && !dora;
    const linear       down = down_of(v), gate_up = gate_up_of(v);
    const int64_t      ld_dy = v.d + v.columns(kind_down), ld = v.ld_gate_up(), ld_act = v.ld(kind_down);
    if (missing == keep_narrow) {
        norm_mid(v);
    }
    if (hp_.n_expert > 0) {
        feed_experts_backward(v.layer, v.n, missing == keep_narrow);
        into_stream(v.mid, v.w.ffn_norm, a.mid_rstd, v.n, w_->d, v.columns(kind_output));
        mark("backward: rows");
        return;
    }
    if (missing == keep_narrow) {
        linear_forward(gate_up, v.drop, a.gate_up, ld);
        mark("backward: gate_up again");
    }
    move_h(gate_up, false);
    move_h(down, false);
    if (dora && missing >= keep_products) {
        inputs_again(v, missing);
    }
    into_dy(v, a.ffn_out, v.w.ffn_post_norm, a.ffn_rstd, ld_dy);
    mark("backward: rows");
    bf16 *const d_act = room_for_d_act(v, missing);
    linear_backward(down, v.drop, w_->dy, ld_dy, d_act, ld_act, no_act, [&] {
        mark("backward: products down");
        gated_unit_backward(v, d_act, no_act);
        mark("backward: gated");
    });
    linear_backward(gate_up, v.drop, a.gate_up, ld, w_->d_norm, v.d, no_norm, [&] {
        mark("backward: products gate_up");
        into_stream(v.mid, v.w.ffn_norm, a.mid_rstd, v.n, w_->d, v.columns(kind_output), no_norm ? a.mid_norm : nullptr, v.ld(kind_gate_up));
        mark("backward: rows");
    }, gated_in_one_pass(v.groups.of[kind_gate_up]));
    mark("backward: products gate_up");
}

void engine::attention_half_backward(const layer_view &v, keep_level missing) {
    const activations &a    = v.a;
    const int64_t      all  = v.q_width + 2 * v.kv_width, columns = v.columns(kind_qkv), ld_dy = v.d + v.columns(kind_output);
    into_dy(v, a.attn_out, v.w.attn_post_norm, a.attn_rstd, ld_dy);
    mark("backward: rows");
    linear_backward({v.layer, kind_output, 0, v.d, v.n, a.attn}, v.drop, w_->dy, ld_dy, w_->d_attn, v.q_width);
    mark("backward: products output");
    if (missing >= keep_products) {
        norm_heads(v);
    }
    mark("backward: heads, rope");
    bf16 *const   dq = v.last ? w_->d_q : w_->d_qkv, *const dk = v.last ? w_->d_qkv : w_->d_qkv + v.q_width, *const dv = dk + v.kv_width;
    const int64_t ld_dq = v.last ? v.q_width + columns : all + columns, ld_dkv = v.last ? 2 * v.kv_width + columns : ld_dq;
    attention_gradient gradient = {v.turned_q, v.turned_k, v.v, a.attn, w_->d_attn, a.lse, w_->attn_delta, dq, dk, dv, v.ld_turned_q, v.ld_turned_k, v.ld_kv,
                                   v.ld(kind_output), v.q_width, ld_dq, ld_dkv, ld_dkv};
    if (plan_.stores_scores) { // whatever is kept, there is as much room: the bits do not depend on it
        gradient.scores          = reinterpret_cast<bf16 *>(loss_->logits);
        gradient.heads_at_a_time = heads_to_store(v.shape, v.view, size_t(plan_.loss_rows * plan_.vocab8) * sizeof(float));
    }
    attention_backward(v.shape, v.view, gradient, stream_.get());
    mark("backward: attention");
    turn_heads_backward(query_heads(v), dq, ld_dq, v.q, v.ld_q, v.n, dq, ld_dq, stream_.get());
    turn_heads_backward(key_heads(v), dk, ld_dkv, v.k, v.ld_kv, v.t, dk, ld_dkv, stream_.get());
    mark("backward: heads, rope");
    bf16 *const dx = v.first ? nullptr : w_->d_norm;
    if (v.last) {
        linear_backward({v.layer, kind_qkv, v.q_width, all, v.t, a.norm}, v.drop, w_->d_qkv, ld_dkv, dx, v.d);
        query_backward_of_rows(v);
        qkv_into_stream(v, false);
    } else {
        const linear qkv     = {v.layer, kind_qkv, 0, all, v.t, a.norm};
        const bool   again   = missing >= keep_products, no_norm = again && !plan_.dora;
        if (again && plan_.dora) {
            add_rmsnorm<float>({a.x}, nullptr, v.w.attn_norm, v.t, v.d, hp_.rms_eps, a.norm, v.ld(kind_qkv), nullptr, stream_.get());
        }
        move_h(qkv, false);
        linear_backward(qkv, v.drop, w_->d_qkv, ld_dq, dx, v.d, no_norm, [&] { qkv_into_stream(v, no_norm); });
    }
    mark("backward: products qkv");
}

// The gradient at the layer's input, and the norm again where it is missing.
void engine::qkv_into_stream(const layer_view &v, bool no_norm) {
    const activations &a = v.a;
    mark("backward: products qkv");
    if (!v.first) {
        const int64_t below = v.layer > 0 ? plan_.layers[size_t(v.layer - 1)].of[kind_down].columns : 0;
        into_stream({a.x}, v.w.attn_norm, a.rstd, v.t, w_->d, below, no_norm ? a.norm : nullptr, v.ld(kind_qkv));
    } else if (no_norm) {
        add_rmsnorm<float>({a.x}, nullptr, v.w.attn_norm, v.t, v.d, hp_.rms_eps, a.norm, v.ld(kind_qkv), nullptr, stream_.get());
    }
    mark("backward: rows");
}

// Adds the rows' part to d_norm and spreads d from the rows to all tokens.
void engine::query_backward_of_rows(const layer_view &v) {
    const int64_t ld    = v.ld(kind_qkv);
    const linear  query = {v.layer, kind_qkv, 0, v.q_width, v.n, w_->rows_norm};
    gather<bf16, bf16>(v.a.norm, ld, v.j.rows, v.n, v.d, w_->rows_norm, ld, stream_.get());
    adapter_inputs(query, v.drop);
    linear_backward(query, v.drop, w_->d_q, v.q_width + v.columns(kind_qkv), v.first ? nullptr : w_->delta, v.d);
    if (v.first) {
        return;
    }
    scatter_add<bf16, bf16>(w_->delta, v.d, v.j.rows, v.n, v.d, w_->d_norm, v.d, stream_.get());
    zero(w_->d_other, size_t(v.t * v.d) * sizeof(float), stream_.get());
    scatter<float, float>(w_->d, v.d, v.j.rows, v.n, v.d, w_->d_other, v.d, stream_.get());
    std::swap(w_->d, w_->d_other);
}

} // namespace cft::cuda
