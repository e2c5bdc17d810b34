// trainer.h - LoRA training of one model on the CPU: forward, backward and optimizer step, written out layer by layer.
//
// A layer is: x -> norm -> q,k,v -> rope -> attention -> output (+x) -> norm -> gate,up -> swiglu -> down (+). Each linear
// map is a frozen weight plus scale * B(A(dropout(input))). The last layer computes q, attention, output and the
// feed-forward part for target positions only.
#pragma once

#include "cpu/attention.h"
#include "cpu/linear.h"
#include "cpu/rows.h"
#include "model.h"
#include "pool.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace cft {

// buffer is aligned, uninitialized memory for floats; pages that are never written take none.
class buffer {
  public:
    explicit buffer(size_t n_floats);
    ~buffer();
    buffer(const buffer &)            = delete;
    buffer &operator=(const buffer &) = delete;
    float  *data() const { return data_; }
    size_t  size() const { return size_; }

  private:
    float *data_ = nullptr;
    size_t size_ = 0;
};

// module is one adapted linear map of a layer.
struct module {
    int           bit    = 0;       // index of its CFT_TARGET_ bit, also its number in dropout's counter
    const weight *w      = nullptr;
    bool          active = false;
    size_t        a = 0, b = 0;     // offsets of A [r][in] and B [out][r] in the parameter arrays
};

// The modules that share an input. A of its active modules is contiguous: one product gives all their x Aᵀ.
enum group_id { group_q, group_kv, group_output, group_gate_up, group_down, group_count };

struct group {
    std::vector<module> modules;
    int                 n_active = 0;
    size_t              a        = 0; // offset of the first active A
    int64_t             inputs() const { return modules[0].w->cols; }
};

// activations of one layer that the backward pass reads. Sizes are for t tokens; rows are t or, in the last layer, targets.
struct activations {
    float *x;          // [t][n_embd] layer input
    float *q;          // [rows][n_head * head_dim], rotated
    float *k, *v;      // [t][n_head_kv * head_dim], k rotated
    float *attn, *lse; // [rows][n_head * head_dim], [n_head][rows]
    float *x2;         // [rows][n_embd] after attention
    float *gate, *up;  // [rows][n_ff]
    float *h[group_count]; // [t or rows][rank * active modules] input times Aᵀ
};

// layout says how many floats each buffer of a trainer has: the one source of what is allocated and what is estimated.
struct layout {
    layout(const cft_model &model, const cft_trainer_params &params, bool keep_all);

    size_t n_params = 0;                    // floats of A and B together
    size_t inputs = 0, rest = 0;            // of one layer's kept input; of one layer's other activations
    size_t activations = 0, workspace = 0, loss = 0;
    size_t attention_bytes = 0;
    int    threads = 1, max_tokens = 0, max_targets = 0;
    int64_t loss_rows = 0;                  // rows of the logits chunk
    bool   keep_all = false;
    cft_memory_estimate estimate(const cft_model &model) const;
};

int  resolve_threads(int32_t n_threads);
void check_params(const cft_trainer_params &params);
// Chooses between keeping all activations and layer inputs; throws CFT_ERR_NO_MEMORY where neither fits.
layout choose_layout(const cft_model &model, const cft_trainer_params &params);

struct pack {
    const int32_t *tokens, *targets, *positions, *visible_until;
    const float   *weights; // or NULL
    size_t         n;
};

} // namespace cft

struct cft_trainer {
    cft_trainer(const cft_model &model, const cft_trainer_params &params);

    // accumulate with backward = true, evaluate with false.
    void run(const cft::pack &p, bool backward, double *loss_sum, size_t *n_targets);
    void logits(const cft::pack &p, const int32_t *rows, size_t n_rows, float *out);
    void apply(float lr, float max_grad_norm, double normalizer, double *grad_norm);
    void discard();

    struct tensor {
        std::string name;
        size_t      rows, cols, offset;
    };

    const cft_model         &model;
    const cft_trainer_params params;
    const cft::layout        plan;
    std::vector<tensor>      tensors;
    cft::buffer              value, gradient, moment1, moment2; // plan.n_params floats each
    uint64_t                 n_steps = 0, n_micro_batches = 0;
    std::atomic<bool>        cancelled{false};

  private:
    struct step; // one pack's state, see trainer.cpp

    void init_adapter();
    void check(const cft::pack &p) const;
    void forward_layer(step &s, int layer, cft::activations &act, float *x_next);
    void backward_layer(step &s, int layer, cft::activations &act, float *d);
    void forward_all(step &s, bool keep);
    double head(step &s, bool backward, float *d_rows);

    void group_forward(step &s, int layer, cft::group_id id, const float *x, int64_t t, float *const *y, float *h);
    void group_backward(step &s, int layer, cft::group_id id, const float *x, int64_t t, const float *const *dy, const float *h,
                        float *dx, bool add);
    cft::activations layer_activations(int layer) const;
    void stop_if_cancelled();

    std::vector<std::vector<cft::group>> groups_; // [layer][group_id]
    const float              scale_;
    cft::buffer              activations_, workspace_, tiles_, loss_;
    std::vector<char>        attention_;
    cft::thread_pool         pool_;
};
