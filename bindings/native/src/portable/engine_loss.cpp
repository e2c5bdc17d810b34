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

// What the head's adapter sees of x, [n_embd, rows], as a module of the layer after the last; or the gradient that comes back that way.
ggml_tensor *engine::head_sees(ggml_context *c, const journey &j, ggml_tensor *x) const {
    return j.drop.probability > 0 ? ggml_mul(c, x, slice(c, head_drawn_, 0, x->ne[1])) : x;
}

// Leaves the logits of target rows [first, first + n) in logits_. A graph of its own: what follows reads them all.
void engine::head(const journey &j, int64_t first, int64_t n) {
    draw(j, head_drawn_, hp_.n_layer, 0, first, n);
    graph              g(64 + 16 * tiles_of(hp_.n_vocab, vocab_rows_));
    ggml_context      *c = g.ctx();
    ggml_tensor *const x = rmsnorm(c, slice(c, x_.back(), first, n), output_norm_, hp_.rms_eps);
    ggml_tensor *const h = head_.a ? ggml_scale(c, product(c, head_.a, head_sees(c, j, x)), head_.scale) : nullptr;
    for (int64_t row = 0; row < hp_.n_vocab; row += vocab_rows_) {
        const int64_t      rows = std::min(vocab_rows_, hp_.n_vocab - row);
        ggml_tensor       *part = product(c, widen(c, output_, iota_, row, rows), x);
        if (h) {
            part = ggml_add(c, part, product(c, slice(c, head_.b, row, rows), h));
        }
        ggml_tensor *const to   = ggml_view_2d(c, logits_, rows, n, logits_->nb[1], size_t(row) * sizeof(float));
        g.add(ggml_cpy(c, part, to));
    }
    machine_.run(g);
}

// The gradient at x, the normed rows, of logits whose gradient is d_logits; NULL where nothing below the head is trained.
ggml_tensor *engine::head_backward(graph &g, const journey &j, ggml_tensor *x, ggml_tensor *d_logits) {
    ggml_context      *c      = g.ctx();
    const bool         wanted = lowest_ < hp_.n_layer;
    ggml_tensor       *dx = nullptr, *u = nullptr;
    ggml_tensor *const seen = head_.a ? head_sees(c, j, x) : nullptr;
    ggml_tensor *const h    = head_.a ? ggml_scale(c, product(c, head_.a, seen), head_.scale) : nullptr;
    const auto         sum  = [&](ggml_tensor *a, ggml_tensor *b) { return a ? ggml_add(c, a, b) : b; };
    for (int64_t row = 0; row < hp_.n_vocab; row += vocab_rows_) {
        const int64_t      rows = std::min(vocab_rows_, hp_.n_vocab - row);
        ggml_tensor *const d    = ggml_cont(c, ggml_view_2d(c, d_logits, rows, x->ne[1], d_logits->nb[1], size_t(row) * sizeof(float)));
        if (wanted) {
            dx = sum(dx, product(c, transposed(c, widen(c, output_, iota_, row, rows)), d));
        }
        if (head_.a) {
            u = sum(u, product(c, transposed(c, slice(c, head_.b, row, rows)), d));
            g.add(ggml_add_inplace(c, slice(c, head_.db, row, rows), product_over_rows(c, h, d)));
        }
    }
    if (head_.a) {
        u = ggml_scale(c, u, head_.scale);
        g.add(ggml_add_inplace(c, head_.da, product_over_rows(c, seen, u)));
        dx = wanted ? ggml_add(c, dx, head_sees(c, j, product(c, transposed(c, head_.a), u))) : nullptr;
    }
    return dx;
}

// Returns the weighted sum of losses and, for backward, leaves in d_ the gradient at the last layer's output.
double engine::loss_chunk(const journey &j, int64_t first, int64_t n, bool backward) {
    std::vector<int32_t> at(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++) {
        at[size_t(i)] = int32_t(i * hp_.n_vocab + j.targets[size_t(first + i)]);
    }
    set(target_at_, at.data(), at.size() * sizeof(int32_t));
    set(target_weights_, j.weights.data() + first, size_t(n) * sizeof(float));
    graph         g(128 + 32 * tiles_of(hp_.n_vocab, vocab_rows_));
    ggml_context *c = g.ctx();
    ggml_tensor *const weights = ggml_view_2d(c, target_weights_, 1, n, target_weights_->nb[1], 0);
    const loss_parts   parts   = cross_entropy(c, slice(c, logits_, 0, n), slice(c, target_at_, 0, n), weights, hp_.logit_cap, backward);
    ggml_tensor *const probabilities = g.result(parts.probabilities);
    if (backward) {
        ggml_tensor *const last = slice(c, x_.back(), first, n);
        ggml_tensor *const x    = head_.a ? rmsnorm(c, last, output_norm_, hp_.rms_eps) : last; // only an adapter wants to know it
        if (ggml_tensor *const dx = head_backward(g, j, x, parts.d_logits)) {
            g.add(ggml_cpy(c, rmsnorm_backward(c, dx, last, output_norm_, hp_.rms_eps), slice(c, d_, first, n)));
        }
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
