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
    if (entered) {
        const activations &below = layers_[size_t(layer - 1)];
        x = {below.x, below.attn_add, ffn_add(below)};
    }
    add_rmsnorm<float>(x, entered ? a.x : nullptr, v.w.attn_norm, v.t, v.d, hp_.rms_eps, a.norm, v.ld(kind_qkv), a.rstd, stream_.get());
    mark("norm");
    project(v);
    attend(v);
    feed_forward(v, products_only);
}

// q, k and v, biases included, and k turned; of the last layer, the target rows of x to mid.
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
    turn_keys(v);
    mark("heads, rope");
}

head_map engine::query_heads(const layer_view &v) const {
    return {hp_.n_head, hp_.head_dim, v.head_norms ? v.w.q_norm : nullptr, hp_.rms_eps, v.a.q_rstd, hp_.n_rot, v.halves, v.rope, v.row_tokens};
}
head_map engine::key_heads(const layer_view &v) const {
    return {hp_.n_head_kv, hp_.head_dim, v.head_norms ? v.w.k_norm : nullptr, hp_.rms_eps, v.a.k_rstd, hp_.n_rot, v.halves, v.rope, nullptr};
}

// k as attention takes it; with norms of heads, whose way back needs what they were, apart from the products.
void engine::turn_keys(const layer_view &v) {
    turn_heads(key_heads(v), v.k, v.ld_kv, v.t, v.turned_k, v.ld_turned_k, stream_.get());
}

// q, likewise, is made on the way.
void engine::attend(const layer_view &v) {
    const activations &a = v.a;
    const head_source  queries{query_heads(v), v.q, v.ld_q};
    attention(v.shape, v.view, v.turned_q, v.ld_turned_q, v.turned_k, v.ld_turned_k, v.v, v.ld_kv, a.attn, v.ld(kind_output), a.lse, stream_.get(),
              {heads_in_pairs_, &queries, turns_inside_});
    mark("attention");
    linear_forward({v.layer, kind_output, 0, v.d, v.n, a.attn}, v.drop, v.post_norms ? w_->delta : a.attn_add, v.d);
    mark("products output");
    if (v.post_norms) {
        add_rmsnorm<bf16>({w_->delta}, nullptr, v.w.attn_post_norm, v.n, v.d, hp_.rms_eps, a.attn_add, v.d, a.attn_rstd, stream_.get());
    }
    norm_mid(v);
}

void engine::norm_mid(const layer_view &v) {
    add_rmsnorm<float>(v.mid, nullptr, v.w.ffn_norm, v.n, v.d, hp_.rms_eps, v.a.mid_norm, v.ld(kind_gate_up), v.a.mid_rstd, stream_.get());
    mark("norm");
}

engine::linear engine::gate_up_of(const layer_view &v) const { return {v.layer, kind_gate_up, 0, 2 * v.ff, v.n, v.a.mid_norm}; }
engine::linear engine::down_of(const layer_view &v) const { return {v.layer, kind_down, 0, v.d, v.n, v.a.act}; }

// act, from the product of gate and up.
void engine::gate(const layer_view &v) {
    gated(v.gelu, v.a.gate_up, v.ld_gate_up(), v.a.gate_up + v.ff, v.ld_gate_up(), v.n, v.ff, v.a.act, v.ld(kind_down), stream_.get());
}

// Leaves in ffn_add what the layer adds to the stream. products_only: where the backward pass does not need the last product,
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
    gate(v);
    mark("gated");
    if (offload_ && v.j.backward) {
        offload_->leave(v.layer, v.n, stream_);
    }
    linear_forward(down_of(v), v.drop, w_->delta, v.d, products_only && !v.post_norms);
    mark("products down");
    if (v.post_norms) {
        add_rmsnorm<bf16>({w_->delta}, nullptr, v.w.ffn_post_norm, v.n, v.d, hp_.rms_eps, a.ffn_add, v.d, a.ffn_rstd, stream_.get());
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

// Adds to the stream's gradient what comes through a norm of the stream, from d_norm; without add it begins with that. Rows end in room for u.
void engine::into_stream(const norm_output &y, int64_t n, bool add) {
    bf16 *const copy = hp_.fam->has(cft::post_norms) ? nullptr : w_->dy;
    rmsnorm_backward(w_->d_norm, hp_.n_embd, y, n, hp_.n_embd, add, w_->d, copy, w_->ld_dy, stream_.get());
}

// From the stream's gradient through a half's own norm to dy. Without such a norm, into_stream has left it there.
void engine::into_dy(const layer_view &v, const norm_output &y) {
    if (v.post_norms) {
        rmsnorm_backward(w_->d, y, v.n, v.d, w_->dy, w_->ld_dy, stream_.get());
    }
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
    const activations &a = v.a;
    const bool         no_act = missing >= keep_heads && !plan_.dora;
    const norm_output  mid{a.mid_norm, v.ld(kind_gate_up), v.w.ffn_norm, a.mid_rstd};
    const linear       down = down_of(v), gate_up = gate_up_of(v);
    const int64_t      ld = v.ld_gate_up(), ld_act = v.ld(kind_down);
    if (hp_.n_expert > 0) {
        feed_experts_backward(v.layer, v.n, missing == keep_narrow);
        into_stream(mid, v.n, true);
        mark("backward: rows");
        return;
    }
    if (missing == keep_narrow) { // h is still behind the norm
        linear_outputs(gate_up, a.gate_up, ld);
        mark("backward: gate_up again");
    }
    move_h(down, false);
    if (plan_.dora && missing >= keep_heads) { // the way back through gains needs it before anything else
        gate(v);
        mark("backward: gated again");
    }
    into_dy(v, {a.ffn_add, v.d, v.w.ffn_post_norm, a.ffn_rstd});
    mark("backward: rows");
    bf16 *const d_act = room_for_d_act(v, missing);
    linear_backward(down, v.drop, dy(), w_->ld_dy, d_act, ld_act, no_act, [&] {
        mark("backward: products down");
        gated_unit_backward(v, d_act, no_act);
        mark("backward: gated");
    });
    linear_backward(gate_up, v.drop, a.gate_up, ld, w_->d_norm, v.d, false, nullptr, gated_in_one_pass(v.groups.of[kind_gate_up]));
    mark("backward: products gate_up");
    into_stream(mid, v.n, true);
    mark("backward: rows");
}

void engine::attention_half_backward(const layer_view &v, keep_level missing) {
    const activations &a   = v.a;
    const int64_t      all = v.q_width + 2 * v.kv_width, columns = v.columns(kind_qkv);
    into_dy(v, {a.attn_add, v.d, v.w.attn_post_norm, a.attn_rstd});
    mark("backward: rows");
    linear_backward({v.layer, kind_output, 0, v.d, v.n, a.attn}, v.drop, dy(), w_->ld_dy, w_->d_attn, v.q_width);
    mark("backward: products output");
    if (missing >= keep_products && v.head_norms) {
        turn_heads(query_heads(v), v.q, v.ld_q, v.n, v.turned_q, v.ld_turned_q, stream_.get());
        turn_keys(v);
        mark("backward: heads, rope");
    }
    bf16 *const   dq = v.last ? w_->d_q : w_->d_qkv, *const dk = v.last ? w_->d_qkv : w_->d_qkv + v.q_width, *const dv = dk + v.kv_width;
    const int64_t ld_dq = v.last ? v.q_width + columns : all + columns, ld_dkv = v.last ? 2 * v.kv_width + columns : ld_dq;
    attention_gradient gradient = {v.turned_q, v.turned_k, v.v, a.attn, w_->d_attn, a.lse, w_->attn_delta, dq, dk, dv, v.ld_turned_q, v.ld_turned_k, v.ld_kv,
                                   v.ld(kind_output), v.q_width, ld_dq, ld_dkv, ld_dkv};
    if (plan_.stores_scores) { // whatever is kept, there is as much room: the bits do not depend on it
        gradient.scores          = reinterpret_cast<bf16 *>(loss_->logits);
        gradient.heads_at_a_time = heads_to_store(v.shape, v.view, size_t(plan_.loss_rows * plan_.vocab8) * sizeof(float));
    }
    gradient.turned  = true;
    gradient.inside  = turns_inside_;
    gradient.queries = {query_heads(v), v.q, v.ld_q};
    gradient.keys    = {key_heads(v), v.k, v.ld_kv};
    attention_backward(v.shape, v.view, gradient, stream_.get());
    mark("backward: attention, heads");
    bf16 *const dx = v.first ? nullptr : w_->d_norm;
    if (v.last) {
        linear_backward({v.layer, kind_qkv, v.q_width, all, v.t, a.norm}, v.drop, w_->d_qkv, ld_dkv, dx, v.d);
        query_backward_of_rows(v);
    } else {
        linear_backward({v.layer, kind_qkv, 0, all, v.t, a.norm}, v.drop, w_->d_qkv, ld_dq, dx, v.d);
    }
    mark("backward: products qkv");
    if (!v.first) {
        into_stream({a.norm, v.ld(kind_qkv), v.w.attn_norm, a.rstd}, v.t, true);
    }
    mark("backward: rows");
}

// Adds the rows' part to d_norm and spreads d from the rows to all tokens.
void engine::query_backward_of_rows(const layer_view &v) {
    const linear query = {v.layer, kind_qkv, 0, v.q_width, v.n, w_->rows_norm};
    linear_backward(query, v.drop, w_->d_q, v.q_width + v.columns(kind_qkv), v.first ? nullptr : w_->delta, v.d);
    if (v.first) {
        return;
    }
    scatter_add<bf16, bf16>(w_->delta, v.d, v.j.rows, v.n, v.d, w_->d_norm, v.d, stream_.get());
    split_rows &rows = w_->d, &all = w_->d_other;
    zero(all.high, size_t(v.t * all.ld) * sizeof(bf16), stream_.get());
    zero(all.low, size_t(v.t * v.d) * sizeof(uint16_t), stream_.get());
    scatter(rows.high, rows.ld, v.j.rows, v.n, v.d, all.high, all.ld, stream_.get());
    scatter(rows.low, v.d, v.j.rows, v.n, v.d, all.low, v.d, stream_.get());
    std::swap(rows, all);
}

} // namespace cft::cuda
