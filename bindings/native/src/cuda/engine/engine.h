// engine.h - a trainer on a CUDA device: weights and buffers, and a pack's way through the layers and back.
//
// All work goes to one stream in program order, but for adapters' gradients (linear.cpp) and copies from and to the host (stage.h, offload.h), which have streams
// of their own; the host waits for the loss of a pack (not for its way back), for the norm of a gradient and,
// in a mixture of experts, for the numbers of rows that each layer's experts get, once on the way forward; nowhere else. Activations and weights are bf16, the residual stream and its gradient F32, sums F32.
#pragma once

#include "../gated_product.h"
#include "gemm.h"
#include "offload.h"
#include "plan.h"
#include "profile.h"
#include "stage.h"

#include <functional>

namespace cft::cuda {

// device_layer is one layer's frozen weights on the device. Vectors that a family lacks are NULL.
struct device_layer {
    const float *attn_norm, *ffn_norm, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *attn_post_norm, *ffn_post_norm;
    std::vector<matrix> sources[kind_count]; // one below the other; empty where w is
    bf16               *w[kind_count];       // widened once, or NULL
    // Of experts: the router [experts8][n_embd], and all experts' weights, widened once (as expert_space's) or as the file has them.
    const bf16 *router, *gate_up, *down;
    matrix      gates, ups, downs;
    // Copies of adapters in all layers' table: those of this layer's groups.
    int first_copy[kind_count], n_copies[kind_count];
};

// weights uploads a model.
class weights {
  public:
    weights(const plan &p, stream &s);

    matrix                    token_embd;     // on the host, where the plan says so
    matrix                    output;         // as the file has it, where weights are not widened once
    bf16                     *head = nullptr;     // [vocab8] of head_ld, widened once
    const float              *output_norm = nullptr;
    std::vector<device_layer> layers;

  private:
    const float *vector(const std::vector<float> &v);
    const float *norm(std::vector<float> v);
    matrix       raw(const weight &w);
    void         widen(const weight &w, bf16 *to, int64_t ld, char *staging);
    void         upload_experts(const layer_weights &from, size_t layer, char *staging);
    void         upload_group(const layer_weights &from, size_t layer, int kind, char *staging);

    const plan &plan_;
    stream     &stream_;
    memory      memory_;
    carver      from_;
};

// journey is one pack on the device.
struct journey {
    int64_t        t, n; // tokens, target rows
    bool           backward;
    const int32_t *tokens, *positions, *rows, *targets;
    const float   *weights;
    // With an adapter of the embedding: tokens, each once; where in the order each token's positions begin, and that order.
    int64_t        n_distinct;
    const int32_t *distinct, *starts, *order;
    cft::dropout   drop;
    std::vector<attention_view> views; // all, last; with windows that matter all_local, last_local too
    const attention_view &view(bool local, bool last) const { return views[(local && views.size() > 2 ? 2 : 0) + (last ? 1 : 0)]; }
};

// Gates (or ups) of experts [first, first + n) as the first halves of what each of them has in `to`: [2 n_ff][n_embd].
void widen_halves(const matrix &m, int64_t first, int64_t n, int64_t n_expert, bf16 *to, const stream &s);

class engine : public device_trainer {
  public:
    engine(const plan &p, int device, uint64_t lockable);
    ~engine() override;

    double run(const device_pack &pack, bool backward, std::atomic<bool> &cancelled) override;
    void   logits(const device_pack &pack, float *out, std::atomic<bool> &cancelled) override;
    double sum_of_squares() override;
    void   adamw(const adamw_step &step) override;
    void   discard() override;
    void   read(int layer, int module, adapter_tensor kind, cft_slot slot, float *out) override;
    void   write(int layer, int module, adapter_tensor kind, cft_slot slot, const float *data) override;
    void   write_weight_norms(int layer, int module, const float *norms) override;
    std::string remark() const override;

  private:
    // linear is one use of a group: rows [begin, end) of its w, on n rows of x.
    struct linear {
        int     layer, kind;
        int64_t begin, end, n;
        bf16   *x; // [n] of the group's ld
    };
    struct gradients_of {
        bool a, b;
    };
    struct place {
        float  *at;
        int64_t rows, columns, pitch; // floats on the device from one row to the next
    };

    // engine.cpp
    journey begin(const device_pack &pack, bool backward);
    void    bring_embedding(const device_pack &pack);
    void    forward(const journey &j, std::atomic<bool> &cancelled);
    void    loss(const journey &j, bool backward, std::atomic<bool> &cancelled);
    const bf16 *head_rows(int64_t row, int64_t n_rows);
    void    stop_if(std::atomic<bool> &cancelled);
    void    place_copies();
    const part &part_of(int layer, int module, const group **of) const;
    place   place_of(int layer, int module, adapter_tensor kind, cft_slot slot) const;
    void    refresh_adapters();
    void    final_norm(const journey &j);
    void    head_products(const journey &j, int64_t begin, int64_t n, bool backward);
    size_t  arena_bytes() const;

    // ends.cpp
    void place_head_copies(std::vector<adapter_copy> &copies);
    void refresh_ends();
    void sort_tokens(const device_pack &pack, journey &j, const std::function<const int32_t *(const void *, size_t)> &put);
    void embed_adapter(const journey &j);
    void embed_adapter_backward(const journey &j);
    cft::dropout head_dropout(const journey &j, int64_t begin) const;
    const bf16  *head_masked(const journey &j, int64_t begin, int64_t n, int64_t &ld);
    void head_inputs(const journey &j);
    void head_gradient(const journey &j, int64_t begin, int64_t n);

    // linear.cpp
    const bf16 *group_weights(int layer, int kind);
    void        comes_next(int layer); // begins to bring a layer's weights, if there is such a layer and they are not on the device
    void        multiply(const product &p) { products_->run(p, stream_.get()); }
    void        mark(const char *name) { profile_.mark(name, stream_); }
    void        adapter_inputs(const linear &l, const cft::dropout &drop);
    void        move_h(const linear &down, bool aside);
    void        refresh_gains(int layer, int kind);
    void        forward_with_gains(const linear &l, bf16 *y, int64_t ld_y);
    void        gains_backward(const linear &l, bf16 *dy, int64_t ld_dy);
    void        linear_forward(const linear &l, const cft::dropout &drop, bf16 *y, int64_t ld_y, bool only_inputs = false);
    void        linear_outputs(const linear &l, bf16 *y, int64_t ld_y);
    void        adapter_outputs(const linear &l, bf16 *dy, int64_t ld_dy);
    bool        gated_in_one_pass(const group &gate_up) const;
    void        adapter_gradient(const linear &l, const cft::dropout &drop, const bf16 *dy, int64_t ld_dy, gradients_of of, const stream &on);
    void        input_gradient(const linear &l, const cft::dropout &drop, const bf16 *dy, int64_t ld_dy, bf16 *dx, int64_t ld_dx);
    void        join_side();
    void        settle_side();
    // dy: [n] rows, end - begin wide, with room for the group's columns behind; dx [n] rows, NULL: not wanted; may lie where x does.
    // Then onward, if there is one, goes on with dx; with no_x (not with DoRA), it makes x again, behind whose rows h is. passed: what made dy has left
    // u behind it and added to the gradient of B.
    void        linear_backward(const linear &l, const cft::dropout &drop, bf16 *dy, int64_t ld_dy, bf16 *dx, int64_t ld_dx, bool no_x = false,
                                const std::function<void()> &onward = nullptr, bool passed = false);

    // layer.cpp
    struct layer_view;
    void layer_forward(const journey &j, int layer, bool entered, bool products_only);
    void layer_backward(const journey &j, int layer);
    void project(const layer_view &v);
    head_map query_heads(const layer_view &v) const;
    head_map key_heads(const layer_view &v) const;
    void attend(const layer_view &v);
    void feed_forward(const layer_view &v, bool products_only);
    void norm_mid(const layer_view &v);
    linear gate_up_of(const layer_view &v) const;
    void feed_forward_backward(const layer_view &v, keep_level missing);
    bf16 *room_for_d_act(const layer_view &v, keep_level missing) const;
    void gated_unit_backward(const layer_view &v, bf16 *d_act, bool act_again);
    void gate(const layer_view &v);
    linear down_of(const layer_view &v) const;
    void turn_keys(const layer_view &v);
    void attention_half_backward(const layer_view &v, keep_level missing);
    void query_backward_of_rows(const layer_view &v);
    const bf16 *ffn_add(const activations &a) const { return a.ffn_add ? a.ffn_add : w_->delta; }
    bf16 *dy() const { return w_->dy ? w_->dy : w_->d.high; }
    void into_stream(const norm_output &y, int64_t n, bool add);
    void into_dy(const layer_view &v, const norm_output &y);

    // experts.cpp
    struct expert_run;
    void choose(int layer, int64_t n);
    void each_run(int layer, const std::function<void(const expert_run &)> &body);
    void widen_experts(int layer, expert_run &r);
    void multiply_each(const expert_run &r, product first, int64_t step);
    void gate_up_of_experts(int layer, const expert_run &r);
    // Leaves in delta what the half adds to the stream. again: the choice was made; only what gates and ups need is computed.
    void feed_experts(int layer, int64_t n, bool again);
    // From dy to d_norm. again: gates and ups are missing.
    void feed_experts_backward(int layer, int64_t n, bool again);

    const plan                      plan_;
    const hyperparameters          &hp_;
    stream                          stream_{stream_use::work};
    weights                         weights_;
    memory                          memory_;
    std::vector<activations>        layers_;
    std::unique_ptr<workspace>      w_;
    std::unique_ptr<loss_space>     loss_;
    std::unique_ptr<products>       products_, side_products_; // the latter: of adapters' gradients, whichever stream they are on
    stream                          side_{stream_use::side};
    event                           u_ready_, gradient_done_;
    bool                            side_busy_ = false; // nobody has waited for gradient_done_
    std::unique_ptr<stage>          stage_; // where weights stay on the host
    std::unique_ptr<offload>        offload_; // where products wait there
    pinned                          staging_;
    pinned                          loss_sum_; // of the pack that is under way
    event                           loss_known_;
    pinned                          expert_counts_; // [n_layer][n_expert], of the present pack
    float                          *value_, *gradient_, *moment1_, *moment2_; // plan_.n_values each
    int                             n_copies_ = 0;
    int64_t                         max_copy_ = 0;
    int                             head_copies_ = 0; // the first copy of the head's: A, then B by the rows that are widened at a time
    int                             held_[kind_count]; // whose weights scratch holds; -1: nobody's
    const bool                      heads_in_pairs_; // attention_pairs.cu; CFT_CUDA_ATTENTION=single turns it off
    const bool                      turns_inside_;   // attention's kernels make their queries and take gradients back through norms and rotations of heads; CFT_CUDA_ATTENTION=apart turns it off
    const bool                      gated_pass_;     // gated units' way back takes gate's and up's adapters along (gated_product.cu); CFT_CUDA_ADAPTERS=products turns it off
    const bool                      beside_;         // adapters' gradients beside the product of dx, on a stream of their own; CFT_CUDA_ADAPTERS=alone turns it off
    int                             device_;
    float                           amplitude_, amplitude_local_;
    profile                         profile_;
    bool                            stale_ = true; // bf16 copies of the adapter are older than its values
    std::vector<char>               gains_stale_;  // of each group: so are its gains
};

} // namespace cft::cuda
