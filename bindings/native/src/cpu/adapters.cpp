// adapters.cpp - the operations of DoRA and of adapters of the embedding.
#include "ops.h"

#include <algorithm>
#include <cmath>

namespace cft::cpu {

namespace {

constexpr int64_t by_vector = 16; // floats: the widest vector

} // namespace

void cpu_ops::scale_columns(const float *x, const float *s, int64_t n, int64_t columns, bool add, float *y) {
    divide(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            (add ? kernels_.multiply_add : kernels_.multiply)(x + i * columns, s, y + i * columns, size_t(columns));
        }
    });
}

void cpu_ops::column_dots(const float *x, const float *y, const float *by, int64_t n, int64_t columns, float *sums) {
    pool_.run([&](int ith, int nth) {
        const range  all = share(columns, by_vector, ith, nth);
        float *const sum = scratch_of(ith).staging;
        for (int64_t c = all.begin; c < all.end; c += int64_t(scratch::staging_floats)) {
            const int64_t width = std::min(all.end - c, int64_t(scratch::staging_floats));
            std::fill(sum, sum + width, 0.0f);
            for (int64_t i = 0; i < n; i++) {
                kernels_.multiply_add(x + i * columns + c, y + i * columns + c, sum, size_t(width));
            }
            for (int64_t j = 0; j < width; j++) {
                sums[c + j] += sum[j] / by[c + j];
            }
        }
    });
}

// Some rows of W are widened at a time, so there is no second copy of the weight; B A is added to them as it stands, which costs
// what the cross term of |W|² + 2 scale W·BA + |BA|² would, and cancels nothing.
void cpu_ops::row_norms(const weight &w, const float *a, const float *b, int rank, float scale, const float *magnitude, float *norm, float *gain) {
    const int64_t width = std::min(w.cols, int64_t(scratch::staging_floats) / w.block() * w.block());
    const int64_t rows  = std::max<int64_t>(1, int64_t(scratch::staging_floats) / width);
    pool_.run([&](int ith, int nth) {
        const range         part = share(w.rows, 1, ith, nth);
        float *const        tile = scratch_of(ith).staging;
        std::vector<double> sums(static_cast<size_t>(std::min(rows, std::max<int64_t>(part.size(), 1))));
        for (int64_t r = part.begin; r < part.end; r += rows) {
            const int64_t n = std::min(rows, part.end - r);
            std::fill(sums.begin(), sums.end(), 0.0);
            for (int64_t c = 0; c < w.cols; c += width) {
                const int64_t wide = std::min(width, w.cols - c);
                for (int64_t i = 0; i < n; i++) {
                    w.dequantize(r + i, c, wide, tile + i * wide);
                }
                products_of(ith).multiply(rows_of(b + r * rank, rank), a + c, w.cols, {tile, wide, scale, true}, n, wide, rank);
                for (int64_t i = 0; i < n; i++) {
                    sums[size_t(i)] += kernels_.sum_of_squares(tile + i * wide, size_t(wide));
                }
            }
            for (int64_t i = 0; i < n; i++) {
                norm[r + i] = float(std::sqrt(sums[size_t(i)]));
                if (gain) {
                    gain[r + i] = magnitude[r + i] / norm[r + i];
                }
            }
        }
    });
}

namespace {

void rows_of_tokens(const embedding_adapter &e, const int32_t *tokens, range part, float *h) {
    for (int64_t i = part.begin; i < part.end; i++) {
        std::copy_n(e.a + int64_t(tokens[i]) * e.rank, e.rank, h + i * e.rank);
    }
}

} // namespace

void cpu_ops::embed_adapter(const embedding_adapter &e, const int32_t *tokens, int64_t n, float *x, float *h) {
    pool_.run([&](int ith, int nth) {
        const range part = share(n, 1, ith, nth);
        if (part.size() > 0) {
            rows_of_tokens(e, tokens, part, h);
            products_of(ith).multiply_transposed(rows_of(h + part.begin * e.rank, e.rank), e.b, e.rank,
                                                 {x + part.begin * e.columns, e.columns, e.scale, true}, part.size(), e.columns, e.rank);
        }
    });
}

void cpu_ops::embed_adapter_backward(const embedding_adapter &e, const int32_t *tokens, int64_t n, const float *dx, float *h) {
    pool_.run([&](int ith, int nth) { rows_of_tokens(e, tokens, share(n, 1, ith, nth), h); });
    pool_.run([&](int ith, int nth) { // dB += scale dxᵀ h
        const range out = share(e.columns, by_vector, ith, nth);
        if (out.size() > 0) {
            products_of(ith).multiply(columns_of(dx + out.begin, e.columns), h, e.rank, {e.db + out.begin * e.rank, e.rank, e.scale, true}, out.size(),
                                      e.rank, n);
        }
    });
    pool_.run([&](int ith, int nth) { // scale dx B, which takes the place of h
        const range part = share(n, 1, ith, nth);
        if (part.size() > 0) {
            products_of(ith).multiply(rows_of(dx + part.begin * e.columns, e.columns), e.b, e.rank, {h + part.begin * e.rank, e.rank, e.scale},
                                      part.size(), e.rank, e.columns);
        }
    });
    // Tokens repeat, so this is one thread's work; there is little of it.
    for (int64_t i = 0; i < n; i++) {
        kernels_.add(e.da + int64_t(tokens[i]) * e.rank, h + i * e.rank, size_t(e.rank));
    }
}

} // namespace cft::cpu
