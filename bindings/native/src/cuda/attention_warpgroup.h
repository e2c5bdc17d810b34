// attention_warpgroup.h - what attention's kernels with products of warpgroups share.
#pragma once

#include "attention_tile.h"
#include "heads.h"
#include "warpgroup.h"

namespace cft::cuda {

// Code for other devices has nothing of these kernels, which are not launched there.
__device__ __forceinline__ void only_with_warpgroups() {
#if CFT_ON_DEVICE && !CFT_HAS_WARPGROUPS
    asm volatile("trap;");
    __builtin_unreachable();
#endif
}

template <int head_dim> constexpr int tile_elements = attention_tile * head_dim;

// Starts copying a tile of rows, from row `first` on; rows from n_rows on become 0. A thread has the same columns of every eighth or
// sixteenth row, so that what one copy needs is a step from the one before.
template <int head_dim, int threads = attention_threads>
__device__ __forceinline__ void load_tile(bf16 *tile, const bf16 *from, int64_t ld, int64_t first, int64_t n_rows) {
    constexpr int units = head_dim / 8, step = threads / units;
    static_assert(step % swizzle_rows == 0 && attention_tile % step == 0, "rows of a thread are swizzled alike");
    const int row = int(threadIdx.x) / units, column = int(threadIdx.x) % units * 8;
    tile += swizzled<attention_tile>(row, column);
    from += (first + row) * ld + column;
    if (first + attention_tile <= n_rows) {
#pragma unroll
        for (int i = 0; i < attention_tile / step; i++) {
            copy_async(tile + i * step * panel_columns, from, true);
            from += step * ld;
        }
        return;
    }
    for (int i = 0; i < attention_tile / step; i++) {
        const bool present = first + row + i * step < n_rows;
        copy_async(tile + i * step * panel_columns, present ? from + i * step * ld : from - (first + row) * ld, present);
    }
}

// What this thread has copied, but for the newest `pending` groups, and what the others have: for the tensor cores.
template <int pending> __device__ __forceinline__ void wait_for_tiles() {
    copy_async_wait<pending>();
    show_tensor_cores();
    __syncthreads();
}

// As store_rows, for a head's gradient on its way through what turn_heads has done, if turns: rounded before that, as it would be on its way to another kernel.
template <int head_dim>
__device__ __forceinline__ void store_head(bool turns, const float (&sums)[head_dim / 8][4], float scale, bf16 *tile, const head_source &of, int head, bf16 *to,
                                           int64_t ld, int64_t first, int64_t n_rows) {
    to += head * head_dim;
    if (!turns) {
        store_rows<head_dim>(sums, scale, scale, tile, to, ld, first, n_rows);
        return;
    }
    constexpr int units = head_dim / 8, steps = warp_rows * units / lanes;
    const int     lane = int(threadIdx.x) % lanes, row = lane / units, column = lane % units * 8;
    uint4         x[steps] = {}; // on their way while sums are put down
#pragma unroll
    for (int i = 0; i < steps; i++) {
        const int64_t at = first + row + i * (lanes / units);
        if (of.map.w && at < n_rows) {
            const bf16 *const from = of.x + at * of.ld + head * head_dim + column;
            must_be_aligned<16>(from);
            x[i] = *reinterpret_cast<const uint4 *>(from);
        }
    }
    put_rows<head_dim>(sums, scale, scale, tile);
#pragma unroll // x is in registers
    for (int i = 0; i < steps; i++) {
        const int        below = row + i * (lanes / units);
        const head_place p = {first + below, column, head, 0, of.map.n_head, first + below < n_rows};
        const eight      d = turned_back<units>(p, of.map, load8(tile + below * tile_stride<head_dim> + column), widen8(x[i]));
        if (p.inside) {
            store8(to + p.row * ld + column, d);
        }
    }
}

// Calls f with a constant for the head size; false where other kernels are to be used.
template <typename F> bool with_warpgroups(const cpu::attention_shape &shape, F &&f) {
    if (!attends_by_warpgroups(shape)) {
        return false;
    }
    shape.head_dim == 64 ? f(std::integral_constant<int, 64>()) : f(std::integral_constant<int, 128>());
    return true;
}

} // namespace cft::cuda
