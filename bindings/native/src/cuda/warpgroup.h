// warpgroup.h - products of four warps at a time on Hopper's tensor cores (PTX ISA, wgmma, for sm_90a), and the tiles in shared memory
// that they read.
//
// A tile is cut into panels of 64 columns, one behind the other; a panel's rows are 128 bytes, and the 16-byte unit u of row r
// lies at u ^ (r % 8) ("128-byte swizzle"), so that neither rows nor columns of units fall into the same banks. Tiles begin at multiples of
// 1,024 bytes. Warp w of the four has rows [16 w, 16 w + 16) of a product, its threads the same elements as in tensor_core.h.
#pragma once

#include "tensor_core.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CFT_HAS_WARPGROUPS 1
#else
#define CFT_HAS_WARPGROUPS 0
#endif

namespace cft::cuda {

constexpr int panel_columns = 64, panel_row_bytes = 128, swizzle_rows = 8;

// The element of a tile of `rows` rows at which the 16-byte unit with `column` (a multiple of 8) begins.
template <int rows> __device__ __forceinline__ int swizzled(int row, int column) {
    return (column / panel_columns * rows + row) * panel_columns + (column % panel_columns / 8 ^ row % swizzle_rows) * 8;
}

// Matrix descriptors: address, distance of panels, distance of groups of eight rows, each in 16 bytes, and the kind of swizzle.
__device__ __forceinline__ uint64_t describe(const bf16 *at, uint32_t panel_bytes) {
#if defined(__CUDACC__)
    const uint32_t address = uint32_t(__cvta_generic_to_shared(at));
#else
    const uint32_t address = uint32_t(reinterpret_cast<const char *>(at) - shim::shared_memory);
#endif
    constexpr uint64_t swizzle_128 = 1;
    return uint64_t(address >> 4 & 0x3fff) | uint64_t(panel_bytes >> 4) << 16 | uint64_t(swizzle_rows * panel_row_bytes >> 4) << 32 | swizzle_128 << 62;
}
// 16 columns from column k on, a multiple of 16, of all 64 rows of a tile: rows are the product's rows (or, of the second factor, its
// columns), columns are summed over.
template <int rows> __device__ __forceinline__ uint64_t describe_columns(const bf16 *tile, int k) {
    return describe(tile + k / panel_columns * rows * panel_columns + k % panel_columns, 16);
}
// All columns of 16 rows from row k on, a multiple of 16, which are summed over; columns are the product's columns.
template <int rows> __device__ __forceinline__ uint64_t describe_rows(const bf16 *tile, int k) {
    return describe(tile + k * panel_columns, rows * panel_row_bytes);
}

#if !defined(__CUDACC__)
namespace shim {
// What the tensor cores read for a descriptor: of row (or column) i of the 64 or more, the 16 elements that are summed over. (Half of what tests of
// attention do, so what checks arithmetic is left out here and in add_sums; what checks addresses is not left out here.)
__attribute__((no_sanitize("undefined"))) inline void read_elements(float (&to)[16], uint64_t descriptor, bool rows_are_summed, int i) {
    const int64_t begin = int64_t(descriptor & 0x3fff) * 16, panel = int64_t(descriptor >> 16 & 0x3fff) * 16, group = int64_t(descriptor >> 32 & 0x3fff) * 16;
    const int64_t row   = rows_are_summed ? i / panel_columns * panel + i % panel_columns * 2 : i / swizzle_rows * group + i % swizzle_rows * panel_row_bytes;
    uint32_t      words[16];
    for (int k = 0; k < 16; k++) {
        int64_t at = begin + row + (rows_are_summed ? k / swizzle_rows * group + k % swizzle_rows * panel_row_bytes : k * 2);
        at ^= (at >> 7 & 7) << 4;
        uint16_t bits;
        memcpy(&bits, shared_memory + at, sizeof bits);
        words[k] = uint32_t(bits) << 16;
    }
    memcpy(to, words, sizeof words);
}

// Adds to a lane's four sums of a tile, of its two rows and two columns.
__attribute__((no_sanitize("address", "undefined"))) inline void add_sums(float (&c)[4], const float (&left)[2][16], const float (&right)[2][16]) {
    for (int i = 0; i < 4; i++) {
        float sum = c[i];
        for (int k = 0; k < 16; k++) {
            sum += left[i / 2][k] * right[i % 2][k];
        }
        c[i] = sum;
    }
}
// The same with the columns from `column` on of the second factor.
inline void add_tile(float (&c)[4], const float (&left)[2][16], uint64_t b, bool rows_are_summed, int column) {
    float right[2][16];
    read_elements(right[0], b, rows_are_summed, column);
    read_elements(right[1], b, rows_are_summed, column + 1);
    add_sums(c, left, right);
}
} // namespace shim
#endif

#define CFT_SUMS_8(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3]), "+f"(c[i + 1][0]), "+f"(c[i + 1][1]), "+f"(c[i + 1][2]), "+f"(c[i + 1][3])
#define CFT_SUMS_64(c) CFT_SUMS_8(c, 0), CFT_SUMS_8(c, 2), CFT_SUMS_8(c, 4), CFT_SUMS_8(c, 6)
#define CFT_SUMS_128(c) CFT_SUMS_64(c), CFT_SUMS_8(c, 8), CFT_SUMS_8(c, 10), CFT_SUMS_8(c, 12), CFT_SUMS_8(c, 14)

// c [64][64] (+)= A Bᵀ: 16 columns of a tile each. Without add, what c held before does not matter.
__device__ __forceinline__ void wgmma(float (&c)[8][4], uint64_t a, uint64_t b, bool add) {
#if CFT_HAS_WARPGROUPS
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "
                 "%25, %26, %27, %28, %29, %30, %31}"
                 ", %32, %33, p, 1, 1, 0, 0;}"
                 : CFT_SUMS_64(c)
                 : "l"(a), "l"(b), "r"(int(add)));
#elif !defined(__CUDACC__)
    const int lane = int(threadIdx.x) % lanes, first = int(threadIdx.x) / lanes % 4 * 16 + lane / 4;
    float     left[2][16];
    shim::read_elements(left[0], a, false, first);
    shim::read_elements(left[1], a, false, first + 8);
    for (int n = 0; n < 8; n++) {
        for (float &sum : c[n]) {
            sum = add ? sum : 0;
        }
        shim::add_tile(c[n], left, b, false, 8 * n + lane % 4 * 2);
    }
#endif
}

// c [64][8 * n_tiles] += P B: P [64][16] are fragments as mma's, B 16 rows of a tile.
template <int n_tiles> __device__ __forceinline__ void wgmma(float (&c)[n_tiles][4], const uint32_t (&a)[4], uint64_t b) {
    static_assert(n_tiles == 8 || n_tiles == 16, "64 or 128 columns");
#if CFT_HAS_WARPGROUPS
    if constexpr (n_tiles == 8) {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "
                     "%25, %26, %27, %28, %29, %30, %31}"
                     ", {%32, %33, %34, %35}, %36, p, 1, 1, 1;}"
                     : CFT_SUMS_64(c)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1));
    } else {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "
                     "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
                     ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
                     : CFT_SUMS_128(c)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1));
    }
#elif !defined(__CUDACC__)
    const auto &all  = shim::exchange(a);
    const int   lane = shim::lane();
    float       left[2][16];
    for (int k = 0; k < 16; k++) {
        for (int half = 0; half < 2; half++) {
            uint32_t word;
            memcpy(&word, all.of_lane[lane / 4 * 4 + k % 8 / 2] + 4 * (k / 8 * 2 + half), sizeof word);
            left[half][k] = as_float(k % 2 ? word & 0xffff0000u : word << 16);
        }
    }
    for (int n = 0; n < n_tiles; n++) {
        shim::add_tile(c[n], left, b, true, 8 * n + lane % 4 * 2);
    }
#endif
}

// Before the first of some products: what threads wrote to registers and, with the barrier behind it, to shared memory is there for them.
__device__ __forceinline__ void wgmma_begin() {
#if CFT_HAS_WARPGROUPS
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_end_group() {
#if CFT_HAS_WARPGROUPS
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int pending> __device__ __forceinline__ void wgmma_wait() {
#if CFT_HAS_WARPGROUPS
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
}
// Sums are not touched before here by the compiler.
template <int n_tiles> __device__ __forceinline__ void wgmma_arrived([[maybe_unused]] float (&c)[n_tiles][4]) {
#if CFT_HAS_WARPGROUPS
#pragma unroll
    for (int n = 0; n < n_tiles; n++) {
        asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
    }
#endif
}
// Each thread that copied to shared memory, between its wait and the barrier: tensor cores read past what ordinary loads see.
__device__ __forceinline__ void show_tensor_cores() {
#if CFT_HAS_WARPGROUPS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// c [64][64] = A Bᵀ over `depth` columns of two tiles of 64 rows.
template <int depth> __device__ __forceinline__ void multiply_tiles(float (&c)[8][4], const bf16 *a, const bf16 *b) {
#pragma unroll
    for (int k = 0; k < depth; k += 16) {
        wgmma(c, describe_columns<64>(a, k), describe_columns<64>(b, k), k > 0);
    }
}

// P [64][64] in the layout that products leave as fragments of bf16.
__device__ __forceinline__ void to_fragments(uint32_t (&a)[4][4], const float (&p)[8][4]) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        to_fragment(a[k], p, 2 * k);
    }
}

// c [64][8 * n_tiles] += P B, B a tile of 64 rows.
template <int n_tiles> __device__ __forceinline__ void multiply_fragments(float (&c)[n_tiles][4], const uint32_t (&p)[4][4], const bf16 *b) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        wgmma(c, p[k], describe_rows<64>(b, 16 * k));
    }
}

} // namespace cft::cuda
