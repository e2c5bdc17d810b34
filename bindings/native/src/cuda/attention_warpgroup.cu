// attention_warpgroup.cu - attention.cu's and attention_backward.cu's kernels with the products of warpgroups, for compute capability
// 9.0, heads of 64 and 128, and scores without a cap (with one they need more registers than there are). A block is one warpgroup;
// blocks of a multiprocessor hide each other's waiting.
#include "attention_warpgroup.h"

#include <cstdlib>

namespace cft::cuda {
namespace {

// ---- forward

template <int head_dim> __global__ void __launch_bounds__(attention_threads, 3) warpgroup_attention_kernel(forward_args a) {
    only_with_warpgroups();
    bf16 *const q_tile = shared_array<bf16>(), *const k_tile = q_tile + tile_elements<head_dim>, *const v_tile = k_tile + tile_elements<head_dim>;

    const int     head = int(blockIdx.x), kv_head = head / a.group, warp = int(threadIdx.x) / lanes, g = int(threadIdx.x) % lanes / 4;
    const int32_t tile        = a.view.query_order[blockIdx.y];
    const int64_t first_query = int64_t(tile) * attention_tile, query = first_query + warp * warp_rows + g;
    const bf16   *k = a.k + kv_head * head_dim, *v = a.v + kv_head * head_dim;
    const int32_t begin = a.view.key_tiles_start[tile], end = a.view.key_tiles_start[tile + 1];

    const query_side above = query_at(a.view, query), below = query_at(a.view, query + 8);
    const float      unit = a.score.scale * log2_e; // of a product, in log2
    float            out[head_dim / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    load_tile<head_dim>(q_tile, a.q + head * head_dim, a.ld_q, first_query, a.view.n_queries);
    load_tile<head_dim>(k_tile, k, a.ld_k, int64_t(a.view.key_tiles[begin] / 2) * attention_tile, a.view.n_tokens);
    copy_async_end_group();
    for (int32_t i = begin; i < end; i++) {
        const int32_t entry     = a.view.key_tiles[i];
        const int64_t first_key = int64_t(entry / 2) * attention_tile;
        wait_for_tiles<0>(); // the keys are there, and nobody needs the last values any more
        load_tile<head_dim>(v_tile, v, a.ld_v, first_key, a.view.n_tokens);
        copy_async_end_group();

        float s[key_tiles_of_8][4] = {};
        wgmma_begin();
        multiply_tiles<head_dim>(s, q_tile, k_tile);
        wgmma_end_group();
        wgmma_wait<0>();
        wgmma_arrived(s);
        __syncthreads(); // nobody needs these keys any more
        if (i + 1 < end) {
            load_tile<head_dim>(k_tile, k, a.ld_k, int64_t(a.view.key_tiles[i + 1] / 2) * attention_tile, a.view.n_tokens);
        }
        copy_async_end_group();

        if (entry % 2 == 0) {
            hide(s, a.view, first_key, above, below);
        }
        const float factor_above = to_exponentials<0>(s, unit, max[0], sum[0]), factor_below = to_exponentials<1>(s, unit, max[1], sum[1]);
#pragma unroll
        for (int n = 0; n < head_dim / 8; n++) {
            out[n][0] *= factor_above;
            out[n][1] *= factor_above;
            out[n][2] *= factor_below;
            out[n][3] *= factor_below;
        }
        uint32_t p[4][4];
        to_fragments(p, s);
        wait_for_tiles<1>(); // the values are there
        wgmma_begin();
        multiply_fragments(out, p, v_tile);
        wgmma_end_group();
        wgmma_wait<0>();
        wgmma_arrived(out);
    }
    copy_async_wait<0>();
    __syncthreads(); // tiles are room for the output now

    const float total_above = row_sum(sum[0]), total_below = row_sum(sum[1]);
    if (threadIdx.x % 4 == 0) {
        float *const lse = a.lse + int64_t(head) * a.view.n_queries;
        if (query < a.view.n_queries) {
            lse[query] = max[0] * unit * ln_2 + logf(total_above);
        }
        if (query + 8 < a.view.n_queries) {
            lse[query + 8] = max[1] * unit * ln_2 + logf(total_below);
        }
    }
    store_rows<head_dim>(out, 1.0f / total_above, 1.0f / total_below, q_tile + warp * warp_rows * tile_stride<head_dim>, a.out + head * head_dim,
                         a.ld_out, first_query + warp * warp_rows, a.view.n_queries);
}

// ---- dq: rows are queries, columns keys

// One tile of keys and values at a time leaves room for a third block, which hides more than a second tile would.
template <int head_dim> __global__ void __launch_bounds__(attention_threads, 3) warpgroup_query_gradient_kernel(backward_args a) {
    only_with_warpgroups();
    bf16 *const q_tile = shared_array<bf16>(), *const dout_tile = q_tile + tile_elements<head_dim>;
    bf16 *const k_tile = dout_tile + tile_elements<head_dim>, *const v_tile = k_tile + tile_elements<head_dim>;

    const int     head = int(blockIdx.x), kv_head = head / a.group, warp = int(threadIdx.x) / lanes, lane = int(threadIdx.x) % lanes;
    const int     g = lane / 4, t = lane % 4;
    const int32_t tile        = a.view.query_order[blockIdx.y];
    const int64_t first_query = int64_t(tile) * attention_tile, query = first_query + warp * warp_rows + g;
    const int32_t begin = a.view.key_tiles_start[tile], end = a.view.key_tiles_start[tile + 1];
    const float   unit = a.score.scale * log2_e; // of a product, in log2

    const query_side sides[2] = {query_at(a.view, query), query_at(a.view, query + 8)};
    const query_sums sums[2]  = {sums_at(a, head, query), sums_at(a, head, query + 8)};
    float            dq[head_dim / 8][4] = {};

    const auto load_keys = [&](int32_t i) {
        if (i < end) {
            const int64_t first_key = int64_t(a.view.key_tiles[i] / 2) * attention_tile;
            load_tile<head_dim>(k_tile, a.m.k + kv_head * head_dim, a.m.ld_k, first_key, a.view.n_tokens);
            load_tile<head_dim>(v_tile, a.m.v + kv_head * head_dim, a.m.ld_v, first_key, a.view.n_tokens);
        }
        copy_async_end_group();
    };
    load_tile<head_dim>(q_tile, a.m.q + head * head_dim, a.m.ld_q, first_query, a.view.n_queries);
    load_tile<head_dim>(dout_tile, a.m.dout + head * head_dim, a.m.ld_dout, first_query, a.view.n_queries);
    load_keys(begin);
    for (int32_t i = begin; i < end; i++) {
        const int32_t entry     = a.view.key_tiles[i];
        const int64_t first_key = int64_t(entry / 2) * attention_tile;
        wait_for_tiles<0>();

        float p[8][4] = {}, ds[8][4] = {};
        wgmma_begin();
        multiply_tiles<head_dim>(p, q_tile, k_tile);
        wgmma_end_group();
        multiply_tiles<head_dim>(ds, dout_tile, v_tile);
        wgmma_end_group();
        wgmma_wait<1>();
        wgmma_arrived(p);
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                p[n][e] = exp2_fast(p[n][e] * unit - sums[e / 2].lse);
            }
        }
        if (entry % 2 == 0) {
#pragma unroll
            for (int n = 0; n < 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const key_side key = key_at(a.view, first_key + 8 * n + 2 * t + i);
                    p[n][i]            = sees(sides[0], key) ? p[n][i] : 0.0f;
                    p[n][2 + i]        = sees(sides[1], key) ? p[n][2 + i] : 0.0f;
                }
            }
        }
        wgmma_wait<0>();
        wgmma_arrived(ds);
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                ds[n][e] = p[n][e] * (ds[n][e] - sums[e / 2].delta);
            }
        }
        uint32_t fragments[4][4];
        to_fragments(fragments, ds);
        wgmma_begin();
        multiply_fragments(dq, fragments, k_tile);
        wgmma_end_group();
        wgmma_wait<0>();
        wgmma_arrived(dq);
        __syncthreads(); // nobody needs these keys any more
        load_keys(i + 1);
    }
    copy_async_wait<0>();
    __syncthreads(); // tiles are room for the output now
    const float factor = a.score.scale; // of all scores' gradients
    store_head<head_dim>(a.turns, dq, factor, q_tile + warp * warp_rows * tile_stride<head_dim>, a.m.queries, head, a.m.dq, a.m.ld_dq,
                         first_query + warp * warp_rows, a.view.n_queries);
}

// ---- dk and dv: rows are keys, columns queries

template <int head_dim, bool stores> __global__ void __launch_bounds__(attention_threads, 2) warpgroup_key_gradient_kernel(backward_args a) {
    only_with_warpgroups();
    constexpr int stage_elements = 2 * tile_elements<head_dim>;
    bf16 *const   k_tile = shared_array<bf16>(), *const v_tile = k_tile + tile_elements<head_dim>;
    bf16 *const   stages = v_tile + tile_elements<head_dim>; // twice queries and gradients of outputs, then twice log-sum-exp and delta
    float *const  sums   = reinterpret_cast<float *>(stages + 2 * stage_elements);

    const int     kv_head = int(blockIdx.x) + (stores ? a.first_kv_head : 0);
    const int     warp = int(threadIdx.x) / lanes, lane = int(threadIdx.x) % lanes, g = lane / 4, t = lane % 4;
    const int32_t tile      = a.view.key_order[blockIdx.y];
    const int64_t first_key = int64_t(tile) * attention_tile, key = first_key + warp * warp_rows + g;
    const int32_t begin = a.view.query_tiles_start[tile], per_head = a.view.query_tiles_start[tile + 1] - begin, n = per_head * a.group;
    const float   unit = a.score.scale * log2_e; // of a product, in log2

    const key_side sides[2] = {key_at(a.view, key), key_at(a.view, key + 8)};
    float          dk[head_dim / 8][4] = {}, dv[head_dim / 8][4] = {};

    // Queries beyond the last one are rows of 0: they add nothing, whatever their scores.
    const auto load_stage = [&](int32_t i) {
        if (i < n) {
            const int     head = kv_head * a.group + i / per_head;
            bf16 *const   to = stages + i % 2 * stage_elements;
            const int64_t first_query = int64_t(a.view.query_tiles[begin + i % per_head] / 2) * attention_tile;
            load_tile<head_dim>(to, a.m.q + head * head_dim, a.m.ld_q, first_query, a.view.n_queries);
            load_tile<head_dim>(to + tile_elements<head_dim>, a.m.dout + head * head_dim, a.m.ld_dout, first_query, a.view.n_queries);
            const int64_t query   = first_query + int(threadIdx.x) % attention_tile;
            const bool    present = query < a.view.n_queries;
            const float  *from    = (int(threadIdx.x) < attention_tile ? a.m.lse : a.m.delta) + int64_t(head) * a.view.n_queries;
            copy_async_word(sums + i % 2 * attention_threads + threadIdx.x, from + (present ? query : 0), present);
        }
        copy_async_end_group();
    };
    load_tile<head_dim>(k_tile, a.m.k + kv_head * head_dim, a.m.ld_k, first_key, a.view.n_tokens);
    load_tile<head_dim>(v_tile, a.m.v + kv_head * head_dim, a.m.ld_v, first_key, a.view.n_tokens);
    load_stage(0);
    for (int32_t i = 0; i < n; i++) {
        const int32_t     entry       = a.view.query_tiles[begin + i % per_head];
        const int32_t     place       = stores ? a.view.places[begin + i % per_head] : 0; // now: what is stored must not wait for it
        const int64_t     first_query = int64_t(entry / 2) * attention_tile;
        const bf16 *const q_tile = stages + i % 2 * stage_elements, *const dout_tile = q_tile + tile_elements<head_dim>;
        const float *const lse = sums + i % 2 * attention_threads, *const delta = lse + attention_tile;
        wait_for_tiles<0>();
        load_stage(i + 1); // where the last ones were, which nobody needs any more

        float p[8][4] = {}, ds[8][4] = {};
        wgmma_begin();
        multiply_tiles<head_dim>(p, k_tile, q_tile);
        wgmma_end_group();
        multiply_tiles<head_dim>(ds, v_tile, dout_tile);
        wgmma_end_group();
        wgmma_wait<1>();
        wgmma_arrived(p);
#pragma unroll
        for (int m = 0; m < 8; m++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float of_query = lse[8 * m + 2 * t + e] * log2_e;
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    float &x = p[m][2 * row + e];
                    x        = exp2_fast(x * unit - of_query);
                }
            }
        }
        if (entry % 2 == 0) {
#pragma unroll
            for (int m = 0; m < 8; m++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const query_side side = query_at(a.view, first_query + 8 * m + 2 * t + e);
                    p[m][e]               = sees(side, sides[0]) ? p[m][e] : 0.0f;
                    p[m][2 + e]           = sees(side, sides[1]) ? p[m][2 + e] : 0.0f;
                }
            }
        }
        uint32_t fragments[4][4];
        to_fragments(fragments, p);
        wgmma_begin();
        multiply_fragments(dv, fragments, dout_tile);
        wgmma_end_group();
        wgmma_wait<1>();
        wgmma_arrived(ds);
#pragma unroll
        for (int m = 0; m < 8; m++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                ds[m][e] = p[m][e] * (ds[m][e] - delta[8 * m + 2 * t + e % 2]);
            }
        }
        uint32_t of_scores[4][4];
        to_fragments(of_scores, ds);
        if constexpr (stores) {
            uint4 *const to = stored_tile(a, kv_head * a.group + i / per_head, place);
#pragma unroll
            for (int step = 0; step < 4; step++) {
                store_scores(to, step, of_scores[step]);
            }
        }
        wgmma_begin();
        multiply_fragments(dk, of_scores, q_tile);
        wgmma_end_group();
        wgmma_wait<0>();
        wgmma_arrived(dv);
        wgmma_arrived(dk);
    }
    copy_async_wait<0>();
    __syncthreads(); // tiles are room for the output now
    const int64_t row    = first_key + warp * warp_rows;
    const float   factor = a.score.scale; // of all scores' gradients
    bf16 *const   own    = k_tile + warp * warp_rows * tile_stride<head_dim>;
    store_head<head_dim>(a.turns, dk, factor, own, a.m.keys, kv_head, a.m.dk, a.m.ld_dk, row, a.view.n_tokens);
    store_rows<head_dim>(dv, 1.0f, 1.0f, own, a.m.dv + kv_head * head_dim, a.m.ld_dv, row, a.view.n_tokens);
}

template <int head_dim>
constexpr size_t key_gradient_shared_bytes = size_t(6 * tile_elements<head_dim>) * sizeof(bf16) + 2 * attention_threads * sizeof(float);

bool device_has_warpgroups() {
#if defined(__CUDACC__)
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), "the current device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
    return major == 9 && minor == 0;
#else
    return true;
#endif
}

#if defined(__CUDACC__)
bool asked_for() {
    const char *const v = std::getenv("CFT_CUDA_WARPGROUPS");
    return !v || std::string(v) != "0";
}
bool use_them = asked_for();
#else
bool use_them = false; // the shim computes them slowly; its tests say when
#endif

} // namespace

void use_warpgroups(bool use) { use_them = use; }

bool attends_by_warpgroups(const cpu::attention_shape &shape) {
    return use_them && shape.soft_cap <= 0 && (shape.head_dim == 64 || shape.head_dim == 128) && device_has_warpgroups();
}

bool attend_by_warpgroups(const cpu::attention_shape &shape, const forward_args &args, cudaStream_t stream) {
    return with_warpgroups(shape, [&](auto size) {
        constexpr int head_dim = decltype(size)::value;
        launch("attention", warpgroup_attention_kernel<head_dim>,
               dim3(unsigned(shape.n_head), blocks_for(args.view.n_queries, attention_tile)), attention_threads,
               size_t(3 * tile_elements<head_dim>) * sizeof(bf16), stream, args);
    });
}

bool key_gradient_by_warpgroups(const cpu::attention_shape &shape, const backward_args &args, int n_heads_kv, cudaStream_t stream) {
    return with_warpgroups(shape, [&](auto size) {
        constexpr int head_dim = decltype(size)::value;
        launch("attention key gradient, stores", warpgroup_key_gradient_kernel<head_dim, true>,
               dim3(unsigned(n_heads_kv), blocks_for(args.view.n_tokens, attention_tile)), attention_threads, key_gradient_shared_bytes<head_dim>, stream,
               args);
    });
}

bool attention_gradient_by_warpgroups(const cpu::attention_shape &shape, const backward_args &args, cudaStream_t stream) {
    return with_warpgroups(shape, [&](auto size) {
        constexpr int head_dim = decltype(size)::value;
        launch("attention key gradient", warpgroup_key_gradient_kernel<head_dim, false>,
               dim3(unsigned(shape.n_head_kv), blocks_for(args.view.n_tokens, attention_tile)), attention_threads, key_gradient_shared_bytes<head_dim>,
               stream, args);
        launch("attention query gradient", warpgroup_query_gradient_kernel<head_dim>,
               dim3(unsigned(shape.n_head), blocks_for(args.view.n_queries, attention_tile)), attention_threads,
               size_t(4 * tile_elements<head_dim>) * sizeof(bf16), stream, args);
    });
}

} // namespace cft::cuda
