// adapter_tile.h - what the kernels share that make u = dy b and d_b = dyᵀ h of adapted maps from tiles of dy in shared memory: how strips, slices and
// sums of parts lie, and a warp's work on a tile. Included by .cu files only.
#pragma once

#include "adapter_product.h"

#include "tensor_core.h"

#include <algorithm>

namespace cft::cuda {

constexpr int     adapter_threads = 256, adapter_warps = adapter_threads / lanes, adapter_tile = 16; // rows of a tile
constexpr int64_t least_slice = 8 * adapter_tile; // rows

// Where map_warps warps have a map's strip, for any rank that is taken. A wider strip has fewer sums of u, a narrower one longer slices and so fewer of d_b.
template <int map_warps_> struct adapter_sizes {
    static constexpr int rank = int(widest_adapter_product), map_warps = map_warps_;
    static constexpr int warp_columns = 64, columns = map_warps * warp_columns;
    static constexpr int stride = columns + 8, stride_h = rank + 8; // rows of eight matrices lie in different banks
    static constexpr int dy_elements = adapter_tile * stride, h_elements = adapter_tile * stride_h;
    static constexpr int u_floats = adapter_tile * rank, b_floats = columns * rank; // of a tile, of a strip

    __host__ __device__ static int strips(const adapter_map &m) { return int((m.columns + columns - 1) / columns); }
};

// adapter_part is rows that scratch has room for.
struct adapter_part {
    adapter_product p;
    float          *u;          // [strips][tiles] of u_floats
    float          *b;          // [slices][strips] of b_floats
    int64_t         slice_rows; // a multiple of the tile
    int             strips, tiles, slices;
};

// The map that a strip belongs to, and where in it the strip begins.
template <typename S> __device__ __forceinline__ int map_of(const adapter_part &x, int strip, int64_t &begin) {
    int m = 0;
    for (; strip >= S::strips(x.p.maps[m]); m++) {
        strip -= S::strips(x.p.maps[m]);
    }
    begin = int64_t(strip) * S::columns;
    return m;
}

// Begins to copy a tile of rows, the first at x and `rows` of them there, `columns` wide and `present` of them there; the rest becomes 0.
template <int columns> __device__ __forceinline__ void copy_tile(bf16 *to, const bf16 *x, int64_t ld, int rows, int present) {
    constexpr int eighths = columns / 8;
#pragma unroll
    for (int i = threadIdx.x; i < adapter_tile * eighths; i += adapter_threads) {
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

// warp_adapter is a warp's columns of a strip: its b, and the sums of its d_b.
template <typename S> struct warp_adapter {
    static constexpr int m_tiles = S::warp_columns / 16, n_tiles = S::rank / 8;
    uint32_t             b[m_tiles][S::rank / 16][4];
    float                d_b[m_tiles][n_tiles][4];

    // Of columns [at, at + warp_columns) of a strip, whose b begins at from and has so many rows.
    __device__ __forceinline__ warp_adapter(const bf16 *from, int64_t ld, int rows, int64_t rank, int at) : d_b{} {
        const int lane = int(threadIdx.x) % lanes;
#pragma unroll
        for (int i = 0; i < m_tiles; i++) {
#pragma unroll
            for (int j = 0; j < S::rank / 16; j++) {
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    b[i][j][w] = two_of_b(from, ld, rows, rank, at + 16 * i + lane % 4 * 2 + w % 2 * 8, 16 * j + lane / 4 + w / 2 * 8);
                }
            }
        }
    }

    // Leaves what the columns add to a tile's u in u_sums, in the order of registers, and adds to d_b.
    __device__ __forceinline__ void multiply(const bf16 *dy_tile, const bf16 *h_tile, int at, float *u_sums) {
        float    u[n_tiles][4] = {};
        uint32_t fh[S::rank / 16][4];
#pragma unroll
        for (int j = 0; j < S::rank / 16; j++) {
            load_b(fh[j], h_tile, S::stride_h, 0, 16 * j);
        }
#pragma unroll
        for (int i = 0; i < m_tiles; i++) {
            uint32_t rows[4], columns[4]; // dy, and its transpose
            load_a(rows, dy_tile, S::stride, 0, at + 16 * i);
            load_a_of_columns(columns, dy_tile, S::stride, at + 16 * i, 0);
#pragma unroll
            for (int j = 0; j < S::rank / 16; j++) {
                mma(u[2 * j], rows, b[i][j]);
                mma(u[2 * j + 1], rows, b[i][j] + 2);
                mma(d_b[i][2 * j], columns, fh[j]);
                mma(d_b[i][2 * j + 1], columns, fh[j] + 2);
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * n_tiles; i++) {
            u_sums[i * lanes + int(threadIdx.x) % lanes] = u[i / 4][i % 4];
        }
    }

    // to: of the warp's columns in the strip's sums.
    __device__ __forceinline__ void leave(float *to) const {
#pragma unroll
        for (int i = 0; i < m_tiles * n_tiles * 4; i++) {
            to[i * lanes + int(threadIdx.x) % lanes] = d_b[i / 4 / n_tiles][i / 4 % n_tiles][i % 4];
        }
    }
};

// The sum of warps' u, in their order, by the threads from `first` on: u_sums [map_warps] of u_floats.
template <typename S> __device__ __forceinline__ void sum_u(const float *u_sums, float *to, int thread, int threads) {
    for (int i = thread; i < S::u_floats; i += threads) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < S::map_warps; w++) {
            sum += u_sums[w * S::u_floats + i];
        }
        to[i] = sum;
    }
}

// A second kernel adds the sums of parts up, in order (adapter_product.cu).
void add_up_adapters(const adapter_part &x, int map_warps, cudaStream_t stream);

template <typename S> int strips_of(const adapter_product &p) {
    int n = 0;
    for (int m = 0; m < p.n_maps; m++) {
        n += S::strips(p.maps[m]);
    }
    return n;
}

// How rows are gone through. Sums over rows have the same order whichever kernel makes them: all count strips as whole blocks have them, and room
// as half of a block's warps would need it.
struct adapter_turns {
    using wide   = adapter_sizes<adapter_warps>;
    using narrow = adapter_sizes<adapter_warps / 2>;
    int64_t slices, u_floats, b_floats; // slices at most; of a tile in all strips, of all sums of d_b

    adapter_turns(const adapter_product &p, int blocks)
        : slices(std::max(blocks / std::max(strips_of<wide>(p), 1), 1)), u_floats(int64_t(strips_of<narrow>(p)) * narrow::u_floats),
          b_floats(slices * std::max(int64_t(strips_of<wide>(p)) * wide::b_floats, int64_t(strips_of<narrow>(p)) * narrow::b_floats)) {}

    size_t scratch(int64_t n) const { return size_t((n + adapter_tile - 1) / adapter_tile * u_floats + b_floats) * sizeof(float); }

    // Calls run for each turn of rows with the first of them.
    template <typename S, typename F> void go(const adapter_product &p, void *scratch, size_t scratch_bytes, F &&run) const {
        const int64_t room = int64_t(scratch_bytes / sizeof(float)) - b_floats, rows = u_floats > 0 ? room / u_floats * adapter_tile : p.n;
        if (rows <= 0 && p.n > 0) {
            throw failure(CFT_ERR_INTERNAL, "products of adapters have too little scratch memory");
        }
        adapter_part x{};
        x.p      = p;
        x.strips = strips_of<S>(p);
        for (int64_t row = 0; row < p.n; row += rows) {
            x.p.n        = std::min(rows, p.n - row);
            x.tiles      = int((x.p.n + adapter_tile - 1) / adapter_tile);
            x.slice_rows = std::max((x.tiles + slices - 1) / slices * adapter_tile, least_slice);
            x.slices     = int((x.p.n + x.slice_rows - 1) / x.slice_rows);
            x.u          = static_cast<float *>(scratch);
            x.b          = x.u + int64_t(x.strips) * x.tiles * S::u_floats;
            run(x, row);
            x.p.dy += rows * p.ld_dy;
            for (int m = 0; m < p.n_maps; m++) {
                adapter_map &map = x.p.maps[m];
                map.h = map.h ? map.h + rows * p.ld_h : nullptr;
                map.u = map.u ? map.u + rows * p.ld_dy : nullptr;
            }
        }
    }
};

inline void check_ranks(const adapter_product &p) {
    for (int m = 0; m < p.n_maps; m++) {
        if (p.n_maps > most_adapter_maps || p.maps[m].rank > widest_adapter_product) {
            throw failure(CFT_ERR_INTERNAL, "products of adapters of such ranks, or of so many maps, are not in one pass");
        }
    }
}

} // namespace cft::cuda
