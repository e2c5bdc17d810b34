// block.h - one transformer layer, forward and backward, over ops.
//
//   x -> norm -> q, k, v (+ bias) -> [norm of heads] -> rope -> attention -> output -> [norm] (+ x)
//     -> norm -> gate, up -> gated unit -> down -> [norm] (+)
//
// Brackets: of some families (family.h). A mixture of experts has its own second half, in block_experts.cpp.
// The last layer computes q, attention, output and the feed-forward half for the rows only that carry a target.
#pragma once

#include "adapter.h"
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
    float *q, *k, *v;     // [rows][q_width], [t][kv_width], rotated; with norms of heads, as they were before those
    float *attn, *lse;    // [rows][q_width], [n_head][rows]
    float *x_mid;         // [rows][n_embd] after attention
    float *gate, *up;     // [rows][n_ff]; of experts, [rows * n_expert_used][n_ff], expert by expert
    float *attn_out, *ffn_out; // [rows][n_embd] before the norms that post_norms are; otherwise NULL
    float *router;        // [rows][n_expert] probabilities; otherwise NULL
    float *h_qkv, *h_output, *h_gate_up, *h_down; // inputs times Aᵀ

    activations(const hyperparameters &hp, const adapter_widths &widths, size_t t, carver &from);
};

// workspace is what one layer's forward or backward pass needs besides.
struct workspace {
    float *x_norm, *x_rows;      // [t][n_embd] normed inputs; those of the target rows, and of the feed-forward half
    float *d_mid, *d_rows;       // [t][n_embd] gradients
    float *act, *d_act, *d_up;   // [t][n_ff]
    float *dq, *d_attn;          // [t][q_width]
    float *dk, *dv;              // [t][kv_width]
    float *u, *v;                // [t][widths.widest], [t][widths.dora]
    float *h_head;               // [t][widths.head]
    float *rope, *rope_local;    // [t][n_rot]; the same where layers with a window rotate alike
    float *q, *k;                // [t][q_width], [t][kv_width] normed and rotated, with norms of heads; otherwise NULL
    float *x_expert, *y_expert;  // [t][n_embd] of one expert's rows
    float *d_router;             // [t][n_expert]

    workspace(const hyperparameters &hp, const adapter_widths &widths, size_t t, carver &from);
};

// pack_view is what a layer knows of the pack.
struct pack_view {
    int64_t                     t;
    const std::vector<int32_t> &rows;    // positions with a target, ascending
    const cpu::attention_mask  &all, &last; // queries: all tokens; target rows
    const cpu::attention_mask  &all_local, &last_local; // of layers with a window
    dropout                     drop;    // without the layer
    int                         lowest;  // the layer at whose input no gradient is wanted
};

class block {
  public:
    block(ops &o, const cft_model &model, int layer, const layer_groups &groups, const pack_view &pack, const activations &a,
          const workspace &w);

    // x: [t][n_embd]; x_next: [rows][n_embd], or NULL where only the activations are wanted.
    void forward(const float *x, float *x_next) const;
    // d is [rows][n_embd], the gradient at the layer's output, on entry, and [t][n_embd], that at its input, on return;
    // of the pack's lowest layer, below which nothing is trained, it is not computed.
    void backward(const float *x, float *d) const;

  private:
    void attention_forward(const float *x) const;
    void feed_forward(float *x_next) const;
    void feed_forward_backward(float *d) const;
    void attention_backward(const float *x, float *d) const;
    void query_backward_of_rows(const float *dq, float *d) const;
    void project(const float *x) const;
    void linear(group_id id, const float *x, int64_t t, float *const *y, bool add, float *h) const;
    void linear_backward(group_id id, const float *x, int64_t t, const float *const *dy, const float *h, float *dx) const;
    void rotated(const float **q, const float **k) const;
    void unrotate(float **dq, float **dk) const;
    void rotate(float *q, float *k, int direction) const;
    const float *through_norm(const float *d, const float *x, const std::vector<float> &w) const;

    void feed_experts(float *x_next) const;
    void feed_experts_backward(float *d) const;
    void run_expert(int expert, const std::vector<int32_t> &rows, int64_t at) const;

    const linear_group &group(group_id id) const { return groups_.of[id]; }

    ops                      &ops_;
    const hyperparameters    &hp_;
    const layer_weights      &weights_;
    const layer_groups       &groups_;
    const pack_view          &pack_;
    const activations        &a_;
    const workspace          &w_;
    dropout                   drop_;
    bool                      lowest_, last_;
    int64_t                   t_, n_; // tokens, rows
    cpu::attention_shape      shape_;
    const cpu::attention_mask &mask_;
    const int32_t            *row_tokens_; // NULL: all
    const float              *rope_;
    bool                      post_norms_, head_norms_, gelu_;
};

} // namespace cft
