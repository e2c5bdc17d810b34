// products.cpp - see products.h.
#include "products.h"

#include "../failure.h"
#include "compose.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <set>

namespace cft::portable {
namespace {

// Halves, bf16 and TF32 keep 10 bits or fewer behind the first, so that 1 + 2^-12 becomes 1; halves also lose what is small or large.
constexpr float fine = 1 + 1.0f / 4096, small = 1.0f / (1 << 30), large = float(1 << 30);
// Sums of 128 products in F32 are off by a tenth of this at most, rounded operands by ten times as much.
constexpr double most = 2e-5;
// Backends have kernels of their own for one column, for few, and for many.
constexpr int64_t columns[] = {1, 4, 64};

} // namespace

product_probe::product_probe(int64_t n) : n(n), a(size_t(m * k)), b(size_t(n * k)) {
    constexpr float left[] = {fine, 1, small}, right[] = {fine, 1, large};
    for (int64_t i = 0; i < m * k; i++) {
        a[size_t(i)] = left[i / k % 3];
    }
    for (int64_t i = 0; i < n * k; i++) {
        b[size_t(i)] = right[i / k % 3];
    }
}

double error_of(const product_probe &probe, const float *y) {
    double worst = 0;
    for (int64_t column = 0; column < probe.n; column++) {
        for (int64_t row = 0; row < probe.m; row++) {
            double want = 0;
            for (int64_t i = 0; i < probe.k; i++) {
                want += double(probe.a[size_t(row * probe.k + i)]) * double(probe.b[size_t(column * probe.k + i)]);
            }
            const double error = std::fabs(double(y[column * probe.m + row]) / want - 1);
            worst              = std::isfinite(error) ? std::max(worst, error) : HUGE_VAL;
        }
    }
    return worst;
}

void check_products(ggml_backend_dev_t device) {
    static std::mutex                   mutex;
    static std::set<ggml_backend_dev_t> exact;
    std::lock_guard<std::mutex>         lock(mutex);
    if (exact.count(device) > 0) {
        return;
    }
    machine here(device, 1, false);
    for (const int64_t n : columns) {
        const product_probe probe(n);
        store               operands(2);
        ggml_tensor *const  a = operands.tensor(GGML_TYPE_F32, probe.k, probe.m), *const b = operands.tensor(GGML_TYPE_F32, probe.k, n);
        operands.allocate(device, false, "a product that is tried");
        ggml_backend_tensor_set(a, probe.a.data(), 0, ggml_nbytes(a));
        ggml_backend_tensor_set(b, probe.b.data(), 0, ggml_nbytes(b));
        graph              g(4);
        ggml_tensor *const result = g.result(product(g.ctx(), a, b));
        here.run(g);
        std::vector<float> y(size_t(probe.m * n));
        ggml_backend_tensor_get(result, y.data(), 0, ggml_nbytes(result));
        if (const double error = error_of(probe, y.data()); error > most) {
            throw failure(CFT_ERR_UNSUPPORTED, std::string("device ") + here.name() + " rounds the operands of products in F32 (a product of " + std::to_string(n) +
                                                   " columns is off by " + std::to_string(error) + " of itself), and gradients with them; device: cpu trains exactly");
        }
    }
    exact.insert(device);
}

} // namespace cft::portable
