// adapter_product.cu - see adapter_product.h. A block has a strip of dy's columns and a slice of its rows, of which it sees each element once: tiles
// of 16 rows come by asynchronous copies, three under way while one is multiplied. From a tile a warp makes what its columns add to the tile's
// u, and to its d_b, which stays in registers; b stays there as well. The warps' u are summed in shared memory. Sums of strips (of u) and of slices (of
// d_b) go to scratch as registers lie, so that all of it is whole lines, and a second kernel adds them up in order.
#include "adapter_tile.h"

namespace cft::cuda {
namespace {

constexpr int threads = adapter_threads, tile = adapter_tile, steps = 4; // tiles in shared memory

struct product_sizes : adapter_sizes<adapter_warps> {
    using base = adapter_sizes<adapter_warps>;
    static constexpr size_t shared_bytes = size_t(steps) * (base::dy_elements + base::h_elements) * sizeof(bf16) + size_t(adapter_warps) * base::u_floats * sizeof(float);
};

__global__ void __launch_bounds__(threads, 2) adapter_product_kernel(adapter_part x) {
    using s = product_sizes;
    bf16 *const  dy_tiles = shared_array<bf16>(), *const h_tiles = dy_tiles + steps * s::dy_elements;
    float *const u_sums = reinterpret_cast<float *>(h_tiles + steps * s::h_elements); // [warps] of u_floats
    const int    strip = int(blockIdx.x), slice = int(blockIdx.y), warp = int(threadIdx.x) / lanes, at = warp * s::warp_columns;
    int64_t      begin;
    const adapter_map &m    = x.p.maps[map_of<s>(x, strip, begin)];
    const int64_t      row0 = slice * x.slice_rows;
    const bf16 *const  dy = x.p.dy + row0 * x.p.ld_dy + m.column + begin, *const h = m.h ? m.h + row0 * x.p.ld_h : dy;
    const int          n_rows = int(x.p.n - row0 < x.slice_rows ? x.p.n - row0 : x.slice_rows), n_columns = int(m.columns - begin);
    const int          n_steps = (n_rows + tile - 1) / tile;
    const auto         fetch = [&](int step) {
        if (step < n_steps) {
            const int row = step * tile;
            copy_tile<s::columns>(dy_tiles + step % steps * s::dy_elements, dy + row * x.p.ld_dy, x.p.ld_dy, n_rows - row, n_columns);
            copy_tile<s::rank>(h_tiles + step % steps * s::h_elements, h + row * x.p.ld_h, x.p.ld_h, n_rows - row, m.h ? int(m.rank) : 0);
        }
        copy_async_end_group();
    };
#pragma unroll
    for (int i = 0; i < steps - 1; i++) {
        fetch(i);
    }
    warp_adapter<s> mine(m.b + begin * x.p.ld_b, x.p.ld_b, n_columns, m.rank, at);
    for (int step = 0; step < n_steps; step++) {
        copy_async_wait<steps - 2>();
        __syncthreads(); // the tile is there, and nobody reads the one before, or the warps' u, any more
        fetch(step + steps - 1);
        mine.multiply(dy_tiles + step % steps * s::dy_elements, h_tiles + step % steps * s::h_elements, at, u_sums + warp * s::u_floats);
        __syncthreads();
        if (m.u) {
            sum_u<s>(u_sums, x.u + (int64_t(strip) * x.tiles + row0 / tile + step) * s::u_floats, int(threadIdx.x), threads);
        }
    }
    mine.leave(x.b + (int64_t(slice) * x.strips + strip) * s::b_floats + at * s::rank);
}

// A thread sums a pair of neighbours of u or of d_b. Where a pair lies is what mma's c says: registers 2 pair and 2 pair + 1 of a lane.
struct pair_place {
    int row, column; // row from that of the 16 x 8 tiles' first
    __device__ pair_place(int pair, int lane, int n_tiles)
        : row(pair / 2 / n_tiles * 16 + lane / 4 + pair % 2 * 8), column(pair / 2 % n_tiles * 8 + lane % 4 * 2) {}
};

__device__ __forceinline__ float2 sum_pairs(const float *from, int64_t step, int n) {
    float2 sum = {0, 0};
#pragma unroll 8 // loads under way
    for (int i = 0; i < n; i++) {
        sum.x += from[i * step];
        sum.y += from[i * step + lanes];
    }
    return sum;
}

template <typename S> constexpr int b_blocks = S::b_floats / 2 / threads; // of a strip

template <typename S> __global__ void add_up_kernel(adapter_part x, int u_blocks) {
    constexpr int n_tiles = S::rank / 8;
    const int     lane = int(threadIdx.x) % lanes;
    int           block = int(blockIdx.x);
    if (block < u_blocks * x.p.n_maps) {
        const adapter_map &m = x.p.maps[block / u_blocks];
        const int64_t      i = int64_t(block % u_blocks) * threads + threadIdx.x, t = i / (S::u_floats / 2);
        const int          pair = int(i % (S::u_floats / 2)) / lanes;
        const pair_place   at(pair, lane, n_tiles);
        const int64_t      row = t * tile + at.row;
        int                first = 0;
        for (int k = 0; k < block / u_blocks; k++) {
            first += S::strips(x.p.maps[k]);
        }
        if (m.u && row < x.p.n && at.column < m.rank) {
            const float2 sum = sum_pairs(x.u + (int64_t(first) * x.tiles + t) * S::u_floats + pair * 2 * lanes + lane, int64_t(x.tiles) * S::u_floats, S::strips(m));
            *reinterpret_cast<uint32_t *>(m.u + row * x.p.ld_dy + at.column) = pack(sum.x, sum.y);
        }
        return;
    }
    block -= u_blocks * x.p.n_maps;
    constexpr int      pairs = S::warp_columns * S::rank / 2 / lanes; // of a warp
    const int          strip = block / b_blocks<S>, i = block % b_blocks<S> * threads + int(threadIdx.x), pair = i / lanes % pairs, warp = i / lanes / pairs;
    const pair_place   at(pair, lane, n_tiles);
    int64_t            begin;
    const adapter_map &m      = x.p.maps[map_of<S>(x, strip, begin)];
    const int64_t      column = begin + warp * S::warp_columns + at.row;
    if (m.h && column < m.columns && at.column < m.rank) {
        const float2 sum = sum_pairs(x.b + int64_t(strip) * S::b_floats + (warp * pairs + pair) * 2 * lanes + lane, int64_t(x.strips) * S::b_floats, x.slices);
        float2      &to  = *reinterpret_cast<float2 *>(m.d_b + column * m.rank + at.column);
        to               = float2{to.x + m.scale * sum.x, to.y + m.scale * sum.y};
    }
}

template <typename S> void add_up(const adapter_part &x, cudaStream_t stream) {
    const unsigned u_blocks = blocks_for(int64_t(x.tiles) * S::u_floats / 2, threads);
    launch("sums of adapters", add_up_kernel<S>, u_blocks * unsigned(x.p.n_maps) + unsigned(x.strips * b_blocks<S>), threads, 0, stream, x, int(u_blocks));
}

} // namespace

void add_up_adapters(const adapter_part &x, int map_warps, cudaStream_t stream) {
    map_warps == adapter_warps ? add_up<adapter_sizes<adapter_warps>>(x, stream) : add_up<adapter_sizes<adapter_warps / 2>>(x, stream);
}

size_t adapter_scratch(const adapter_product &p, int blocks) {
    check_ranks(p);
    return adapter_turns(p, blocks).scratch(p.n);
}

void multiply_adapters(const adapter_product &p, void *scratch, size_t scratch_bytes, cudaStream_t stream, int blocks) {
    check_ranks(p);
    adapter_turns(p, blocks).go<product_sizes>(p, scratch, scratch_bytes, [&](const adapter_part &x, int64_t) {
        launch("products of adapters", adapter_product_kernel, dim3(unsigned(x.strips), unsigned(x.slices)), threads, product_sizes::shared_bytes, stream, x);
        add_up_adapters(x, adapter_warps, stream);
    });
}

} // namespace cft::cuda
