// rows.cpp - rows_kernels.inc for any CPU, and the choice among the versions.
#include "rows.h"

#include <cmath>
#include <cstring>

#define ROWS_NAME "generic"
namespace cft::cpu {
namespace generic {
#include "rows_kernels.inc"
} // namespace generic

#if defined(__x86_64__)
namespace avx2 {
const row_kernels &row_kernels_here();
}
namespace avx512 {
const row_kernels &row_kernels_here();
}
#endif

const row_kernels &rows() {
#if defined(__x86_64__)
    static const row_kernels &chosen = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")
                                           ? avx512::row_kernels_here()
                                       : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2::row_kernels_here()
                                                                                                         : generic::kernels;
    return chosen;
#else
    return generic::kernels;
#endif
}

} // namespace cft::cpu
