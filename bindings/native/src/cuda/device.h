// device.h - what the kernels share: launches, conversions, sums over warps and blocks, and the tile operations of tensor
// cores. Included by .cu files only.
#pragma once

#include "kernels.h"

#include "../failure.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "shim/cuda_shim.h"
#endif

#include <cmath>
#include <string>
#include <type_traits>

#if defined(__CUDA_ARCH__)
#define CFT_ON_DEVICE 1
#else
#define CFT_ON_DEVICE 0
#endif

namespace cft::cuda {

constexpr int lanes = 32;

inline void check(cudaError_t e, const char *what) {
    if (e != cudaSuccess) {
        throw failure(CFT_ERR_DEVICE, std::string("CUDA: ") + what + ": " + cudaGetErrorString(e));
    }
}

constexpr size_t shared_without_asking = 48 << 10;    // a kernel that wants more must say so
constexpr size_t shared_everywhere     = 99 * 1024;   // the least of the devices from sm_80 on
constexpr unsigned largest_grid_x = 0x7fffffff, largest_grid_yz = 65535;
constexpr int      largest_block  = 1024; // threads

// launch puts one kernel on the stream. A grid without blocks is nothing to do.
template <typename... P, typename... A>
void launch(const char *name, void (*kernel)(P...), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream, A... args) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
        return;
    }
#if defined(__CUDACC__)
    if (shared_bytes > shared_without_asking) {
        check(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)), name);
    }
    kernel<<<grid, unsigned(threads), shared_bytes, stream>>>(P(args)...);
    check(cudaGetLastError(), name);
#else
    if (shared_bytes > shared_everywhere) {
        throw failure(CFT_ERR_INTERNAL, std::string(name) + " wants more shared memory than devices have");
    }
    if (grid.x > largest_grid_x || grid.y > largest_grid_yz || grid.z > largest_grid_yz || threads > largest_block || threads % lanes != 0) {
        throw failure(CFT_ERR_INTERNAL, std::string(name) + " wants a grid or a block that devices do not take");
    }
    shim::put(stream, [=] { shim::run(name, grid, dim3(unsigned(threads)), shared_bytes, [&] { kernel(P(args)...); }); });
#endif
}

// blocks_for is the grid's size for n things, per_block at a time.
inline unsigned blocks_for(int64_t n, int64_t per_block) { return unsigned((n + per_block - 1) / per_block); }

// An address of what is taken `bytes` at a time. A device stops at one that is no multiple of them, and so does the shim.
template <int bytes> __device__ __forceinline__ void must_be_aligned([[maybe_unused]] const void *p) {
#if !defined(__CUDACC__)
    shim::check_alignment(p, bytes);
#endif
}

// Dynamic shared memory as an array.
template <typename T> __device__ __forceinline__ T *shared_array() {
#if defined(__CUDACC__)
    extern __shared__ __align__(1024) unsigned char shared_bytes_[];
    return reinterpret_cast<T *>(shared_bytes_);
#else
    return reinterpret_cast<T *>(shim::shared_memory);
#endif
}

// ---- numbers

__device__ __forceinline__ float as_float(uint32_t bits) {
#if CFT_ON_DEVICE
    return __uint_as_float(bits);
#else
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
#endif
}
__device__ __forceinline__ uint32_t as_bits(float f) {
#if CFT_ON_DEVICE
    return __float_as_uint(f);
#else
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
#endif
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return as_float(uint32_t(x.bits) << 16); }

// narrow rounds to nearest, ties to even.
template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {
#if CFT_ON_DEVICE
    return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
    const uint32_t u = as_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return bf16{uint16_t(u >> 16 | 64)};
    }
    return bf16{uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
#endif
}

// Two neighbours in one word, the first in the lower half.
__device__ __forceinline__ uint32_t pack(float low, float high) {
#if CFT_ON_DEVICE
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#else
    return uint32_t(narrow<bf16>(low).bits) | uint32_t(narrow<bf16>(high).bits) << 16;
#endif
}

// Products and sums that are never contracted to one rounding.
__device__ __forceinline__ float times(float a, float b) {
#if CFT_ON_DEVICE
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
__device__ __forceinline__ float plus(float a, float b) {
#if CFT_ON_DEVICE
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

// a / b, to 2 units in the last place, for b of 2^-126 to 2^126.
__device__ __forceinline__ float quotient(float a, float b) {
#if CFT_ON_DEVICE
    return __fdividef(a, b);
#else
    return a / b;
#endif
}

__device__ __forceinline__ float exp2_fast(float x) {
#if CFT_ON_DEVICE
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#else
    return exp2f(x);
#endif
}

constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

// ---- eight elements at a time: 16 bytes of bf16, 32 of F32

struct eight {
    float x[8];
};

__device__ __forceinline__ eight load8(const float *p) {
    must_be_aligned<16>(p);
    const float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
__device__ __forceinline__ eight widen8(const uint4 &u) {
    return {{as_float(u.x << 16), as_float(u.x & 0xffff0000u), as_float(u.y << 16), as_float(u.y & 0xffff0000u), as_float(u.z << 16),
             as_float(u.z & 0xffff0000u), as_float(u.w << 16), as_float(u.w & 0xffff0000u)}};
}
__device__ __forceinline__ eight load8(const bf16 *p) {
    must_be_aligned<16>(p);
    return widen8(*reinterpret_cast<const uint4 *>(p));
}
__device__ __forceinline__ void store8(float *p, const eight &e) {
    must_be_aligned<16>(p);
    reinterpret_cast<float4 *>(p)[0] = float4{e.x[0], e.x[1], e.x[2], e.x[3]};
    reinterpret_cast<float4 *>(p)[1] = float4{e.x[4], e.x[5], e.x[6], e.x[7]};
}
__device__ __forceinline__ void store8(bf16 *p, const eight &e) {
    must_be_aligned<16>(p);
    *reinterpret_cast<uint4 *>(p) = uint4{pack(e.x[0], e.x[1]), pack(e.x[2], e.x[3]), pack(e.x[4], e.x[5]), pack(e.x[6], e.x[7])};
}

// Of rows in halves (kernels.h). A number rounded up has a low half whose highest bit is set, so that as a signed number it takes the carry back.
__device__ __forceinline__ eight load8(const bf16 *high, const uint16_t *low) {
    must_be_aligned<16>(high), must_be_aligned<16>(low);
    const uint4    u = *reinterpret_cast<const uint4 *>(high), v = *reinterpret_cast<const uint4 *>(low);
    const uint32_t h[] = {u.x, u.y, u.z, u.w}, l[] = {v.x, v.y, v.z, v.w};
    eight          e;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        e.x[2 * k]     = as_float((h[k] << 16) + uint32_t(int32_t(int16_t(l[k]))));
        e.x[2 * k + 1] = as_float((h[k] & 0xffff0000u) + uint32_t(int32_t(l[k]) >> 16));
    }
    return e;
}
__device__ __forceinline__ void store8(bf16 *high, uint16_t *low, const eight &e) {
    must_be_aligned<16>(high), must_be_aligned<16>(low);
    uint32_t h[4], l[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t u[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u[i] = as_bits(e.x[2 * k + i]);
            if ((u[i] & 0x7fffffffu) > 0x7f800000u) { // rounding would carry a NaN into the sign
                u[i] = 0x7fc00000u;
            }
        }
        h[k] = (u[0] + 0x8000u) >> 16 | ((u[1] + 0x8000u) & 0xffff0000u);
        l[k] = (u[0] & 0xffffu) | u[1] << 16;
    }
    *reinterpret_cast<uint4 *>(high) = uint4{h[0], h[1], h[2], h[3]};
    *reinterpret_cast<uint4 *>(low)  = uint4{l[0], l[1], l[2], l[3]};
}

// Sixteen bytes that are written once and read once, so that the cache had better keep other things.
__device__ __forceinline__ void write_once(uint4 *p, const uint4 &x) {
    must_be_aligned<16>(p);
#if CFT_ON_DEVICE
    __stcs(p, x);
#else
    *p = x;
#endif
}
__device__ __forceinline__ uint4 read_once(const uint4 *p) {
    must_be_aligned<16>(p);
#if CFT_ON_DEVICE
    return __ldcs(p);
#else
    return *p;
#endif
}

// ---- sums; every thread gets the result

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int o = 16; o > 0; o /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, o);
    }
    return x;
}

// Of a block of `threads` threads (a multiple of 32, at most 1024). May be called again at once.
template <int threads, typename T> __device__ __forceinline__ T block_sum(T x) {
    constexpr int warps = threads / lanes;
    __shared__ T  parts[warps];
#pragma unroll
    for (int o = 16; o > 0; o /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, o);
    }
    if (threadIdx.x % lanes == 0) {
        parts[threadIdx.x / lanes] = x;
    }
    __syncthreads();
    T total = 0;
#pragma unroll
    for (int i = 0; i < warps; i++) {
        total += parts[i];
    }
    __syncthreads();
    return total;
}

} // namespace cft::cuda
