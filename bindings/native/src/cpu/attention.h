// attention.h - causal attention over a pack, flash style: no T x T matrix, log-sum-exp kept for the backward pass.
//
// A pack is a forest of token sequences laid out depth first; key j is visible to the query at token i when
// j <= i and i < visible_until[j]. Queries may be a subset of the tokens (the last layer computes target rows only).
// Forward and backward are deterministic for a given thread count: fixed order of summation, no atomics.
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
};

// attention_mask holds the tile lists of one pack; made once per pack and query set, used by all layers.
class attention_mask {
  public:
    // query_tokens: the token index of each query, ascending; n_queries == n_tokens and NULL means all tokens.
    attention_mask(const int32_t *visible_until, size_t n_tokens, const int32_t *query_tokens, size_t n_queries);

    size_t n_tokens() const { return visible_until_.size(); }
    size_t n_queries() const { return query_tokens_.size(); }

  private:
    friend struct attention_tiles;
    std::vector<int32_t> visible_until_;
    std::vector<int32_t> query_tokens_;
    // tile lists: to be chosen by the implementation
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
