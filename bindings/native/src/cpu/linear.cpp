// linear.cpp - see linear.h.
#include "linear.h"

#include <cblas.h>

#include <algorithm>

namespace cft::cpu {

range share(int64_t n, int64_t step, int ith, int nth) {
    const int64_t blocks = (n + step - 1) / step;
    return {std::min(n, blocks * ith / nth * step), std::min(n, blocks * (ith + 1) / nth * step)};
}

void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    if (m <= 0 || n <= 0) {
        return;
    }
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, int(m), int(n),
                int(k), alpha, a, int(lda), b, int(ldb), beta, c, int(ldc));
}

void frozen_forward(const weight &w, const float *x, int64_t ld_x, int64_t t, float *y, int64_t ld_y, range part, float *tile) {
    if (w.is_f32()) {
        gemm(false, true, t, part.size(), w.cols, 1, x, ld_x, w.f32() + part.begin * w.cols, w.cols, 0, y + part.begin, ld_y);
        return;
    }
    const int64_t rows = std::max<int64_t>(1, int64_t(tile_floats) / w.cols);
    for (int64_t r = part.begin; r < part.end; r += rows) {
        const int64_t n = std::min(rows, part.end - r);
        for (int64_t i = 0; i < n; i++) {
            w.dequantize(r + i, 0, w.cols, tile + i * w.cols);
        }
        gemm(false, true, t, n, w.cols, 1, x, ld_x, tile, w.cols, 0, y + r, ld_y);
    }
}

void frozen_backward(const weight &w, const float *dy, int64_t ld_dy, int64_t t, float *dx, int64_t ld_dx, range part,
                     float beta, float *tile) {
    const int64_t width = part.size();
    if (width <= 0) {
        return;
    }
    if (w.is_f32()) {
        gemm(false, false, t, width, w.rows, 1, dy, ld_dy, w.f32() + part.begin, w.cols, beta, dx + part.begin, ld_dx);
        return;
    }
    const int64_t rows = std::max<int64_t>(1, int64_t(tile_floats) / width);
    for (int64_t r = 0; r < w.rows; r += rows) {
        const int64_t n = std::min(rows, w.rows - r);
        for (int64_t i = 0; i < n; i++) {
            w.dequantize(r + i, part.begin, width, tile + i * width);
        }
        gemm(false, false, t, width, n, 1, dy + r, ld_dy, tile, width, r == 0 ? beta : 1.0f, dx + part.begin, ld_dx);
    }
}

} // namespace cft::cpu
