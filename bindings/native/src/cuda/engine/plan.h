// plan.h - what a trainer on a device holds, and how much memory that takes: computed before anything is allocated.
//
// A layer's linear maps are four groups, each one matrix to the products. With an adapter of R columns, a group of O outputs and
// C inputs is kept as w [O + R][C + R]:
//
//     w = | W   s B |      y        = [x | h] wᵀ  of rows 0..O,   h = x Aᵀ
//         | A   -   |      [dy | u] w of columns 0..C = dx,       u = dy (s B)
//
// so that adapters cost no passes of their own over y and dx: rows of x end in room for h, those of dy in room for u. B has a
// block for each adapted module, of a rank and a scale of its own. R is a multiple of 8: ranks are padded with zeros, which stay zeros.
// Layers below the lowest with an adapter are gone through forward only, and keep nothing.
#pragma once

#include "../../device_trainer.h"
#include "../experts.h"
#include "../kernels.h"

#include <optional>
#include <string>
#include <vector>

namespace cft::cuda {

// carver hands out parts of a device buffer; without a buffer it only counts.
class carver {
  public:
    explicit carver(char *base) : base_(base) {}
    template <typename T> T *take(int64_t n) {
        constexpr size_t line = 256;
        char *const      at   = base_ ? base_ + used_ : nullptr;
        used_ += (size_t(n) * sizeof(T) + line - 1) / line * line;
        return reinterpret_cast<T *>(at);
    }
    size_t used() const { return used_; }

  private:
    char  *base_;
    size_t used_ = 0;
};

// staged is where the next tensor begins in a buffer that is used up to `end`.
inline size_t staged(size_t end) { return (end + 255) / 256 * 256; }

constexpr int64_t gain_columns = 4096;

// Whether an environment variable asks for something by that word; it may have several, with commas between them.
bool asks_for(const char *variable, const char *word);

enum group_kind { kind_qkv, kind_output, kind_gate_up, kind_down, kind_count };

// part is one adapted module of a group: rows of w, columns of h, and where A and B lie among the adapter's values.
struct part {
    int     module;
    int64_t row, rows, column;
    int64_t rank, rank8; // as asked for, and padded
    float   scale;       // of B
    int64_t a = 0, b = 0; // A: [rank8][C], B: [rows][rank8], in floats from the start
    int64_t m = 0;        // with DoRA, magnitudes: [rows]
};

struct group {
    int64_t           inputs = 0, outputs = 0, columns = 0; // C, O, R
    std::vector<part> parts;
    int64_t           a = 0; // of the first part; A's of all parts lie together
    int64_t           gain = 0; // with DoRA and parts: of `outputs` gains, the first
    int64_t           ld() const { return inputs + columns; }
};

struct layer_groups {
    group of[kind_count];
};

// end is the adapter of the embedding, A [vocabulary][rank8] and B [n_embd][rank8], or of the head, A [rank8][n_embd] and B [vocabulary][rank8].
struct end {
    int64_t rank = 0, rank8 = 0; // 0: there is none
    float   scale = 0;
    int64_t a = 0, b = 0;
};

// Products of an expert's rows have a multiple of so many, so that there are few shapes. What they write behind the expert's rows belongs to
// the next one, whose product comes later; behind the last one's there is room.
constexpr int64_t expert_tile = 64;

// How much of a layer's activations stays until the backward pass. Each level leaves out more, in the order of what it costs to compute it
// again, for each byte that is saved: docs/cuda.md.
enum keep_level {
    keep_everything,
    keep_heads,    // not: gated units
    keep_products, // nor: turned heads
    keep_narrow,   // nor: the product of gate and up, the widest
    keep_inputs,   // nor: anything else, but the layer's input, which no other level keeps
    n_keep_levels
};

// work is what is done more than once in a step, so that plans can be compared.
struct work {
    double flops = 0, bytes = 0; // of products; moved in the device's memory
    double host_bytes = 0;       // copied from the host
};

// Where the layers' weights are.
enum class weight_place {
    widened, // on the device, as bf16, made once
    packed,  // on the device, as the file has them, widened before each use
    host,    // where the file is mapped; copied and widened before each use
};

// placement says where the weights are. The token embedding may stay on the host, which then copies a pack's rows of it.
struct placement {
    weight_place layers;
    bool         embedding_stays;
};

struct plan {
    // Each step takes one layer one level down: the last layer first, since what it leaves out is still there when the backward pass
    // begins; then the others, and then the next level in the same order. n_layer steps are one level for all.
    // Of the layers that keep the product of gate and up, `n_offloaded` have it wait in the host's memory, spread evenly.
    plan(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, int steps, placement at, loss_tiles tiles = {},
         int n_offloaded = 0);

    const cft_model *model;
    const rope_set  *rope;        // of layers without a window, the model's
    int64_t          t, n;        // most tokens, most targets
    int              lowest;      // the layer below which nothing is trained
    bool             dropout, dora;
    bool             stores_scores; // gradients of scores, where logits were, instead of computing them twice; CFT_CUDA_ATTENTION=twice turns it off
    weight_place     place;
    bool             embedding_stays; // on the host
    bool             resident() const { return place == weight_place::widened; }
    std::vector<layer_groups> layers;
    end              embedding, head;
    int64_t          head_ld() const { return model->hp.n_embd + head.rank8; } // of the head's rows and of what it sees: room for s B and h behind
    layer_groups     widest;          // of all layers: what they share has room for as many columns
    bool             alike[kind_count]; // all layers' adapters have the same shapes
    std::vector<keep_level>   keep; // of each layer
    std::vector<char>         offloaded; // of each layer: 1 if its product of gate and up waits on the host
    int              n_offloaded;
    size_t           offloaded_bytes = 0; // there; the last two products stay in the places that all of them share
    work             again;
    double           forward_flops = 0; // of the layers' products
    // Of mixtures of experts, otherwise 0: rows of experts in a pack, with room behind them; the router's outputs, padded; and experts whose
    // weights are widened at a time.
    int64_t          expert_places = 0, experts8 = 0, experts_at_a_time = 0;
    int64_t          n_values = 0; // floats of A and B
    int64_t          n_slow   = 0; // the first of these learn at the rate itself, all others (with LoRA+, all B's) at `faster` times that
    float            faster   = 1;
    int64_t          n_gains  = 0; // of DoRA: one for each output of an adapted group
    int64_t          vocab8;       // the vocabulary, padded
    int64_t          loss_rows, head_rows; // rows of logits, and of the head, at a time
    size_t           staging_words;        // of one pack's numbers
    size_t           stage_bytes; // of a buffer for what passes on its way to be widened: the largest tensor or, from the host, layer
    size_t           streamed_bytes = 0;   // of weights that stay on the host

    size_t weight_bytes, adapter_bytes, activation_bytes, workspace_bytes, loss_bytes;
    size_t total() const { return weight_bytes + 4 * adapter_bytes + activation_bytes + workspace_bytes + loss_bytes; }
    cft_memory_estimate estimate() const;
    // What must be computed again before a layer's backward pass: what its level leaves out.
    size_t embedding_bytes() const { return embedding_stays ? size_t(t) * model->token_embd.row_bytes : 0; } // of a pack
    size_t     gate_up_row_bytes(size_t layer) const { return size_t(2 * model->hp.n_ff + layers[layer].of[kind_gate_up].columns) * sizeof(bf16); }
    std::vector<size_t> may_offload() const; // layers
    int        most_offloaded() const;       // so many at most: their copies must pass while the layers are computed
    keep_level missing(size_t layer) const { return layer + 1 == layers.size() ? keep_everything : keep[layer]; }
    bool       keeps_h(size_t layer) const; // of down, apart from act
    bool       separate_d() const;          // whether dy, which products of output and down see on the way back, is not the stream's gradient
    double     products_again(bool for_dora) const; // as a part of the forward pass's
    double     cost() const;           // of `again`, in bytes that are moved

  private:
    void place_values();
    void find_widest();
    void choose_offloaded();
    void count_work();
};

// What the forward pass leaves for the backward pass, of one layer. Rows are t or, in the last layer, n. What the layer's level leaves out
// lies in memory that all such layers share; layers without a backward pass use the last layer's, whose turn is later. The backward pass writes gradients over gate_up and over act, its own or that of the layer
// above.
struct activations {
    float *x;        // [t][n_embd] with keep_inputs the layer's input, otherwise the stream, which all such layers share
    bf16  *attn_add; // [rows][n_embd] what attention adds to the stream; with post_norms kept as norms' outputs are, otherwise all layers'
    // Left out by keep_inputs:
    bf16  *norm, *mid_norm;      // [t], [rows] rows of qkv's and gate_up's ld
    float *rstd, *mid_rstd;      // [t], [rows]
    bf16  *qkv;                  // [t][q + 2 kv]; in the last layer q [n][q], then [t][2 kv]
    float *q_rstd, *k_rstd;      // [rows][n_head], [t][n_head_kv], with norms of heads; otherwise NULL
    bf16  *attn;                 // [rows] of output's ld
    float *lse;                  // [n_head][rows]
    bf16  *ffn_add;              // [rows][n_embd] with post_norms; otherwise NULL, and all layers' delta in its place
    float *attn_rstd, *ffn_rstd; // of those norms
    // By keep_narrow:
    bf16  *gate_up;              // [rows][2 n_ff + columns]; of offloaded layers, in turns one of two places
    // By keep_products:
    bf16  *q, *k;                // [rows][q], [t][kv] normed and rotated, with norms of heads; otherwise NULL, and they are turned where they are
    // By keep_heads:
    bf16  *act;                  // [rows] of down's ld
    bf16  *h;                    // [rows] of down's columns: what lies behind act, where that is left out; otherwise NULL
    // A layer of experts never leaves out who sees which row; its gate_up is [places][2 n_ff], and its act is not needed again.
    expert_rows experts;
};

// place_activations gives the activations of all layers.
std::vector<activations> place_activations(const plan &p, carver &from);

// Mixtures of experts (experts.cpp). Where a layer's expert weights are counted: on the device or, where they stay there, on the host; and
// what a token's products cost in a layer.
void        plan_experts(plan &p);
expert_rows place_experts(const plan &p, carver &from);
size_t      router_bytes(const plan &p);
size_t      widened_expert_bytes(const plan &p);
double      expert_flops(const plan &p, bool gate_up_only);

// expert_space is what a layer of experts needs besides. Places are those of cuda/experts.h.
struct expert_space {
    bf16    *rows;           // [places][n_embd] on the way to experts, and back
    bf16    *act;            // [places][n_ff], and its gradient
    float   *logits;         // [t][experts8], the router's
    bf16    *d_logits;       // [t][experts8]
    float   *d_weight;       // [places], the gradient of shares
    int32_t *parts;
    bf16    *gate_up, *down; // [experts_at_a_time] of [2 n_ff][n_embd] and of [n_embd][n_ff], where weights are not widened once

    expert_space(const plan &p, carver &from);
};

struct workspace {
    bf16  *rows_norm;             // [n] of qkv's ld: normed inputs of the target rows
    bf16  *delta, *d_norm;        // [t][n_embd]
    split_rows d, d_other;        // [t] rows of the stream's gradient, in which products find dy, unless the plan has separate_d
    bf16      *dy;                // [t] of ld_dy with separate_d; otherwise NULL
    int64_t    ld_dy;             // with room for u behind: the wider of output's and down's columns
    bf16  *d_attn, *d_qkv, *d_q;  // [t][q], [t][q + 2 kv + columns], [n][q + columns]
    float *attn_delta;            // [n_head][t]
    bf16  *masked, *masked_d;     // [t][widest input], with dropout; otherwise NULL
    float *rows_x;                // [n][n_embd] target rows of the last layer's input
    float *final_rstd;            // [n]
    float *rope, *rope_local;     // [t][n_rot]
    float *frequencies, *frequencies_local;
    char    *embedding;           // [t] rows of the token embedding, where it stays on the host; otherwise NULL
    int32_t *numbers;             // a pack's, staging_words
    float  *losses;               // [n]
    double *sums, *partials;      // [2], [norm_partials]
    void   *products, *side_products; // workspaces of products
    adapter_copy *copies; // of all layers' groups
    bf16   *head_x;                         // [n] of head_ld: normed rows
    bf16   *head_a, *head_u;                // with an adapter of the head, A [rank8][n_embd] and u [loss_rows][rank8]; otherwise NULL
    bf16   *embedding_h, *embedding_b;      // [t][rank8], [n_embd][rank8] with an adapter of the embedding; otherwise NULL
    float  *embedding_u;                    // [t][rank8]
    // With DoRA; otherwise NULL. Outputs before their gains come gain_columns at a time.
    float  *gains, *norms, *weight_norms; // [n_gains]
    float  *outputs;                      // [t][gain_columns]
    float  *gain_partials;                // [gain_slices][gain_columns]
    float  *w_at, *a_at;                  // of one part: [rows][rank8], [rank8][rank8]
    bf16   *scratch[kind_count];  // w of one layer's groups, where weights are not widened once
    char   *stage[2];             // a layer of the file each, where weights are on the host; otherwise NULL

    std::optional<expert_space> experts;

    workspace(const plan &p, carver &from);
};

// Buffers of the output head.
struct loss_space {
    float *logits; // [loss_rows][vocab8]; the same bytes hold their gradient and, in the layers' backward passes, gradients of scores
    float *dh;     // [loss_rows] of head_ld
    bf16  *head;   // [head_rows] of head_ld, where weights are not widened once

    loss_space(const plan &p, carver &from);
};

// The plan that computes, moves and copies the least again, of those within so much memory on the device and, for what waits there, on the host.
// With must_fit, none that fits throws CFT_ERR_NO_MEMORY and says what would.
plan choose_plan(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, size_t memory, size_t host_memory, bool must_fit,
                 const std::string &device, loss_tiles tiles = {});

// Throws CFT_ERR_UNSUPPORTED for models that the device does not train.
void check_model(const cft_model &model);

} // namespace cft::cuda
