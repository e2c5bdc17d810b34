// gated_product.h - the way back through gated units and, while its results are at hand, what they add to the adapters of gate and up: what cuBLASLt does in
// two narrow products, each bound by reading them again. What kernels.h promises of functions and matrices holds here.
#pragma once

#include "kernels.h"

namespace cft::cuda {

constexpr int64_t widest_gated_adapter = 16; // ranks; beyond it cuBLASLt is faster (docs/cuda.md)

// unit_adapter is gate's or up's: of the gradient dy at its outputs, u = dy b and d_b += scale * dyᵀ h.
struct unit_adapter {
    int64_t     rank; // a multiple of 8, at most widest_gated_adapter
    float       scale;
    const bf16 *b;   // [columns][rank], ld_b apart, scaled already
    const bf16 *h;   // [n][rank], ld_h apart
    bf16       *u;   // [n][rank], ld apart
    float      *d_b; // [columns][rank]
};

struct gated_gradient {
    bool         gelu;
    int64_t      n, columns; // the latter a multiple of 8
    const bf16  *d_act;      // [n][columns]
    int64_t      ld_d_act;
    bf16        *gate_up;    // [n] rows of gates, then ups, which become their gradients
    int64_t      ld;
    bf16        *act;        // [n][columns], computed once more; NULL: not wanted; may be d_act
    int64_t      ld_act;
    unit_adapter adapters[2]; // of gate, of up
    int64_t      ld_b, ld_h;
};

// Blocks that are under way at once: two on each multiprocessor of an H100. Sums over rows are in so many parts at most, so the number is
// part of what decides the bits.
constexpr int gated_product_blocks = 264;

// scratch: F32 sums of parts. With less of it than all rows need, rows are gone through in turns; gated_scratch says how much is enough.
size_t gated_scratch(const gated_gradient &g, int blocks = gated_product_blocks);
void   gated_backward_adapters(const gated_gradient &g, void *scratch, size_t scratch_bytes, cudaStream_t stream, int blocks = gated_product_blocks);

} // namespace cft::cuda
