// dequantize_avx512.cpp - dequantize_kernels.inc compiled for AVX-512.
#include "dequantize.h"

#include <immintrin.h>

namespace cft::cpu::avx512 {
#include "dequantize_kernels.inc"
const dequantize_kernels &dequantize_kernels_here() { return dequantize_here; }
} // namespace cft::cpu::avx512
