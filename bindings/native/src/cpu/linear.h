// linear.h - one thread's part of products with frozen weights of any GGUF type: tiles are dequantized to F32 and given to
// the BLAS, in both directions, so no second copy of the weights exists and the arithmetic is that of F32.
#pragma once

#include "../model.h"

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

// Floats of the tile buffer that each thread needs. A row of weights may be longer; then the tile is cut in columns.
constexpr size_t tile_floats = size_t(1) << 19; // 2 MiB: fewer and larger products gain more than a smaller cache would

// Row-major sgemm: C [m][n] = alpha * op(A) op(B) + beta * C on the calling thread.
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

// scale * h bᵀ, added to a product: h [t][ld_h], b [out][rank].
struct low_rank {
    const float *h = nullptr, *b = nullptr;
    int64_t      ld_h = 0, rank = 0;
    float        scale = 0;
};

// Part of y [t][w.rows] = beta * y + x [t][w.cols] wᵀ (+ extra).
void frozen_forward(const weight &w, const float *x, block_range part, float beta, const low_rank &extra, float *y, float *tile);

// Part of dx [t][w.cols] = beta * dx + dy [t][w.rows] w. Bounds of part.columns are multiples of w.block().
void frozen_backward(const weight &w, const float *dy, block_range part, float beta, float *dx, float *tile);

} // namespace cft::cpu
