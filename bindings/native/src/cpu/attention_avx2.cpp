// attention_avx2.cpp - the attention kernels for AVX2 and FMA.
#define CFT_ATTENTION_KERNELS attention_kernels_avx2
#define CFT_ATTENTION_NAME "avx2"
#define CFT_BLOCK_ROWS 6 // 12 sums, 2 columns and a broadcast in 16 registers
#define CFT_BLOCK_VECTORS 2
#include "attention_kernels.inc"
