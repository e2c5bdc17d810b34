// test_product.cpp - the product kernels of every instruction set against double precision: whole and partial panels, views
// of A by rows and by columns, strides, scaling and adding, and sizes beyond the scratch memory.
#include "checks.h"
#include "cpu/product.h"

using namespace cft::cpu;
using namespace checks;

namespace {

// Float sums of up to some thousand products, relative to the largest result.
constexpr double product_tolerance = 5e-6;
constexpr float  untouched         = -7.0f;

struct size {
    int64_t m, n, k;
};

constexpr size sizes[] = {{1, 1, 1},   {3, 5, 7},    {12, 32, 64}, {13, 33, 65}, {25, 96, 16},   {48, 288, 100},
                          {100, 16, 3}, {11, 47, 129}, {7, 640, 40}, {2, 5, 9000}, {5, 70, 20000}, {64, 31, 1}};

enum class b_layout { rows, transposed };

void test_multiply(const product_kernels &kernels, size s, bool by_column, b_layout layout, bool add) {
    where = std::to_string(s.m) + " x " + std::to_string(s.n) + " x " + std::to_string(s.k) + (by_column ? ", A by columns" : "") +
            (layout == b_layout::transposed ? ", B transposed" : "") + (add ? ", added" : "") + ", vectors of " + std::to_string(kernels.vector);
    constexpr int64_t extra = 3; // every stride is wider than its matrix
    const float       scale = 0.5f;
    const int64_t     a_stride = (by_column ? s.m : s.k) + extra, b_stride = (layout == b_layout::rows ? s.n : s.k) + extra, c_stride = s.n + extra;
    // Exactly as many floats as the matrices span: reading past them is seen by the sanitizers.
    const auto a = random_floats(size_t(((by_column ? s.k : s.m) - 1) * a_stride + (by_column ? s.m : s.k)));
    const auto b = random_floats(size_t(((layout == b_layout::rows ? s.k : s.n) - 1) * b_stride + (layout == b_layout::rows ? s.n : s.k)));
    std::vector<float> c(size_t(s.m * c_stride), untouched), scratch(products::scratch_floats), got;
    const products     p(kernels, scratch.data());
    const factor       view = by_column ? columns_of(a.data(), a_stride) : rows_of(a.data(), a_stride);
    const result       to   = {c.data(), c_stride, scale, add};
    if (layout == b_layout::rows) {
        p.multiply(view, b.data(), b_stride, to, s.m, s.n, s.k);
    } else {
        p.multiply_transposed(view, b.data(), b_stride, to, s.m, s.n, s.k);
    }
    std::vector<double> want;
    bool                beyond = false;
    for (int64_t i = 0; i < s.m; i++) {
        for (int64_t j = 0; j < s.n; j++) {
            double sum = 0;
            for (int64_t k = 0; k < s.k; k++) {
                sum += double(by_column ? a[size_t(k * a_stride + i)] : a[size_t(i * a_stride + k)]) *
                       double(layout == b_layout::rows ? b[size_t(k * b_stride + j)] : b[size_t(j * b_stride + k)]);
            }
            want.push_back(double(scale) * sum + (add ? double(untouched) : 0.0));
            got.push_back(c[size_t(i * c_stride + j)]);
        }
        for (int64_t j = s.n; j < c_stride; j++) {
            beyond = beyond || c[size_t(i * c_stride + j)] != untouched;
        }
    }
    CHECK(worst(got, want) < product_tolerance);
    CHECK(!beyond);
}

} // namespace

int main() {
    int n_sets = 0;
    for (isa set : {isa::generic, isa::avx2, isa::avx512}) {
        const product_kernels *kernels = product_kernels_of(set);
        if (!kernels) {
            continue;
        }
        n_sets++;
        for (const size &s : sizes) {
            for (bool by_column : {false, true}) {
                for (b_layout layout : {b_layout::rows, b_layout::transposed}) {
                    test_multiply(*kernels, s, by_column, layout, false);
                    test_multiply(*kernels, s, by_column, layout, true);
                }
            }
        }
    }
    CHECK(n_sets >= 1);
    return finish("test_product");
}
