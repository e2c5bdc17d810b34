// gated_product.cu - the way back through gated units and, while its results are at hand, what they add to u and d_b of gate's and up's adapters: see
// adapter_product.h. As in adapter_product.cu, but a tile of dy is made in shared memory, from tiles of d_act, gate and up that come by
// asynchronous copies. Half of a block's warps multiply the gate's columns, the others up's.
#include "adapter_tile.h"

#include "gate.h"

namespace cft::cuda {
namespace {

constexpr int threads = adapter_threads, tile = adapter_tile, map_warps = adapter_warps / 2;

struct gated_sizes : adapter_sizes<map_warps> {
    using base = adapter_sizes<map_warps>;
    static constexpr int steps = 3; // tiles in shared memory: of d_act, gate, up, and of both maps' h
    static constexpr int stage_elements = 3 * base::dy_elements + 2 * base::h_elements;
    static constexpr size_t shared_bytes = size_t(steps) * stage_elements * sizeof(bf16) + size_t(adapter_warps) * base::u_floats * sizeof(float);
};

// gated_part is where the turn's rows of d_act and act are; gate and up lie in dy.
struct gated_part {
    bool        gelu;
    const bf16 *d_act;
    bf16       *act; // NULL: not wanted
    bf16       *dy;
    int64_t     ld_d_act, ld_act;
};

// The gradients of a tile's gates and ups in their place, in shared memory and in dy. A thread takes what it has copied there itself (copy_tile), so
// that its own waiting is enough.
template <typename S> __device__ __forceinline__ void gate_tile(const gated_part &g, const bf16 *d_act, bf16 *gates, bf16 *ups, const adapter_part &x, int64_t row,
                                                                int rows, int64_t column, int columns) {
    constexpr int eighths = S::columns / 8;
#pragma unroll
    for (int i = threadIdx.x; i < tile * eighths; i += threads) {
        const int   r = i / eighths, c = i % eighths * 8, at = r * S::stride + c;
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
            bf16 *const dy = g.dy + (row + r) * x.p.ld_dy + column + c;
            store8(dy + x.p.maps[0].column, d_gate);
            store8(dy + x.p.maps[1].column, d_up);
            if (g.act) {
                store8(g.act + (row + r) * g.ld_act + column + c, act);
            }
        }
    }
}

__global__ void __launch_bounds__(threads, 2) gated_product_kernel(adapter_part x, gated_part g) {
    using s = gated_sizes;
    bf16 *const   stages = shared_array<bf16>();
    float *const  u_sums = reinterpret_cast<float *>(stages + s::steps * s::stage_elements); // [warps] of u_floats
    const int     strip = int(blockIdx.x), slice = int(blockIdx.y), warp = int(threadIdx.x) / lanes, of = warp / map_warps, at = warp % map_warps * s::warp_columns;
    const int64_t begin = int64_t(strip) * s::columns, row0 = slice * x.slice_rows;
    const adapter_map &gate = x.p.maps[0], &up = x.p.maps[1], &m = x.p.maps[of]; // the warp's
    const int          n_rows = int(x.p.n - row0 < x.slice_rows ? x.p.n - row0 : x.slice_rows), n_columns = int(m.columns - begin);
    const int          n_steps = (n_rows + tile - 1) / tile;
    const auto         fetch = [&](int step) {
        if (step < n_steps) {
            const int64_t row = row0 + step * tile;
            const int     rows = n_rows - step * tile;
            bf16 *const   to = stages + step % s::steps * s::stage_elements, *const h = to + 3 * s::dy_elements;
            const bf16 *const dy = g.dy + row * x.p.ld_dy + begin;
            copy_tile<s::columns>(to, g.d_act + row * g.ld_d_act + begin, g.ld_d_act, rows, n_columns);
            copy_tile<s::columns>(to + s::dy_elements, dy + gate.column, x.p.ld_dy, rows, n_columns);
            copy_tile<s::columns>(to + 2 * s::dy_elements, dy + up.column, x.p.ld_dy, rows, n_columns);
            copy_tile<s::rank>(h, gate.h ? gate.h + row * x.p.ld_h : dy, x.p.ld_h, rows, gate.h ? int(gate.rank) : 0);
            copy_tile<s::rank>(h + s::h_elements, up.h ? up.h + row * x.p.ld_h : dy, x.p.ld_h, rows, up.h ? int(up.rank) : 0);
        }
        copy_async_end_group();
    };
#pragma unroll
    for (int i = 0; i < s::steps - 1; i++) {
        fetch(i);
    }
    warp_adapter<s> mine(m.b + begin * x.p.ld_b, x.p.ld_b, n_columns, m.rank, at);
    for (int step = 0; step < n_steps; step++) {
        copy_async_wait<s::steps - 2>();
        fetch(step + s::steps - 1); // nobody reads that place since the barrier before u was summed
        bf16 *const d_act = stages + step % s::steps * s::stage_elements, *const gates = d_act + s::dy_elements, *const ups = gates + s::dy_elements;
        gate_tile<s>(g, d_act, gates, ups, x, row0 + step * tile, n_rows - step * tile, begin, n_columns);
        __syncthreads(); // gradients and h are there, and the warps' u of the tile before are summed
        mine.multiply(of == 0 ? gates : ups, ups + s::dy_elements + of * s::h_elements, at, u_sums + warp * s::u_floats);
        __syncthreads();
        if (m.u) { // strips of up come after all of gate's
            sum_u<s>(u_sums + of * map_warps * s::u_floats, x.u + (int64_t(strip + of * int(gridDim.x)) * x.tiles + row0 / tile + step) * s::u_floats,
                     int(threadIdx.x) % (threads / 2), threads / 2);
        }
    }
    mine.leave(x.b + (int64_t(slice) * x.strips + strip + of * int(gridDim.x)) * s::b_floats + at * s::rank);
}

} // namespace

void gated_backward_adapters(const gated_gradient &g, const adapter_product &p, void *scratch, size_t scratch_bytes, cudaStream_t stream, int blocks) {
    if (p.n_maps != 2 || p.maps[0].columns != p.maps[1].columns) {
        throw failure(CFT_ERR_INTERNAL, "a gated unit has adapters of gate and of up");
    }
    check_ranks(p);
    adapter_turns(p, blocks).go<gated_sizes>(p, scratch, scratch_bytes, [&](const adapter_part &x, int64_t row) {
        const gated_part part = {g.gelu, g.d_act + row * g.ld_d_act, g.act ? g.act + row * g.ld_act : nullptr, g.gate_up + row * p.ld_dy, g.ld_d_act, g.ld_act};
        launch("gated units and adapters, back", gated_product_kernel, dim3(unsigned(x.strips / 2), unsigned(x.slices)), threads, gated_sizes::shared_bytes, stream, x,
               part);
        add_up_adapters(x, map_warps, stream);
    });
}

} // namespace cft::cuda
