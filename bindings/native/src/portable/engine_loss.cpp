// engine_loss.cpp - the head and the loss, for some target rows at a time.
#include "journey.h"

#include <algorithm>
#include <cmath>

namespace cft::portable {
namespace {

// Below this the probability of a target, as the device computes it, says little; the row's logits then do.
constexpr float least_probability = 1e-30f;

int64_t tiles_of(int64_t n, int64_t step) { return (n + step - 1) / step; }

} // namespace

// Leaves the logits of target rows [first, first + n) in logits_. A graph of its own: what follows reads them all.
void engine::head(const journey &, int64_t first, int64_t n) {
    graph              g(64 + 16 * tiles_of(hp_.n_vocab, vocab_rows_));
    ggml_context      *c = g.ctx();
    ggml_tensor *const x = rmsnorm(c, slice(c, x_.back(), first, n), output_norm_, hp_.rms_eps);
    for (int64_t row = 0; row < hp_.n_vocab; row += vocab_rows_) {
        const int64_t      rows = std::min(vocab_rows_, hp_.n_vocab - row);
        ggml_tensor *const to   = ggml_view_2d(c, logits_, rows, n, logits_->nb[1], size_t(row) * sizeof(float));
        g.add(ggml_cpy(c, product(c, widen(c, output_, iota_, row, rows), x), to));
    }
    machine_.run(g);
}

// Returns the weighted sum of losses and, for backward, leaves in d_ the gradient at the last layer's output.
double engine::loss_chunk(const journey &j, int64_t first, int64_t n, bool backward) {
    std::vector<int32_t> at(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++) {
        at[size_t(i)] = int32_t(i * hp_.n_vocab + j.targets[size_t(first + i)]);
    }
    set(target_at_, at.data(), at.size() * sizeof(int32_t));
    set(target_weights_, j.weights.data() + first, size_t(n) * sizeof(float));
    graph         g(128 + 16 * tiles_of(hp_.n_vocab, vocab_rows_));
    ggml_context *c = g.ctx();
    ggml_tensor *const weights = ggml_view_2d(c, target_weights_, 1, n, target_weights_->nb[1], 0);
    const loss_parts   parts   = cross_entropy(c, slice(c, logits_, 0, n), slice(c, target_at_, 0, n), weights, hp_.logit_cap, backward);
    ggml_tensor *const probabilities = g.result(parts.probabilities);
    if (backward) {
        ggml_tensor *dx = nullptr;
        for (int64_t row = 0; row < hp_.n_vocab; row += vocab_rows_) {
            const int64_t      rows = std::min(vocab_rows_, hp_.n_vocab - row);
            ggml_tensor *const d    = ggml_cont(c, ggml_view_2d(c, parts.d_logits, rows, n, parts.d_logits->nb[1], size_t(row) * sizeof(float)));
            ggml_tensor *const part = product(c, transposed(c, widen(c, output_, iota_, row, rows)), d);
            dx = dx ? ggml_add(c, dx, part) : part;
        }
        ggml_tensor *const d = rmsnorm_backward(c, dx, slice(c, x_.back(), first, n), output_norm_, hp_.rms_eps);
        g.add(ggml_cpy(c, d, slice(c, d_, first, n)));
    }
    machine_.run(g);
    if (!computes()) {
        return 0;
    }
    std::vector<float> p(static_cast<size_t>(n));
    ggml_backend_tensor_get(probabilities, p.data(), 0, p.size() * sizeof(float));
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const double loss = p[size_t(i)] < least_probability ? loss_of_row(j, first, i) : -std::log(double(p[size_t(i)]));
        sum += double(j.weights[size_t(first + i)]) * loss;
    }
    return sum;
}

double engine::loss_of_row(const journey &j, int64_t first, int64_t row) const {
    std::vector<float> logits(static_cast<size_t>(hp_.n_vocab));
    ggml_backend_tensor_get(logits_, logits.data(), size_t(row) * logits_->nb[1], logits.size() * sizeof(float));
    const auto   value = [&](float x) { return hp_.logit_cap > 0 ? double(hp_.logit_cap) * std::tanh(double(x) / double(hp_.logit_cap)) : double(x); };
    const double most  = value(*std::max_element(logits.begin(), logits.end()));
    double       sum   = 0;
    for (float x : logits) {
        sum += std::exp(value(x) - most);
    }
    return std::log(sum) + most - value(logits[size_t(j.targets[size_t(first + row)])]);
}

} // namespace cft::portable
