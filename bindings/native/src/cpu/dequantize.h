// dequantize.h - rows of GGUF types to F32. ggml's own functions are plain loops compiled for any CPU; those of the common
// types are written here once more, for the vectors of this one. The results are the same bit for bit.
#pragma once

#include "isa.h"

#include "ggml.h"

#include <cstdint>

namespace cft::cpu {

using dequantize_function = void (*)(const void *from, float *to, int64_t n);

// Those of one instruction set; NULL means ggml's.
struct dequantize_kernels {
    dequantize_function q4_0, q4_1, q5_0, q5_1, q8_0, q6_k, f16;
};

// The kernels of one instruction set; NULL if this CPU cannot run them.
const dequantize_kernels *dequantize_kernels_of(isa i);

// dequantizer returns the function for a type, ours or ggml's; NULL where ggml has none (F32 among them).
dequantize_function dequantizer(ggml_type type, const dequantize_kernels &kernels);
dequantize_function dequantizer(ggml_type type); // with this CPU's best kernels

} // namespace cft::cpu
