// rows.cpp - rows_kernels.inc for any CPU, and the choice among the versions.
#include "rows.h"

#include <math.h>

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

const row_kernels *rows_of(isa i) {
    if (!cpu_has(i)) {
        return nullptr;
    }
#if defined(__x86_64__)
    if (i == isa::avx512) {
        return &avx512::row_kernels_here();
    }
    if (i == isa::avx2) {
        return &avx2::row_kernels_here();
    }
#endif
    return &generic::kernels;
}

const row_kernels &rows() {
    static const row_kernels &best = *rows_of(best_isa());
    return best;
}

} // namespace cft::cpu
