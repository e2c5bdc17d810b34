// product_avx512.cpp - the product kernels for AVX-512 (F, VL, DQ, BW).
#define CFT_PRODUCT_KERNELS product_kernels_avx512
#define CFT_PRODUCT_ROWS 12 // 24 sums, 2 columns and a broadcast in 32 registers
#define CFT_PRODUCT_VECTORS 2
#include "product_kernels.inc"
