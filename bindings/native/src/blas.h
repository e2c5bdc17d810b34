// blas.h - the system's CBLAS: OpenBLAS, or Apple's Accelerate. Training has products of its own (cpu/product.h); this one is for
// comparisons with them, and for tests.
#pragma once

#if defined(__APPLE__)

// As in Accelerate's header, which calls this interface outdated since it has another one too.
enum CBLAS_ORDER : int { CblasRowMajor = 101 };
enum CBLAS_TRANSPOSE : int { CblasNoTrans = 111, CblasTrans = 112 };
extern "C" void cblas_sgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE transpose_a, CBLAS_TRANSPOSE transpose_b, int m, int n, int k, float alpha,
                            const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);

namespace cft {
inline void blas_without_threads() {} // it takes what it needs
} // namespace cft

#else

#include <cblas.h>

extern "C" void openblas_set_num_threads(int);

namespace cft {
inline void blas_without_threads() { openblas_set_num_threads(1); }
} // namespace cft

#endif
