// product.cpp - see product.h.
#include "product.h"

#include <algorithm>
#include <cstring>

namespace cft::cpu {

extern const product_kernels product_kernels_generic;
#if defined(__x86_64__)
extern const product_kernels product_kernels_avx2, product_kernels_avx512;
#endif

const product_kernels *product_kernels_of(isa i) {
    if (!cpu_has(i)) {
        return nullptr;
    }
#if defined(__x86_64__)
    if (i == isa::avx512) {
        return &product_kernels_avx512;
    }
    if (i == isa::avx2) {
        return &product_kernels_avx2;
    }
#endif
    return &product_kernels_generic;
}

void products::multiply(factor a, const float *b, int64_t b_row, const result &c, int64_t m, int64_t n, int64_t k) const {
    // Whole vectors of B are read where they lie; the columns after them are copied to a panel, some rows at a time.
    const int64_t whole = n / kernels_.vector * kernels_.vector, rest = n - whole;
    if (whole > 0) {
        kernels_.multiply({a, b, b_row, kernels_.panel, c, m, whole, k});
    }
    const int64_t panel = kernels_.panel, rows = int64_t(scratch_floats) / panel;
    for (int64_t t = 0; rest > 0 && t < k; t += rows) {
        const int64_t here = std::min(rows, k - t);
        for (int64_t i = 0; i < here; i++) {
            float *const to = scratch_ + i * panel;
            std::memset(to, 0, size_t(panel) * sizeof(float));
            std::memcpy(to, b + (t + i) * b_row + whole, size_t(rest) * sizeof(float));
        }
        const factor part = {a.p + t * a.column, a.row, a.column};
        kernels_.multiply({part, scratch_, panel, 0, {c.p + whole, c.row, c.scale, c.add || t > 0}, m, rest, here});
    }
}

void products::multiply_transposed(factor a, const float *b, int64_t b_row, const result &c, int64_t m, int64_t n, int64_t k) const {
    const int64_t panel = kernels_.panel, depth = std::min(k, int64_t(scratch_floats) / panel);
    const int64_t columns = int64_t(scratch_floats) / (depth * panel) * panel;
    for (int64_t j = 0; j < n; j += columns) {
        const int64_t wide = std::min(columns, n - j);
        for (int64_t t = 0; t < k; t += depth) {
            const int64_t deep = std::min(depth, k - t);
            for (int64_t p = 0; p < wide; p += panel) {
                kernels_.transpose(b + (j + p) * b_row + t, b_row, std::min(panel, wide - p), deep, scratch_ + p * deep);
            }
            const factor part = {a.p + t * a.column, a.row, a.column};
            kernels_.multiply({part, scratch_, panel, panel * deep, {c.p + j, c.row, c.scale, c.add || t > 0}, m, wide, deep});
        }
    }
}

} // namespace cft::cpu
