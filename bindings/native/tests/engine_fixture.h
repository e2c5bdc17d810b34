// engine_fixture.h - a loaded model and a trainer, with the calls of cft.h in shapes that tests read easily.
#pragma once

#include "tiny_model.h"

#include <memory>

namespace tiny {

struct loaded {
    cft_model *handle = nullptr;
    explicit loaded(const model &m) { OK(cft_model_load(m.path.data(), m.path.size(), "cpu", 3, &handle, &checks::err)); }
    ~loaded() { cft_model_free(handle); }
    loaded(const loaded &)            = delete;
    loaded &operator=(const loaded &) = delete;
};

inline cft_trainer_params some_params() {
    cft_trainer_params p{};
    p.rank       = 3;
    p.alpha      = 6;
    p.targets    = CFT_TARGET_ALL_LINEAR;
    p.seed       = 5;
    p.max_tokens = 64;
    p.n_threads  = 2;
    p.beta1      = 0.9f;
    p.beta2      = 0.999f;
    p.eps        = 1e-8f;
    return p;
}

using gradients = std::map<std::string, std::vector<float>>;

struct trainer {
    cft_trainer *handle = nullptr;

    trainer(const loaded &m, const cft_trainer_params &p, const std::vector<cft_module> &modules = {}) : trainer(m.handle, p, modules) {}
    trainer(const cft_model *m, const cft_trainer_params &p, const std::vector<cft_module> &modules = {}) {
        OK(cft_trainer_new(m, &p, modules.data(), modules.size(), &handle, &checks::err));
    }
    ~trainer() { cft_trainer_free(handle); }
    trainer(const trainer &)            = delete;
    trainer &operator=(const trainer &) = delete;

    gradients read(cft_slot slot) const {
        gradients all;
        for (size_t i = 0; i < cft_trainer_tensor_count(handle); i++) {
            cft_tensor_info info;
            OK(cft_trainer_tensor_info(handle, i, &info, &checks::err));
            auto &v = all[info.name];
            v.resize(info.rows * info.cols);
            OK(cft_trainer_tensor_read(handle, i, slot, v.data(), v.size(), &checks::err));
        }
        return all;
    }
    void write(cft_slot slot, const gradients &values) {
        for (size_t i = 0; i < cft_trainer_tensor_count(handle); i++) {
            cft_tensor_info info;
            OK(cft_trainer_tensor_info(handle, i, &info, &checks::err));
            const auto found = values.find(info.name);
            if (found != values.end()) {
                OK(cft_trainer_tensor_write(handle, i, slot, found->second.data(), found->second.size(), &checks::err));
            }
        }
    }
    // Random values for A and B; B = 0 would leave A without a gradient.
    adapter randomize() {
        adapter   lora;
        gradients values = read(CFT_SLOT_VALUE);
        for (auto &[name, v] : values) {
            const bool magnitude = name.find(".lora_magnitude") != std::string::npos;
            const auto random    = checks::random_floats(v.size(), 0.15f);
            for (size_t i = 0; i < v.size(); i++) {
                v[i] = magnitude ? v[i] * (1 + random[i]) : random[i];
            }
            lora[name] = doubles(v.begin(), v.end());
        }
        write(CFT_SLOT_VALUE, values);
        return lora;
    }
    double accumulate(const batch &b) {
        double loss = NAN;
        size_t n    = 0;
        OK(cft_trainer_accumulate(handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(), b.weights.data(),
                                  b.size(), &loss, &n, &checks::err));
        CHECK(n == b.rows().size());
        return loss;
    }
    double evaluate(const batch &b) {
        double loss = NAN;
        size_t n    = 0;
        OK(cft_trainer_evaluate(handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(), b.weights.data(),
                                b.size(), &loss, &n, &checks::err));
        return loss;
    }
    // The gradient of one pack alone.
    gradients gradient(const batch &b) {
        cft_trainer_discard(handle);
        accumulate(b);
        return read(CFT_SLOT_GRADIENT);
    }
};

// Float gradients against central differences of the double loss with step 1e-4.
constexpr double slope_tolerance = 5e-5, slope_step = 1e-4;

inline batch mixed_batch(int n_vocab) {
    batch b;
    b.add_segment(9, n_vocab, 0.6);
    b.add_segment(14, n_vocab, 0.3);
    b.add_segment(5, n_vocab, 1.0);
    return b;
}

inline double slope_along(const reference &r, const adapter &lora, const batch &b, const std::string &name, const doubles &direction) {
    adapter at = lora;
    double  side[2];
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < direction.size(); i++) {
            at[name][i] = lora.at(name)[i] + (s == 0 ? slope_step : -slope_step) * direction[i];
        }
        side[s] = r.loss(at, b);
    }
    return (side[0] - side[1]) / (2 * slope_step);
}

// Checks every tensor's gradient along a random direction and at its largest element.
inline void check_slopes(const reference &r, const adapter &lora, const batch &b, const gradients &g) {
    for (const auto &[tensor, values] : g) {
        doubles direction(values.size());
        for (double &d : direction) {
            d = checks::random_int(0, 1) ? 1.0 : -1.0;
        }
        const double length = checks::norm(values);
        CHECK(length > 1e-4); // every adapter tensor has a say in the loss
        CHECK_NEAR(slope_along(r, lora, b, tensor, direction), checks::dot(doubles(values.begin(), values.end()), direction), length, slope_tolerance);
        const size_t largest = size_t(std::max_element(values.begin(), values.end(), [](float a, float c) { return std::fabs(a) < std::fabs(c); }) - values.begin());
        doubles      single(values.size(), 0.0);
        single[largest] = 1.0;
        CHECK_NEAR(slope_along(r, lora, b, tensor, single), double(values[largest]), length, slope_tolerance);
    }
}

// The largest relative difference of two gradients, tensor by tensor.
inline double worst_tensor(const gradients &a, const gradients &b) {
    double w = a.size() == b.size() ? 0 : INFINITY;
    for (const auto &[name, v] : b) {
        std::vector<float> difference = v;
        for (size_t i = 0; i < v.size(); i++) {
            difference[i] -= a.at(name)[i];
        }
        w = checks::larger(w, checks::norm(difference) / std::max(checks::norm(v), 1e-12));
    }
    return w;
}

} // namespace tiny
