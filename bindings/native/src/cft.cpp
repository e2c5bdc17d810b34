// cft.cpp - the door: every function of cft.h that concerns models and trainers.
#include "cft.h"

#include "blas.h"
#include "cpu/linear.h"
#include "device_trainer.h"
#include "failure.h"
#include "file_faults.h"
#include "pool.h"
#include "trainer.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>

using namespace cft;

namespace {

template <typename T> T &need(T *handle, const char *what) {
    if (!handle) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, std::string(what) + " is NULL");
    }
    return *handle;
}

void copy_text(char *dst, size_t capacity, const std::string &text) {
    std::memset(dst, 0, capacity);
    std::memcpy(dst, text.data(), std::min(text.size(), capacity - 1));
}

const cft_trainer::tensor &tensor_at(const cft_trainer &trainer, size_t index) {
    if (index >= trainer.tensors.size()) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "tensor " + std::to_string(index) + " of " + std::to_string(trainer.tensors.size()));
    }
    return trainer.tensors[index];
}

// NULL where the trainer's values are on a device.
float *slot_of(const cft_trainer &trainer, const cft_trainer::tensor &t, cft_slot slot, size_t n) {
    if (n != t.rows * t.cols) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, t.name + " has " + std::to_string(t.rows * t.cols) + " elements, not " + std::to_string(n));
    }
    if (slot < CFT_SLOT_VALUE || slot > CFT_SLOT_MOMENT2) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "no such slot");
    }
    if (trainer.device) {
        return nullptr;
    }
    switch (slot) {
    case CFT_SLOT_VALUE: return trainer.value.data() + t.offset;
    case CFT_SLOT_GRADIENT: return trainer.gradient.data() + t.offset;
    case CFT_SLOT_MOMENT1: return trainer.moment1.data() + t.offset;
    case CFT_SLOT_MOMENT2: return trainer.moment2.data() + t.offset;
    }
    throw failure(CFT_ERR_INVALID_ARGUMENT, "no such slot");
}

} // namespace

cft_status cft_model_load(const char *path, size_t path_len, const char *device, size_t device_len, cft_model **out, cft_error *err) {
    return guard_files(err, [&] {
        need(out, "out");
        const std::string p(path ? path : "", path_len), d(device ? device : "", device_len);
        if (p.empty()) {
            throw failure(CFT_ERR_INVALID_ARGUMENT, "model path is empty");
        }
        const device_choice choice = choose_device(d);
        auto                model  = std::make_unique<cft_model>(p);
        model->device              = choice.library;
        model->device_index        = choice.index;
        check_file_faults();
        *out = model.release();
    });
}

void cft_model_free(cft_model *model) { delete model; }

cft_status cft_model_get_info(const cft_model *model, cft_model_info *out, cft_error *err) {
    return guard(err, [&] {
        const cft_model &m = need(model, "model");
        cft_model_info   i{};
        copy_text(i.architecture, sizeof i.architecture, m.architecture);
        i.n_layer        = m.hp.n_layer;
        i.n_embd         = m.hp.n_embd;
        i.n_ff           = m.hp.n_ff;
        i.n_head         = m.hp.n_head;
        i.n_head_kv      = m.hp.n_head_kv;
        i.head_dim       = m.hp.head_dim;
        i.n_vocab        = m.hp.n_vocab;
        i.n_ctx_train    = m.hp.n_ctx_train;
        i.tied_output    = m.hp.tied_output;
        i.rope_freq_base = m.hp.rope_freq_base;
        i.rms_eps        = m.hp.rms_eps;
        i.weight_bytes   = m.weight_bytes;
        i.n_params       = m.n_params;
        i.n_expert       = m.hp.n_expert;
        i.n_expert_used  = m.hp.n_expert_used;
        i.window         = m.hp.window;
        i.window_unserved = m.hp.window > 0 && m.hp.fam->has(window_unserved);
        need(out, "out") = i;
    });
}

cft_status cft_memory_estimate_get(const cft_model *model, const cft_trainer_params *params, const cft_module *modules, size_t n_modules,
                                   cft_memory_estimate *out, cft_error *err) {
    return guard(err, [&] {
        const cft_model          &m = need(model, "model");
        const cft_trainer_params &p = need(params, "params");
        const adapter_shape       adapter(m, p, modules, n_modules);
        // What does not fit is told by its numbers, not refused: the caller wants to see them.
        cft_memory_estimate e;
        try {
            e = choose_layout(m, p, adapter).estimate(m);
        } catch (const failure &f) {
            if (f.status != CFT_ERR_NO_MEMORY) {
                throw;
            }
            e = layout_beyond_memory(m, p, adapter).estimate(m);
        }
        need(out, "out") = e;
    });
}

cft_status cft_trainer_new(const cft_model *model, const cft_trainer_params *params, const cft_module *modules, size_t n_modules,
                           cft_trainer **out, cft_error *err) {
    return guard_files(err, [&] {
        need(out, "out");
        const cft_model          &m = need(model, "model");
        const cft_trainer_params &p = need(params, "params");
        auto                      trainer = std::make_unique<cft_trainer>(m, p, adapter_shape(m, p, modules, n_modules));
        check_file_faults();
        *out = trainer.release();
    });
}

void cft_trainer_free(cft_trainer *trainer) { delete trainer; }

cft_status cft_trainer_get_memory(const cft_trainer *trainer, cft_memory_estimate *out, cft_error *err) {
    return guard(err, [&] {
        const cft_trainer &t = need(trainer, "trainer");
        need(out, "out")     = t.plan.estimate(t.model);
    });
}

void cft_trainer_remark(const cft_trainer *trainer, char *buf, size_t capacity) {
    guard(nullptr, [&] {
        const std::string text = trainer && trainer->device ? trainer->device->remark() : "";
        if (buf && capacity > 0) {
            std::snprintf(buf, capacity, "%s", text.c_str());
        }
    });
}

static cft_status run(cft_trainer *trainer, bool backward, const int32_t *tokens, const int32_t *targets, const int32_t *positions,
                      const int32_t *visible_until, const float *weights, size_t n, double *loss_sum, size_t *n_targets, cft_error *err) {
    return guard_files(err, [&] {
        cft_trainer &t = need(trainer, "trainer");
        need(tokens, "tokens"), need(targets, "targets"), need(positions, "positions"), need(visible_until, "visible_until");
        need(loss_sum, "loss_sum"), need(n_targets, "n_targets");
        double sum   = 0;
        size_t count = 0;
        t.run({tokens, targets, positions, visible_until, weights, n}, backward, &sum, &count);
        check_file_faults();
        *loss_sum  = sum;
        *n_targets = count;
    });
}

cft_status cft_trainer_accumulate(cft_trainer *trainer, const int32_t *tokens, const int32_t *targets, const int32_t *positions,
                                  const int32_t *visible_until, const float *weights, size_t n_tokens, double *loss_sum,
                                  size_t *n_targets, cft_error *err) {
    return run(trainer, true, tokens, targets, positions, visible_until, weights, n_tokens, loss_sum, n_targets, err);
}

cft_status cft_trainer_evaluate(cft_trainer *trainer, const int32_t *tokens, const int32_t *targets, const int32_t *positions,
                                const int32_t *visible_until, const float *weights, size_t n_tokens, double *loss_sum,
                                size_t *n_targets, cft_error *err) {
    return run(trainer, false, tokens, targets, positions, visible_until, weights, n_tokens, loss_sum, n_targets, err);
}

cft_status cft_trainer_logits(cft_trainer *trainer, const int32_t *tokens, const int32_t *positions, const int32_t *visible_until,
                              size_t n_tokens, const int32_t *rows, size_t n_rows, float *out, cft_error *err) {
    return guard_files(err, [&] {
        cft_trainer &t = need(trainer, "trainer");
        need(tokens, "tokens"), need(positions, "positions"), need(visible_until, "visible_until"), need(rows, "rows"), need(out, "out");
        t.logits({tokens, nullptr, positions, visible_until, nullptr, n_tokens}, rows, n_rows, out);
        check_file_faults();
    });
}

cft_status cft_trainer_apply(cft_trainer *trainer, float lr, float max_grad_norm, double normalizer, double *grad_norm, cft_error *err) {
    return guard(err, [&] {
        cft_trainer &t = need(trainer, "trainer");
        t.apply(lr, max_grad_norm, normalizer, &need(grad_norm, "grad_norm"));
    });
}

void cft_trainer_discard(cft_trainer *trainer) {
    if (trainer) {
        trainer->discard();
    }
}

void cft_trainer_cancel(cft_trainer *trainer) {
    if (trainer) {
        trainer->cancelled.store(true);
    }
}

size_t cft_trainer_tensor_count(const cft_trainer *trainer) { return trainer ? trainer->tensors.size() : 0; }

cft_status cft_trainer_tensor_info(const cft_trainer *trainer, size_t index, cft_tensor_info *out, cft_error *err) {
    return guard(err, [&] {
        const auto     &t = tensor_at(need(trainer, "trainer"), index);
        cft_tensor_info i{};
        copy_text(i.name, sizeof i.name, t.name);
        i.rows           = t.rows;
        i.cols           = t.cols;
        need(out, "out") = i;
    });
}

cft_status cft_trainer_tensor_read(const cft_trainer *trainer, size_t index, cft_slot slot, float *out, size_t n, cft_error *err) {
    return guard(err, [&] {
        const auto  &t    = tensor_at(need(trainer, "trainer"), index);
        const float *data = slot_of(*trainer, t, slot, n);
        need(out, "out");
        if (trainer->device) {
            trainer->device->read(t.layer, t.module, t.kind, slot, out);
        } else {
            std::memcpy(out, data, n * sizeof(float));
        }
    });
}

cft_status cft_trainer_tensor_write(cft_trainer *trainer, size_t index, cft_slot slot, const float *data, size_t n, cft_error *err) {
    return guard(err, [&] {
        const auto &t  = tensor_at(need(trainer, "trainer"), index);
        float      *to = slot_of(*trainer, t, slot, n);
        need(data, "data");
        if (trainer->device) {
            trainer->device->write(t.layer, t.module, t.kind, slot, data);
        } else {
            std::memcpy(to, data, n * sizeof(float));
        }
        trainer->gains_stale = true;
    });
}

cft_status cft_trainer_get_counters(const cft_trainer *trainer, uint64_t *n_steps, uint64_t *n_micro_batches, cft_error *err) {
    return guard(err, [&] {
        const cft_trainer &t                     = need(trainer, "trainer");
        need(n_steps, "n_steps"), need(n_micro_batches, "n_micro_batches");
        *n_steps         = t.n_steps;
        *n_micro_batches = t.n_micro_batches;
    });
}

cft_status cft_trainer_set_counters(cft_trainer *trainer, uint64_t n_steps, uint64_t n_micro_batches, cft_error *err) {
    return guard(err, [&] {
        cft_trainer &t    = need(trainer, "trainer");
        t.n_steps         = n_steps;
        t.n_micro_batches = n_micro_batches;
    });
}

cft_status cft_bench_sgemm(int32_t m, int32_t n, int32_t k, int32_t n_threads, double *flops, cft_error *err) {
    return guard(err, [&] {
        need(flops, "flops");
        constexpr int repetitions = 12;
        if (m < 1 || n < 1 || k < 1 || int64_t(m) * n > (1 << 28) || int64_t(m) * k > (1 << 28) || int64_t(n) * k > (1 << 28)) {
            throw failure(CFT_ERR_INVALID_ARGUMENT, "matrix sizes out of range");
        }
        blas_without_threads(); // our pool is the only team
        thread_pool pool(resolve_threads(n_threads));
        buffer      a(size_t(m) * size_t(k)), b(size_t(k) * size_t(n)), c(size_t(m) * size_t(n));
        std::fill(a.data(), a.data() + a.size(), 0.5f);
        std::fill(b.data(), b.data() + b.size(), 0.25f);
        double best = 0;
        for (int i = 0; i < repetitions; i++) {
            const auto start = std::chrono::steady_clock::now();
            pool.run([&](int ith, int nth) {
                const cpu::range p = cpu::share(m, 16, ith, nth);
                if (p.size() > 0) {
                    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, int(p.size()), n, k, 1, a.data() + p.begin * k, k, b.data(), n, 0,
                                c.data() + p.begin * n, n);
                }
            });
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            best                 = std::max(best, 2.0 * m * n * k / seconds);
        }
        *flops = best;
    });
}
