// attention.cu - attention forward, flash style (Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work
// Partitioning"): scores of a tile of queries against tile after tile of keys, with a running maximum and sum, so that no
// matrix of scores is stored. Which tiles there are comes from lists.
#include "attention_tile.h"

namespace cft::cuda {
namespace {

template <int head_dim> __global__ void __launch_bounds__(attention_threads) attention_kernel(forward_args a) {
    constexpr int stride = tile_stride<head_dim>, tile_elements = attention_tile * stride;
    bf16 *const   q_tile = shared_array<bf16>(), *const k_tile = q_tile + tile_elements, *const v_tile = k_tile + tile_elements;

    const int     head = int(blockIdx.x), kv_head = head / a.group, warp = int(threadIdx.x) / lanes, g = int(threadIdx.x) % lanes / 4;
    const int32_t tile        = a.view.query_order[blockIdx.y];
    const int64_t first_query = int64_t(tile) * attention_tile, query = first_query + warp * warp_rows + g;
    const bf16   *k = a.k + kv_head * head_dim, *v = a.v + kv_head * head_dim;
    const int32_t begin = a.view.key_tiles_start[tile], end = a.view.key_tiles_start[tile + 1];

    const query_side above = query_at(a.view, query), below = query_at(a.view, query + 8);
    float            out[head_dim / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    load_rows<head_dim, attention_tile>(q_tile, a.q + head * head_dim, a.ld_q, first_query, a.view.n_queries);
    load_rows<head_dim, attention_tile>(k_tile, k, a.ld_k, int64_t(a.view.key_tiles[begin] / 2) * attention_tile, a.view.n_tokens);
    copy_async_end_group();
    for (int32_t i = begin; i < end; i++) {
        const int32_t entry     = a.view.key_tiles[i];
        const int64_t first_key = int64_t(entry / 2) * attention_tile;
        copy_async_wait<0>();
        __syncthreads(); // the keys are there, and nobody needs the last values any more
        load_rows<head_dim, attention_tile>(v_tile, v, a.ld_v, first_key, a.view.n_tokens);
        copy_async_end_group();

        float s[key_tiles_of_8][4] = {};
        multiply_rows<head_dim>(s, q_tile, warp * warp_rows, k_tile, 0, stride);
        __syncthreads(); // nobody needs these keys any more
        if (i + 1 < end) {
            load_rows<head_dim, attention_tile>(k_tile, k, a.ld_k, int64_t(a.view.key_tiles[i + 1] / 2) * attention_tile, a.view.n_tokens);
        }
        copy_async_end_group();

#pragma unroll
        for (int n = 0; n < key_tiles_of_8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[n][e] = a.score(s[n][e]);
            }
        }
        if (entry % 2 == 0) {
            hide(s, a.view, first_key, above, below);
        }
        const float factor_above = to_exponentials<0>(s, 1.0f, max[0], sum[0]), factor_below = to_exponentials<1>(s, 1.0f, max[1], sum[1]);
#pragma unroll
        for (int n = 0; n < head_dim / 8; n++) {
            out[n][0] *= factor_above;
            out[n][1] *= factor_above;
            out[n][2] *= factor_below;
            out[n][3] *= factor_below;
        }
        copy_async_wait<1>();
        __syncthreads(); // the values are there
        multiply_scores(out, s, v_tile, 0, 0, stride);
    }

    const float total_above = row_sum(sum[0]), total_below = row_sum(sum[1]);
    if (threadIdx.x % 4 == 0) {
        float *const lse = a.lse + int64_t(head) * a.view.n_queries;
        if (query < a.view.n_queries) {
            lse[query] = max[0] * ln_2 + logf(total_above);
        }
        if (query + 8 < a.view.n_queries) {
            lse[query + 8] = max[1] * ln_2 + logf(total_below);
        }
    }
    // This warp's rows of the query tile are its own.
    store_rows<head_dim>(out, 1.0f / total_above, 1.0f / total_below, q_tile + warp * warp_rows * stride, a.out + head * head_dim, a.ld_out,
                         first_query + warp * warp_rows, a.view.n_queries);
}

} // namespace

bool can_attend(int head_dim) {
    return with_head_dim(head_dim, [](auto) {});
}

void attention(const cpu::attention_shape &shape, const attention_view &view, bf16 *q, int64_t ld_q, const bf16 *k, int64_t ld_k, const bf16 *v, int64_t ld_v,
               bf16 *out, int64_t ld_out, float *lse, cudaStream_t stream, const attention_ways &how) {
    forward_args args = {view, {shape.scale, shape.soft_cap}, shape.n_head / shape.n_head_kv, q, k, v, out, lse, ld_q, ld_k, ld_v, ld_out};
    const bool   in_pairs = how.in_pairs && args.group % 2 == 0 && attends_by_warpgroups(shape);
    if (how.queries && how.inside && in_pairs && shape.head_dim == head_turned_in_pairs) {
        args.queries = *how.queries, args.turned_q = q;
    } else if (how.queries) {
        turn_heads(how.queries->map, how.queries->x, how.queries->ld, view.n_queries, q, ld_q, stream);
    }
    if ((in_pairs && attend_in_pairs(shape, args, stream)) || attend_by_warpgroups(shape, args, stream)) {
        return;
    }
    const dim3 grid(unsigned(shape.n_head), blocks_for(view.n_queries, attention_tile)); // all heads' longest lists first
    const bool known = with_head_dim(shape.head_dim, [&](auto size) {
        constexpr int head_dim = decltype(size)::value;
        launch("attention", attention_kernel<head_dim>, grid, attention_threads, 3 * attention_tile * tile_stride<head_dim> * sizeof(bf16), stream,
               args);
    });
    if (!known) {
        refuse_head_dim(shape.head_dim);
    }
}

} // namespace cft::cuda
