// ops.h - the operations that blocks, loss and optimizer are made of, on the buffers of one device.
//
// block.cpp, trainer.cpp and optimizer.cpp know nothing of threads, tiles or vector widths; a second device implements this
// class. Matrices are row-major and contiguous, [rows][columns]; t or n counts rows. Results depend only on the arguments
// and, where noted at the implementation, on the number of threads: no operation adds in an order that timing decides.
#pragma once

#include "cpu/attention.h"
#include "model.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cft {

// linear_group is frozen linear maps that share an input, each perhaps with an adapter:
//     y_m = x W_mᵀ + scale * h_m B_mᵀ,  h_m = dropout_m(x) A_mᵀ.
struct linear_group {
    struct module {
        int           id = 0; // index of its CFT_TARGET_ bit, also its number in dropout's counter
        const weight *w  = nullptr;
        const float  *a = nullptr, *b = nullptr; // [rank][in], [out][rank]; NULL without an adapter
        float        *da = nullptr, *db = nullptr;
    };
    std::vector<module> modules;
    int                 rank  = 0;
    float               scale = 0;
    // A of all adapted modules, one after the other, and its gradient; h has as many columns.
    const float *a  = nullptr;
    float       *da = nullptr;
    int64_t      h_columns = 0; // rank * adapted modules

    int64_t inputs() const { return modules[0].w->cols; }
};

// dropout names the random numbers of one layer in one micro-batch; see cpu/random.h.
struct dropout {
    float    probability = 0; // 0 turns it off
    uint64_t seed        = 0;
    uint64_t micro_batch = 0;
    int      layer       = 0;
};

struct adamw_step {
    float gradient_scale; // applied to the accumulated gradient first
    float lr, beta1, beta2, eps, weight_decay;
    float correction1, correction2; // 1 - beta^step
};

class ops {
  public:
    virtual ~ops() = default;

    // x[i] = row tokens[i] of table.
    virtual void embed(const weight &table, const int32_t *tokens, int64_t n, float *x) = 0;
    // The table that rope reads: [n][2 * frequencies], cosines of positions[i] * frequencies[j] first, then sines.
    virtual void rope_table(const int32_t *positions, int64_t n, const std::vector<float> &frequencies, float *table) = 0;

    virtual void copy(const float *from, int64_t n_floats, float *to) = 0;
    virtual void zero(float *x, int64_t n_floats) = 0;
    // to[i] = from[rows[i]], and to[rows[i]] += from[i]; rows ascend.
    virtual void gather(const float *from, const std::vector<int32_t> &rows, int64_t columns, float *to) = 0;
    virtual void scatter_add(const float *from, const std::vector<int32_t> &rows, int64_t columns, float *to) = 0;

    virtual void rmsnorm(const float *x, const std::vector<float> &w, int64_t n, float eps, float *y) = 0;
    // dx += the gradient at x for the gradient dy at y.
    virtual void rmsnorm_backward(const float *dy, const float *x, const std::vector<float> &w, int64_t n, float eps, float *dx) = 0;

    // Rotates the heads of n rows in place; row i is token rows[i], or token i if rows is NULL. direction -1 turns back.
    virtual void rope(float *x, int64_t n, const int32_t *rows, int n_head, int head_dim, int n_rot, const float *table, int direction) = 0;

    virtual void swiglu(const float *gate, const float *up, int64_t n_floats, float *act) = 0;
    // d_gate may be d_act.
    virtual void swiglu_backward(const float *d_act, const float *gate, const float *up, int64_t n_floats, float *d_gate, float *d_up) = 0;

    // One y per module; add: y += instead of y =. h [t][h_columns] is written for the backward pass. With y == NULL only
    // h is computed.
    virtual void linear(const linear_group &g, const dropout &drop, const float *x, int64_t t, float *const *y, bool add, float *h) = 0;
    // Adds to da and db; dx (NULL: not wanted) is set, or added to with add. u [t][h_columns] is scratch.
    virtual void linear_backward(const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *const *dy,
                                 const float *h, float *u, float *dx, bool add) = 0;

    virtual void attention(const cpu::attention_shape &shape, const cpu::attention_mask &mask, const cpu::attention_forward_args &args) = 0;
    virtual void attention_backward(const cpu::attention_shape &shape, const cpu::attention_mask &mask,
                                    const cpu::attention_backward_args &args) = 0;

    // logits [n][w.rows] = x wᵀ. Rows of logits are `stride` floats apart, here and below.
    virtual void logits(const weight &w, const float *x, int64_t n, float *out, int64_t stride) = 0;
    // losses[i] = weights[i] * -log softmax(logits[i])[targets[i]]. With gradient, logits become the gradient of losses.
    virtual void cross_entropy(float *logits, int64_t n, int64_t n_vocab, int64_t stride, const int32_t *targets, const float *weights, bool gradient,
                               double *losses) = 0;
    // dx [n][w.cols] = d_logits w.
    virtual void logits_backward(const weight &w, const float *d_logits, int64_t stride, int64_t n, float *dx) = 0;

    virtual double sum_of_squares(const float *x, int64_t n_floats) = 0;
    virtual void   adamw(const adamw_step &step, float *value, const float *gradient, float *moment1, float *moment2, int64_t n_floats) = 0;
};

} // namespace cft
