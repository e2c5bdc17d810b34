// rows_avx2.cpp - rows_kernels.inc compiled for AVX2.
#include "rows.h"

#include <math.h>

namespace cft::cpu::avx2 {
#include "rows_kernels.inc"
const row_kernels &row_kernels_here() { return kernels; }
} // namespace cft::cpu::avx2
