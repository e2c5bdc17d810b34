// experts_product.cu - the products of a run of experts in one launch, by mma.sync: see experts.h. A block has a tile of one expert's rows; copies
// for the next two steps of k are under way while one is multiplied.
#include "experts.h"

#include "tensor_core.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256, steps = 3; // of k in shared memory
constexpr int tile_k = 32, tile_n = 128;
constexpr int warps_m = 2, warp_m = expert_product_rows / warps_m, warp_n = tile_n / (threads / lanes / warps_m);
constexpr int stride = tile_k + 8, stride_n = tile_n + 8; // rows of eight matrices lie in different banks
constexpr int a_elements = expert_product_rows * stride;

template <bool transposed> constexpr int b_elements = transposed ? tile_n * stride : tile_k * stride_n;

// Begins to copy rows [row, row + rows) and columns [column, column + columns) of x; what is not there is 0.
template <int rows, int columns>
__device__ __forceinline__ void copy_tile(bf16 *to, int to_stride, const bf16 *x, int64_t ld, int64_t row, int64_t column, int64_t end_row, int64_t end_column) {
    constexpr int eighths = columns / 8;
#pragma unroll
    for (int i = threadIdx.x; i < rows * eighths; i += threads) {
        const int  r = i / eighths, c = i % eighths * 8;
        const bool present = row + r < end_row && column + c < end_column;
        copy_async(to + r * to_stride + c, present ? x + (row + r) * ld + column + c : x, present);
    }
}

template <bool transposed> __global__ void __launch_bounds__(threads, 2) expert_product_kernel(expert_product p) {
    bf16 *const   a_tiles = shared_array<bf16>(), *const b_tiles = a_tiles + steps * a_elements;
    const int     tile = p.first_tile + int(blockIdx.y), expert = p.tiles[2 * tile], warp = int(threadIdx.x) / lanes;
    const int64_t row = p.tiles[2 * tile + 1], n0 = int64_t(blockIdx.x) * tile_n; // the row is counted from the expert's first
    const int64_t rows = p.count[expert];
    // The expert's first row among the run's: this tile's place less its row.
    const int64_t begin = p.starts[expert] - p.first_place;
    const bf16 *const a = p.a + begin * p.ld_a, *const b = p.b + (expert - p.first) * p.step_b;
    const int         n_steps = int((p.k + tile_k - 1) / tile_k);
    const auto        fetch = [&](int step) {
        if (step < n_steps) {
            const int64_t k = int64_t(step) * tile_k;
            bf16 *const   b_tile = b_tiles + step % steps * b_elements<transposed>;
            copy_tile<expert_product_rows, tile_k>(a_tiles + step % steps * a_elements, stride, a, p.ld_a, row, k, rows, p.k);
            if (transposed) {
                copy_tile<tile_n, tile_k>(b_tile, stride, b, p.ld_b, n0, k, p.n, p.k);
            } else {
                copy_tile<tile_k, tile_n>(b_tile, stride_n, b, p.ld_b, k, n0, p.k, p.n);
            }
        }
        copy_async_end_group();
    };
    float     acc[warp_m / 16][warp_n / 8][4] = {};
    const int m_at = warp % warps_m * warp_m, n_at = warp / warps_m * warp_n;
#pragma unroll
    for (int i = 0; i < steps - 1; i++) {
        fetch(i);
    }
    for (int step = 0; step < n_steps; step++) {
        copy_async_wait<steps - 2>();
        __syncthreads(); // all copies are there, and nobody reads the tiles that are fetched next any more
        fetch(step + steps - 1);
        const bf16 *const a_tile = a_tiles + step % steps * a_elements, *const b_tile = b_tiles + step % steps * b_elements<transposed>;
#pragma unroll
        for (int k = 0; k < tile_k; k += 16) {
            uint32_t fb[warp_n / 16][4];
#pragma unroll
            for (int j = 0; j < warp_n / 16; j++) {
                transposed ? load_b_of_rows(fb[j], b_tile, stride, n_at + 16 * j, k) : load_b(fb[j], b_tile, stride_n, k, n_at + 16 * j);
            }
#pragma unroll
            for (int i = 0; i < warp_m / 16; i++) {
                uint32_t fa[4];
                load_a(fa, a_tile, stride, m_at + 16 * i, k);
#pragma unroll
                for (int j = 0; j < warp_n / 16; j++) {
                    mma(acc[i][2 * j], fa, fb[j]);
                    mma(acc[i][2 * j + 1], fa, fb[j] + 2);
                }
            }
        }
    }
    const int lane = int(threadIdx.x) % lanes;
#pragma unroll
    for (int i = 0; i < warp_m / 16; i++) {
#pragma unroll
        for (int j = 0; j < warp_n / 8; j++) {
            const int64_t column = n0 + n_at + 8 * j + lane % 4 * 2;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int64_t r = row + m_at + 16 * i + lane / 4 + 8 * half;
                if (r < rows && column < p.n) {
                    *reinterpret_cast<uint32_t *>(p.c + (begin + r) * p.ld_c + column) = pack(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
                }
            }
        }
    }
}

template <bool transposed> void start(const expert_product &p, cudaStream_t stream) {
    launch("products of experts", expert_product_kernel<transposed>, dim3(blocks_for(p.n, tile_n), unsigned(p.n_tiles)), threads,
           size_t(steps) * size_t(a_elements + b_elements<transposed>) * sizeof(bf16), stream, p);
}

} // namespace

void multiply_experts(const expert_product &p, bool transposed_b, cudaStream_t stream) { transposed_b ? start<true>(p, stream) : start<false>(p, stream); }

} // namespace cft::cuda
