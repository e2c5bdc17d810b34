// gated_inputs.cu - gated units and, while their results are at hand, h = act aᵀ of down's adapter: see adapter_product.h. A block has a strip of columns and
// a slice of rows, as in adapter_product.cu; a tile of act is made in shared memory from tiles of gate and up, and multiplied there. Where act is in memory
// already, its tiles come instead, and h has the same bits.
#include "adapter_tile.h"

#include "gate.h"

namespace cft::cuda {
namespace {

constexpr int threads = adapter_threads, tile = adapter_tile;

template <int rank, bool gates> struct inputs_sizes : adapter_sizes<rank, adapter_warps> {
    using base = adapter_sizes<rank, adapter_warps>;
    static constexpr int    steps = gates ? 2 : 4; // tiles in shared memory
    static constexpr int    stage_elements = (gates ? 2 : 1) * base::dy_elements;
    static constexpr size_t shared_bytes = size_t(steps) * stage_elements * sizeof(bf16) + size_t(adapter_warps) * base::u_floats * sizeof(float);
};

// inputs_part is where the turn's rows of gate and up are; act's place is dy's.
struct inputs_part {
    bool        gelu;
    const bf16 *gate, *up;
    bf16       *act;
    int64_t     ld, ld_act;
};

// A tile of act where gates were, in shared memory and in act. A thread takes what it has copied there itself (copy_tile), so that its own waiting is enough.
template <typename S> __device__ __forceinline__ void act_tile(const inputs_part &g, bf16 *gates, const bf16 *ups, int64_t row, int rows, int64_t column, int columns) {
    constexpr int eighths = S::columns / 8;
#pragma unroll
    for (int i = threadIdx.x; i < tile * eighths; i += threads) {
        const int   r = i / eighths, c = i % eighths * 8, at = r * S::stride + c;
        const eight gate = load8(gates + at), up = load8(ups + at);
        eight       act;
        for (int k = 0; k < 8; k++) {
            float a, slope;
            gate_of(g.gelu, gate.x[k], a, slope);
            act.x[k] = a * up.x[k];
        }
        store8(gates + at, act);
        if (r < rows && c < columns) {
            store8(g.act + (row + r) * g.ld_act + column + c, act);
        }
    }
}

template <int rank, bool gates> __global__ void __launch_bounds__(threads, rank > 16 ? 1 : 2) inputs_kernel(adapter_part x, inputs_part g) {
    using s = inputs_sizes<rank, gates>;
    constexpr int m_tiles = s::warp_columns / 16, n_tiles = rank / 8;
    bf16 *const   stages = shared_array<bf16>();
    float *const  sums = reinterpret_cast<float *>(stages + s::steps * s::stage_elements); // [warps] of u_floats
    const int     strip = int(blockIdx.x), slice = int(blockIdx.y), lane = int(threadIdx.x) % lanes, warp = int(threadIdx.x) / lanes, at = warp * s::warp_columns;
    const int64_t begin = int64_t(strip) * s::columns, row0 = slice * x.slice_rows;
    const adapter_map &m = x.p.maps[0];
    const int n_rows = int(x.p.n - row0 < x.slice_rows ? x.p.n - row0 : x.slice_rows), n_columns = int(m.columns - begin), n_steps = (n_rows + tile - 1) / tile;
    const auto fetch = [&](int step) {
        if (step < n_steps) {
            const int64_t row = row0 + step * tile;
            const int     rows = n_rows - step * tile;
            bf16 *const   to = stages + step % s::steps * s::stage_elements;
            if (gates) {
                copy_tile<s::columns>(to, g.gate + row * g.ld + begin, g.ld, rows, n_columns);
                copy_tile<s::columns>(to + s::dy_elements, g.up + row * g.ld + begin, g.ld, rows, n_columns);
            } else {
                copy_tile<s::columns>(to, g.act + row * g.ld_act + begin, g.ld_act, rows, n_columns);
            }
        }
        copy_async_end_group();
    };
#pragma unroll
    for (int i = 0; i < s::steps - 1; i++) {
        fetch(i);
    }
    uint32_t a[m_tiles][rank / 16][4]; // the warp's columns of a, as mma takes them
#pragma unroll
    for (int i = 0; i < m_tiles; i++) {
#pragma unroll
        for (int j = 0; j < rank / 16; j++) {
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const int k = at + 16 * i + lane % 4 * 2 + w % 2 * 8, r = 16 * j + lane / 4 + w / 2 * 8;
                a[i][j][w] = k < n_columns && r < m.rank ? *reinterpret_cast<const uint32_t *>(m.b + r * x.p.ld_b + begin + k) : 0u;
            }
        }
    }
    for (int step = 0; step < n_steps; step++) {
        copy_async_wait<s::steps - 2>();
        if (gates) {
            fetch(step + s::steps - 1); // nobody reads that place since the barrier before h was summed
            act_tile<s>(g, stages + step % s::steps * s::stage_elements, stages + step % s::steps * s::stage_elements + s::dy_elements, row0 + step * tile, n_rows - step * tile,
                        begin, n_columns);
        }
        __syncthreads(); // the tile is there, and nobody reads the warps' sums any more
        if (!gates) {
            fetch(step + s::steps - 1);
        }
        const bf16 *const act = stages + step % s::steps * s::stage_elements;
        float             h[n_tiles][4] = {};
#pragma unroll
        for (int i = 0; i < m_tiles; i++) {
            uint32_t rows[4];
            load_a(rows, act, s::stride, 0, at + 16 * i);
#pragma unroll
            for (int j = 0; j < rank / 16; j++) {
                mma(h[2 * j], rows, a[i][j]);
                mma(h[2 * j + 1], rows, a[i][j] + 2);
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * n_tiles; i++) {
            sums[warp * s::u_floats + i * lanes + lane] = h[i / 4][i % 4];
        }
        __syncthreads();
        sum_u<s>(sums, x.u + (int64_t(strip) * x.tiles + row0 / tile + step) * s::u_floats, int(threadIdx.x), threads);
    }
}

template <bool gates> void run(const inputs_part &g, const adapter_inputs &i, void *scratch, size_t scratch_bytes, cudaStream_t stream) {
    adapter_product p{};
    p.n = i.n, p.ld_dy = g.ld_act, p.ld_b = i.ld_a, p.n_maps = 1;
    p.maps[0] = {0, i.columns, i.rank, 1, i.a, nullptr, g.act + i.columns, nullptr};
    with_rank(p, [&](auto rank) {
        using s = inputs_sizes<rank(), gates>;
        adapter_turns<rank()>(p, adapter_product_blocks).template go<s>(p, scratch, scratch_bytes, [&](const adapter_part &x, int64_t row) {
            inputs_part part = g;
            part.gate += gates ? row * g.ld : 0, part.up += gates ? row * g.ld : 0, part.act += row * g.ld_act;
            launch(gates ? "gated units and h" : "h", inputs_kernel<rank(), gates>, dim3(unsigned(x.strips), unsigned(x.slices)), threads, s::shared_bytes, stream, x, part);
            add_up_adapters(x, adapter_warps, stream);
        });
    });
}

} // namespace

void gated_with_inputs(bool gelu, const bf16 *gate, const bf16 *up, int64_t ld, bf16 *act, int64_t ld_act, const adapter_inputs &i, void *scratch, size_t scratch_bytes,
                       cudaStream_t stream) {
    run<true>({gelu, gate, up, act, ld, ld_act}, i, scratch, scratch_bytes, stream);
}

void inputs_of_adapter(bf16 *x, int64_t ld_x, const adapter_inputs &i, void *scratch, size_t scratch_bytes, cudaStream_t stream) {
    run<false>({false, nullptr, nullptr, x, 0, ld_x}, i, scratch, scratch_bytes, stream);
}

} // namespace cft::cuda
