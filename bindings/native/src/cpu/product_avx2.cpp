// product_avx2.cpp - the product kernels for AVX2 and FMA.
#define CFT_PRODUCT_KERNELS product_kernels_avx2
#define CFT_PRODUCT_ROWS 6 // 12 sums, 2 columns and a broadcast in 16 registers
#define CFT_PRODUCT_VECTORS 2
#include "product_kernels.inc"
