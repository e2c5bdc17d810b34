// products.h - whether a device's products of F32 matrices are of F32.
#pragma once

#include "graph.h"

namespace cft::portable {

// Throws failure where the device rounds operands of F32 products, to halves, bf16 or TF32, as some of ggml's backends do on some
// devices. Gradients would be right to three digits, and small ones 0, and nothing would say so. Each device is tried once.
void check_products(ggml_backend_dev_t device);

// What check_products multiplies: rows of k numbers.
struct product_probe {
    static constexpr int64_t k = 128, m = 64; // k: Metal has a kernel for few columns where 128 divides it
    explicit product_probe(int64_t n);

    int64_t            n;
    std::vector<float> a, b; // [m][k], [n][k]
};

// The largest relative error of y, [n][m], as the product of the probe.
double error_of(const product_probe &probe, const float *y);

} // namespace cft::portable
