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

    trainer(const loaded &m, const cft_trainer_params &p) : trainer(m.handle, p) {}
    trainer(const cft_model *m, const cft_trainer_params &p) { OK(cft_trainer_new(m, &p, &handle, &checks::err)); }
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
            v          = checks::random_floats(v.size(), 0.15f);
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

// The largest relative difference of two gradients, tensor by tensor.
inline double worst_tensor(const gradients &a, const gradients &b) {
    double w = a.size() == b.size() ? 0 : INFINITY;
    for (const auto &[name, v] : b) {
        std::vector<float> difference = v;
        for (size_t i = 0; i < v.size(); i++) {
            difference[i] -= a.at(name)[i];
        }
        w = std::max(w, checks::norm(difference) / std::max(checks::norm(v), 1e-12));
    }
    return w;
}

} // namespace tiny
