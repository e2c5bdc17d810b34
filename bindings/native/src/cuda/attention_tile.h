// attention_tile.h - what the forward and the backward kernels of attention share.
//
// A block of four warps has one tile of 64 queries or keys of one head, a warp 16 of its rows. Tiles of the other side pass
// through shared memory. Rows there are 8 elements longer than the head, an odd number of 16-byte units, so that the eight
// rows of a matrix load lie in different banks for every head size.
#pragma once

#include "tensor_core.h"

namespace cft::cuda {

constexpr int attention_threads = 128, warp_rows = 16;

template <int head_dim> constexpr int tile_stride = head_dim + 8;

// Rows that pass through shared memory at a time in the backward pass: of the largest heads half a tile, for four such
// matrices must fit.
template <int head_dim> constexpr int stage_rows = head_dim > 128 ? 32 : 64;

// Starts copying `rows` rows of a matrix, from row `first` on; rows from n_rows on become 0.
template <int head_dim, int rows>
__device__ __forceinline__ void load_rows(bf16 *tile, const bf16 *from, int64_t ld, int64_t first, int64_t n_rows) {
    constexpr int units = head_dim / 8;
#pragma unroll 4
    for (int i = int(threadIdx.x); i < rows * units; i += attention_threads) {
        const int     row = i / units, column = i % units * 8;
        const int64_t source = first + row;
        const bool    present = source < n_rows;
        copy_async(tile + row * tile_stride<head_dim> + column, from + (present ? source : 0) * ld + column, present);
    }
}

// Writes a warp's 16 rows of sums, times row_scale, to rows [first, first + 16) of a matrix that has n_rows, columns
// [column, column + 8 * n_tiles). `tile` is shared memory that only this warp uses from now on: 16 rows.
template <int head_dim, int n_tiles>
__device__ __forceinline__ void store_rows(const float (&sums)[n_tiles][4], float scale_above, float scale_below, bf16 *tile, bf16 *to, int64_t ld,
                                           int64_t first, int64_t n_rows) {
    constexpr int stride = tile_stride<head_dim>, units = n_tiles;
    const int     lane = int(threadIdx.x) % lanes, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < n_tiles; n++) {
        uint32_t *const above = reinterpret_cast<uint32_t *>(tile + g * stride + 8 * n + 2 * t);
        uint32_t *const below = reinterpret_cast<uint32_t *>(tile + (g + 8) * stride + 8 * n + 2 * t);
        *above                = pack(sums[n][0] * scale_above, sums[n][1] * scale_above);
        *below                = pack(sums[n][2] * scale_below, sums[n][3] * scale_below);
    }
    __syncwarp();
    for (int i = lane; i < warp_rows * units; i += lanes) {
        const int row = i / units, column = i % units * 8;
        if (first + row < n_rows) {
            *reinterpret_cast<uint4 *>(to + (first + row) * ld + column) = *reinterpret_cast<const uint4 *>(tile + row * stride + column);
        }
    }
}

// The score of a product: scaled, capped if there is a cap, in units of log2.
struct score_map {
    float scale, cap; // of the product; cap 0: none

    __device__ __forceinline__ float operator()(float product) const {
        if (cap > 0) {
            return cap * tanhf(product * (scale / cap)) * log2_e;
        }
        return product * (scale * log2_e);
    }
    // d score / d product, from the score.
    __device__ __forceinline__ float slope(float score) const {
        if (cap > 0) {
            const float u = score * (ln_2 / cap);
            return scale * (1.0f - u * u);
        }
        return scale;
    }
};

// What a query and a key must know to see each other. A query beyond the last one has token -1 and sees nothing, a key beyond
// the last one is seen by none.
struct query_side {
    int32_t token, window_start;
};
struct key_side {
    int32_t index, until, position;
};
__device__ __forceinline__ query_side query_at(const attention_view &v, int64_t query) {
    if (query >= v.n_queries) {
        return {-1, 0};
    }
    return {v.query_tokens[query], v.window_starts ? v.window_starts[query] : 0};
}
__device__ __forceinline__ key_side key_at(const attention_view &v, int64_t key) {
    if (key >= v.n_tokens) {
        return {int32_t(key), 0, 0};
    }
    return {int32_t(key), v.visible_until[key], v.window_starts ? v.key_positions[key] : 0};
}
__device__ __forceinline__ bool sees(const query_side &q, const key_side &k) {
    return k.index <= q.token && q.token < k.until && k.position >= q.window_start;
}

// Calls f with a constant for the head size; false if there is no kernel for it.
template <typename F> bool with_head_dim(int head_dim, F &&f) {
    switch (head_dim) {
    case 64: f(std::integral_constant<int, 64>()); return true;
    case 80: f(std::integral_constant<int, 80>()); return true;
    case 96: f(std::integral_constant<int, 96>()); return true;
    case 128: f(std::integral_constant<int, 128>()); return true;
    case 256: f(std::integral_constant<int, 256>()); return true;
    default: return false;
    }
}

inline void refuse_head_dim(int head_dim) {
    throw failure(CFT_ERR_UNSUPPORTED, "CUDA: attention heads of size " + std::to_string(head_dim) + " have no kernel; 64, 80, 96, 128 and 256 have");
}

} // namespace cft::cuda
