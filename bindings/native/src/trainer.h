// trainer.h - LoRA training of one model: what a trainer holds, and a pack's way through the layers and back.
#pragma once

#include "adapter.h"
#include "block.h"
#include "buffer.h"
#include "device_trainer.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace cft {

// layout says how many floats each buffer of a trainer has: the one source of what is allocated and what is estimated.
struct layout {
    layout(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, bool keep_all);

    bool    on_device = false;           // then sizes below are 0, and device says what is taken there
    cft_memory_estimate device{};
    bool    keep_all = false;
    int     threads = 1, max_tokens = 0, max_targets = 0;
    size_t  n_params = 0;                // of all tensors of the adapter; as many gradients, first and second moments
    size_t  n_magnitudes = 0;            // of DoRA; as many norms and gains
    size_t  inputs = 0, kept = 0;        // of one layer's input; of one layer's other activations
    size_t  activations = 0, workspace = 0, loss = 0;
    size_t  scratch_bytes = 0;           // of the operations
    int64_t loss_rows = 0;               // rows of the logits chunk
    int64_t loss_stride = 0;             // floats from one of them to the next

    cft_memory_estimate estimate(const cft_model &model) const;
};

int  resolve_threads(int32_t n_threads);
// Chooses between keeping all activations and layer inputs; throws CFT_ERR_NO_MEMORY where neither fits.
layout choose_layout(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter);
// What the trainer would take if memory were no matter.
layout layout_beyond_memory(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter);

// pack is the arrays of cft_trainer_accumulate; targets may be NULL where rows are asked for by number, weights always.
struct pack {
    const int32_t *tokens, *targets, *positions, *visible_until;
    const float   *weights;
    size_t         n;
};

} // namespace cft

// The opaque handle of cft.h.
struct cft_trainer {
    cft_trainer(const cft_model &model, const cft_trainer_params &params, const cft::adapter_shape &adapter);

    // cft_trainer_accumulate with backward = true, cft_trainer_evaluate with false.
    void run(const cft::pack &p, bool backward, double *loss_sum, size_t *n_targets);
    void logits(const cft::pack &p, const int32_t *rows, size_t n_rows, float *out);
    void apply(float lr, float max_grad_norm, double normalizer, double *grad_norm);
    void discard();

    struct tensor {
        std::string name;
        size_t      rows, cols, offset; // offset in each of the four buffers
        int         layer, module; // -1: in no layer
        cft::adapter_tensor kind;
    };

    const cft_model         &model;
    const cft_trainer_params params;
    const cft::adapter_shape adapter;
    const cft::layout        plan;
    std::vector<tensor>      tensors;
    cft::buffer              value, gradient, moment1, moment2; // plan.n_params floats each; on a device they are there
    std::unique_ptr<cft::device_trainer> device; // NULL: the CPU
    uint64_t                 n_steps = 0, n_micro_batches = 0;
    std::atomic<bool>        cancelled{false};
    bool                     gains_stale = true; // values have changed since DoRA's gains were computed

  private:
    struct journey; // one pack's state, see trainer.cpp

    // Where a module's tensors lie in the four buffers, and its norms and gains.
    struct place {
        size_t a = 0, b = 0, magnitude = 0, gain = 0;
    };

    void             place_tensors();
    size_t           place_tensor(int layer, int module, cft::adapter_tensor kind, int64_t rows, int64_t cols);
    void             place_layer(int layer, place *places);
    void             build_groups(int layer, const place *places);
    void             place_ends();
    void             init_values();
    void             init_magnitudes();
    void             refresh_gains();
    void             row_norms(const tensor &t, const place &p, bool init);
    void             check(const cft::pack &p) const;
    void             stop_if_cancelled();
    double           run_on_device(const cft::pack &p, const std::vector<int32_t> &rows, bool backward);
    float           *layer_input(int layer) const { return activations_.data() + size_t(layer) * plan.inputs; }
    cft::activations layer_activations(int layer) const;
    void             forward(journey &j);
    void             head(journey &j, int64_t first, int64_t n, float *out, int64_t stride);
    void             head_backward(journey &j, int64_t first, int64_t n);
    cft::dropout     head_dropout(const journey &j, int64_t first) const;
    double           loss(journey &j, bool backward);
    void             backward(journey &j);

    std::vector<cft::layer_groups> groups_; // [layer]
    cft::linear_group              head_;
    cft::embedding_adapter         embedding_;
    std::vector<place>             magnitudes_; // of each tensor that is a magnitude, in their order
    size_t                         next_offset_ = 0, next_gain_ = 0; // while tensors are placed
    cft::buffer                    norms_, gains_; // [plan.n_magnitudes]
    cft::buffer                    activations_, workspace_, loss_;
    std::unique_ptr<cft::ops>      ops_;
};
