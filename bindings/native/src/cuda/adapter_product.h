// adapter_product.h - both products of adapted maps that read the gradient at their outputs, in one pass over it: what cuBLASLt does in two
// narrow products, each bound by reading dy. What kernels.h promises of functions and matrices holds here; each of the two has the same bits with and
// without the other.
#pragma once

#include "kernels.h"

namespace cft::cuda {

// adapter_map is one of several maps that lie side by side in dy: u = dy b of its columns, and d_b += scale * dyᵀ h.
struct adapter_map {
    int64_t     column, columns; // of dy, a multiple of 8 each; with no columns, its u is 0
    int64_t     rank;            // a multiple of 8, at most widest_adapter_product
    float       scale;
    const bf16 *b; // [columns][rank], scaled already
    const bf16 *h; // [n][rank]; NULL: no d_b is wanted
    bf16       *u; // [n][rank], rows ld_dy apart; NULL: not wanted
    float      *d_b; // [columns][rank], ld rank
};

constexpr int     most_adapter_maps      = 4;
constexpr int64_t widest_adapter_product = 16; // beyond it cuBLASLt is faster (docs/cuda.md)

struct adapter_product {
    int64_t     n;
    const bf16 *dy; // [n] rows
    int64_t     ld_dy, ld_b, ld_h;
    int         n_maps;
    adapter_map maps[most_adapter_maps];
};

// Blocks that are under way at once: two on each multiprocessor of an H100. Sums over rows are in so many parts at most, so the number is
// part of what decides the bits.
constexpr int adapter_product_blocks = 264;

// scratch: F32 sums of parts. With less of it than all rows need, rows are gone through in turns; adapter_scratch says how much is enough.
size_t adapter_scratch(const adapter_product &p, int blocks = adapter_product_blocks);
void   multiply_adapters(const adapter_product &p, void *scratch, size_t scratch_bytes, cudaStream_t stream, int blocks = adapter_product_blocks);

// gated_gradient is the way back through gated units, whose gates and ups (of as many columns as the maps of gate and of up, which come first and
// second) lie in dy and become their gradients.
struct gated_gradient {
    bool        gelu;
    const bf16 *d_act; // [n] rows
    int64_t     ld_d_act;
    bf16       *gate_up; // dy
    bf16       *act;     // [n] rows, computed once more; NULL: not wanted; may be d_act
    int64_t     ld_act;
};
// gated_backward and then multiply_adapters in one pass, which never reads dy back. d_b has the bits that multiply_adapters makes of the same dy.
void gated_backward_adapters(const gated_gradient &g, const adapter_product &p, void *scratch, size_t scratch_bytes, cudaStream_t stream,
                             int blocks = adapter_product_blocks);

} // namespace cft::cuda
