// experts.h - a mixture of experts beside its products: which expert sees which row, and rows on their way to experts and back. What
// kernels.h says of kernels holds here.
#pragma once

#include "kernels.h"

namespace cft::cuda {

constexpr int most_experts = 512; // as the model's reader

// expert_rows is a choice of n_used experts for each of n rows and, from that, the rows of each expert: one list after the other in the
// order of experts, each in the order of rows. A pair of a row and one of its experts has a place in the lists.
struct expert_rows {
    int64_t  n = 0;
    int      n_expert = 0, n_used = 0;
    int32_t *expert = nullptr; // [n][n_used], the likeliest first
    float   *share  = nullptr; // [n][n_used], of what the row gets
    int32_t *place  = nullptr; // [n][n_used], the pair's
    int32_t *row    = nullptr; // [n * n_used], by place
    float   *weight = nullptr; // [n * n_used], by place: the share
    int32_t *count  = nullptr; // [n_expert], rows
    int64_t  places() const { return n * n_used; }
};

// Fills expert and share: the n_used largest of softmax(logits) of each row (of equals, the lower), over their sum. logits: [n][n_expert], F32.
void choose_experts(const float *logits, int64_t ld_logits, const expert_rows &e, cudaStream_t stream);

// Fills place, row, weight and count from expert and share. parts: scratch of so many words.
int64_t expert_part_words(int64_t places, int n_expert);
void    list_experts(const expert_rows &e, int32_t *parts, cudaStream_t stream);

// to[i] (or, with add, to[i] +=) = the sum of from[place] over the row's experts, in the order of `place`; with shares, each times its share.
// from: [places][columns], ld columns. Summed in F32, rounded once.
void sum_experts(const bf16 *from, const expert_rows &e, bool shares, bool add, int64_t columns, bf16 *to, int64_t ld_to, cudaStream_t stream);

// The way back through gated units of places [begin, begin + n), whose outputs count by their shares: gate_up [n][2 * columns], gate first,
// becomes the gradient for weight * d_act, and d_weight[i] = d_act[i] . act[i]. d_act: [n][columns].
void gated_experts_backward(bool gelu, const bf16 *d_act, const float *weight, int64_t n, int64_t columns, bf16 *gate_up, float *d_weight,
                            cudaStream_t stream);

// d_logits [n][n_padded] for d_weight, the gradient of shares by place; columns from n_expert on are 0. The shares are the softmax over the
// chosen experts' logits alone, so the others get no gradient.
void choose_experts_backward(const expert_rows &e, const float *d_weight, int64_t n_padded, bf16 *d_logits, cudaStream_t stream);

} // namespace cft::cuda
