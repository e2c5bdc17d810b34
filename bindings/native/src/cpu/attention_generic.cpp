// attention_generic.cpp - the attention kernels for what every CPU of the target has (SSE2, NEON).
#define CFT_ATTENTION_KERNELS attention_kernels_generic
#define CFT_ATTENTION_NAME "generic"
#if defined(__aarch64__)
#define CFT_BLOCK_ROWS 6 // 32 registers
#define CFT_BLOCK_VECTORS 4
#else
#define CFT_BLOCK_ROWS 4 // 16 registers
#define CFT_BLOCK_VECTORS 2
#endif
#include "attention_kernels.inc"
