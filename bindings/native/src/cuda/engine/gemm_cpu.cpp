// gemm_cpu.cpp - gemm.h for the shim: operands widened to F32, the system's BLAS, results rounded.
#include "gemm.h"

#include "../../blas.h"
#include "../../failure.h"
#include "../shim/cuda_shim.h"

#include <cstring>
#include <string>
#include <vector>

namespace cft::cuda {
namespace {

float widen(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float          f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}

bf16 narrow(float f) {
    uint32_t u;
    std::memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return bf16{uint16_t(u >> 16 | 64)};
    }
    return bf16{uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

std::vector<float> widened(const bf16 *x, int64_t rows, int64_t columns, int64_t ld) {
    std::vector<float> wide(size_t(rows * columns));
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            wide[size_t(i * columns + j)] = widen(x[i * ld + j]);
        }
    }
    return wide;
}

class cpu_products : public products {
  public:
    void run(const product &p, cudaStream_t stream) override {
        if (p.m > 0 && p.n > 0) {
            check(p);
            shim::put(stream, [p] { multiply(p); });
        }
    }

  private:
    // What cuBLASLt has its fast algorithms for, and perhaps any: each row begins at a multiple of 16 bytes.
    static void check(const product &p) {
        const auto aligned = [](const void *at, int64_t ld, size_t element) { return (uintptr_t(at) | size_t(ld) * element) % 16 == 0; };
        const bool inside  = p.ld_a >= (p.transposed_a ? p.m : p.k) && p.ld_b >= (p.transposed_b ? p.k : p.n) && p.ld_c >= p.n;
        if (p.k < 1 || !inside || !aligned(p.a, p.ld_a, sizeof(bf16)) || !aligned(p.b, p.ld_b, sizeof(bf16)) ||
            !aligned(p.c, p.ld_c, p.c_is_f32 ? sizeof(float) : sizeof(bf16))) {
            throw failure(CFT_ERR_INTERNAL, "a product of " + std::to_string(p.m) + " x " + std::to_string(p.k) + " by " + std::to_string(p.k) + " x " +
                                                std::to_string(p.n) + " whose rows are not aligned, or too short");
        }
    }

    static void multiply(const product &p) {
        const auto a = p.transposed_a ? widened(p.a, p.k, p.m, p.ld_a) : widened(p.a, p.m, p.k, p.ld_a);
        const auto b = p.transposed_b ? widened(p.b, p.n, p.k, p.ld_b) : widened(p.b, p.k, p.n, p.ld_b);
        std::vector<float> c(size_t(p.m * p.n));
        cblas_sgemm(CblasRowMajor, p.transposed_a ? CblasTrans : CblasNoTrans, p.transposed_b ? CblasTrans : CblasNoTrans, int(p.m), int(p.n),
                    int(p.k), p.alpha, a.data(), int(p.transposed_a ? p.m : p.k), b.data(), int(p.transposed_b ? p.k : p.n), 0, c.data(),
                    int(p.n));
        for (int64_t i = 0; i < p.m; i++) {
            for (int64_t j = 0; j < p.n; j++) {
                const float sum = c[size_t(i * p.n + j)];
                if (p.c_is_f32) {
                    float &to = static_cast<float *>(p.c)[i * p.ld_c + j];
                    to        = p.beta == 0 ? sum : sum + p.beta * to;
                } else {
                    bf16 &to = static_cast<bf16 *>(p.c)[i * p.ld_c + j];
                    to       = narrow(p.beta == 0 ? sum : sum + p.beta * widen(to));
                }
            }
        }
    }
};

} // namespace

std::unique_ptr<products> make_products(void *, size_t) { return std::make_unique<cpu_products>(); }

} // namespace cft::cuda
