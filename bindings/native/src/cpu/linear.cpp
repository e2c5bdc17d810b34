// linear.cpp - see linear.h.
#include "linear.h"

#include <algorithm>
#include <cstring>

namespace cft::cpu {

namespace {

// What a product costs beside its multiplications, in rows (of weights: dequantizing and packing them) and in columns
// (packing the other matrix). Measured; only the balance matters.
constexpr int64_t cost_of_weights = 12, cost_of_input = 8;

// A row of weights is dequantized this many columns at a time: a multiple of every type's block.
constexpr int64_t strip = 512;

// The widest tile of columns in the backward direction: as deep as it is wide, roughly.
constexpr int64_t widest_tile = 512;

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

void frozen_forward(const product_kernels &kernels, const weight &w, const float *x, block_range part, bool add, const low_rank &extra,
                    float *y, int64_t ld_y, scratch s) {
    const int64_t t = part.rows.size(), k = w.cols, panel = kernels.panel;
    if (t <= 0 || part.columns.size() <= 0) {
        return;
    }
    static_assert(size_t(strip) * 64 <= scratch::staging_floats, "a panel's rows of a strip");
    x += part.rows.begin * k;
    y += part.rows.begin * ld_y;
    const int64_t depth   = std::min(k, int64_t(products::scratch_floats) / panel / strip * strip);
    const int64_t columns = int64_t(products::scratch_floats) / (depth * panel) * panel;
    for (int64_t j = part.columns.begin; j < part.columns.end; j += columns) {
        const int64_t wide = std::min(columns, part.columns.end - j);
        for (int64_t c = 0; c < k; c += depth) {
            const int64_t deep = std::min(depth, k - c);
            for (int64_t p = 0; p < wide; p += panel) {
                const int64_t n = std::min(panel, wide - p);
                for (int64_t at = 0; at < deep; at += strip) {
                    const int64_t here = std::min(strip, deep - at);
                    for (int64_t i = 0; i < n; i++) {
                        w.dequantize(j + p + i, c + at, here, s.staging + i * here);
                    }
                    kernels.transpose(s.staging, here, n, here, s.panels + p * deep + at * panel);
                }
            }
            kernels.multiply({rows_of(x + c, k), s.panels, panel, panel * deep, {y + j, ld_y, 1, add || c > 0}, t, wide, deep});
        }
        if (extra.h) {
            products(kernels, s.panels).multiply_transposed(rows_of(extra.h + part.rows.begin * extra.ld_h, extra.ld_h), extra.b + j * extra.rank,
                                                            extra.rank, {y + j, ld_y, extra.scale, true}, t, wide, extra.rank);
        }
    }
}

void frozen_backward(const product_kernels &kernels, const weight &w, const float *dy, int64_t ld_dy, block_range part, bool add, float *dx,
                     scratch s) {
    const int64_t t = part.rows.size(), panel = kernels.panel;
    if (t <= 0 || part.columns.size() <= 0) {
        return;
    }
    dy += part.rows.begin * ld_dy;
    dx += part.rows.begin * w.cols;
    for (int64_t j = part.columns.begin; j < part.columns.end; j += widest_tile) {
        const int64_t wide = std::min(widest_tile, part.columns.end - j), padded = up_to(wide, panel);
        const int64_t depth = int64_t(products::scratch_floats) / padded;
        for (int64_t r = 0; r < w.rows; r += depth) {
            const int64_t deep = std::min(depth, w.rows - r);
            for (int64_t i = 0; i < deep; i++) {
                w.dequantize(r + i, j, wide, s.staging);
                std::fill(s.staging + wide, s.staging + padded, 0.0f);
                for (int64_t p = 0; p < padded; p += panel) {
                    std::memcpy(s.panels + p * deep + i * panel, s.staging + p, size_t(panel) * sizeof(float));
                }
            }
            kernels.multiply({rows_of(dy + r, ld_dy), s.panels, panel, panel * deep, {dx + j, w.cols, 1, add || r > 0}, t, wide, deep});
        }
    }
}

} // namespace cft::cpu
