// ops.cpp - element-wise and row-wise operations, attention, loss and optimizer; the linear maps are in lora.cpp.
#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace cft::cpu {

namespace {

constexpr int64_t by_vector = 16;      // floats: the widest vector
constexpr int64_t sum_block = 1 << 16; // floats summed at a time, so that sums do not depend on the number of threads

} // namespace

cpu_ops::cpu_ops(int n_threads, const attention_shape &shape, int64_t max_tokens)
    : kernels_(rows()), product_(*product_kernels_of(best_isa())), scratch_(scratch::floats * size_t(n_threads)),
      attention_((attention_workspace_bytes(shape, size_t(max_tokens), size_t(max_tokens), n_threads) + sizeof(float) - 1) / sizeof(float)),
      pool_(n_threads) {}

size_t cpu_ops::scratch_bytes(int n_threads, const attention_shape &shape, int64_t max_tokens) {
    return scratch::floats * size_t(n_threads) * sizeof(float) + attention_workspace_bytes(shape, size_t(max_tokens), size_t(max_tokens), n_threads);
}

scratch cpu_ops::scratch_of(int ith) const {
    float *const start = scratch_.data() + size_t(ith) * scratch::floats;
    return {start, start + products::scratch_floats};
}

void cpu_ops::embed(const weight &table, const int32_t *tokens, int64_t n, float scale, float *x) {
    divide(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            table.dequantize(tokens[i], 0, table.cols, x + i * table.cols);
            if (scale != 1.0f) {
                kernels_.scale(x + i * table.cols, scale, size_t(table.cols));
            }
        }
    });
}

void cpu_ops::rope_table(const int32_t *positions, int64_t n, const rope_set &set, float *table) {
    const size_t half = set.frequencies.size();
    divide(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            float *const row = table + size_t(i) * 2 * half;
            for (size_t j = 0; j < half; j++) {
                const float angle = float(positions[i]) * set.frequencies[j];
                row[j]            = std::cos(angle) * set.amplitude;
                row[half + j]     = std::sin(angle) * set.amplitude;
            }
        }
    });
}

void cpu_ops::copy(const float *from, int64_t n_floats, float *to) {
    divide(n_floats, by_vector, [&](int64_t begin, int64_t end) { std::memcpy(to + begin, from + begin, size_t(end - begin) * sizeof(float)); });
}

void cpu_ops::zero(float *x, int64_t n_floats) {
    divide(n_floats, by_vector, [&](int64_t begin, int64_t end) { std::memset(x + begin, 0, size_t(end - begin) * sizeof(float)); });
}

void cpu_ops::gather(const float *from, const std::vector<int32_t> &rows, int64_t columns, float *to) {
    divide(int64_t(rows.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            std::memcpy(to + i * columns, from + rows[size_t(i)] * columns, size_t(columns) * sizeof(float));
        }
    });
}

void cpu_ops::scatter_add(const float *from, const std::vector<int32_t> &rows, int64_t columns, float *to) {
    divide(int64_t(rows.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            kernels_.add(to + rows[size_t(i)] * columns, from + i * columns, size_t(columns));
        }
    });
}

void cpu_ops::add(const float *x, int64_t n_floats, float *y) {
    divide(n_floats, by_vector, [&](int64_t begin, int64_t end) { kernels_.add(y + begin, x + begin, size_t(end - begin)); });
}

void cpu_ops::add_bias(const std::vector<float> &bias, int64_t n, float *y) {
    divide(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            kernels_.add(y + i * int64_t(bias.size()), bias.data(), bias.size());
        }
    });
}

void cpu_ops::rmsnorm(const float *x, const std::vector<float> &w, int64_t n, float eps, float *y) {
    const int64_t d = int64_t(w.size());
    divide(n, 1, [&](int64_t begin, int64_t end) { kernels_.rmsnorm(x + begin * d, w.data(), y + begin * d, size_t(end - begin), w.size(), eps); });
}

void cpu_ops::rmsnorm_backward(const float *dy, const float *x, const std::vector<float> &w, int64_t n, float eps, float *dx) {
    const int64_t d = int64_t(w.size());
    divide(n, 1, [&](int64_t begin, int64_t end) {
        kernels_.rmsnorm_backward(dy + begin * d, x + begin * d, w.data(), dx + begin * d, size_t(end - begin), w.size(), eps);
    });
}

void cpu_ops::rope(float *x, int64_t n, const int32_t *rows, int n_head, int head_dim, int n_rot, bool halves, const float *table,
                   int direction) {
    const int64_t width  = int64_t(n_head) * head_dim;
    const auto    rotate = halves ? kernels_.rope_halves : kernels_.rope;
    divide(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t token = rows ? rows[i] : i;
            rotate(x + i * width, 1, size_t(n_head), size_t(head_dim), size_t(n_rot), table + token * n_rot, float(direction));
        }
    });
}

void cpu_ops::gated(bool gelu, const float *gate, const float *up, int64_t n_floats, float *act) {
    const auto kernel = gelu ? kernels_.geglu : kernels_.swiglu;
    divide(n_floats, by_vector, [&](int64_t begin, int64_t end) { kernel(gate + begin, up + begin, act + begin, size_t(end - begin)); });
}

void cpu_ops::gated_backward(bool gelu, const float *d_act, const float *gate, const float *up, int64_t n_floats, float *d_gate, float *d_up) {
    const auto kernel = gelu ? kernels_.geglu_backward : kernels_.swiglu_backward;
    divide(n_floats, by_vector, [&](int64_t begin, int64_t end) {
        kernel(d_act + begin, gate + begin, up + begin, d_gate + begin, d_up + begin, size_t(end - begin));
    });
}

void cpu_ops::attention(const attention_shape &shape, const attention_mask &mask, const attention_forward_args &args) {
    attention_forward(shape, mask, args, attention_.data(), pool_);
}

void cpu_ops::attention_backward(const attention_shape &shape, const attention_mask &mask, const attention_backward_args &args) {
    cpu::attention_backward(shape, mask, args, attention_.data(), pool_);
}

void cpu_ops::logits(const weight &w, const float *x, int64_t n, float *out, int64_t stride) {
    pool_.run([&](int ith, int nth) {
        frozen_forward(product_, w, x, share_product(n, w.rows, product_.panel, ith, nth), false, {}, out, stride, scratch_of(ith));
    });
}

void cpu_ops::soft_cap(float *x, int64_t n, int64_t n_vocab, int64_t stride, float cap) {
    divide(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            kernels_.soft_cap(x + i * stride, size_t(n_vocab), cap);
        }
    });
}

void cpu_ops::cross_entropy(float *logits, int64_t n, int64_t n_vocab, int64_t stride, const int32_t *targets, const float *weights, float cap,
                            bool gradient, double *losses) {
    divide(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            float *const row    = logits + i * stride;
            const size_t target = size_t(targets[i]), v = size_t(n_vocab);
            if (cap > 0) {
                kernels_.soft_cap(row, v, cap);
            }
            double loss = 0;
            if (!gradient) {
                loss = kernels_.cross_entropy_loss(row, v, target);
            } else if (cap > 0) {
                loss = kernels_.cross_entropy_capped(row, v, target, weights[i], cap);
            } else {
                loss = kernels_.cross_entropy(row, v, target, weights[i]);
            }
            losses[i] = double(weights[i]) * loss;
        }
    });
}

void cpu_ops::logits_backward(const weight &w, const float *d_logits, int64_t stride, int64_t n, float *dx) {
    const int64_t step = std::max<int64_t>(product_.panel, w.block());
    pool_.run([&](int ith, int nth) {
        frozen_backward(product_, w, d_logits, stride, share_product(n, w.cols, step, ith, nth), false, dx, scratch_of(ith));
    });
}

double cpu_ops::sum_of_squares(const float *x, int64_t n_floats) {
    std::vector<double> partial(size_t((n_floats + sum_block - 1) / sum_block));
    divide(int64_t(partial.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; b++) {
            partial[size_t(b)] = kernels_.sum_of_squares(x + b * sum_block, size_t(std::min(n_floats - b * sum_block, sum_block)));
        }
    });
    double sum = 0;
    for (double part : partial) {
        sum += part;
    }
    return sum;
}

void cpu_ops::adamw(const adamw_step &s, float *value, const float *gradient, float *moment1, float *moment2, int64_t n_floats) {
    divide(n_floats, by_vector, [&](int64_t begin, int64_t end) {
        kernels_.adamw(value + begin, gradient + begin, moment1 + begin, moment2 + begin, size_t(end - begin), s.gradient_scale, s.lr,
                       s.beta1, s.beta2, s.eps, s.weight_decay, s.correction1, s.correction2);
    });
}

} // namespace cft::cpu
