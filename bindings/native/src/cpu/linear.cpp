// linear.cpp - see linear.h.
#include "linear.h"

#include <cblas.h>

#include <algorithm>

namespace cft::cpu {

namespace {

// What a product costs beside its multiplications, in rows (of weights: dequantizing and packing them) and in columns
// (packing the other matrix). Measured; only the balance matters.
constexpr int64_t cost_of_weights = 12, cost_of_input = 8;

// Columns of a tile of the longest row that the tile buffer holds, in whole blocks.
int64_t widest_piece(const weight &w) { return int64_t(tile_floats) / w.block() * w.block(); }

} // namespace

range share(int64_t n, int64_t step, int ith, int nth) {
    const int64_t blocks = (n + step - 1) / step;
    return {std::min(n, blocks * ith / nth * step), std::min(n, blocks * (ith + 1) / nth * step)};
}

block_range share_product(int64_t rows, int64_t columns, int64_t step, int ith, int nth) {
    const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    int        best     = nth;
    int64_t    least    = INT64_MAX;
    for (int parts = nth; parts >= 1; parts--) { // of the columns
        if (nth % parts != 0) {
            continue;
        }
        const int64_t width = ceil_div(ceil_div(columns, step), parts) * step, height = ceil_div(rows, nth / parts);
        const int64_t cost = width * height + cost_of_weights * width + cost_of_input * height;
        if (cost < least) {
            least = cost;
            best  = parts;
        }
    }
    return {share(rows, 1, ith / best, nth / best), share(columns, step, ith % best, best)};
}

void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    if (m <= 0 || n <= 0) {
        return;
    }
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, int(m), int(n),
                int(k), alpha, a, int(lda), b, int(ldb), beta, c, int(ldc));
}

void frozen_forward(const weight &w, const float *x, block_range part, float beta, const low_rank &extra, float *y, float *tile) {
    const int64_t t = part.rows.size(), k = w.cols;
    if (t <= 0 || part.columns.size() <= 0) {
        return;
    }
    x += part.rows.begin * k;
    y += part.rows.begin * w.rows;
    const int64_t piece = w.is_f32() ? k : std::min(k, widest_piece(w));
    const int64_t rows  = w.is_f32() ? part.columns.size() : std::max<int64_t>(1, int64_t(tile_floats) / piece);
    for (int64_t r = part.columns.begin; r < part.columns.end; r += rows) {
        const int64_t n = std::min(rows, part.columns.end - r);
        for (int64_t c = 0; c < k; c += piece) {
            const int64_t width = std::min(piece, k - c);
            const float  *tile_or_file = w.is_f32() ? w.f32() + r * k : tile;
            if (!w.is_f32()) {
                for (int64_t i = 0; i < n; i++) {
                    w.dequantize(r + i, c, width, tile + i * width);
                }
            }
            gemm(false, true, t, n, width, 1, x + c, k, tile_or_file, width, c == 0 ? beta : 1.0f, y + r, w.rows);
        }
        if (extra.h) {
            gemm(false, true, t, n, extra.rank, extra.scale, extra.h + part.rows.begin * extra.ld_h, extra.ld_h, extra.b + r * extra.rank,
                 extra.rank, 1, y + r, w.rows);
        }
    }
}

void frozen_backward(const weight &w, const float *dy, block_range part, float beta, float *dx, float *tile) {
    const int64_t t = part.rows.size();
    if (t <= 0 || part.columns.size() <= 0) {
        return;
    }
    dy += part.rows.begin * w.rows;
    dx += part.rows.begin * w.cols;
    if (w.is_f32()) {
        const int64_t c = part.columns.begin;
        gemm(false, false, t, part.columns.size(), w.rows, 1, dy, w.rows, w.f32() + c, w.cols, beta, dx + c, w.cols);
        return;
    }
    const int64_t piece = std::min(part.columns.size(), widest_piece(w));
    const int64_t rows  = std::max<int64_t>(1, int64_t(tile_floats) / piece);
    for (int64_t c = part.columns.begin; c < part.columns.end; c += piece) {
        const int64_t width = std::min(piece, part.columns.end - c);
        for (int64_t r = 0; r < w.rows; r += rows) {
            const int64_t n = std::min(rows, w.rows - r);
            for (int64_t i = 0; i < n; i++) {
                w.dequantize(r + i, c, width, tile + i * width);
            }
            gemm(false, false, t, width, n, 1, dy + r, w.rows, tile, width, r == 0 ? beta : 1.0f, dx + c, w.cols);
        }
    }
}

} // namespace cft::cpu
