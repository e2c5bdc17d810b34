// attention_avx512.cpp - the attention kernels for AVX-512 (F, VL, DQ, BW).
#define CFT_ATTENTION_KERNELS attention_kernels_avx512
#define CFT_ATTENTION_NAME "avx512"
#define CFT_BLOCK_ROWS 4 // 16 sums hide the latency of two units, and 4 divides a tile
#define CFT_BLOCK_VECTORS 4
#include "attention_kernels.inc"
