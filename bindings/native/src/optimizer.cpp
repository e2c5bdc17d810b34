// optimizer.cpp - the optimizer step: norm, clipping, AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization"),
// in the order and with the rounding of torch.optim.AdamW and torch.nn.utils.clip_grad_norm_.
#include "failure.h"
#include "trainer.h"

#include <cmath>

using namespace cft;

namespace {

constexpr double clip_eps = 1e-6; // torch's, added to the norm
}

void cft_trainer::discard() {
    if (device) {
        device->discard();
    } else {
        ops_->zero(gradient.data(), int64_t(gradient.size()));
    }
}

void cft_trainer::apply(float lr, float max_grad_norm, double normalizer, double *grad_norm) {
    if (!(normalizer > 0) || !std::isfinite(normalizer)) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "the normalizer must be a positive number");
    }
    if (!std::isfinite(lr) || lr < 0 || !std::isfinite(max_grad_norm) || max_grad_norm < 0) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "lr and max_grad_norm must be finite and at least 0");
    }
    const int64_t n    = int64_t(plan.n_params);
    const double  norm = std::sqrt(device ? device->sum_of_squares() : ops_->sum_of_squares(gradient.data(), n)) / normalizer;
    if (!std::isfinite(norm)) {
        throw failure(CFT_ERR_NON_FINITE, "the gradient is not finite");
    }
    double scale = 1.0 / normalizer;
    if (max_grad_norm > 0 && norm + clip_eps > double(max_grad_norm)) {
        scale *= double(max_grad_norm) / (norm + clip_eps);
    }
    const double steps = double(n_steps + 1);
    adamw_step   step{float(scale), lr, params.beta1, params.beta2, params.eps, params.weight_decay,
                      float(1.0 - std::pow(double(params.beta1), steps)), float(1.0 - std::pow(double(params.beta2), steps))};
    const auto   take = [&](size_t at, size_t floats) {
        ops_->adamw(step, value.data() + at, gradient.data() + at, moment1.data() + at, moment2.data() + at, int64_t(floats));
    };
    const bool one_rate = params.lora_plus_ratio == 0 || params.lora_plus_ratio == 1.0f;
    if (device) {
        device->adamw(step); // it knows the ratio
    } else if (one_rate) {
        take(0, plan.n_params);
    } else {
        for (const tensor &t : tensors) {
            step.lr = learning_rate(params, t.kind, t.module, lr);
            take(t.offset, t.rows * t.cols);
        }
    }
    gains_stale = true;
    discard();
    n_steps++;
    *grad_norm = norm;
}
