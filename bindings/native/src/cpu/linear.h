// linear.h - one thread's part of products with frozen weights of any GGUF type: tiles are dequantized to F32 into the
// panels that the product kernels read, in both directions, so no second copy of the weights exists and the arithmetic is
// that of F32.
#pragma once

#include "../model.h"
#include "product.h"

#include <cstddef>

namespace cft::cpu {

struct range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// share is thread ith's part of [0, n), in multiples of step, split as evenly as those allow.
range share(int64_t n, int64_t step, int ith, int nth);

// A block of a product's result.
struct block_range {
    range rows, columns;
};

// share_product divides a result of rows x columns, columns in multiples of step, among nth threads: by columns, by rows,
// or by both, whichever makes the slowest thread fastest. Dividing by columns dequantizes every weight once; dividing by
// rows keeps the pieces large where there are few columns for many threads.
block_range share_product(int64_t rows, int64_t columns, int64_t step, int ith, int nth);

// scratch is the memory of one thread: packed panels, and rows on their way there.
struct scratch {
    static constexpr size_t staging_floats = size_t(1) << 17, floats = products::scratch_floats + staging_floats;
    float *panels, *staging;
};

// scale * h bᵀ, added to a product: h [t][ld_h], b [out][rank].
struct low_rank {
    const float *h = nullptr, *b = nullptr;
    int64_t      ld_h = 0, rank = 0;
    float        scale = 0;
};

// Part of y [t][ld_y] = x [t][w.cols] wᵀ (+ extra), or added to y.
void frozen_forward(const product_kernels &kernels, const weight &w, const float *x, block_range part, bool add, const low_rank &extra,
                    float *y, int64_t ld_y, scratch s);

// Part of dx [t][w.cols] = dy [t][ld_dy] w, or added to dx. Bounds of part.columns are multiples of w.block().
void frozen_backward(const product_kernels &kernels, const weight &w, const float *dy, int64_t ld_dy, block_range part, bool add, float *dx,
                     scratch s);

} // namespace cft::cpu
