// rows.h - row-wise kernels of the CPU engine, in one version per instruction set, chosen at run time.
#pragma once

#include "isa.h"
#include "random.h"

#include <cstddef>
#include <cstdint>

namespace cft::cpu {

// All matrices are row-major and contiguous unless a stride is named.
struct row_kernels {
    // y[i] = x[i] / rms(x[i]) * w, for n rows of d.
    void (*rmsnorm)(const float *x, const float *w, float *y, size_t n, size_t d, float eps);
    // dx[i] += the gradient of rmsnorm at x[i] for the output gradient dy[i].
    void (*rmsnorm_backward)(const float *dy, const float *x, const float *w, float *dx, size_t n, size_t d, float eps);
    // Rotates pairs (2j, 2j+1), j < n_rot/2, of every head of every row by its angle; cos_sin: [n][n_rot], cosines first.
    // sign -1 rotates back.
    void (*rope)(float *x, size_t n, size_t n_head, size_t head_dim, size_t n_rot, const float *cos_sin, float sign);
    // The same for pairs (j, j + n_rot/2).
    void (*rope_halves)(float *x, size_t n, size_t n_head, size_t head_dim, size_t n_rot, const float *cos_sin, float sign);
    // act = silu(gate) * up, n elements.
    void (*swiglu)(const float *gate, const float *up, float *act, size_t n);
    // d_gate and d_up of the above for d_act; d_gate may be d_act.
    void (*swiglu_backward)(const float *d_act, const float *gate, const float *up, float *d_gate, float *d_up, size_t n);
    // The same two with gelu, in its tanh form, for silu.
    void (*geglu)(const float *gate, const float *up, float *act, size_t n);
    void (*geglu_backward)(const float *d_act, const float *gate, const float *up, float *d_gate, float *d_up, size_t n);
    // x = cap * tanh(x / cap), n elements.
    void (*soft_cap)(float *x, size_t n, float cap);
    // Turns one row of v logits into weight * (softmax - onehot(target)), returns -log softmax[target].
    double (*cross_entropy)(float *logits, size_t v, size_t target, float weight);
    // The same for logits that went through soft_cap: the gradient is that before it.
    double (*cross_entropy_capped)(float *logits, size_t v, size_t target, float weight, float cap);
    // The loss without the gradient.
    double (*cross_entropy_loss)(const float *logits, size_t v, size_t target);
    // y += x, n elements.
    void (*add)(float *y, const float *x, size_t n);
    // x *= s, n elements.
    void (*scale)(float *x, float s, size_t n);
    // y += s * x, n elements.
    void (*add_scaled)(float *y, const float *x, float s, size_t n);
    // The sum of x * y, n elements.
    double (*dot)(const float *x, const float *y, size_t n);
    // out = x * y, and sum += x * y, n elements.
    void (*multiply)(const float *x, const float *y, float *out, size_t n);
    void (*multiply_add)(const float *x, const float *y, float *sum, size_t n);
    // mask[i] is 0 where the random word of column first + i is below threshold, else keep; first is a multiple of 4. See
    // random.h for the counter, whose first word is advanced.
    void (*dropout_mask)(uint64_t key, philox_counter counter, uint32_t threshold, float keep, size_t first, size_t n, float *mask);
    double (*sum_of_squares)(const float *x, size_t n);
    // AdamW of n elements: g is the accumulated gradient, scaled by g_scale; c1, c2 are 1 - beta^t.
    void (*adamw)(float *p, const float *g, float *m, float *v, size_t n, float g_scale, float lr, float beta1, float beta2,
                  float eps, float weight_decay, float c1, float c2);
};

// The kernels of one instruction set; NULL if this CPU cannot run them.
const row_kernels *rows_of(isa i);
const row_kernels &rows(); // this CPU's best

} // namespace cft::cpu
