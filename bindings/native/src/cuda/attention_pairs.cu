// attention_pairs.cu - attention forward by products of warpgroups, a block for two heads of the same keys and values: each tile of these comes from
// the cache once for both, and while one head's scores become exponentials, the tensor cores multiply for the other. What is computed, and in
// which order, is as in attention_warpgroup.cu.
#include "attention_warpgroup.h"

namespace cft::cuda {
namespace {

// head_rows is one head's 64 queries: sums of values, and the running softmax.
template <int head_dim> struct head_rows {
    float out[head_dim / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    // Scores become what is multiplied with the values, and sums are brought to the same maximum.
    __device__ __forceinline__ void take(float (&s)[key_tiles_of_8][4], float unit, uint32_t (&p)[4][4]) {
        const float above = to_exponentials<0>(s, unit, max[0], sum[0]), below = to_exponentials<1>(s, unit, max[1], sum[1]);
#pragma unroll
        for (int n = 0; n < head_dim / 8; n++) {
            out[n][0] *= above;
            out[n][1] *= above;
            out[n][2] *= below;
            out[n][3] *= below;
        }
        to_fragments(p, s);
    }

    __device__ __forceinline__ void store(const forward_args &a, int head, int64_t row, float unit, bf16 *own) const {
        const int64_t query = row + int(threadIdx.x) % lanes / 4;
        const float   above = row_sum(sum[0]), below = row_sum(sum[1]);
        if (threadIdx.x % 4 == 0) {
            float *const lse = a.lse + int64_t(head) * a.view.n_queries;
            if (query < a.view.n_queries) {
                lse[query] = max[0] * unit * ln_2 + logf(above);
            }
            if (query + 8 < a.view.n_queries) {
                lse[query + 8] = max[1] * unit * ln_2 + logf(below);
            }
        }
        store_rows<head_dim>(out, 1.0f / above, 1.0f / below, own, a.out + head * head_dim, a.ld_out, row, a.view.n_queries);
    }
};

// Two heads' tiles of queries, of what turn_heads would have had: to where products of tiles find them, and to memory for the way back.
template <int head_dim> __device__ __forceinline__ void turn_tiles(bf16 *tiles, const forward_args &a, int head, int64_t first_query) {
    constexpr int     units = head_dim / 8, step = attention_threads / units, steps = attention_tile / step, at_once = 4;
    const head_map   &m     = a.queries.map;
    const int         row = int(threadIdx.x) / units, column = int(threadIdx.x) % units * 8;
    const eight       w = m.w ? load8(m.w + column) : eight{};
    const bf16 *const from = a.queries.x + head * head_dim + column;
    bf16 *const       to = a.turned_q + head * head_dim + column, *const tile = tiles + swizzled<attention_tile>(row, column);
    for (int i = 0; i < steps; i += at_once) {
        uint4 x[at_once][2] = {};
#pragma unroll
        for (int k = 0; k < at_once; k++) {
            const int64_t query = first_query + row + (i + k) * step;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (query < a.view.n_queries) {
                    must_be_aligned<16>(from + query * a.queries.ld);
                    x[k][h] = *reinterpret_cast<const uint4 *>(from + query * a.queries.ld + h * head_dim);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < at_once; k++) {
            const int64_t    query = first_query + row + (i + k) * step;
            const head_place p     = {query, column, head, 1, m.n_head, query < a.view.n_queries};
            const rotation   by(p, m, 1.0f);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                eight e = widen8(x[k][h]);
                turn_row<units>(p, head + h, p.inside, m, by, w, e);
                store8(tile + h * tile_elements<head_dim> + (i + k) * step * panel_columns, e);
                if (p.inside) {
                    store8(to + query * a.ld_q + h * head_dim, e);
                }
            }
        }
    }
}

template <int head_dim> __global__ void __launch_bounds__(attention_threads, head_dim == 64 ? 3 : 2) warpgroup_attention_pair_kernel(forward_args a) {
    only_with_warpgroups();
    constexpr int elements = tile_elements<head_dim>;
    bf16 *const   q_tiles = shared_array<bf16>(), *const stages = q_tiles + 2 * elements; // twice keys and values

    const int     head = 2 * int(blockIdx.x), kv_head = head / a.group, warp = int(threadIdx.x) / lanes, g = int(threadIdx.x) % lanes / 4;
    const int32_t tile        = a.view.query_order[blockIdx.y];
    const int64_t first_query = int64_t(tile) * attention_tile, row = first_query + warp * warp_rows;
    const int32_t begin = a.view.key_tiles_start[tile], end = a.view.key_tiles_start[tile + 1];

    const query_side    above = query_at(a.view, row + g), below = query_at(a.view, row + g + 8);
    const float         unit = a.score.scale * log2_e; // of a product, in log2
    head_rows<head_dim> one, other;

    const auto load_stage = [&](int32_t i) {
        if (i < end) {
            const int64_t first_key = int64_t(a.view.key_tiles[i] / 2) * attention_tile;
            bf16 *const   to        = stages + (i - begin) % 2 * 2 * elements;
            load_tile<head_dim>(to, a.k + kv_head * head_dim, a.ld_k, first_key, a.view.n_tokens);
            load_tile<head_dim>(to + elements, a.v + kv_head * head_dim, a.ld_v, first_key, a.view.n_tokens);
        }
        copy_async_end_group();
    };
    const bool turns = head_dim == head_turned_in_pairs && a.turned_q;
    if (!turns) {
        load_tile<head_dim>(q_tiles, a.q + head * head_dim, a.ld_q, first_query, a.view.n_queries);
        load_tile<head_dim>(q_tiles + elements, a.q + (head + 1) * head_dim, a.ld_q, first_query, a.view.n_queries);
    }
    load_stage(begin);
    if constexpr (head_dim == head_turned_in_pairs) {
        if (turns) {
            turn_tiles<head_dim>(q_tiles, a, head, first_query);
        }
    }
    for (int32_t i = begin; i < end; i++) {
        const int32_t     entry     = a.view.key_tiles[i];
        const int64_t     first_key = int64_t(entry / 2) * attention_tile;
        const bf16 *const k_tile = stages + (i - begin) % 2 * 2 * elements, *const v_tile = k_tile + elements;
        wait_for_tiles<0>();
        load_stage(i + 1); // where the last ones were, which nobody needs any more

        float    s[key_tiles_of_8][4] = {}, s_other[key_tiles_of_8][4] = {};
        uint32_t p[4][4], p_other[4][4];
        wgmma_begin();
        multiply_tiles<head_dim>(s, q_tiles, k_tile);
        wgmma_end_group();
        multiply_tiles<head_dim>(s_other, q_tiles + elements, k_tile);
        wgmma_end_group();
        wgmma_wait<1>();
        wgmma_arrived(s);
        if (entry % 2 == 0) {
            hide(s, a.view, first_key, above, below);
        }
        one.take(s, unit, p);
        wgmma_begin();
        multiply_fragments(one.out, p, v_tile);
        wgmma_end_group();
        wgmma_wait<1>();
        wgmma_arrived(s_other);
        if (entry % 2 == 0) {
            hide(s_other, a.view, first_key, above, below);
        }
        other.take(s_other, unit, p_other);
        wgmma_begin();
        multiply_fragments(other.out, p_other, v_tile);
        wgmma_end_group();
        wgmma_wait<0>();
        wgmma_arrived(one.out);
        wgmma_arrived(other.out);
    }
    copy_async_wait<0>();
    __syncthreads(); // tiles are room for the output now
    bf16 *const own = q_tiles + warp * warp_rows * tile_stride<head_dim>;
    one.store(a, head, row, unit, own);
    other.store(a, head + 1, row, unit, own);
}

} // namespace

bool attend_in_pairs(const cpu::attention_shape &shape, const forward_args &args, cudaStream_t stream) {
    return args.group % 2 == 0 && with_warpgroups(shape, [&](auto size) {
        constexpr int head_dim = decltype(size)::value;
        launch("attention, heads in pairs", warpgroup_attention_pair_kernel<head_dim>,
               dim3(unsigned(shape.n_head / 2), blocks_for(args.view.n_queries, attention_tile)), attention_threads,
               size_t(6 * tile_elements<head_dim>) * sizeof(bf16), stream, args);
    });
}

} // namespace cft::cuda
