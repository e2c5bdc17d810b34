// simd.h - a vector of floats as wide as the file's instruction set, for kernels that are compiled several times.
//
// Everything lies in an inline namespace named after the instruction set, so that code compiled for one is never linked
// into another. For the same reason kernel files use no templates of the standard library: the linker keeps one copy of
// such a function, which may be the one compiled for AVX-512. Loads and stores need no alignment.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define CFT_SIMD_ISA avx512
#define CFT_SIMD_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define CFT_SIMD_ISA avx2
#define CFT_SIMD_BYTES 32
#else
#define CFT_SIMD_ISA generic
#define CFT_SIMD_BYTES 16
#endif

#define CFT_INLINE static inline __attribute__((always_inline))

namespace cft::simd {
inline namespace CFT_SIMD_ISA {

typedef float   vf __attribute__((vector_size(CFT_SIMD_BYTES)));
typedef int32_t vi __attribute__((vector_size(CFT_SIMD_BYTES)));
typedef float   vf_memory __attribute__((vector_size(CFT_SIMD_BYTES), aligned(4), may_alias));
typedef int32_t vi_memory __attribute__((vector_size(CFT_SIMD_BYTES), aligned(4), may_alias));

constexpr int width = CFT_SIMD_BYTES / 4; // floats in a vector

CFT_INLINE vf   load(const float *p) { return *reinterpret_cast<const vf_memory *>(p); }
CFT_INLINE vi   load(const int32_t *p) { return *reinterpret_cast<const vi_memory *>(p); }
CFT_INLINE void store(float *p, vf v) { *reinterpret_cast<vf_memory *>(p) = v; }
CFT_INLINE vf   broadcast(float x) { return x - vf{}; }
CFT_INLINE vi   broadcast(int32_t x) { return x - vi{}; }
CFT_INLINE vf   as_float(vi v) { return reinterpret_cast<vf>(v); }
CFT_INLINE vi   as_int(vf v) { return reinterpret_cast<vi>(v); }

// load_part reads the first n < width floats, the other lanes being 0; store_part writes the first n.
CFT_INLINE vf load_part(const float *p, int n) {
    vf v{};
    for (int i = 0; i < n; i++) {
        v[i] = p[i];
    }
    return v;
}
CFT_INLINE void store_part(float *p, vf v, int n) {
    for (int i = 0; i < n; i++) {
        p[i] = v[i];
    }
}

// lane_numbers is 0, 1, 2, ...
CFT_INLINE vi lane_numbers() {
    vi v{};
    for (int i = 0; i < width; i++) {
        v[i] = i;
    }
    return v;
}

// madd is a * b + c, rounded once where the machine can. max and min return b where either is NaN.
#if defined(__AVX512F__)
CFT_INLINE vf    madd(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
CFT_INLINE vf    max(vf a, vf b) { return _mm512_maskz_max_ps(0xffff, a, b); }
CFT_INLINE vf    min(vf a, vf b) { return _mm512_maskz_min_ps(0xffff, a, b); }
CFT_INLINE bool  any_greater(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
// Zeroing forms, here and above: GCC 12 warns of uninitialized values inside its own plain ones.
CFT_INLINE __m256 upper_half(vf v) { return _mm512_maskz_extractf32x8_ps(0xff, v, 1); }
CFT_INLINE __m256 lower_half(vf v) { return _mm512_maskz_extractf32x8_ps(0xff, v, 0); }
#elif defined(__AVX2__) && defined(__FMA__)
CFT_INLINE vf    madd(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
CFT_INLINE vf    max(vf a, vf b) { return _mm256_max_ps(a, b); }
CFT_INLINE vf    min(vf a, vf b) { return _mm256_min_ps(a, b); }
CFT_INLINE bool  any_greater(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
#else
CFT_INLINE vf    madd(vf a, vf b, vf c) { return a * b + c; }
CFT_INLINE vf    max(vf a, vf b) { return a > b ? a : b; }
CFT_INLINE vf    min(vf a, vf b) { return a < b ? a : b; }
CFT_INLINE float sum(vf v) { return (v[0] + v[2]) + (v[1] + v[3]); }
CFT_INLINE float largest(vf v) {
    const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}
CFT_INLINE bool any_greater(vf a, vf b) {
    const vi m = a > b;
    return (m[0] | m[1] | m[2] | m[3]) != 0;
}
#endif

#if defined(__AVX2__) && defined(__FMA__)
CFT_INLINE float sum_of_8(__m256 v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x        = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
CFT_INLINE float largest_of_8(__m256 v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x        = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
#if defined(__AVX512F__)
CFT_INLINE float sum(vf v) { return sum_of_8(_mm256_add_ps(lower_half(v), upper_half(v))); }
CFT_INLINE float largest(vf v) { return largest_of_8(_mm256_max_ps(lower_half(v), upper_half(v))); }
#else
CFT_INLINE float sum(vf v) { return sum_of_8(v); }
CFT_INLINE float largest(vf v) { return largest_of_8(v); }
#endif
#endif

// exp has a relative error below 3e-7. It is 0 below -87.33 (also at -infinity, where the result would be subnormal),
// infinite above 88.37, and NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is the minimax fit of degree 5 to e^r with the first two
// coefficients held at 1. Adding 1.5 * 2^23 rounds to an integer, whose low bits plus the exponent's bias are then 2^n.
CFT_INLINE vf exp(vf x) {
    const vf rounder = broadcast(12582912.0f + 127.0f);
    const vf biased  = madd(x, broadcast(1.44269504f), rounder);
    const vf n       = biased - rounder;
    const vf power   = as_float(as_int(biased) << 23);
    const vf r       = madd(n, broadcast(-0x1.7f7d1cp-20f), madd(n, broadcast(-0x1.62e4p-1f), x));
    vf       p       = madd(r, broadcast(0x1.10627ap-7f), broadcast(0x1.572a06p-5f));
    p                = madd(r, p, broadcast(0x1.5557aep-3f));
    p                = madd(r, p, broadcast(0x1.fffdfcp-2f));
    p                = madd(r * r, p, r);
    const vf y       = madd(p, power, power);
    const vf capped  = x > broadcast(88.37f) ? broadcast(__builtin_inff()) : y;
    return x < broadcast(-87.33f) ? vf{} : capped;
}

// tanh has an absolute error below 3e-7.
CFT_INLINE vf tanh(vf x) { return broadcast(1.0f) - broadcast(2.0f) / (exp(x + x) + broadcast(1.0f)); }

// sigmoid is 1 / (1 + e^-x).
CFT_INLINE vf sigmoid(vf x) { return broadcast(1.0f) / (broadcast(1.0f) + exp(-x)); }

} // namespace CFT_SIMD_ISA
} // namespace cft::simd
