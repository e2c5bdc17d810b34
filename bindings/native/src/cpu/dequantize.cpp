// dequantize.cpp - the choice among dequantize.h's versions, and the one for any CPU.
#include "dequantize.h"

#include "isa.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace cft::cpu {
namespace generic {
#include "dequantize_kernels.inc"
} // namespace generic

#if defined(__x86_64__)
namespace avx2 {
const dequantize_kernels &dequantize_kernels_here();
}
namespace avx512 {
const dequantize_kernels &dequantize_kernels_here();
}
#endif

const dequantize_kernels *dequantize_kernels_of(isa i) {
    if (!cpu_has(i)) {
        return nullptr;
    }
#if defined(__x86_64__)
    if (i == isa::avx512) {
        return &avx512::dequantize_kernels_here();
    }
    if (i == isa::avx2) {
        return &avx2::dequantize_kernels_here();
    }
#endif
    return &generic::dequantize_here;
}

dequantize_function dequantizer(ggml_type type, const dequantize_kernels &kernels) {
    dequantize_function ours = nullptr;
    switch (type) {
    case GGML_TYPE_Q4_0: ours = kernels.q4_0; break;
    case GGML_TYPE_Q4_1: ours = kernels.q4_1; break;
    case GGML_TYPE_Q5_0: ours = kernels.q5_0; break;
    case GGML_TYPE_Q5_1: ours = kernels.q5_1; break;
    case GGML_TYPE_Q8_0: ours = kernels.q8_0; break;
    case GGML_TYPE_Q6_K: ours = kernels.q6_k; break;
    case GGML_TYPE_F16: ours = kernels.f16; break;
    default: break;
    }
    return ours ? ours : ggml_get_type_traits(type)->to_float;
}

dequantize_function dequantizer(ggml_type type) { return dequantizer(type, *dequantize_kernels_of(best_isa())); }

} // namespace cft::cpu
