// gemm.h - matrix products of bf16 matrices on a device, with F32 sums. One implementation calls cuBLASLt, one the CPU's BLAS for
// tests without a device.
#pragma once

#include "../kernels.h"

#include <memory>

namespace cft::cuda {

// c [m][n] = alpha * op(a) op(b) + beta * c; op(a) is [m][k], op(b) [k][n]. All row-major; transposed means that memory holds
// [k][m] or [n][k].
struct product {
    int64_t     m, n, k;
    const bf16 *a;
    int64_t     ld_a;
    bool        transposed_a;
    const bf16 *b;
    int64_t     ld_b;
    bool        transposed_b;
    void       *c;
    int64_t     ld_c;
    bool        c_is_f32;
    float       alpha = 1, beta = 0;
};

class products {
  public:
    virtual ~products() = default;
    // The same shapes and alignments give the same algorithm, hence the same bits, for the life of the object.
    virtual void run(const product &p, cudaStream_t stream) = 0;
};

constexpr size_t products_workspace_bytes = size_t(64) << 20, side_workspace_bytes = size_t(32) << 20; // for parts of sums

// workspace: device memory of so many bytes, owned by the caller. Products of two objects may be under way at once.
std::unique_ptr<products> make_products(void *workspace, size_t bytes);

} // namespace cft::cuda
