// block.h - one transformer layer of the llama family, forward and backward, over ops.
//
//   x -> norm -> q, k, v -> rope -> attention -> output (+ x) -> norm -> gate, up -> swiglu -> down (+)
//
// The last layer computes q, attention, output and the feed-forward half for the rows only that carry a target.
#pragma once

#include "ops.h"

namespace cft {

// carver hands out parts of a buffer one after the other; without a buffer it only counts.
class carver {
  public:
    explicit carver(float *base) : base_(base) {}
    float *take(size_t n_floats) {
        constexpr size_t line = 16; // floats of a cache line
        float *const     at   = base_ ? base_ + used_ : nullptr;
        used_ += (n_floats + line - 1) / line * line;
        return at;
    }
    size_t used() const { return used_; }

  private:
    float *base_;
    size_t used_ = 0;
};

// The groups of a layer's linear maps. The last layer's q has an input of its own.
enum group_id { group_q, group_kv, group_qkv, group_output, group_gate_up, group_down, group_count };

struct layer_groups {
    linear_group of[group_count];
};

// activations of one layer that its backward pass reads, beside its input. Rows are t or, in the last layer, target rows.
struct activations {
    float *q, *k, *v;     // [rows][q_width], [t][kv_width], rotated
    float *attn, *lse;    // [rows][q_width], [n_head][rows]
    float *x_mid;         // [rows][n_embd] after attention
    float *gate, *up;     // [rows][n_ff]
    float *h_qkv, *h_output, *h_gate_up, *h_down; // inputs times Aᵀ

    activations(const hyperparameters &hp, int rank, size_t t, carver &from);
};

// workspace is what one layer's forward or backward pass needs besides.
struct workspace {
    float *x_norm, *x_rows;      // [t][n_embd] normed inputs; those of the target rows, and of the feed-forward half
    float *d_mid, *d_rows;       // [t][n_embd] gradients
    float *act, *d_act, *d_up;   // [t][n_ff]
    float *dq, *d_attn;          // [t][q_width]
    float *dk, *dv;              // [t][kv_width]
    float *u;                    // [t][3 * rank]
    float *rope;                 // [t][n_rot]

    workspace(const hyperparameters &hp, int rank, size_t t, carver &from);
};

// pack_view is what a layer knows of the pack.
struct pack_view {
    int64_t                     t;
    const std::vector<int32_t> &rows;    // positions with a target, ascending
    const cpu::attention_mask  &all, &last; // queries: all tokens; target rows
    dropout                     drop;    // without the layer
};

class block {
  public:
    block(ops &o, const cft_model &model, int layer, const layer_groups &groups, const pack_view &pack, const activations &a,
          const workspace &w);

    // x: [t][n_embd]; x_next: [rows][n_embd], or NULL where only the activations are wanted.
    void forward(const float *x, float *x_next) const;
    // d is [rows][n_embd], the gradient at the layer's output, on entry, and [t][n_embd], that at its input, on return;
    // of the first layer, below which nothing is trained, it is not computed.
    void backward(const float *x, float *d) const;

  private:
    void attention_forward(const float *x) const;
    void feed_forward(float *x_next) const;
    void feed_forward_backward(float *d) const;
    void attention_backward(const float *x, float *d) const;
    void query_backward_of_rows(const float *dq, float *d) const;

    const linear_group &group(group_id id) const { return groups_.of[id]; }

    ops                      &ops_;
    const hyperparameters    &hp_;
    const layer_weights      &weights_;
    const layer_groups       &groups_;
    const pack_view          &pack_;
    const activations        &a_;
    const workspace          &w_;
    dropout                   drop_;
    bool                      first_, last_;
    int64_t                   t_, n_; // tokens, rows
    cpu::attention_shape      shape_;
    const cpu::attention_mask &mask_;
    const int32_t            *row_tokens_; // NULL: all
};

} // namespace cft
