// linear.h - products with frozen weights of any GGUF type: tiles are dequantized to F32 and given to the BLAS, in both
// directions, so no second copy of the weights exists and the arithmetic is that of F32.
#pragma once

#include "../model.h"
#include "../pool.h"

#include <cstddef>

namespace cft::cpu {

// One thread's share of [0, n), in multiples of step, split as evenly as those allow.
struct range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};
range share(int64_t n, int64_t step, int ith, int nth);

// Floats of the tile buffer that each thread needs.
constexpr size_t tile_floats = size_t(1) << 18; // 1 MiB: stays in a core's second-level cache

// Row-major sgemm: C [m][n] = alpha * op(A) op(B) + beta * C on the calling thread.
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

// The calling thread's part of y [t][w.rows] = x [t][w.cols] wᵀ: the columns `part` of y.
void frozen_forward(const weight &w, const float *x, int64_t ld_x, int64_t t, float *y, int64_t ld_y, range part, float *tile);

// The calling thread's part of dx [t][w.cols] = beta * dx + dy [t][w.rows] w: the columns `part` of dx, whose bounds are
// multiples of w.block().
void frozen_backward(const weight &w, const float *dy, int64_t ld_dy, int64_t t, float *dx, int64_t ld_dx, range part,
                     float beta, float *tile);

} // namespace cft::cpu
