// adapter.h - which modules of a model get an adapter, of which rank and scale: parameters and exceptions, resolved.
#pragma once

#include "model.h"

#include <array>
#include <vector>

namespace cft {

enum adapter_tensor { matrix_a, matrix_b, magnitude };

struct adapter_module {
    int   rank  = 0; // 0: no adapter
    float scale = 0;
};

// adapter_widths are columns of inputs times Aᵀ, the most that any layer has of each kind.
struct adapter_widths {
    int64_t qkv = 0, output = 0, gate_up = 0, down = 0; // of modules that share an input
    int64_t head = 0;
    int64_t widest = 0;
    int64_t dora   = 0; // columns of the widest group's outputs, with DoRA
};

// What a learning rate is for one tensor: LoRA+ (Hayou et al. 2024), with what PEFT's create_loraplus_optimizer counts to B: magnitudes as
// well, and of the embedding nothing.
float learning_rate(const cft_trainer_params &params, adapter_tensor kind, int module, float lr);

void check_params(const cft_trainer_params &params); // throws CFT_ERR_INVALID_ARGUMENT

class adapter_shape {
  public:
    // Throws CFT_ERR_INVALID_ARGUMENT for parameters out of range and for modules that the model has not.
    adapter_shape(const cft_model &model, const cft_trainer_params &params, const cft_module *modules, size_t n_modules);

    const adapter_module &of(int layer, int module) const { return layers_[size_t(layer)][size_t(module)]; }
    const adapter_module &token_embd() const { return token_embd_; }
    const adapter_module &output() const { return output_; }
    bool                  dora() const { return dora_; }
    uint32_t              targets() const { return targets_; }
    adapter_widths        widths(const cft_model &model) const;
    size_t                n_params(const cft_model &model) const; // of A, B and magnitudes
    size_t                n_magnitudes(const cft_model &model) const;
    // The lowest layer below whose adapters nothing is trained: -1 with an adapter of the embedding, the number of layers with
    // one of the head only.
    int lowest() const;

  private:
    void set(const cft_module &m, const cft_trainer_params &params);

    std::vector<std::array<adapter_module, n_target_modules>> layers_;
    adapter_module                                            token_embd_, output_;
    bool                                                      dora_;
    uint32_t                                                  targets_;
};

} // namespace cft
