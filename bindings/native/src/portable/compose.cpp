// compose.cpp - see compose.h. Attention is in compose_attention.cpp.
#include "compose.h"

#include <algorithm>
#include <cmath>

namespace cft::portable {
namespace {

constexpr float gelu_slope = 0.7978845608028654f, gelu_cubic = 0.044715f; // sqrt(2 / pi)

ggml_tensor *one_minus(ggml_context *c, ggml_tensor *x) { return ggml_scale_bias(c, x, -1.0f, 1.0f); }

// tanh(slope * (x + cubic x^3)), of x^2.
ggml_tensor *gelu_tanh(ggml_context *c, ggml_tensor *x, ggml_tensor *square) {
    return ggml_tanh(c, ggml_mul(c, x, ggml_scale_bias(c, square, gelu_slope * gelu_cubic, gelu_slope)));
}

} // namespace

ggml_tensor *widen(ggml_context *c, ggml_tensor *w, ggml_tensor *iota, int64_t row, int64_t n) {
    if (w->type == GGML_TYPE_F32) {
        return ggml_view_2d(c, w, w->ne[0], n, w->nb[1], size_t(row) * w->nb[1]);
    }
    return ggml_get_rows(c, w, ggml_view_1d(c, iota, n, size_t(row) * sizeof(int32_t)));
}

ggml_tensor *transposed(ggml_context *c, ggml_tensor *x) { return ggml_cont(c, ggml_transpose(c, x)); }

ggml_tensor *product(ggml_context *c, ggml_tensor *a, ggml_tensor *b) {
    ggml_tensor *const y = ggml_mul_mat(c, a, b);
    ggml_mul_mat_set_prec(y, GGML_PREC_F32);
    return y;
}

ggml_tensor *product_over_rows(ggml_context *c, ggml_tensor *a, ggml_tensor *b) { return product(c, transposed(c, a), transposed(c, b)); }

// Not FILL, which ggml's Vulkan shader (v0.17.4) does for the first 512 elements only.
ggml_tensor *zeros_like(ggml_context *c, ggml_tensor *x) { return ggml_scale(c, x, 0.0f); }

ggml_tensor *rmsnorm(ggml_context *c, ggml_tensor *x, ggml_tensor *w, float eps) { return ggml_mul(c, ggml_rms_norm(c, x, eps), w); }

// With y = x / rms: dx = (dy w - y mean(y dy w)) / rms.
ggml_tensor *rmsnorm_backward(ggml_context *c, ggml_tensor *dy, ggml_tensor *x, ggml_tensor *w, float eps) {
    const float        n = float(x->ne[0]);
    ggml_tensor *const y = ggml_rms_norm(c, x, eps), *const g = ggml_mul(c, dy, w);
    ggml_tensor *const mean = ggml_scale(c, ggml_sum_rows(c, ggml_mul(c, y, g)), 1.0f / n);
    ggml_tensor *const rms  = ggml_sqrt(c, ggml_scale_bias(c, ggml_sum_rows(c, ggml_sqr(c, x)), 1.0f / n, eps));
    return ggml_div(c, ggml_sub(c, g, ggml_mul(c, y, mean)), rms);
}

ggml_tensor *rotate(ggml_context *c, ggml_tensor *x, const rotation &r) {
    // Vulkan starts a group for each head and token along one dimension, where many devices allow 65,535.
    constexpr int64_t most_heads = 65535;
    const int64_t     step       = std::max<int64_t>(1, most_heads / x->ne[1]);
    const int         mode       = r.halves ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
    ggml_tensor      *y          = nullptr;
    for (int64_t i = 0; i < x->ne[2]; i += step) {
        const int64_t      n    = std::min(step, x->ne[2] - i);
        const bool         all  = n == x->ne[2];
        ggml_tensor *const part = all ? x : ggml_view_3d(c, x, x->ne[0], x->ne[1], n, x->nb[1], x->nb[2], size_t(i) * x->nb[2]);
        ggml_tensor *const at   = all ? r.positions : ggml_view_1d(c, r.positions, n, size_t(i) * sizeof(int32_t));
        ggml_tensor *const turned = ggml_rope_ext(c, part, at, r.factors, r.n_rot, mode, 0, r.base, 1.0f, 0.0f, r.amplitude, 0.0f, 0.0f);
        y = y ? ggml_concat(c, y, turned, 2) : turned;
    }
    return y;
}

ggml_tensor *gated(ggml_context *c, bool gelu, ggml_tensor *gate, ggml_tensor *up) {
    if (!gelu) {
        return ggml_mul(c, ggml_mul(c, gate, ggml_sigmoid(c, gate)), up);
    }
    // ggml's own GELU takes values from a table of halves on the CPU.
    ggml_tensor *const th = gelu_tanh(c, gate, ggml_sqr(c, gate));
    return ggml_mul(c, ggml_mul(c, gate, ggml_scale_bias(c, th, 0.5f, 0.5f)), up);
}

void gated_backward(ggml_context *c, bool gelu, ggml_tensor *d_act, ggml_tensor *gate, ggml_tensor *up, ggml_tensor **d_gate, ggml_tensor **d_up) {
    ggml_tensor *value, *slope; // of the unit at gate
    if (gelu) {
        // With u = slope (x + cubic x^3): (1 + tanh u) / 2 + x / 2 (1 - tanh^2 u) u'.
        ggml_tensor *const square = ggml_sqr(c, gate), *const th = gelu_tanh(c, gate, square), *const half = ggml_scale_bias(c, th, 0.5f, 0.5f);
        ggml_tensor *const du = ggml_scale_bias(c, square, 3.0f * gelu_slope * gelu_cubic, gelu_slope);
        value = ggml_mul(c, gate, half);
        slope = ggml_add(c, ggml_mul(c, ggml_mul(c, one_minus(c, ggml_sqr(c, th)), du), ggml_scale(c, gate, 0.5f)), half);
    } else {
        ggml_tensor *const s = ggml_sigmoid(c, gate);
        value = ggml_mul(c, gate, s);
        slope = ggml_mul(c, s, ggml_scale_bias(c, ggml_mul(c, gate, one_minus(c, s)), 1.0f, 1.0f));
    }
    *d_up   = ggml_mul(c, d_act, value);
    *d_gate = ggml_mul(c, ggml_mul(c, d_act, up), slope);
}

ggml_tensor *spread(ggml_context *c, ggml_tensor *x, ggml_tensor *rows, ggml_tensor *like) { return ggml_set_rows(c, zeros_like(c, like), x, rows); }

ggml_tensor *add_to_rows(ggml_context *c, ggml_tensor *x, ggml_tensor *rows, ggml_tensor *more) {
    return ggml_set_rows(c, x, ggml_add(c, ggml_get_rows(c, x, rows), more), rows);
}

ggml_tensor *row_lengths(ggml_context *c, ggml_tensor *w, ggml_tensor *a_transposed, ggml_tensor *b, float scale) {
    ggml_tensor *const whole = ggml_add(c, w, ggml_scale(c, product(c, a_transposed, b), scale));
    return ggml_reshape_1d(c, ggml_sqrt(c, ggml_sum_rows(c, ggml_sqr(c, whole))), w->ne[1]);
}

ggml_tensor *column_dots(ggml_context *c, ggml_tensor *x, ggml_tensor *y) {
    return ggml_reshape_1d(c, ggml_sum_rows(c, transposed(c, ggml_mul(c, x, y))), x->ne[0]);
}

ggml_tensor *soft_cap(ggml_context *c, ggml_tensor *logits, float cap) { return ggml_scale(c, ggml_tanh(c, ggml_scale(c, logits, 1.0f / cap)), cap); }

loss_parts cross_entropy(ggml_context *c, ggml_tensor *logits, ggml_tensor *targets, ggml_tensor *weights, float cap, bool gradient) {
    const int64_t v = logits->ne[0], n = logits->ne[1];
    ggml_tensor  *th = nullptr;
    if (cap > 0) {
        th     = ggml_tanh(c, ggml_scale(c, logits, 1.0f / cap));
        logits = ggml_scale(c, th, cap);
    }
    ggml_tensor *const p = ggml_soft_max(c, logits), *const single = ggml_reshape_2d(c, p, 1, v * n);
    ggml_tensor *const of_target = ggml_get_rows(c, single, targets);
    if (!gradient) {
        return {of_target, nullptr};
    }
    // One less at the targets; the value there is read before it is written, since what is written depends on it.
    ggml_tensor *const d = ggml_set_rows(c, single, ggml_scale_bias(c, of_target, 1.0f, -1.0f), targets);
    ggml_tensor       *d_logits = ggml_mul(c, ggml_reshape_2d(c, d, v, n), weights);
    if (th) {
        d_logits = ggml_mul(c, d_logits, one_minus(c, ggml_sqr(c, th)));
    }
    return {of_target, d_logits};
}

} // namespace cft::portable
