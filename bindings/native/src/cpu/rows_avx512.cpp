// rows_avx512.cpp - rows_kernels.inc compiled for AVX-512.
#include "rows.h"

#include <math.h>

namespace cft::cpu::avx512 {
#include "rows_kernels.inc"
const row_kernels &row_kernels_here() { return kernels; }
} // namespace cft::cpu::avx512
