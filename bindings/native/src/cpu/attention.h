// attention.h - causal attention over a pack, flash style: no T x T matrix, log-sum-exp kept for the backward pass.
//
// A pack is a forest of token sequences laid out depth first; key j is visible to the query at token i when
// j <= i and i < visible_until[j] and, with a window, positions[i] - positions[j] < window. Queries may be a subset of the tokens (the last layer computes target rows only).
// Forward and backward are deterministic for a given thread count: fixed order of summation, no atomics. Only dq depends
// on the thread count at all, and only in its last bits.
#pragma once

#include "../pool.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cft::cpu {

struct attention_shape {
    int   n_head;    // query heads
    int   n_head_kv; // divides n_head
    int   head_dim;  // any multiple of 8 up to 256
    float scale;     // of the scores, 1/sqrt(head_dim) normally
    float soft_cap = 0; // scores x become soft_cap * tanh(x / soft_cap); 0: they stay
};

// attention_mask holds the tile lists of one pack; made once per pack and query set, used by all layers.
class attention_mask {
  public:
    // query_tokens: the token index of each query, ascending; n_queries == n_tokens and NULL means all tokens.
    // Every token sees itself: visible_until[j] must lie in (j, n_tokens]. Throws failure for anything else.
    // positions [n_tokens], at least 0, are needed with a window only.
    attention_mask(const int32_t *visible_until, size_t n_tokens, const int32_t *query_tokens, size_t n_queries,
                   const int32_t *positions = nullptr, int32_t window = 0);

    size_t n_tokens() const { return n_tokens_; }
    size_t n_queries() const { return query_tokens_.size(); }

    // Pairs of a query and a key it sees; of a windowed tree, at least as many.
    int64_t n_visible_pairs() const { return n_visible_pairs_; }

  private:
    friend struct attention_tiles; // attention_kernels.h

    // A tile of the other side that holds a visible pair; whole if every pair of both full tiles is visible.
    struct tile {
        int32_t index;
        bool    whole;
    };

    void set_window(const int32_t *positions, int32_t window);
    void find_spans();
    void list_tiles();
    bool in_window(size_t query_tile, size_t key_tile) const;

    size_t  n_tokens_        = 0;
    int64_t n_visible_pairs_ = 0;

    std::vector<int32_t> visible_until_; // [n_tokens, up to whole tiles]: 0 beyond the last token
    std::vector<int32_t> query_tokens_;  // [n_queries]
    // With a window, visible_until_ is where the key's last query within it ends. Within sequences that says all. Among the
    // branches of a tree it does not, and these are not empty:
    std::vector<int32_t> key_positions_;   // [n_tokens, up to whole tiles]
    std::vector<int32_t> window_starts_;   // [n_queries]: only keys at or after this position are visible
    std::vector<int32_t> first_key_;     // [n_queries]: the first key that the query sees
    std::vector<int32_t> first_query_;   // [n_tokens]: the queries that may see the key are [first_query, end_query)
    std::vector<int32_t> end_query_;

    // Tiles of keys for each tile of queries and the reverse, ascending; the list of tile i is [start[i], start[i + 1]).
    std::vector<tile>    key_tiles_, query_tiles_;
    std::vector<int32_t> key_tiles_start_, query_tiles_start_;
    std::vector<int64_t> key_tile_pairs_, query_tile_pairs_; // visible pairs in the tile's list
};

// q, out, dout, dq: [n_queries][n_head * head_dim];  k, v, dk, dv: [n_tokens][n_head_kv * head_dim];
// lse: [n_head][n_queries]. ld_* are row strides in floats, so that the matrices may be column ranges of wider ones.
struct attention_forward_args {
    const float *q, *k, *v;
    float       *out, *lse;
    size_t       ld_q, ld_k, ld_v, ld_out;
};
struct attention_backward_args {
    const float *q, *k, *v, *out, *lse, *dout;
    float       *dq, *dk, *dv; // overwritten, not added to
    size_t       ld_q, ld_k, ld_v, ld_out, ld_dout, ld_dq, ld_dk, ld_dv;
};

// Bytes of scratch that the two functions need, for all threads together.
size_t attention_workspace_bytes(const attention_shape &shape, size_t n_tokens, size_t n_queries, int n_threads);

void attention_forward(const attention_shape &shape, const attention_mask &mask, const attention_forward_args &args,
                       void *workspace, thread_pool &pool);
void attention_backward(const attention_shape &shape, const attention_mask &mask, const attention_backward_args &args,
                        void *workspace, thread_pool &pool);

} // namespace cft::cpu
