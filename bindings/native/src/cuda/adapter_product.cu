// adapter_product.cu - see adapter_product.h. A block has a strip of dy's columns and a slice of its rows, of which it sees each element once: tiles
// of 16 rows come by asynchronous copies, three under way while one is multiplied. From a tile a warp makes what its columns add to the tile's
// u, and to its d_b, which stays in registers; b stays there as well. The warps' u are summed in shared memory. Sums of strips (of u) and of slices (of
// d_b) go to scratch as registers lie, so that all of it is whole lines, and a second kernel adds them up in order.
#include "adapter_product.h"

#include "tensor_core.h"

#include <algorithm>

namespace cft::cuda {
namespace {

constexpr int     threads = 256, warps = threads / lanes, tile = 16, steps = 4; // tiles in shared memory
constexpr int64_t least_rows = 8 * tile; // of a slice

// Of ranks up to `rank`. A wider strip has fewer sums of u, a narrower one longer slices and so fewer of d_b; and registers are 65,536.
template <int rank> struct sizes {
    static constexpr int warp_columns = rank > 32 ? 32 : 64, columns = warps * warp_columns;
    static constexpr int stride = columns + 8, stride_h = rank + 8; // rows of eight matrices lie in different banks
    static constexpr int dy_elements = tile * stride, h_elements = tile * stride_h;
    static constexpr int u_floats = tile * rank, b_floats = columns * rank; // of a tile, of a strip
    static constexpr size_t shared_bytes = size_t(steps) * (dy_elements + h_elements) * sizeof(bf16) + size_t(warps) * u_floats * sizeof(float);

    __host__ __device__ static int strips(const adapter_map &m) { return int((m.columns + columns - 1) / columns); }
};

// part is rows that scratch has room for.
struct part {
    adapter_product p;
    float          *u;          // [strips][tiles] of u_floats
    float          *b;          // [slices][strips] of b_floats
    int64_t         slice_rows; // a multiple of tile
    int             strips, tiles, slices;
};

// The map that a strip belongs to, and where in it the strip begins.
template <int rank> __device__ __forceinline__ int map_of(const part &x, int strip, int64_t &begin) {
    int m = 0;
    for (; strip >= sizes<rank>::strips(x.p.maps[m]); m++) {
        strip -= sizes<rank>::strips(x.p.maps[m]);
    }
    begin = int64_t(strip) * sizes<rank>::columns;
    return m;
}

// Begins to copy a tile of rows, the first at x and `rows` of them there, `columns` wide and `present` of them there; the rest becomes 0.
template <int columns> __device__ __forceinline__ void copy_tile(bf16 *to, const bf16 *x, int64_t ld, int rows, int present) {
    constexpr int eighths = columns / 8;
#pragma unroll
    for (int i = threadIdx.x; i < tile * eighths; i += threads) {
        const int  r = i / eighths, c = i % eighths * 8;
        const bool there = r < rows && c < present;
        copy_async(to + r * (columns + 8) + c, there ? x + r * ld + c : x, there);
    }
}

// Two of b's elements, in one word: column r of rows k and k + 1, of which there are `rows`.
__device__ __forceinline__ uint32_t two_of_b(const bf16 *b, int64_t ld, int rows, int64_t rank, int k, int r) {
    const auto one = [&](int row) { return row < rows && r < rank ? uint32_t(b[row * ld + r].bits) : 0u; };
    return one(k) | one(k + 1) << 16;
}

template <int rank> __global__ void __launch_bounds__(threads, rank > 16 ? 1 : 2) adapter_product_kernel(part x) {
    using s = sizes<rank>;
    constexpr int m_tiles = s::warp_columns / 16, n_tiles = rank / 8;
    bf16 *const   dy_tiles = shared_array<bf16>(), *const h_tiles = dy_tiles + steps * s::dy_elements;
    float *const  u_sums = reinterpret_cast<float *>(h_tiles + steps * s::h_elements); // [warps] of u_floats
    const int     strip = int(blockIdx.x), slice = int(blockIdx.y), lane = int(threadIdx.x) % lanes, warp = int(threadIdx.x) / lanes;
    int64_t       begin;
    const adapter_map &m    = x.p.maps[map_of<rank>(x, strip, begin)];
    const int64_t      row0 = slice * x.slice_rows;
    const bf16 *const  dy = x.p.dy + row0 * x.p.ld_dy + m.column + begin, *const h = m.h ? m.h + row0 * x.p.ld_h : dy;
    const int          n_rows = int(x.p.n - row0 < x.slice_rows ? x.p.n - row0 : x.slice_rows), n_columns = int(m.columns - begin);
    const int          n_steps = (n_rows + tile - 1) / tile, at = warp * s::warp_columns;
    const auto         fetch   = [&](int step) {
        if (step < n_steps) {
            const int row = step * tile;
            copy_tile<s::columns>(dy_tiles + step % steps * s::dy_elements, dy + row * x.p.ld_dy, x.p.ld_dy, n_rows - row, n_columns);
            copy_tile<rank>(h_tiles + step % steps * s::h_elements, h + row * x.p.ld_h, x.p.ld_h, n_rows - row, m.h ? int(m.rank) : 0);
        }
        copy_async_end_group();
    };
#pragma unroll
    for (int i = 0; i < steps - 1; i++) {
        fetch(i);
    }
    const bf16 *const b = m.b + begin * x.p.ld_b;
    uint32_t          fb[m_tiles][rank / 16][4];
#pragma unroll
    for (int i = 0; i < m_tiles; i++) {
#pragma unroll
        for (int j = 0; j < rank / 16; j++) {
#pragma unroll
            for (int w = 0; w < 4; w++) {
                fb[i][j][w] = two_of_b(b, x.p.ld_b, n_columns, m.rank, at + 16 * i + lane % 4 * 2 + w % 2 * 8, 16 * j + lane / 4 + w / 2 * 8);
            }
        }
    }
    float d_b[m_tiles][n_tiles][4] = {};
    for (int step = 0; step < n_steps; step++) {
        copy_async_wait<steps - 2>();
        __syncthreads(); // the tile is there, and nobody reads the one before, or the warps' u, any more
        fetch(step + steps - 1);
        const bf16 *const dy_tile = dy_tiles + step % steps * s::dy_elements, *const h_tile = h_tiles + step % steps * s::h_elements;
        float             u[n_tiles][4] = {};
        uint32_t          fh[rank / 16][4];
#pragma unroll
        for (int j = 0; j < rank / 16; j++) {
            load_b(fh[j], h_tile, s::stride_h, 0, 16 * j);
        }
#pragma unroll
        for (int i = 0; i < m_tiles; i++) {
            uint32_t rows[4], columns[4]; // dy, and its transpose
            load_a(rows, dy_tile, s::stride, 0, at + 16 * i);
            load_a_of_columns(columns, dy_tile, s::stride, at + 16 * i, 0);
#pragma unroll
            for (int j = 0; j < rank / 16; j++) {
                mma(u[2 * j], rows, fb[i][j]);
                mma(u[2 * j + 1], rows, fb[i][j] + 2);
                mma(d_b[i][2 * j], columns, fh[j]);
                mma(d_b[i][2 * j + 1], columns, fh[j] + 2);
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * n_tiles; i++) {
            u_sums[warp * s::u_floats + i * lanes + lane] = u[i / 4][i % 4];
        }
        __syncthreads();
        if (!m.u) {
            continue;
        }
        float *const to = x.u + (int64_t(strip) * x.tiles + row0 / tile + step) * s::u_floats;
#pragma unroll
        for (int i = threadIdx.x; i < s::u_floats; i += threads) {
            float sum = 0;
#pragma unroll
            for (int w = 0; w < warps; w++) {
                sum += u_sums[w * s::u_floats + i];
            }
            to[i] = sum;
        }
    }
    float *const to = x.b + (int64_t(slice) * x.strips + strip) * s::b_floats + at * rank + lane;
#pragma unroll
    for (int i = 0; i < m_tiles * n_tiles * 4; i++) {
        to[i * lanes] = d_b[i / 4 / n_tiles][i / 4 % n_tiles][i % 4];
    }
}

// A thread sums a pair of neighbours of u or of d_b. Where a pair lies is what mma's c says: registers 2 pair and 2 pair + 1 of a lane.
struct pair_place {
    int row, column; // row from that of the 16 x 8 tiles' first
    __device__ explicit pair_place(int pair, int lane, int n_tiles) : row(pair / 2 / n_tiles * 16 + lane / 4 + pair % 2 * 8), column(pair / 2 % n_tiles * 8 + lane % 4 * 2) {}
};

__device__ __forceinline__ float2 sum_pairs(const float *from, int64_t step, int n) {
    float2 sum = {0, 0};
#pragma unroll 4
    for (int i = 0; i < n; i++) {
        sum.x += from[i * step];
        sum.y += from[i * step + lanes];
    }
    return sum;
}

template <int rank> constexpr int b_blocks = sizes<rank>::b_floats / 2 / threads; // of a strip

template <int rank> __global__ void add_up_kernel(part x, int u_blocks) {
    using s = sizes<rank>;
    constexpr int n_tiles = rank / 8;
    const int     lane = int(threadIdx.x) % lanes;
    int           block = int(blockIdx.x);
    if (block < u_blocks * x.p.n_maps) {
        const adapter_map &m = x.p.maps[block / u_blocks];
        const int64_t      i = int64_t(block % u_blocks) * threads + threadIdx.x, t = i / (s::u_floats / 2);
        const int          pair = int(i % (s::u_floats / 2)) / lanes;
        const pair_place   at(pair, lane, n_tiles);
        const int64_t      row = t * tile + at.row;
        int                first = 0;
        for (int k = 0; k < block / u_blocks; k++) {
            first += s::strips(x.p.maps[k]);
        }
        if (m.u && row < x.p.n && at.column < m.rank) {
            const float2 sum = sum_pairs(x.u + (int64_t(first) * x.tiles + t) * s::u_floats + pair * 2 * lanes + lane, int64_t(x.tiles) * s::u_floats, s::strips(m));
            *reinterpret_cast<uint32_t *>(m.u + row * x.p.ld_dy + at.column) = pack(sum.x, sum.y);
        }
        return;
    }
    block -= u_blocks * x.p.n_maps;
    const int          strip = block / b_blocks<rank>;
    const int          pairs = s::warp_columns * rank / 2 / lanes; // of a warp
    const int          i     = (block % b_blocks<rank>)*threads + int(threadIdx.x), pair = i / lanes % pairs, warp = i / lanes / pairs;
    const pair_place   at(pair, lane, n_tiles);
    int64_t            begin;
    const adapter_map &m      = x.p.maps[map_of<rank>(x, strip, begin)];
    const int64_t      column = begin + warp * s::warp_columns + at.row;
    if (m.h && column < m.columns && at.column < m.rank) {
        const float2 sum = sum_pairs(x.b + int64_t(strip) * s::b_floats + (warp * pairs + pair) * 2 * lanes + lane, int64_t(x.strips) * s::b_floats, x.slices);
        float2      &to  = *reinterpret_cast<float2 *>(m.d_b + column * m.rank + at.column);
        to               = float2{to.x + m.scale * sum.x, to.y + m.scale * sum.y};
    }
}

template <int rank> int strips_of(const adapter_product &p) {
    int n = 0;
    for (int m = 0; m < p.n_maps; m++) {
        n += sizes<rank>::strips(p.maps[m]);
    }
    return n;
}

int64_t most_slices(int strips, int blocks) { return std::max(blocks / std::max(strips, 1), 1); }

template <int rank> size_t scratch_for(const adapter_product &p, int blocks) {
    const int64_t strips = strips_of<rank>(p), tiles = (p.n + tile - 1) / tile;
    return size_t(strips * (tiles * sizes<rank>::u_floats + most_slices(int(strips), blocks) * sizes<rank>::b_floats)) * sizeof(float);
}

template <int rank> void start(const adapter_product &p, void *scratch, size_t scratch_bytes, int blocks, cudaStream_t stream) {
    using s = sizes<rank>;
    part x{};
    x.p      = p;
    x.strips = strips_of<rank>(p);
    const int64_t slices = most_slices(x.strips, blocks), room = int64_t(scratch_bytes / sizeof(float)) - slices * x.strips * s::b_floats;
    const int64_t rows   = x.strips > 0 ? room / (int64_t(x.strips) * s::u_floats) * tile : p.n; // that there is room for
    if (rows <= 0 && p.n > 0) {
        throw failure(CFT_ERR_INTERNAL, "products of adapters have too little scratch memory");
    }
    for (int64_t row = 0; row < p.n; row += rows) {
        x.p.n        = std::min(rows, p.n - row);
        x.tiles      = int((x.p.n + tile - 1) / tile);
        x.slice_rows = std::max((x.tiles + slices - 1) / slices * tile, least_rows);
        x.slices     = int((x.p.n + x.slice_rows - 1) / x.slice_rows);
        x.u          = static_cast<float *>(scratch);
        x.b          = x.u + int64_t(x.strips) * x.tiles * s::u_floats;
        launch("products of adapters", adapter_product_kernel<rank>, dim3(unsigned(x.strips), unsigned(x.slices)), threads, s::shared_bytes, stream, x);
        const unsigned u_blocks = blocks_for(int64_t(x.tiles) * s::u_floats / 2, threads);
        launch("sums of adapters", add_up_kernel<rank>, u_blocks * unsigned(p.n_maps) + unsigned(x.strips * b_blocks<rank>), threads, 0, stream, x, int(u_blocks));
        x.p.dy += rows * p.ld_dy;
        for (int m = 0; m < p.n_maps; m++) {
            adapter_map &map = x.p.maps[m];
            map.h = map.h ? map.h + rows * p.ld_h : nullptr;
            map.u = map.u ? map.u + rows * p.ld_dy : nullptr;
        }
    }
}

// Calls f with the least rank of those compiled that all maps fit in.
template <typename F> auto with_rank(const adapter_product &p, F &&f) {
    int64_t widest = 0;
    for (int m = 0; m < p.n_maps; m++) {
        widest = std::max(widest, p.maps[m].rank);
    }
    if (widest > widest_adapter_product || p.n_maps > most_adapter_maps) {
        throw failure(CFT_ERR_INTERNAL, "products of adapters of such ranks, or of so many maps, are not in one pass");
    }
    return widest > 32 ? f(std::integral_constant<int, 64>()) : widest > 16 ? f(std::integral_constant<int, 32>()) : f(std::integral_constant<int, 16>());
}

} // namespace

size_t adapter_scratch(const adapter_product &p, int blocks) {
    return with_rank(p, [&](auto rank) { return scratch_for<rank()>(p, blocks); });
}

void multiply_adapters(const adapter_product &p, void *scratch, size_t scratch_bytes, cudaStream_t stream, int blocks) {
    with_rank(p, [&](auto rank) { start<rank()>(p, scratch, scratch_bytes, blocks, stream); });
}

} // namespace cft::cuda
