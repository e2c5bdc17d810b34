// attention_stored.cu - dq from gradients of scores that the kernel of dk and dv has stored: one product for each pair of tiles instead of
// three. attention_tile.h says how they lie in memory. What is multiplied, and in which order it is summed, is as where they are computed
// again, so the bits are the same but for how a compiler rounds a score's exponent in the two kernels.
#include "attention_warpgroup.h"

#include <algorithm>

namespace cft::cuda {
namespace {

// ---- by mma.sync; while a tile of keys is multiplied, the next one comes

template <int head_dim> __global__ void __launch_bounds__(attention_threads) stored_query_gradient_kernel(backward_args a) {
    constexpr int stride = tile_stride<head_dim>;
    bf16 *const   k_tiles = shared_array<bf16>(); // two

    const int     head = a.first_kv_head * a.group + int(blockIdx.x), kv_head = head / a.group, warp = int(threadIdx.x) / lanes;
    const int32_t tile  = a.view.query_order[blockIdx.y];
    const int64_t first = int64_t(tile) * attention_tile + warp * warp_rows;
    const int32_t begin = a.view.key_tiles_start[tile], end = a.view.key_tiles_start[tile + 1];
    const auto    load_keys = [&](int32_t i) {
        if (i < end) {
            load_rows<head_dim, attention_tile>(k_tiles + i % 2 * attention_tile * stride, a.m.k + kv_head * head_dim, a.m.ld_k,
                                                int64_t(a.view.key_tiles[i] / 2) * attention_tile, a.view.n_tokens);
        }
        copy_async_end_group();
    };

    float         dq[head_dim / 8][4] = {};
    stored_scores scores;
    load_keys(begin);
    if (begin < end) {
        scores.load(stored_tile(a, head, begin));
    }
    for (int32_t i = begin; i < end; i++) {
        const bf16 *const k_tile = k_tiles + i % 2 * attention_tile * stride;
        copy_async_wait<0>();
        __syncthreads(); // the keys are there, and nobody needs the last ones any more
        load_keys(i + 1);
        uint32_t fragments[attention_tile / warp_rows][4];
        scores.turn(fragments);
        if (i + 1 < end) {
            scores.load(stored_tile(a, head, i + 1));
        }
#pragma unroll
        for (int k = 0; k < attention_tile / warp_rows; k++) {
            multiply_fragment(dq, fragments[k], k_tile, k * warp_rows, 0, stride);
        }
    }
    copy_async_wait<0>();
    __syncthreads(); // tiles are room for the output now
    store_rows<head_dim>(dq, 1.0f, 1.0f, k_tiles + warp * warp_rows * stride, a.m.dq + head * head_dim, a.m.ld_dq, first, a.view.n_queries);
}

// ---- by products of warpgroups

// A warpgroup for each of `heads` heads of the same keys, which they share: a tile of scores is 8 KB, of keys of 128 elements 16 KB.
template <int head_dim, int heads>
__global__ void __launch_bounds__(heads * attention_threads, 4 / heads) warpgroup_stored_query_gradient_kernel(backward_args a) {
    only_with_warpgroups();
    bf16 *const k_tiles = shared_array<bf16>(); // two

    const int     head = a.first_kv_head * a.group + int(blockIdx.x) * heads + int(threadIdx.x) / attention_threads, kv_head = head / a.group;
    const int     warp = int(threadIdx.x) % attention_threads / lanes;
    const int32_t tile  = a.view.query_order[blockIdx.y];
    const int64_t first = int64_t(tile) * attention_tile + warp * warp_rows;
    const int32_t begin = a.view.key_tiles_start[tile], end = a.view.key_tiles_start[tile + 1];
    const auto    load_keys = [&](int32_t i) {
        if (i < end) {
            load_tile<head_dim, heads * attention_threads>(k_tiles + i % 2 * tile_elements<head_dim>, a.m.k + kv_head * head_dim, a.m.ld_k,
                                                           int64_t(a.view.key_tiles[i] / 2) * attention_tile, a.view.n_tokens);
        }
        copy_async_end_group();
    };

    float         dq[head_dim / 8][4] = {};
    stored_scores scores;
    load_keys(begin);
    if (begin < end) {
        scores.load(stored_tile(a, head, begin));
    }
    for (int32_t i = begin; i < end; i++) {
        wait_for_tiles<0>(); // the keys are there, and nobody needs the last ones any more
        load_keys(i + 1);
        uint32_t fragments[attention_tile / warp_rows][4];
        scores.turn(fragments);
        if (i + 1 < end) {
            scores.load(stored_tile(a, head, i + 1)); // while these are multiplied
        }
        wgmma_begin();
        multiply_fragments(dq, fragments, k_tiles + i % 2 * tile_elements<head_dim>);
        wgmma_end_group();
        wgmma_wait<0>();
        wgmma_arrived(dq);
    }
    copy_async_wait<0>();
    __syncthreads(); // tiles are room for the output now
    const float factor = a.score.scale; // of all scores' gradients
    store_head<head_dim>(a.turns, dq, factor, k_tiles + int(threadIdx.x) / lanes * warp_rows * tile_stride<head_dim>, a.m.queries, head, a.m.dq, a.m.ld_dq, first,
                         a.view.n_queries);
}

template <int head_dim, int heads> void launch_by_warpgroups(const backward_args &args, int n_heads, cudaStream_t stream) {
    // Two tiles of keys, then the output of all heads' rows.
    constexpr int elements = std::max(2 * tile_elements<head_dim>, heads * attention_tile * tile_stride<head_dim>);
    launch("attention query gradient of stored scores", warpgroup_stored_query_gradient_kernel<head_dim, heads>,
           dim3(unsigned(n_heads / heads), blocks_for(args.view.n_queries, attention_tile)), heads * attention_threads, elements * sizeof(bf16), stream, args);
}

} // namespace

void query_gradient_of_stored(const cpu::attention_shape &shape, const backward_args &args, int n_heads_kv, cudaStream_t stream) {
    const int  n_heads = n_heads_kv * args.group;
    const bool done    = with_warpgroups(shape, [&](auto size) {
        constexpr int head_dim = decltype(size)::value;
        args.group % 2 == 0 ? launch_by_warpgroups<head_dim, 2>(args, n_heads, stream) : launch_by_warpgroups<head_dim, 1>(args, n_heads, stream);
    });
    if (done) {
        return;
    }
    with_head_dim(shape.head_dim, [&](auto size) {
        constexpr int head_dim = decltype(size)::value;
        launch("attention query gradient of stored scores", stored_query_gradient_kernel<head_dim>,
               dim3(unsigned(n_heads), blocks_for(args.view.n_queries, attention_tile)), attention_threads,
               2 * attention_tile * tile_stride<head_dim> * sizeof(bf16), stream, args);
    });
}

} // namespace cft::cuda
