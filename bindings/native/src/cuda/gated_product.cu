// gated_product.cu - see gated_product.h. A block has a strip of columns (as many gates as ups) and a slice of rows, of which it sees each element once:
// tiles of 16 rows of d_act, gate and up come by asynchronous copies, two under way while one is turned into gradients in shared memory. From these
// a warp makes what its columns add to the tile's u, and to its d_b, which stays in registers; b stays there as well. Half of the warps multiply the
// gate's columns, the others up's; their u are summed in shared memory. Sums of strips (of u) and of slices (of d_b) go to scratch as registers lie, so
// that all of it is whole lines, and a second kernel adds them up in order.
#include "gated_product.h"

#include "gate.h"
#include "tensor_core.h"

#include <algorithm>

namespace cft::cuda {
namespace {

constexpr int     threads = 256, warps = threads / lanes, map_warps = warps / 2; // those of gate, and those of up
constexpr int     tile = 16; // rows
constexpr int64_t least_slice = 8 * tile;
constexpr int     max_rank = int(widest_gated_adapter), rank_tiles = max_rank / 8;
constexpr int     warp_columns = 64, column_tiles = warp_columns / 16, strip_columns = map_warps * warp_columns;
constexpr int     stride = strip_columns + 8, stride_h = max_rank + 8; // rows of eight matrices lie in different banks
constexpr int     tile_elements = tile * stride, h_elements = tile * stride_h;
constexpr int     u_floats = tile * max_rank, b_floats = strip_columns * max_rank; // of a tile, of a strip
constexpr int     steps = 3; // in shared memory, each with tiles of d_act, gate, up, and of both maps' h
constexpr int     step_elements = 3 * tile_elements + 2 * h_elements;
constexpr size_t  shared_bytes = size_t(steps) * step_elements * sizeof(bf16) + size_t(warps) * u_floats * sizeof(float);

// gated_part is rows that scratch has room for.
struct gated_part {
    gated_gradient g;
    float         *u;          // [2 strips][tiles] of u_floats
    float         *b;          // [slices][2 strips] of b_floats
    int64_t        slice_rows; // a multiple of the tile
    int            strips, tiles, slices;
};

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

// warp_adapter is a warp's columns of a strip: its b, and the sums of its d_b.
struct warp_adapter {
    uint32_t b[column_tiles][max_rank / 16][4];
    float    d_b[column_tiles][rank_tiles][4];

    // Of columns [at, at + warp_columns) of a strip, whose b begins at from and has so many rows.
    __device__ __forceinline__ warp_adapter(const bf16 *from, int64_t ld, int rows, int64_t rank, int at) : d_b{} {
        const int lane = int(threadIdx.x) % lanes;
#pragma unroll
        for (int i = 0; i < column_tiles; i++) {
#pragma unroll
            for (int j = 0; j < max_rank / 16; j++) {
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    b[i][j][w] = two_of_b(from, ld, rows, rank, at + 16 * i + lane % 4 * 2 + w % 2 * 8, 16 * j + lane / 4 + w / 2 * 8);
                }
            }
        }
    }

    // Leaves what the columns add to a tile's u in u_sums, in the order of registers, and adds to d_b.
    __device__ __forceinline__ void multiply(const bf16 *dy_tile, const bf16 *h_tile, int at, float *u_sums) {
        float    u[rank_tiles][4] = {};
        uint32_t fh[max_rank / 16][4];
#pragma unroll
        for (int j = 0; j < max_rank / 16; j++) {
            load_b(fh[j], h_tile, stride_h, 0, 16 * j);
        }
#pragma unroll
        for (int i = 0; i < column_tiles; i++) {
            uint32_t rows[4], columns[4]; // dy, and its transpose
            load_a(rows, dy_tile, stride, 0, at + 16 * i);
            load_a_of_columns(columns, dy_tile, stride, at + 16 * i, 0);
#pragma unroll
            for (int j = 0; j < max_rank / 16; j++) {
                mma(u[2 * j], rows, b[i][j]);
                mma(u[2 * j + 1], rows, b[i][j] + 2);
                mma(d_b[i][2 * j], columns, fh[j]);
                mma(d_b[i][2 * j + 1], columns, fh[j] + 2);
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * rank_tiles; i++) {
            u_sums[i * lanes + int(threadIdx.x) % lanes] = u[i / 4][i % 4];
        }
    }

    // to: of the warp's columns in the strip's sums.
    __device__ __forceinline__ void leave(float *to) const {
#pragma unroll
        for (int i = 0; i < column_tiles * rank_tiles * 4; i++) {
            to[i * lanes + int(threadIdx.x) % lanes] = d_b[i / 4 / rank_tiles][i / 4 % rank_tiles][i % 4];
        }
    }
};

// The sum of a map's warps' u, in their order, by its half of the threads.
__device__ __forceinline__ void sum_u(const float *u_sums, float *to) {
#pragma unroll 1 // registers are short
    for (int i = int(threadIdx.x) % (threads / 2); i < u_floats; i += threads / 2) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < map_warps; w++) {
            sum += u_sums[w * u_floats + i];
        }
        to[i] = sum;
    }
}

// The gradients of a tile's gates and ups in their place, in shared memory and in gate_up. A thread takes what it has copied there itself (copy_tile),
// so that its own waiting is enough.
__device__ __forceinline__ void gate_tile(const gated_gradient &g, const bf16 *d_act, bf16 *gates, bf16 *ups, int64_t row, int rows, int64_t column, int columns) {
    constexpr int eighths = strip_columns / 8;
#pragma unroll
    for (int i = threadIdx.x; i < tile * eighths; i += threads) {
        const int   r = i / eighths, c = i % eighths * 8, at = r * stride + c;
        const eight d = load8(d_act + at), gate = load8(gates + at), up = load8(ups + at);
        eight       d_gate, d_up, act;
        for (int k = 0; k < 8; k++) {
            float a, slope;
            gate_of(g.gelu, gate.x[k], a, slope);
            act.x[k]    = a * up.x[k];
            d_up.x[k]   = d.x[k] * a;
            d_gate.x[k] = d.x[k] * up.x[k] * slope;
        }
        store8(gates + at, d_gate);
        store8(ups + at, d_up);
        if (r < rows && c < columns) {
            bf16 *const to = g.gate_up + (row + r) * g.ld + column + c;
            store8(to, d_gate);
            store8(to + g.columns, d_up);
            if (g.act) {
                store8(g.act + (row + r) * g.ld_act + column + c, act);
            }
        }
    }
}

__global__ void __launch_bounds__(threads, 2) gated_product_kernel(gated_part x) {
    const gated_gradient &g = x.g;
    bf16 *const   stages = shared_array<bf16>();
    float *const  u_sums = reinterpret_cast<float *>(stages + steps * step_elements); // [warps] of u_floats
    const int     strip = int(blockIdx.x), slice = int(blockIdx.y), warp = int(threadIdx.x) / lanes, of = warp / map_warps, at = warp % map_warps * warp_columns;
    const int64_t begin = int64_t(strip) * strip_columns, row0 = slice * x.slice_rows;
    const unit_adapter &gate = g.adapters[0], &up = g.adapters[1], &m = g.adapters[of]; // the warp's
    const int           n_rows = int(g.n - row0 < x.slice_rows ? g.n - row0 : x.slice_rows), n_columns = int(g.columns - begin);
    const int           n_steps = (n_rows + tile - 1) / tile;
    const auto          fetch = [&](int step) {
        if (step < n_steps) {
            const int64_t row = row0 + step * tile;
            const int     rows = n_rows - step * tile;
            bf16 *const   to = stages + step % steps * step_elements, *const h = to + 3 * tile_elements;
            const bf16 *const gates = g.gate_up + row * g.ld + begin;
            copy_tile<strip_columns>(to, g.d_act + row * g.ld_d_act + begin, g.ld_d_act, rows, n_columns);
            copy_tile<strip_columns>(to + tile_elements, gates, g.ld, rows, n_columns);
            copy_tile<strip_columns>(to + 2 * tile_elements, gates + g.columns, g.ld, rows, n_columns);
            copy_tile<max_rank>(h, gate.h + row * g.ld_h, g.ld_h, rows, int(gate.rank));
            copy_tile<max_rank>(h + h_elements, up.h + row * g.ld_h, g.ld_h, rows, int(up.rank));
        }
        copy_async_end_group();
    };
#pragma unroll
    for (int i = 0; i < steps - 1; i++) {
        fetch(i);
    }
    warp_adapter mine(m.b + begin * g.ld_b, g.ld_b, n_columns, m.rank, at);
    const int    strip_of_both = strip + of * x.strips; // all of gate's come first
    for (int step = 0; step < n_steps; step++) {
        copy_async_wait<steps - 2>();
        fetch(step + steps - 1); // nobody reads that place since the barrier before u was summed
        bf16 *const d_act = stages + step % steps * step_elements, *const gates = d_act + tile_elements, *const ups = gates + tile_elements;
        gate_tile(g, d_act, gates, ups, row0 + step * tile, n_rows - step * tile, begin, n_columns);
        __syncthreads(); // gradients and h are there, and the warps' u of the tile before are summed
        mine.multiply(of == 0 ? gates : ups, ups + tile_elements + of * h_elements, at, u_sums + warp * u_floats);
        __syncthreads();
        sum_u(u_sums + of * map_warps * u_floats, x.u + (int64_t(strip_of_both) * x.tiles + row0 / tile + step) * u_floats);
    }
    mine.leave(x.b + (int64_t(slice) * 2 * x.strips + strip_of_both) * b_floats + at * max_rank);
}

// A thread sums a pair of neighbours of u or of d_b. Where a pair lies is what mma's c says: registers 2 pair and 2 pair + 1 of a lane.
struct pair_place {
    int row, column; // row from that of the 16 x 8 tiles' first
    __device__ pair_place(int pair, int lane) : row(pair / 2 / rank_tiles * 16 + lane / 4 + pair % 2 * 8), column(pair / 2 % rank_tiles * 8 + lane % 4 * 2) {}
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

constexpr int b_blocks = b_floats / 2 / threads; // of a strip

__global__ void add_up_kernel(gated_part x, int u_blocks) {
    const int lane = int(threadIdx.x) % lanes;
    int       block = int(blockIdx.x);
    if (block < 2 * u_blocks) {
        const int           of = block / u_blocks;
        const unit_adapter &m  = x.g.adapters[of];
        const int64_t       i = int64_t(block % u_blocks) * threads + threadIdx.x, t = i / (u_floats / 2), row = t * tile;
        const int           pair = int(i % (u_floats / 2)) / lanes;
        const pair_place    at(pair, lane);
        if (row + at.row < x.g.n && at.column < m.rank) {
            const float2 sum = sum_pairs(x.u + (int64_t(of * x.strips) * x.tiles + t) * u_floats + pair * 2 * lanes + lane, int64_t(x.tiles) * u_floats, x.strips);
            *reinterpret_cast<uint32_t *>(m.u + (row + at.row) * x.g.ld + at.column) = pack(sum.x, sum.y);
        }
        return;
    }
    block -= 2 * u_blocks;
    constexpr int       pairs = warp_columns * max_rank / 2 / lanes; // of a warp
    const int           strip = block / b_blocks, i = block % b_blocks * threads + int(threadIdx.x), pair = i / lanes % pairs, warp = i / lanes / pairs;
    const unit_adapter &m = x.g.adapters[strip / x.strips];
    const pair_place    at(pair, lane);
    const int64_t       column = int64_t(strip % x.strips) * strip_columns + warp * warp_columns + at.row;
    if (column < x.g.columns && at.column < m.rank) {
        const float2 sum = sum_pairs(x.b + int64_t(strip) * b_floats + (warp * pairs + pair) * 2 * lanes + lane, int64_t(2 * x.strips) * b_floats, x.slices);
        float2      &to  = *reinterpret_cast<float2 *>(m.d_b + column * m.rank + at.column);
        to               = float2{to.x + m.scale * sum.x, to.y + m.scale * sum.y};
    }
}

int strips_of(const gated_gradient &g) { return int((g.columns + strip_columns - 1) / strip_columns); }

// Slices of rows at most, and floats of their sums of d_b; of a tile's u in all strips.
int64_t slices_of(const gated_gradient &g, int blocks) { return std::max(blocks / std::max(strips_of(g), 1), 1); }
int64_t b_floats_of(const gated_gradient &g, int blocks) { return slices_of(g, blocks) * 2 * strips_of(g) * b_floats; }
int64_t u_floats_of(const gated_gradient &g) { return int64_t(2) * strips_of(g) * u_floats; }

} // namespace

size_t gated_scratch(const gated_gradient &g, int blocks) {
    return size_t((g.n + tile - 1) / tile * u_floats_of(g) + b_floats_of(g, blocks)) * sizeof(float);
}

void gated_backward_adapters(const gated_gradient &g, void *scratch, size_t scratch_bytes, cudaStream_t stream, int blocks) {
    if (g.adapters[0].rank > max_rank || g.adapters[1].rank > max_rank) {
        throw failure(CFT_ERR_INTERNAL, "gated units do not take adapters of such ranks along");
    }
    const int64_t room = int64_t(scratch_bytes / sizeof(float)) - b_floats_of(g, blocks), rows = room / u_floats_of(g) * tile;
    if (rows <= 0 && g.n > 0) {
        throw failure(CFT_ERR_INTERNAL, "gated units and adapters have too little scratch memory");
    }
    gated_part x{g, static_cast<float *>(scratch), nullptr, 0, strips_of(g), 0, 0};
    for (int64_t row = 0; row < g.n; row += rows) {
        x.g.n        = std::min(rows, g.n - row);
        x.tiles      = int((x.g.n + tile - 1) / tile);
        x.slice_rows = std::max((x.tiles + slices_of(g, blocks) - 1) / slices_of(g, blocks) * tile, least_slice);
        x.slices     = int((x.g.n + x.slice_rows - 1) / x.slice_rows);
        x.b          = x.u + int64_t(x.tiles) * u_floats_of(g);
        launch("gated units and adapters, back", gated_product_kernel, dim3(unsigned(x.strips), unsigned(x.slices)), threads, shared_bytes, stream, x);
        const unsigned u_blocks = blocks_for(int64_t(x.tiles) * u_floats / 2, threads);
        launch("sums of adapters", add_up_kernel, 2 * u_blocks + unsigned(2 * x.strips * b_blocks), threads, 0, stream, x, int(u_blocks));
        x.g.d_act += rows * g.ld_d_act;
        x.g.gate_up += rows * g.ld;
        x.g.act = x.g.act ? x.g.act + rows * g.ld_act : nullptr;
        for (unit_adapter &m : x.g.adapters) {
            m.h += rows * g.ld_h;
            m.u += rows * g.ld;
        }
    }
}

} // namespace cft::cuda
