// compose.h - operations and their gradients, composed of ops that ggml's CPU, Vulkan, Metal and HIP backends all have: MUL_MAT,
// GET_ROWS, SET_ROWS, CONT, CPY, ADD, SUB, MUL, DIV, SCALE, SQR, SQRT, SUM_ROWS, RMS_NORM, ROPE, SOFT_MAX, SIGMOID, TANH.
#pragma once

#include "../cpu/attention.h"
#include "attention_tiles.h"

#include "ggml.h"

namespace cft::portable {

// A weight widened to F32: rows [row, row + n), as [columns, n]. iota holds 0, 1, 2 ... up to the most rows. row is a multiple of 64:
// Vulkan's GET_ROWS ends the process where its numbers begin elsewhere than at a multiple of what the device asks for.
ggml_tensor *widen(ggml_context *c, ggml_tensor *w, ggml_tensor *iota, int64_t row, int64_t n);
ggml_tensor *transposed(ggml_context *c, ggml_tensor *x);
// bᵀ a in F32 throughout: a [k, m], b [k, n] to [m, n].
ggml_tensor *product(ggml_context *c, ggml_tensor *a, ggml_tensor *b);
// The sum over rows of products: a [m, t], b [n, t] to [m, n], what a product's weight gets of gradient.
ggml_tensor *product_over_rows(ggml_context *c, ggml_tensor *a, ggml_tensor *b);
ggml_tensor *zeros_like(ggml_context *c, ggml_tensor *x); // of a finite x

ggml_tensor *rmsnorm(ggml_context *c, ggml_tensor *x, ggml_tensor *w, float eps);
ggml_tensor *rmsnorm_backward(ggml_context *c, ggml_tensor *dy, ggml_tensor *x, ggml_tensor *w, float eps);

// rotation is one rotary embedding; backward turns by negated positions.
struct rotation {
    ggml_tensor *positions, *factors; // [n] I32; [n_rot / 2] what frequencies are divided by
    int          n_rot;
    bool         halves;
    float        base, amplitude;
};
ggml_tensor *rotate(ggml_context *c, ggml_tensor *x, const rotation &r); // x [head_dim, heads, n]

// act = silu(gate) * up or, with gelu, gelu(gate) * up (tanh form).
ggml_tensor *gated(ggml_context *c, bool gelu, ggml_tensor *gate, ggml_tensor *up);
void         gated_backward(ggml_context *c, bool gelu, ggml_tensor *d_act, ggml_tensor *gate, ggml_tensor *up, ggml_tensor **d_gate, ggml_tensor **d_up);

// Rows of x at `rows` of n, 0 elsewhere: like [columns, n].
ggml_tensor *spread(ggml_context *c, ggml_tensor *x, ggml_tensor *rows, ggml_tensor *like);

// x with `more` added to its rows at `rows`, no two of which are the same; in x's place.
ggml_tensor *add_to_rows(ggml_context *c, ggml_tensor *x, ggml_tensor *rows, ggml_tensor *more);

// Of DoRA: the lengths of the rows of W + scale B A, w [in, n], a_transposed [rank, in], b [rank, n] to [n]; and products of columns,
// x and y [n, t] to [n].
ggml_tensor *row_lengths(ggml_context *c, ggml_tensor *w, ggml_tensor *a_transposed, ggml_tensor *b, float scale);
ggml_tensor *column_dots(ggml_context *c, ggml_tensor *x, ggml_tensor *y);

// attention_view is one pack's attention: tiles, and the device's copy of their masks. Tiles are added to ops one after the other as
// they are made: in the order in which ggml would find them, all tiles' scores would be alive at once.
struct attention_view {
    const std::vector<attention_tile> &tiles;
    ggml_tensor                       *masks, *iota;
    bool                               local;
    ggml_cgraph                       *ops;
};
// q [head_dim, n_head, n], k and v [head_dim, n_head_kv, t] to [q_width, n].
ggml_tensor *attention(ggml_context *c, const cpu::attention_shape &shape, const attention_view &view, ggml_tensor *q, ggml_tensor *k, ggml_tensor *v);
struct attention_gradients {
    ggml_tensor *q, *k, *v; // in the shapes of those
};
attention_gradients attention_backward(ggml_context *c, const cpu::attention_shape &shape, const attention_view &view, ggml_tensor *q, ggml_tensor *k,
                                       ggml_tensor *v, ggml_tensor *d_out);

// logits [n_vocab, n] to cap * tanh(logits / cap).
ggml_tensor *soft_cap(ggml_context *c, ggml_tensor *logits, float cap);
// targets [n] I32 are target + i * n_vocab. probabilities [1, n] are those of the targets; d_logits NULL where it is not wanted.
struct loss_parts {
    ggml_tensor *probabilities, *d_logits;
};
loss_parts cross_entropy(ggml_context *c, ggml_tensor *logits, ggml_tensor *targets, ggml_tensor *weights, float cap, bool gradient);

} // namespace cft::portable
