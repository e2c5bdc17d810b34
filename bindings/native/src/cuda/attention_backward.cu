// attention_backward.cu - the gradient of attention in two kernels: one block for each tile of keys sums dk and dv over the
// queries and heads that see it, one block for each tile of queries sums dq over its keys. Scores are computed in both, or the
// first leaves their gradients to the second (attention_stored.cu). So every gradient is summed by one block in the order of its
// list, and no sums cross blocks: the same bits every time.
#include "attention_tile.h"

#include <algorithm>

namespace cft::cuda {
namespace {

constexpr int chunk = 32, chunk_tiles = chunk / 8; // rows of the other side whose scores a warp holds at a time

// ---- delta: the sum of dout * out over a head's columns; a warp has one query of one head

__global__ void delta_kernel(backward_args a, int n_head, int head_dim) {
    const int64_t i = (int64_t(blockIdx.x) * attention_threads + threadIdx.x) / lanes, n = a.view.n_queries;
    if (i >= n * n_head) { // the whole warp
        return;
    }
    const int64_t query = i / n_head, head = i % n_head;
    const int     column = int(threadIdx.x % lanes) * 8;
    float         sum    = 0;
    if (column < head_dim) {
        const eight x = load8(a.m.out + query * a.m.ld_out + head * head_dim + column);
        const eight d = load8(a.m.dout + query * a.m.ld_dout + head * head_dim + column);
        for (int k = 0; k < 8; k++) {
            sum += x.x[k] * d.x[k];
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % lanes == 0) {
        a.m.delta[head * n + query] = sum;
    }
}

// ---- dq: rows are queries, columns keys

template <int head_dim> __global__ void __launch_bounds__(attention_threads) query_gradient_kernel(backward_args a) {
    constexpr int stride = tile_stride<head_dim>, stage = stage_rows<head_dim>;
    bf16 *const   q_tile = shared_array<bf16>(), *const dout_tile = q_tile + attention_tile * stride;
    bf16 *const   k_tile = dout_tile + attention_tile * stride, *const v_tile = k_tile + stage * stride;

    const int     head = int(blockIdx.x), kv_head = head / a.group, warp = int(threadIdx.x) / lanes, lane = int(threadIdx.x) % lanes;
    const int     g = lane / 4, t = lane % 4;
    const int32_t tile        = a.view.query_order[blockIdx.y];
    const int64_t first_query = int64_t(tile) * attention_tile, query = first_query + warp * warp_rows + g;
    const bf16   *k = a.m.k + kv_head * head_dim, *v = a.m.v + kv_head * head_dim;

    const query_side sides[2] = {query_at(a.view, query), query_at(a.view, query + 8)};
    const query_sums sums[2]  = {sums_at(a, head, query), sums_at(a, head, query + 8)};
    float            dq[head_dim / 8][4] = {};

    load_rows<head_dim, attention_tile>(q_tile, a.m.q + head * head_dim, a.m.ld_q, first_query, a.view.n_queries);
    load_rows<head_dim, attention_tile>(dout_tile, a.m.dout + head * head_dim, a.m.ld_dout, first_query, a.view.n_queries);
    for (int32_t i = a.view.key_tiles_start[tile]; i < a.view.key_tiles_start[tile + 1]; i++) {
        const int32_t entry = a.view.key_tiles[i];
        for (int part = 0; part < attention_tile; part += stage) {
            const int64_t first_key = int64_t(entry / 2) * attention_tile + part;
            __syncthreads(); // nobody needs the last keys and values any more
            load_rows<head_dim, stage>(k_tile, k, a.m.ld_k, first_key, a.view.n_tokens);
            load_rows<head_dim, stage>(v_tile, v, a.m.ld_v, first_key, a.view.n_tokens);
            copy_async_end_group();
            copy_async_wait<0>();
            __syncthreads();
            for (int c = 0; c < stage; c += chunk) {
                float s[chunk_tiles][4] = {}, ds[chunk_tiles][4] = {};
                multiply_rows<head_dim>(s, q_tile, warp * warp_rows, k_tile, c, stride);
                multiply_rows<head_dim>(ds, dout_tile, warp * warp_rows, v_tile, c, stride);
#pragma unroll
                for (int n = 0; n < chunk_tiles; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int   row   = e / 2;
                        const float score = a.score(s[n][e]);
                        const bool  seen  = entry % 2 == 1 || sees(sides[row], key_at(a.view, first_key + c + 8 * n + 2 * t + e % 2));
                        const float p     = seen ? exp2_fast(score - sums[row].lse) : 0.0f;
                        ds[n][e]          = p * (ds[n][e] - sums[row].delta) * a.score.slope(score);
                    }
                }
                multiply_scores(dq, ds, k_tile, c, 0, stride);
            }
        }
    }
    store_rows<head_dim>(dq, 1.0f, 1.0f, q_tile + warp * warp_rows * stride, a.m.dq + head * head_dim, a.m.ld_dq, first_query + warp * warp_rows,
                         a.view.n_queries);
}

// ---- dk and dv: rows are keys, columns queries

// Of the largest heads a block sums half of the columns; the scores are then computed twice.
template <int head_dim> constexpr int column_parts = head_dim > 128 ? 2 : 1;

template <int head_dim, bool stores> __global__ void __launch_bounds__(attention_threads) key_gradient_kernel(backward_args a) {
    constexpr int stride = tile_stride<head_dim>, stage = stage_rows<head_dim>, columns = head_dim / column_parts<head_dim>;
    bf16 *const   k_tile = shared_array<bf16>(), *const v_tile = k_tile + attention_tile * stride;
    bf16 *const   q_tile = v_tile + attention_tile * stride, *const dout_tile = q_tile + stage * stride;

    const int     kv_head = int(blockIdx.x) + (stores ? a.first_kv_head : 0), first_column = int(blockIdx.z) * columns;
    const int     warp = int(threadIdx.x) / lanes, lane = int(threadIdx.x) % lanes, g = lane / 4, t = lane % 4;
    const int32_t tile      = a.view.key_order[blockIdx.y];
    const int64_t first_key = int64_t(tile) * attention_tile, key = first_key + warp * warp_rows + g;

    const key_side sides[2] = {key_at(a.view, key), key_at(a.view, key + 8)};
    float          dk[columns / 8][4] = {}, dv[columns / 8][4] = {};

    load_rows<head_dim, attention_tile>(k_tile, a.m.k + kv_head * head_dim, a.m.ld_k, first_key, a.view.n_tokens);
    load_rows<head_dim, attention_tile>(v_tile, a.m.v + kv_head * head_dim, a.m.ld_v, first_key, a.view.n_tokens);
    copy_async_end_group();
    for (int head = kv_head * a.group; head < (kv_head + 1) * a.group; head++) {
        for (int32_t i = a.view.query_tiles_start[tile]; i < a.view.query_tiles_start[tile + 1]; i++) {
            const int32_t entry = a.view.query_tiles[i], place = stores ? a.view.places[i] : 0;
            for (int part = 0; part < attention_tile; part += stage) {
                const int64_t first_query = int64_t(entry / 2) * attention_tile + part;
                __syncthreads(); // nobody needs the last queries any more
                load_rows<head_dim, stage>(q_tile, a.m.q + head * head_dim, a.m.ld_q, first_query, a.view.n_queries);
                load_rows<head_dim, stage>(dout_tile, a.m.dout + head * head_dim, a.m.ld_dout, first_query, a.view.n_queries);
                copy_async_end_group();
                copy_async_wait<0>();
                __syncthreads();
                for (int c = 0; c < stage; c += chunk) {
                    float p[chunk_tiles][4] = {}, ds[chunk_tiles][4] = {};
                    multiply_rows<head_dim>(p, k_tile, warp * warp_rows, q_tile, c, stride);
                    multiply_rows<head_dim>(ds, v_tile, warp * warp_rows, dout_tile, c, stride);
#pragma unroll
                    for (int n = 0; n < chunk_tiles; n++) {
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            const int64_t    query = first_query + c + 8 * n + 2 * t + e;
                            const query_sums sums  = sums_at(a, head, query);
                            const query_side side  = entry % 2 == 1 ? query_side() : query_at(a.view, query);
#pragma unroll
                            for (int row = 0; row < 2; row++) {
                                const float score = a.score(p[n][2 * row + e]);
                                const bool  seen  = entry % 2 == 1 || sees(side, sides[row]);
                                const float x     = seen ? exp2_fast(score - sums.lse) : 0.0f;
                                p[n][2 * row + e] = x;
                                ds[n][2 * row + e] = x * (ds[n][2 * row + e] - sums.delta) * a.score.slope(score);
                            }
                        }
                    }
                    multiply_scores(dv, p, dout_tile, c, first_column, stride);
                    if (stores && first_column == 0) {
                        uint4 *const tile_at = stored_tile(a, head, place);
#pragma unroll
                        for (int k = 0; k < chunk_tiles; k += 2) {
                            uint32_t fragment[4];
                            to_fragment(fragment, ds, k);
                            store_scores(tile_at, (part + c) / 16 + k / 2, fragment);
                        }
                    }
                    multiply_scores(dk, ds, q_tile, c, first_column, stride);
                }
            }
        }
    }
    // Keys that no query sees: their copies must not arrive in what is written now.
    copy_async_wait<0>();
    __syncthreads();
    const int64_t row = first_key + warp * warp_rows;
    bf16 *const   own = k_tile + warp * warp_rows * stride;
    store_rows<head_dim>(dk, 1.0f, 1.0f, own, a.m.dk + kv_head * head_dim + first_column, a.m.ld_dk, row, a.view.n_tokens);
    store_rows<head_dim>(dv, 1.0f, 1.0f, own, a.m.dv + kv_head * head_dim + first_column, a.m.ld_dv, row, a.view.n_tokens);
}

template <int head_dim> constexpr size_t gradient_shared_bytes = 2 * (attention_tile + stage_rows<head_dim>)*tile_stride<head_dim> * sizeof(bf16);

// Some heads of keys after others, each time both kernels: gradients of scores lie in the same place.
void gradient_by_storing(const cpu::attention_shape &shape, backward_args args, cudaStream_t stream) {
    for (int first = 0; first < shape.n_head_kv; first += args.m.heads_at_a_time) {
        const int n        = std::min(args.m.heads_at_a_time, shape.n_head_kv - first);
        args.first_kv_head = first;
        if (!key_gradient_by_warpgroups(shape, args, n, stream)) {
            with_head_dim(shape.head_dim, [&](auto size) {
                constexpr int head_dim = decltype(size)::value;
                launch("attention key gradient, stores", key_gradient_kernel<head_dim, true>,
                       dim3(unsigned(n), blocks_for(args.view.n_tokens, attention_tile), unsigned(column_parts<head_dim>)), attention_threads,
                       gradient_shared_bytes<head_dim>, stream, args);
            });
        }
        query_gradient_of_stored(shape, args, n, stream);
    }
}

// By mma.sync, scores computed in both kernels; false for heads of an unknown size.
bool gradient_by_warps(const cpu::attention_shape &shape, const backward_args &args, cudaStream_t stream) {
    return with_head_dim(shape.head_dim, [&](auto size) {
        constexpr int    head_dim = decltype(size)::value;
        constexpr size_t shared   = gradient_shared_bytes<head_dim>;
        launch("attention key gradient", key_gradient_kernel<head_dim, false>,
               dim3(unsigned(shape.n_head_kv), blocks_for(args.view.n_tokens, attention_tile), unsigned(column_parts<head_dim>)), attention_threads, shared,
               stream, args);
        launch("attention query gradient", query_gradient_kernel<head_dim>,
               dim3(unsigned(shape.n_head), blocks_for(args.view.n_queries, attention_tile)), attention_threads, shared, stream, args);
    });
}

} // namespace

void attention_backward(const cpu::attention_shape &shape, const attention_view &view, const attention_gradient &m, cudaStream_t stream) {
    backward_args args = {view, {shape.scale, shape.soft_cap}, shape.n_head / shape.n_head_kv, m};
    args.turns         = m.turned && m.inside && attends_by_warpgroups(shape);
    launch("attention delta", delta_kernel, blocks_for(view.n_queries * shape.n_head * lanes, attention_threads), attention_threads, 0, stream, args,
           shape.n_head, shape.head_dim);
    if (m.scores && m.heads_at_a_time > 0 && can_attend(shape.head_dim)) {
        gradient_by_storing(shape, args, stream);
    } else if (!attention_gradient_by_warpgroups(shape, args, stream) && !gradient_by_warps(shape, args, stream)) {
        refuse_head_dim(shape.head_dim);
    }
    if (m.turned && !args.turns) {
        turn_heads_backward(m.queries.map, m.dq, m.ld_dq, m.queries.x, m.queries.ld, view.n_queries, m.dq, m.ld_dq, stream);
        turn_heads_backward(m.keys.map, m.dk, m.ld_dk, m.keys.x, m.keys.ld, view.n_tokens, m.dk, m.ld_dk, stream);
    }
}

} // namespace cft::cuda
