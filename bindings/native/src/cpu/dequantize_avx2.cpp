// dequantize_avx2.cpp - dequantize_kernels.inc compiled for AVX2.
#include "dequantize.h"

#include <immintrin.h>

namespace cft::cpu::avx2 {
#include "dequantize_kernels.inc"
const dequantize_kernels &dequantize_kernels_here() { return dequantize_here; }
} // namespace cft::cpu::avx2
