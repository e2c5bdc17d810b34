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

// Puts a warp's 16 rows of sums, rounded, into its part of shared memory: 16 rows of tile_stride.
template <int head_dim, int n_tiles>
__device__ __forceinline__ void put_rows(const float (&sums)[n_tiles][4], float scale_above, float scale_below, bf16 *tile) {
    constexpr int stride = tile_stride<head_dim>;
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
}

// Writes a warp's 16 rows of sums, times row_scale, to rows [first, first + 16) of a matrix that has n_rows, columns
// [column, column + 8 * n_tiles). `tile` is shared memory that only this warp uses from now on: 16 rows.
template <int head_dim, int n_tiles>
__device__ __forceinline__ void store_rows(const float (&sums)[n_tiles][4], float scale_above, float scale_below, bf16 *tile, bf16 *to, int64_t ld,
                                           int64_t first, int64_t n_rows) {
    constexpr int stride = tile_stride<head_dim>, units = n_tiles;
    put_rows<head_dim>(sums, scale_above, scale_below, tile);
    for (int i = int(threadIdx.x) % lanes; i < warp_rows * units; i += lanes) {
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

// ---- what kernels are given

struct forward_args {
    attention_view view;
    score_map      score;
    int            group; // query heads of a key head
    const bf16    *q, *k, *v;
    bf16          *out;
    float         *lse;
    int64_t        ld_q, ld_k, ld_v, ld_out;
    bf16          *turned_q = nullptr; // q: the kernel makes it of `queries`; or NULL
    head_source    queries  = {};
};

struct backward_args {
    attention_view     view;
    score_map          score;
    int                group;
    attention_gradient m;
    bool               turns         = false; // the kernels turn dq and dk back
    int                first_kv_head = 0; // of those whose gradients of scores are stored at a time
};

// What the backward pass knows of a query: log-sum-exp in units of log2, and delta. Beyond the last query the former is
// infinite: probabilities are 0.
struct query_sums {
    float lse, delta;
};
__device__ __forceinline__ query_sums sums_at(const backward_args &a, int head, int64_t query) {
    const int64_t n = a.view.n_queries;
    if (query >= n) {
        return {INFINITY, 0.0f};
    }
    return {a.m.lse[head * n + query] * log2_e, a.m.delta[head * n + query]};
}

// ---- a running softmax over the scores of a warp's 16 queries with a tile of keys

constexpr int key_tiles_of_8 = attention_tile / 8;

// Masks the scores of a warp's rows; `above` and `below` are the two rows of this thread.
__device__ __forceinline__ void hide(float (&s)[key_tiles_of_8][4], const attention_view &view, int64_t first_key, const query_side &above,
                                     const query_side &below) {
    const int t = int(threadIdx.x) % 4;
#pragma unroll
    for (int n = 0; n < key_tiles_of_8; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const key_side key = key_at(view, first_key + 8 * n + 2 * t + i);
            s[n][i]            = sees(above, key) ? s[n][i] : -INFINITY;
            s[n][2 + i]        = sees(below, key) ? s[n][2 + i] : -INFINITY;
        }
    }
}

// The maximum over the four threads that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Turns scores of one row into exponentials under the running maximum; gives the factor for what was summed before. A score of 1 is
// `unit` in log2; max is a score.
template <int row> __device__ __forceinline__ float to_exponentials(float (&s)[key_tiles_of_8][4], float unit, float &max, float &sum) {
    float m = max;
#pragma unroll
    for (int n = 0; n < key_tiles_of_8; n++) {
        m = fmaxf(m, fmaxf(s[n][2 * row], s[n][2 * row + 1]));
    }
    m                  = row_max(m);
    const float base   = m == -INFINITY ? 0.0f : m * unit; // nothing seen so far
    const float factor = exp2_fast(max * unit - base);
    float       part   = 0;
#pragma unroll
    for (int n = 0; n < key_tiles_of_8; n++) {
#pragma unroll
        for (int i = 2 * row; i < 2 * row + 2; i++) {
            s[n][i] = exp2_fast(s[n][i] * unit - base);
            part += s[n][i];
        }
    }
    sum = sum * factor + part;
    max = m;
    return factor;
}

// ---- gradients of scores that are stored: on their way to dk each thread writes what its warp multiplies next, and for dq each thread reads it back as what
// its warp multiplies there. So a tile of 64 keys and 64 queries is [4][attention_threads] units of 16 bytes: of 16 queries, all threads of the
// block of keys, 16 keys for each warp. Nothing of it goes through shared memory. It is written once and read once: other things had better
// stay in the cache.

constexpr int score_units = attention_tile * attention_tile / 8; // of a tile

// A pair of tiles; of a query head, pair `place` of key_tiles.
__device__ __forceinline__ uint4 *stored_tile(const backward_args &a, int head, int64_t place) {
    uint4 *const all = reinterpret_cast<uint4 *>(a.m.scores);
    return all + (int64_t(head - a.first_kv_head * a.group) * a.view.n_pairs + place) * score_units;
}

// Of 16 queries, the `step`th of the tile: the fragment for dk, rows are this warp's keys.
__device__ __forceinline__ void store_scores(uint4 *tile, int step, const uint32_t (&fragment)[4]) {
    write_once(tile + step * attention_threads + int(threadIdx.x) % attention_threads, uint4{fragment[0], fragment[1], fragment[2], fragment[3]});
}

// What a warp needs of a tile: of its 16 queries, the keys 16 at a time.
struct stored_scores {
    uint4 keys[attention_tile / warp_rows];

    __device__ __forceinline__ void load(const uint4 *tile) {
        const int warp = int(threadIdx.x) % attention_threads / lanes, lane = int(threadIdx.x) % lanes;
#pragma unroll
        for (int i = 0; i < attention_tile / warp_rows; i++) {
            keys[i] = read_once(tile + warp * attention_threads + i * lanes + lane);
        }
    }
    // The fragments for dq: rows are the warp's queries.
    __device__ __forceinline__ void turn(uint32_t (&fragments)[attention_tile / warp_rows][4]) const {
#pragma unroll
        for (int i = 0; i < attention_tile / warp_rows; i++) {
            const uint32_t of_keys[4] = {keys[i].x, keys[i].z, keys[i].y, keys[i].w};
            transpose(fragments[i], of_keys);
        }
    }
};

// dq from what is stored of n_heads_kv heads of keys.
void query_gradient_of_stored(const cpu::attention_shape &shape, const backward_args &args, int n_heads_kv, cudaStream_t stream);

// The same by products of warpgroups (attention_warpgroup.cu); false where the device or the head has none. delta is given.
bool attends_by_warpgroups(const cpu::attention_shape &shape);
bool attend_by_warpgroups(const cpu::attention_shape &shape, const forward_args &args, cudaStream_t stream);
// Heads whose kernel of pairs can make its queries. With heads of 64, of which three blocks share a multiprocessor, it has no registers for it.
constexpr int head_turned_in_pairs = 128;
bool attend_in_pairs(const cpu::attention_shape &shape, const forward_args &args, cudaStream_t stream); // of heads (attention_pairs.cu)
bool attention_gradient_by_warpgroups(const cpu::attention_shape &shape, const backward_args &args, cudaStream_t stream);
// dk and dv of n_heads_kv heads, with gradients of scores stored.
bool key_gradient_by_warpgroups(const cpu::attention_shape &shape, const backward_args &args, int n_heads_kv, cudaStream_t stream);

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
