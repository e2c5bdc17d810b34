// engine.h - a trainer on any device of ggml's: forward and backward passes written out as graphs of ggml ops.
//
// A graph for each layer and direction, and more for a layer of experts (engine_experts.cpp). Between graphs lie the layers' inputs, the gradient on its way down, the logits of some rows,
// and the adapter with its gradient; all else is memory that each graph uses anew. The backward graph of a layer computes the layer
// again from its input. All values are F32, widened weights too; moments and the optimizer are the host's.
#pragma once

#include "../device_trainer.h"
#include "compose.h"
#include "graph.h"

#include <array>

namespace cft::portable {

// adapted is one module's adapter on the device.
struct adapted {
    ggml_tensor *a = nullptr, *b = nullptr, *da = nullptr, *db = nullptr; // [in, rank], [rank, out]; NULL without an adapter
    float        scale = 0;                                               // of B A
    // Of DoRA: [out] lengths that are trained, those of the rows of W + scale B A, and the one over the other. NULL without.
    ggml_tensor *magnitude = nullptr, *d_magnitude = nullptr, *norm = nullptr, *gain = nullptr;
};

// trained is one tensor of the adapter: its value and gradient on the device, and where the host's arrays have it.
struct trained {
    int            layer, module;
    adapter_tensor kind;
    ggml_tensor   *value, *gradient;
    size_t         at;

    size_t n() const { return size_t(ggml_nelements(value)); }
};

// layer_tensors are one layer's weights as the file has them. Vectors that a family lacks are NULL.
struct layer_tensors {
    ggml_tensor *attn_norm, *ffn_norm, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *attn_post_norm, *ffn_post_norm;
    std::array<ggml_tensor *, n_target_modules> modules;
    std::array<adapted, n_target_modules>       adapters;
    ggml_tensor *router; // of a mixture of experts; gate, up and down of each
    std::vector<std::array<ggml_tensor *, 3>> experts;
};

// mixture is what lies between the graphs of a layer of experts. Places are pairs of a row and one of its experts, expert by expert.
struct mixture {
    ggml_tensor *x = nullptr, *d_x = nullptr;              // [n_embd, t] the second half's normed input, and the gradient there
    ggml_tensor *router = nullptr, *d_router = nullptr;    // [n_expert, t] logits
    ggml_tensor *rows = nullptr, *shares = nullptr, *d_shares = nullptr; // [places]; [1, places]
    std::vector<expert_choice> choices;                    // of the layers, from forward to backward pass
};

class engine final : public device_trainer {
  public:
    // With only_measure nothing runs, and no memory is taken: for estimate().
    engine(const cft_model &model, const cft_trainer_params &params, const adapter_shape &shape, ggml_backend_dev_t device, bool only_measure,
           loss_tiles tiles = {});

    double run(const device_pack &pack, bool backward, std::atomic<bool> &cancelled) override;
    void   logits(const device_pack &pack, float *out, std::atomic<bool> &cancelled) override;
    double sum_of_squares() override;
    void   adamw(const adamw_step &step) override;
    void   discard() override;
    void   read(int layer, int module, adapter_tensor kind, cft_slot slot, float *out) override;
    void   write(int layer, int module, adapter_tensor kind, cft_slot slot, const float *data) override;

    cft_memory_estimate estimate() const;
    const machine      &on() const { return machine_; }

  private:
    struct journey; // one pack on its way
    struct layer_graph;
    struct expert_graph;

    // engine.cpp
    void         place_weights();
    void         place_buffers();
    void         allocate(bool only_measure);
    void         upload();
    void         rehearse();
    ggml_tensor *place_vector(const std::vector<float> &v);
    ggml_tensor *place_matrix(const weight &w);
    void         set(ggml_tensor *t, const void *data, size_t bytes) const;
    journey      begin(const device_pack &pack);
    void         forward(const journey &j, std::atomic<bool> &cancelled);
    void         stop_if(std::atomic<bool> &cancelled) const;
    bool         computes() const { return machine_.way == course::run; }

    // engine_adapter.cpp
    void           place_adapters();
    void           place_ends();
    const trained &place(int layer, int module, adapter_tensor kind, int64_t ne0, int64_t ne1);
    void           refresh_gains();
    void           refresh_gains(ggml_tensor *w, const adapted &x);
    void           fetch_gradient();
    const trained &trained_at(int layer, int module, adapter_tensor kind) const;

    // engine_embedding.cpp
    void embed(const journey &j);
    void embed_backward(const journey &j);

    // engine_loss.cpp
    void   head(const journey &j, int64_t first, int64_t n);
    ggml_tensor *head_sees(ggml_context *c, const journey &j, ggml_tensor *x) const;
    ggml_tensor *head_backward(graph &g, const journey &j, ggml_tensor *x, ggml_tensor *d_logits);
    double loss_chunk(const journey &j, int64_t first, int64_t n, bool backward);
    double loss_of_row(const journey &j, int64_t first, int64_t row) const;

    // engine_layer.cpp
    void draw(const journey &j, int layer);
    void draw(const journey &j, ggml_tensor *to, int layer, int module, int64_t first, int64_t rows);
    void layer_forward(const journey &j, int layer, std::atomic<bool> &cancelled);
    void layer_backward(const journey &j, int layer, std::atomic<bool> &cancelled);

    // engine_experts.cpp
    void place_experts(const layer_weights &w, layer_tensors &l);
    void place_mixture();
    void choose(int layer, int64_t n);
    void to_the_experts(const journey &j, int layer, ggml_tensor *next);
    void experts_forward(const journey &j, int layer, std::atomic<bool> &cancelled);
    void experts_backward(const journey &j, int layer, std::atomic<bool> &cancelled);

    ggml_tensor *slice(ggml_context *c, ggml_tensor *x, int64_t first, int64_t n) const;

    const cft_model         &model_;
    const hyperparameters   &hp_;
    const cft_trainer_params params_;
    const adapter_shape      shape_;
    const int                lowest_; // the layer at whose input no gradient is wanted, and below which there is no way back
    const int64_t            max_t_, max_n_;
    int64_t                  loss_rows_, vocab_rows_; // rows of logits, and of the head, at a time
    machine                  machine_;
    store                    weights_, values_, gradients_, lengths_, inputs_, space_, loss_, dropout_, experts_;
    std::unique_ptr<store>   masks_store_; // grows with the packs
    std::vector<std::pair<ggml_tensor *, std::pair<const void *, size_t>>> uploads_;
    std::vector<layer_tensors> layers_;
    ggml_tensor *token_embd_ = nullptr, *output_ = nullptr, *output_norm_ = nullptr;
    ggml_tensor *factors_ = nullptr, *factors_local_ = nullptr, *iota_ = nullptr;
    std::vector<float>         host_factors_, host_factors_local_;
    std::vector<ggml_tensor *> x_;                    // [n_embd, t] each layer's input, and [n_embd, n] the last one's output
    ggml_tensor *d_ = nullptr, *d_other_ = nullptr;   // [n_embd, t] the gradient on its way down
    ggml_tensor *logits_ = nullptr;                   // [n_vocab, loss_rows]
    ggml_tensor *tokens_ = nullptr, *positions_ = nullptr, *back_ = nullptr, *row_positions_ = nullptr, *row_back_ = nullptr, *rows_ = nullptr;
    ggml_tensor *target_at_ = nullptr, *target_weights_ = nullptr, *masks_ = nullptr;
    std::array<ggml_tensor *, n_target_modules> drawn_{}; // [in, t] dropout's factors for one layer; NULL without
    ggml_tensor *head_drawn_ = nullptr;                   // [n_embd, loss_rows]
    adapted      embedding_, head_; // of the embedding: A [rank, n_vocab], and a scale that is the embedding's as well
    ggml_tensor *embedding_u_ = nullptr, *distinct_ = nullptr; // [rank, t] of dA; [t] the tokens whose rows they are
    std::vector<trained> trained_;
    mixture      mixture_;
    std::unique_ptr<ops> host_; // for a mixture's choices
    size_t       n_values_ = 0, n_masks_ = 0;
    cft_memory_estimate bytes_{};
    std::vector<float>  gradient_, value_, moment1_, moment2_; // the host's, n_values; gradient_ is a copy
    bool                gradient_fetched_ = false;
    bool                gains_stale_ = true; // values have changed since DoRA's gains were computed
    float               amplitude_, amplitude_local_;
};

constexpr size_t widened_bytes = size_t(64) << 20; // of a large matrix, widened in parts
// Backends want what they read to begin at multiples of 256 bytes: row numbers of 4 bytes, and rows of any width.
constexpr int64_t aligned_rows = 64;
// As many of n rows as fit, in whole blocks of aligned rows where there are several parts.
int64_t rows_within(size_t bytes, int64_t width, int64_t n);

// Throws CFT_ERR_UNSUPPORTED for models and settings that are not trained by ggml's ops.
void check_supported(const cft_model &model, const cft_trainer_params &params);

} // namespace cft::portable
