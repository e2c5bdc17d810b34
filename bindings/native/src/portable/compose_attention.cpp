// compose_attention.cpp - attention and its gradient by products over tiles. The query heads that share a key head are laid one after
// the other along the queries, so that products sum over them by themselves.
#include "compose.h"

namespace cft::portable {
namespace {

// tile_ops are the pieces that forward and backward share.
struct tile_ops {
    ggml_context               *c;
    const cpu::attention_shape &shape;
    const attention_view       &view;
    const attention_tile       &tile;
    int64_t                     heads, kv, hd, group;

    tile_ops(ggml_context *c_, const cpu::attention_shape &s, const attention_view &v, const attention_tile &t)
        : c(c_), shape(s), view(v), tile(t), heads(s.n_head), kv(s.n_head_kv), hd(s.head_dim), group(s.n_head / s.n_head_kv) {}

    // [head_dim, heads, n] from token `first` on, to [head_dim, n, heads].
    ggml_tensor *by_head(ggml_tensor *x, int64_t first, int64_t n) const {
        ggml_tensor *const part = ggml_view_3d(c, x, hd, x->ne[1], n, x->nb[1], x->nb[2], size_t(first) * x->nb[2]);
        return ggml_cont(c, ggml_permute(c, part, 0, 2, 1, 3));
    }
    ggml_tensor *queries(ggml_tensor *x) const { // to [head_dim, n_queries * group, kv]
        return ggml_reshape_3d(c, by_head(x, tile.query, tile.n_queries), hd, tile.n_queries * group, kv);
    }
    ggml_tensor *keys(ggml_tensor *x) const { return by_head(x, tile.key, tile.n_keys); } // to [head_dim, n_keys, kv]
    // Back from [head_dim, n * heads / n_heads, ..] to rows [head_dim * n_heads, n].
    ggml_tensor *rows(ggml_tensor *x, int64_t n, int64_t n_heads) const {
        ggml_tensor *const apart = ggml_reshape_3d(c, x, hd, n, n_heads);
        return ggml_reshape_2d(c, ggml_cont(c, ggml_permute(c, apart, 0, 2, 1, 3)), hd * n_heads, n);
    }

    // Probabilities [n_keys, n_queries * group, kv]; th, where scores are capped, their tanh.
    ggml_tensor *probabilities(ggml_tensor *k, ggml_tensor *q, ggml_tensor **th) const {
        ggml_tensor *scores = product(c, k, q);
        float        scale  = shape.scale;
        *th = nullptr;
        if (shape.soft_cap > 0) {
            *th    = ggml_tanh(c, ggml_scale(c, scores, shape.scale / shape.soft_cap));
            scores = ggml_scale(c, *th, shape.soft_cap);
            scale  = 1.0f;
        }
        const size_t       at   = (view.local ? tile.local_mask : tile.mask) * sizeof(ggml_fp16_t);
        ggml_tensor *const mask = ggml_view_2d(c, view.masks, tile.n_keys, tile.n_queries, size_t(tile.n_keys) * sizeof(ggml_fp16_t), at);
        ggml_tensor *const p    = ggml_soft_max_ext(c, ggml_reshape_3d(c, scores, tile.n_keys, tile.n_queries, heads), mask, scale, 0.0f);
        return ggml_reshape_3d(c, p, tile.n_keys, tile.n_queries * group, kv);
    }
};

// Puts the rows of a tile, x [width, n], at row `first` of all of them, which are `base` with other tiles' rows set already.
ggml_tensor *put(ggml_context *c, const attention_view &view, ggml_tensor *base, ggml_tensor *x, int64_t first) {
    return ggml_set_rows(c, base, x, ggml_view_1d(c, view.iota, x->ne[1], size_t(first) * sizeof(int32_t)));
}

// Adds instead.
ggml_tensor *put_more(ggml_context *c, const attention_view &view, ggml_tensor *base, ggml_tensor *x, int64_t first) {
    ggml_tensor *const there = ggml_view_2d(c, base, base->ne[0], x->ne[1], base->nb[1], size_t(first) * base->nb[1]);
    return put(c, view, base, ggml_add(c, x, there), first);
}

ggml_tensor *flat(ggml_context *c, ggml_tensor *x) { return ggml_reshape_2d(c, x, x->ne[0] * x->ne[1], x->ne[2]); }

} // namespace

ggml_tensor *attention(ggml_context *c, const cpu::attention_shape &shape, const attention_view &view, ggml_tensor *q, ggml_tensor *k, ggml_tensor *v) {
    ggml_tensor *out = view.tiles.size() > 1 ? zeros_like(c, flat(c, q)) : nullptr;
    for (const attention_tile &tile : view.tiles) {
        const tile_ops     t(c, shape, view, tile);
        ggml_tensor       *th;
        ggml_tensor *const p = t.probabilities(t.keys(k), t.queries(q), &th);
        ggml_tensor *const values = ggml_cont(c, ggml_transpose(c, t.keys(v))); // [n_keys, head_dim, kv]
        ggml_tensor *const rows   = t.rows(product(c, values, p), tile.n_queries, t.heads);
        out = out ? put(c, view, out, rows, tile.query) : rows;
        ggml_build_forward_expand(view.ops, out);
    }
    return out;
}

attention_gradients attention_backward(ggml_context *c, const cpu::attention_shape &shape, const attention_view &view, ggml_tensor *q, ggml_tensor *k,
                                       ggml_tensor *v, ggml_tensor *d_out) {
    ggml_tensor *dq = zeros_like(c, flat(c, q)), *dk = zeros_like(c, flat(c, k)), *dv = zeros_like(c, flat(c, v));
    ggml_tensor *const d = ggml_reshape_3d(c, d_out, q->ne[0], q->ne[1], q->ne[2]);
    for (const attention_tile &tile : view.tiles) {
        const tile_ops     t(c, shape, view, tile);
        ggml_tensor *const keys = t.keys(k), *const queries = t.queries(q), *const values = t.keys(v), *const d_rows = t.queries(d);
        ggml_tensor       *th;
        ggml_tensor *const p = t.probabilities(keys, queries, &th);
        dv = put_more(c, view, dv, t.rows(product(c, ggml_cont(c, ggml_transpose(c, d_rows)), ggml_cont(c, ggml_transpose(c, p))), tile.n_keys, t.kv), tile.key);
        ggml_tensor *const dp  = product(c, values, d_rows);
        ggml_tensor *const sum = ggml_sum_rows(c, ggml_mul(c, p, dp));
        ggml_tensor       *ds  = ggml_mul(c, p, ggml_sub(c, dp, sum));
        if (th) {
            ds = ggml_mul(c, ds, ggml_scale_bias(c, ggml_sqr(c, th), -1.0f, 1.0f));
        }
        ds = ggml_scale(c, ds, shape.scale);
        dq = put(c, view, dq, t.rows(product(c, ggml_cont(c, ggml_transpose(c, keys)), ds), tile.n_queries, t.heads), tile.query);
        dk = put_more(c, view, dk, t.rows(product(c, ggml_cont(c, ggml_transpose(c, queries)), ggml_cont(c, ggml_transpose(c, ds))), tile.n_keys, t.kv), tile.key);
        for (ggml_tensor *g : {dv, dq, dk}) {
            ggml_build_forward_expand(view.ops, g);
        }
    }
    const auto shaped = [&](ggml_tensor *g, ggml_tensor *like) { return ggml_reshape_3d(c, g, like->ne[0], like->ne[1], like->ne[2]); };
    return {shaped(dq, q), shaped(dk, k), shaped(dv, v)};
}

} // namespace cft::portable
