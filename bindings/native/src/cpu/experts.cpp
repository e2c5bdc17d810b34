// experts.cpp - the operations of mixtures of experts: a router's choice and its gradient, rows weighted by their share.
#include "ops.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace cft::cpu {

void cpu_ops::softmax(float *probabilities, int64_t n, int64_t n_expert) {
    divide(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            float *const row     = probabilities + i * n_expert;
            const float  largest = *std::max_element(row, row + n_expert);
            float        sum     = 0;
            for (int64_t e = 0; e < n_expert; e++) {
                row[e] = std::exp(row[e] - largest);
                sum += row[e];
            }
            for (int64_t e = 0; e < n_expert; e++) {
                row[e] /= sum;
            }
        }
    });
}

void cpu_ops::choose(const float *probabilities, int64_t n, int64_t n_expert, int n_used, expert_choice &choice) {
    choice.n_used = n_used;
    choice.expert.resize(size_t(n * n_used));
    choice.share.resize(size_t(n * n_used));
    divide(n, 1, [&](int64_t begin, int64_t end) {
        std::vector<int32_t> order(static_cast<size_t>(n_expert));
        for (int64_t i = begin; i < end; i++) {
            const float *const row = probabilities + i * n_expert;
            std::iota(order.begin(), order.end(), 0);
            std::partial_sort(order.begin(), order.begin() + n_used, order.end(),
                              [&](int32_t a, int32_t b) { return row[a] > row[b] || (!(row[a] < row[b]) && a < b); });
            float sum = 0;
            for (int k = 0; k < n_used; k++) {
                sum += row[order[size_t(k)]];
            }
            for (int k = 0; k < n_used; k++) {
                choice.expert[size_t(i * n_used + k)] = order[size_t(k)];
                choice.share[size_t(i * n_used + k)]  = row[order[size_t(k)]] / sum;
            }
        }
    });
}

// The shares are the softmax over the chosen experts' logits alone, so the others get no gradient.
void cpu_ops::choose_backward(const expert_choice &choice, const std::vector<float> &d_share, int64_t n, int64_t n_expert, float *d_logits) {
    const int64_t used = choice.n_used;
    divide(n, 1, [&](int64_t begin, int64_t end) {
        std::fill(d_logits + begin * n_expert, d_logits + end * n_expert, 0.0f);
        for (int64_t i = begin; i < end; i++) {
            const float *const share = choice.share.data() + i * used, *const d = d_share.data() + i * used;
            const float        mean = float(kernels_.dot(share, d, size_t(used)));
            for (int64_t k = 0; k < used; k++) {
                d_logits[i * n_expert + choice.expert[size_t(i * used + k)]] = share[k] * (d[k] - mean);
            }
        }
    });
}

void cpu_ops::scatter_add_scaled(const float *from, const std::vector<int32_t> &rows, const std::vector<float> &scales, int64_t columns,
                                 float *to) {
    divide(int64_t(rows.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            kernels_.add_scaled(to + rows[size_t(i)] * columns, from + i * columns, scales[size_t(i)], size_t(columns));
        }
    });
}

void cpu_ops::dot_and_scale(float *x, const float *y, const std::vector<float> &scales, int64_t columns, float *products) {
    divide(int64_t(scales.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            products[i] = float(kernels_.dot(x + i * columns, y + i * columns, size_t(columns)));
            kernels_.scale(x + i * columns, scales[size_t(i)], size_t(columns));
        }
    });
}

} // namespace cft::cpu
