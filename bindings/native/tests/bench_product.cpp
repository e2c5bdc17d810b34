// bench_product.cpp - how fast the product kernels are beside the BLAS, on one thread, in the shapes of a 135M model's
// training steps: GFLOP per second of the thread's own time, so that other processes disturb little.
#include "blas.h"
#include "cpu/product.h"

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <vector>

using namespace cft::cpu;

namespace {

struct shape {
    const char *what;
    int64_t     m, n, k;
    bool        by_column; // A is read by columns, as for the gradients of adapters; otherwise B is transposed, as weights are
};

constexpr shape shapes[] = {{"ffn up", 512, 768, 576, false},      {"ffn down", 512, 288, 1536, false}, {"attention", 512, 288, 576, false},
                            {"head", 340, 512, 576, false},        {"gradient of A", 48, 288, 512, true}, {"gradient of B", 768, 16, 512, true},
                            {"input times A", 256, 48, 576, false}};

double thread_seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

template <typename Run> double best_rate(const shape &s, const Run &run) {
    constexpr int repetitions = 40;
    double        best        = 0;
    for (int i = 0; i < repetitions; i++) {
        const double start = thread_seconds();
        run();
        best = std::max(best, 2e-9 * double(s.m) * double(s.n) * double(s.k) / (thread_seconds() - start));
    }
    return best;
}

} // namespace

int main() {
    cft::blas_without_threads();
    std::printf("%-16s %8s", "GFLOP/s", "BLAS");
    for (const char *name : {"generic", "avx2", "avx512"}) {
        std::printf(" %8s", name);
    }
    std::printf("\n");
    for (const shape &s : shapes) {
        std::vector<float> a(size_t(s.m * s.k), 0.5f), b(size_t(s.k * s.n), 0.25f), c(size_t(s.m * s.n)), scratch(products::scratch_floats);
        std::printf("%-16s %8.1f", s.what, best_rate(s, [&] {
                        cblas_sgemm(CblasRowMajor, s.by_column ? CblasTrans : CblasNoTrans, s.by_column ? CblasNoTrans : CblasTrans, int(s.m), int(s.n),
                                    int(s.k), 1, a.data(), int(s.by_column ? s.m : s.k), b.data(), int(s.by_column ? s.n : s.k), 0, c.data(),
                                    int(s.n));
                    }));
        for (isa set : {isa::generic, isa::avx2, isa::avx512}) {
            const product_kernels *kernels = product_kernels_of(set);
            if (!kernels) {
                std::printf(" %8s", "-");
                continue;
            }
            const products p(*kernels, scratch.data());
            std::printf(" %8.1f", best_rate(s, [&] {
                            if (s.by_column) {
                                p.multiply(columns_of(a.data(), s.m), b.data(), s.n, {c.data(), s.n}, s.m, s.n, s.k);
                            } else {
                                p.multiply_transposed(rows_of(a.data(), s.k), b.data(), s.k, {c.data(), s.n}, s.m, s.n, s.k);
                            }
                        }));
        }
        std::printf("\n");
    }
}
