// tensor_core.h - tile operations of a warp: 16 x 8 x 16 products of bf16 with F32 sums, the loads that bring tiles from shared
// memory into the layout they want, and copies from global to shared memory that need no registers.
//
// Fragments (PTX ISA, mma.m16n8k16 and ldmatrix); g = lane / 4, t = lane % 4; a word holds two neighbours:
//     a[4]: A's (row g, columns 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
//     b[2]: B's (rows 2t, column g), (rows 2t + 8, column g)
//     c[4]: C's (row g, columns 2t and 2t + 1), (row g + 8, the same)
#pragma once

#include "device.h"

namespace cft::cuda {

#if !CFT_ON_DEVICE && !defined(__CUDACC__)
// What mma adds to one lane's part of C, of what all of them brought: a[4], b[2]. The kernels are what sanitizers are for: looked at here, each of
// these loads would cost more than all else that tests over the shim do.
__attribute__((no_sanitize("address", "undefined"))) inline void add_products(float (&c)[4], const shim::warp_values &all) {
    const int g = shim::lane() / 4, t = shim::lane() % 4;
    for (int upper = 0; upper < 2; upper++) {
        for (int owner = 0; owner < 4; owner++) { // k = 8 upper + 2 owner, then the next one
            uint32_t left[6], right[2];
            memcpy(left, all.of_lane[4 * g + owner], sizeof left);
            memcpy(&right[0], all.of_lane[8 * t + owner] + 4 * (4 + upper), sizeof right[0]);
            memcpy(&right[1], all.of_lane[8 * t + 4 + owner] + 4 * (4 + upper), sizeof right[1]);
            const uint32_t above = left[2 * upper], below = left[2 * upper + 1];
            const uint32_t words[8] = {above << 16, above & 0xffff0000u, below << 16, below & 0xffff0000u,
                                       right[0] << 16, right[0] & 0xffff0000u, right[1] << 16, right[1] & 0xffff0000u};
            float          x[8];
            memcpy(x, words, sizeof x);
            for (int n = 0; n < 2; n++) {
                c[n] += x[0] * x[4 + 2 * n];
                c[n] += x[1] * x[5 + 2 * n];
                c[2 + n] += x[2] * x[4 + 2 * n];
                c[2 + n] += x[3] * x[5 + 2 * n];
            }
        }
    }
}
#endif

// c += A B.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
#if CFT_ON_DEVICE
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif !defined(__CUDACC__)
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    add_products(c, shim::exchange(mine));
#endif
}

// Four 8 x 8 matrices: lane i gives the address of row i % 8 of matrix i / 8 and gets of each matrix row g, elements 2t and
// 2t + 1; transposed, column g, those elements.
template <bool transposed> __device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const bf16 *row) {
    must_be_aligned<16>(row);
#if CFT_ON_DEVICE
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    if (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    }
#elif !defined(__CUDACC__)
    const auto &all = shim::exchange(row);
    const int   g = shim::lane() / 4, t = shim::lane() % 4;
    const auto  at = [&](int matrix, int i, int j) {
        const bf16 *p;
        memcpy(&p, all.of_lane[8 * matrix + i], sizeof p);
        return uint32_t(p[j].bits);
    };
    for (int m = 0; m < 4; m++) {
        r[m] = transposed ? at(m, 2 * t, g) | at(m, 2 * t + 1, g) << 16 : at(m, g, 2 * t) | at(m, g, 2 * t + 1) << 16;
    }
#endif
}

// Four 8 x 8 matrices in the layout of fragments, each transposed.
__device__ __forceinline__ void transpose(uint32_t (&to)[4], const uint32_t (&from)[4]) {
#if CFT_ON_DEVICE
#pragma unroll
    for (int m = 0; m < 4; m++) {
        asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to[m]) : "r"(from[m]));
    }
#elif !defined(__CUDACC__)
    const auto &all  = shim::exchange(from);
    const int   g = shim::lane() / 4, t = shim::lane() % 4;
    const auto  at = [&](int m, int row, int column) {
        uint32_t word;
        memcpy(&word, all.of_lane[4 * row + column / 2] + 4 * m, sizeof word);
        return column % 2 ? word >> 16 : word & 0xffffu;
    };
    for (int m = 0; m < 4; m++) {
        to[m] = at(m, 2 * t, g) | at(m, 2 * t + 1, g) << 16;
    }
#endif
}

// Fragments from row-major tiles in shared memory, whose rows are `stride` elements apart.
// A: rows [row, row + 16), columns [k, k + 16).
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const bf16 *tile, int stride, int row, int k) {
    const int lane = int(threadIdx.x) % lanes;
    load_matrices<false>(a, tile + (row + lane % 16) * stride + k + lane / 16 * 8);
}
// A of the transpose of a tile: its columns [row, row + 16) are A's rows, its rows [k, k + 16) A's columns.
__device__ __forceinline__ void load_a_of_columns(uint32_t (&a)[4], const bf16 *tile, int stride, int row, int k) {
    const int lane = int(threadIdx.x) % lanes;
    load_matrices<true>(a, tile + (k + lane / 16 * 8 + lane % 8) * stride + row + lane / 8 % 2 * 8);
}
// Two B's side by side, columns [n, n + 16) and rows [k, k + 16), of the transpose of a tile: its rows are B's columns.
__device__ __forceinline__ void load_b_of_rows(uint32_t (&b)[4], const bf16 *tile, int stride, int n, int k) {
    const int lane = int(threadIdx.x) % lanes;
    load_matrices<false>(b, tile + (n + lane / 16 * 8 + lane % 8) * stride + k + lane / 8 % 2 * 8);
}
// The same of the tile itself: its rows are B's rows.
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const bf16 *tile, int stride, int k, int n) {
    const int lane = int(threadIdx.x) % lanes;
    load_matrices<true>(b, tile + (k + lane / 8 % 2 * 8 + lane % 8) * stride + n + lane / 16 * 8);
}

// acc [16][8 * n_tiles] += A(rows [row, row + 16) of a) * (rows [first, first + 8 * n_tiles) of b)ᵀ over `depth` columns.
template <int depth, int n_tiles>
__device__ __forceinline__ void multiply_rows(float (&acc)[n_tiles][4], const bf16 *a, int row, const bf16 *b, int first, int stride) {
#pragma unroll
    for (int k = 0; k < depth; k += 16) {
        uint32_t fa[4];
        load_a(fa, a, stride, row, k);
#pragma unroll
        for (int n = 0; n < n_tiles; n += 2) {
            uint32_t fb[4];
            load_b_of_rows(fb, b, stride, first + 8 * n, k);
            mma(acc[n], fa, fb);
            mma(acc[n + 1], fa, fb + 2);
        }
    }
}

// Columns [8 * k, 8 * k + 16) of a product's 16 rows, as it leaves them, as a fragment of the next one: rounded to bf16.
template <int tiles> __device__ __forceinline__ void to_fragment(uint32_t (&a)[4], const float (&p)[tiles][4], int k) {
    a[0] = pack(p[k][0], p[k][1]);
    a[1] = pack(p[k][2], p[k][3]);
    a[2] = pack(p[k + 1][0], p[k + 1][1]);
    a[3] = pack(p[k + 1][2], p[k + 1][3]);
}

// acc [16][8 * n_tiles] += A * (rows [first, first + 16) of b, columns [column, column + 8 * n_tiles)).
template <int n_tiles>
__device__ __forceinline__ void multiply_fragment(float (&acc)[n_tiles][4], const uint32_t (&a)[4], const bf16 *b, int first, int column, int stride) {
#pragma unroll
    for (int n = 0; n < n_tiles; n += 2) {
        uint32_t fb[4];
        load_b(fb, b, stride, first, column + 8 * n);
        mma(acc[n], a, fb);
        mma(acc[n + 1], a, fb + 2);
    }
}

// acc [16][8 * n_tiles] += P * (rows [first, first + 8 * k_tiles) of b, columns [column, column + 8 * n_tiles)). P is in the
// layout that products leave: [16][8 * k_tiles]; it is rounded to bf16.
template <int k_tiles, int n_tiles>
__device__ __forceinline__ void multiply_scores(float (&acc)[n_tiles][4], const float (&p)[k_tiles][4], const bf16 *b, int first, int column,
                                                int stride) {
#pragma unroll
    for (int k = 0; k < k_tiles; k += 2) {
        uint32_t fa[4];
        to_fragment(fa, p, k);
        multiply_fragment(acc, fa, b, first + 8 * k, column, stride);
    }
}

// Copies 16 bytes to shared memory, or zeros; done when the thread has waited for its group and the block for one another.
__device__ __forceinline__ void copy_async(bf16 *shared, const bf16 *from, bool present) {
    must_be_aligned<16>(shared);
    must_be_aligned<16>(from); // also where nothing is read
#if CFT_ON_DEVICE
    const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(present ? 16 : 0) : "memory");
#elif !defined(__CUDACC__)
    shim::copy_later(shared, present ? from : nullptr, 16);
#endif
}
// The same of one word.
__device__ __forceinline__ void copy_async_word(float *shared, const float *from, bool present) {
    must_be_aligned<4>(shared);
    must_be_aligned<4>(from);
#if CFT_ON_DEVICE
    const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(present ? 4 : 0) : "memory");
#elif !defined(__CUDACC__)
    shim::copy_later(shared, present ? from : nullptr, 4);
#endif
}
__device__ __forceinline__ void copy_async_end_group() {
#if CFT_ON_DEVICE
    asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
    shim::end_copy_group();
#endif
}
// Waits until at most `pending` of this thread's groups are under way.
template <int pending> __device__ __forceinline__ void copy_async_wait() {
#if CFT_ON_DEVICE
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#elif !defined(__CUDACC__)
    shim::finish_copies(pending);
#endif
}

} // namespace cft::cuda
