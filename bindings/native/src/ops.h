// ops.h - the operations that blocks, loss and optimizer are made of, on the buffers of one device.
//
// block.cpp, trainer.cpp and optimizer.cpp know nothing of threads, tiles or vector widths; a second device implements this
// class; what not every adapter needs is refused unless it does. Matrices are row-major and contiguous, [rows][columns]; t or n
// counts rows. Results depend only on the arguments and, where noted at the implementation, on the number of threads: no
// operation adds in an order that timing decides.
#pragma once

#include "cpu/attention.h"
#include "model.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cft {

// linear_group is frozen linear maps that share an input, each perhaps with an adapter:
//     y_m = x W_mᵀ + scale_m * h_m B_mᵀ,  h_m = dropout_m(x) A_mᵀ.
struct linear_group {
    struct module {
        int           id = 0; // index of its CFT_TARGET_ bit, also its number in dropout's counter
        const weight *w  = nullptr;
        const float  *a = nullptr, *b = nullptr; // [rank][in], [out][rank]; NULL without an adapter
        float        *da = nullptr, *db = nullptr;
        int           rank  = 0;
        float         scale = 0;
        int64_t       column = 0;        // of h, the first of rank
        bool          shares_a = false;  // A and columns of h are those of the module before: parts of one fused tensor
        // Of DoRA, which is not the operations' business but dora.h's: y_m is multiplied by gain, column by column.
        const float  *gain = nullptr, *norm = nullptr; // [out] magnitude / norm; the lengths of the rows of W + scale B A
        float        *d_magnitude = nullptr;
    };
    std::vector<module> modules;
    // A of all adapted modules, one after the other, and its gradient; h has as many columns.
    const float *a  = nullptr;
    float       *da = nullptr;
    int64_t      h_columns = 0; // the ranks of the different A's

    int64_t inputs() const { return modules[0].w->cols; }
};

// embedding_adapter is the adapter of the embedding.
struct embedding_adapter {
    const float *a = nullptr, *b = nullptr;
    float       *da = nullptr, *db = nullptr;
    int          rank    = 0;
    float        scale   = 0; // that of the embedding included
    int64_t      columns = 0;
};

// expert_choice says which experts see which rows.
struct expert_choice {
    int                  n_used = 0;
    std::vector<int32_t> expert; // [n][n_used]
    std::vector<float>   share;  // [n][n_used]
};

// dropout names the random numbers of one layer in one micro-batch; see cpu/random.h.
struct dropout {
    float    probability = 0; // 0 turns it off
    uint64_t seed        = 0;
    uint64_t micro_batch = 0;
    int      layer       = 0;
    int64_t  first_row   = 0; // of the pack's, where a call has some rows only
};

struct adamw_step {
    float gradient_scale; // applied to the accumulated gradient first
    float lr, beta1, beta2, eps, weight_decay;
    float correction1, correction2; // 1 - beta^step
};

class ops {
  public:
    virtual ~ops() = default;

    // x[i] = scale * row tokens[i] of table.
    virtual void embed(const weight &table, const int32_t *tokens, int64_t n, float scale, float *x) = 0;
    // The table that rope reads: [n][2 * frequencies], cosines of positions[i] * frequencies[j] first, then sines, times the
    // set's amplitude.
    virtual void rope_table(const int32_t *positions, int64_t n, const rope_set &set, float *table) = 0;

    virtual void copy(const float *from, int64_t n_floats, float *to) = 0;
    virtual void zero(float *x, int64_t n_floats) = 0;
    // to[i] = from[rows[i]], and to[rows[i]] += from[i]; rows ascend.
    virtual void gather(const float *from, const std::vector<int32_t> &rows, int64_t columns, float *to) = 0;
    virtual void scatter_add(const float *from, const std::vector<int32_t> &rows, int64_t columns, float *to) = 0;

    virtual void add(const float *x, int64_t n_floats, float *y) = 0; // y += x
    // Adds bias to each of n rows of y.
    virtual void add_bias(const std::vector<float> &bias, int64_t n, float *y) = 0;

    virtual void rmsnorm(const float *x, const std::vector<float> &w, int64_t n, float eps, float *y) = 0;
    // dx += the gradient at x for the gradient dy at y.
    virtual void rmsnorm_backward(const float *dy, const float *x, const std::vector<float> &w, int64_t n, float eps, float *dx) = 0;

    // Rotates the heads of n rows in place; row i is token rows[i], or token i if rows is NULL. direction -1 turns back. Pairs
    // are neighbours or, with halves, n_rot / 2 apart.
    virtual void rope(float *x, int64_t n, const int32_t *rows, int n_head, int head_dim, int n_rot, bool halves, const float *table,
                      int direction) = 0;

    // act = silu(gate) * up or, with gelu, gelu(gate) * up (tanh form).
    virtual void gated(bool gelu, const float *gate, const float *up, int64_t n_floats, float *act) = 0;
    // d_gate may be d_act.
    virtual void gated_backward(bool gelu, const float *d_act, const float *gate, const float *up, int64_t n_floats, float *d_gate,
                                float *d_up) = 0;

    // One y per module; add: y += instead of y =. h [t][h_columns] is written for the backward pass. With y == NULL only
    // h is computed.
    virtual void linear(const linear_group &g, const dropout &drop, const float *x, int64_t t, float *const *y, bool add, float *h) = 0;
    // Adds to da and db; dx (NULL: not wanted) is set, or added to with add. u [t][h_columns] is scratch.
    virtual void linear_backward(const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *const *dy,
                                 const float *h, float *u, float *dx, bool add) = 0;

    // y[i] = s * x[i] or, with add, y[i] += s * x[i], by column; y may be x.
    virtual void scale_columns(const float *x, const float *s, int64_t n, int64_t columns, bool add, float *y);
    // sums[j] += the sum over rows of x[i][j] * y[i][j], divided by by[j].
    virtual void column_dots(const float *x, const float *y, const float *by, int64_t n, int64_t columns, float *sums);
    // norm[j] = the length of row j of W + scale B A and, unless gain is NULL, gain[j] = magnitude[j] / norm[j].
    virtual void row_norms(const weight &w, const float *a, const float *b, int rank, float scale, const float *magnitude, float *norm, float *gain);

    // Adapters of the embedding. x[i] += scale * B a[tokens[i]]; a is [table rows][rank], b [columns][rank], h [n][rank] scratch.
    virtual void embed_adapter(const embedding_adapter &e, const int32_t *tokens, int64_t n, float *x, float *h);
    // Adds to da and db.
    virtual void embed_adapter_backward(const embedding_adapter &e, const int32_t *tokens, int64_t n, const float *dx, float *h);

    virtual void attention(const cpu::attention_shape &shape, const cpu::attention_mask &mask, const cpu::attention_forward_args &args) = 0;
    virtual void attention_backward(const cpu::attention_shape &shape, const cpu::attention_mask &mask,
                                    const cpu::attention_backward_args &args) = 0;

    // logits [n][w.rows] = x wᵀ. Rows of logits are `stride` floats apart, here and below.
    virtual void logits(const weight &w, const float *x, int64_t n, float *out, int64_t stride) = 0;
    // x = cap * tanh(x / cap), n rows of n_vocab.
    virtual void soft_cap(float *x, int64_t n, int64_t n_vocab, int64_t stride, float cap) = 0;
    // losses[i] = weights[i] * -log softmax(soft_cap(logits[i]))[targets[i]]; cap 0 is none. With gradient, logits become the
    // gradient of losses at the uncapped ones.
    virtual void cross_entropy(float *logits, int64_t n, int64_t n_vocab, int64_t stride, const int32_t *targets, const float *weights, float cap,
                               bool gradient, double *losses) = 0;
    // dx [n][w.cols] = d_logits w.
    virtual void logits_backward(const weight &w, const float *d_logits, int64_t stride, int64_t n, float *dx) = 0;

    // Mixtures of experts. probabilities [n][n_expert] are logits on entry and their softmax on return.
    virtual void softmax(float *probabilities, int64_t n, int64_t n_expert) = 0;
    // The n_used most likely experts of each row (of equals, the lower) and their probabilities over the sum of those.
    virtual void choose(const float *probabilities, int64_t n, int64_t n_expert, int n_used, expert_choice &choice) = 0;
    // d_logits [n][n_expert] of the router for the gradient of the choice's shares.
    virtual void choose_backward(const expert_choice &choice, const std::vector<float> &d_share, int64_t n, int64_t n_expert, float *d_logits) = 0;
    // to[rows[i]] += scales[i] * from[i]; rows ascend.
    virtual void scatter_add_scaled(const float *from, const std::vector<int32_t> &rows, const std::vector<float> &scales, int64_t columns,
                                    float *to) = 0;
    // products[i] = x[i] . y[i], then x[i] *= scales[i].
    virtual void dot_and_scale(float *x, const float *y, const std::vector<float> &scales, int64_t columns, float *products) = 0;

    virtual double sum_of_squares(const float *x, int64_t n_floats) = 0;
    virtual void   adamw(const adamw_step &step, float *value, const float *gradient, float *moment1, float *moment2, int64_t n_floats) = 0;
};

} // namespace cft
