// product_generic.cpp - the product kernels for any CPU, on vectors of 16 bytes.
#define CFT_PRODUCT_KERNELS product_kernels_generic
#define CFT_PRODUCT_ROWS 6
#define CFT_PRODUCT_VECTORS 2
#include "product_kernels.inc"
