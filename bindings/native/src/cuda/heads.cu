// heads.cu - queries and keys as attention takes them: norms of heads and rotary embeddings in one pass, and back.
#include "heads.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256;

// Heads of a thread, which share what is read of the table and of the norm's weights. On the way back, where there is twice as much to hold, one is faster.
constexpr int at_once = 4;

inline int groups_of(int n_head) { return (n_head + at_once - 1) / at_once; }

template <int lanes_of_head> __device__ __forceinline__ head_place head_place_of(int64_t n, const head_map &m, int groups) {
    const uint32_t i = (uint32_t(blockIdx.x) * threads + threadIdx.x) / lanes_of_head, row = i / uint32_t(groups);
    head_place     p;
    p.row    = row;
    p.first  = int(i - row * uint32_t(groups));
    p.step   = groups;
    p.n      = m.n_head;
    p.column = int(threadIdx.x % lanes_of_head) * 8;
    p.inside = p.row < n && p.column < m.head_dim;
    return p;
}

template <int lanes_of_head> __global__ void turn_heads_kernel(head_map m, int groups, const bf16 *x, int64_t ld_x, int64_t n, bf16 *y, int64_t ld_y) {
    const head_place p = head_place_of<lanes_of_head>(n, m, groups);
    eight            e[at_once] = {};
#pragma unroll
    for (int k = 0; k < at_once; k++) {
        if (p.has(k)) {
            e[k] = load8(x + p.row * ld_x + int64_t(p.head(k)) * m.head_dim + p.column);
        }
    }
    const rotation by(p, m, 1.0f);
    const eight    w = m.w && p.inside ? load8(m.w + p.column) : eight{};
#pragma unroll
    for (int k = 0; k < at_once; k++) {
        turn_row<lanes_of_head>(p, p.head(k), p.has(k), m, by, w, e[k]);
        if (p.has(k)) {
            store8(y + p.row * ld_y + int64_t(p.head(k)) * m.head_dim + p.column, e[k]);
        }
    }
}

template <int lanes_of_head>
__global__ void turn_heads_backward_kernel(head_map m, const bf16 *dy, int64_t ld_dy, const bf16 *x, int64_t ld_x, int64_t n, bf16 *dx, int64_t ld_dx) {
    const head_place p  = head_place_of<lanes_of_head>(n, m, m.n_head);
    const int64_t    at = int64_t(p.first) * m.head_dim + p.column;
    eight            d = {}, of = {};
    if (p.inside) {
        d = load8(dy + p.row * ld_dy + at);
        if (m.w) {
            of = load8(x + p.row * ld_x + at);
        }
    }
    d = turned_back<lanes_of_head>(p, m, d, of);
    if (p.inside) {
        store8(dx + p.row * ld_dx + at, d);
    }
}

__global__ void rope_table_kernel(const int32_t *positions, int64_t n, const float *frequencies, int half, float amplitude, float *table) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (i >= n * half) {
        return;
    }
    const int64_t row = i / half, j = i % half;
    // Exactly the CPU engine's angle; cosf and sinf of the device are the accurate ones, for any size of angle.
    const float angle             = times(float(positions[row]), frequencies[j]);
    table[row * 2 * half + j]        = cosf(angle) * amplitude;
    table[row * 2 * half + half + j] = sinf(angle) * amplitude;
}

// Calls f with a constant for the lanes that a head has.
template <typename F> void with_lanes(const head_map &m, int64_t n, F &&f) {
    if (m.head_dim % 8 != 0 || m.head_dim > 256 || (m.halves && m.n_rot % 16 != 0)) {
        throw failure(CFT_ERR_UNSUPPORTED, "CUDA: heads of size " + std::to_string(m.head_dim) + ", of which " + std::to_string(m.n_rot) + " are rotated");
    }
    if (n * m.n_head >= int64_t(1) << 26) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "CUDA: a pack with too many heads in all: " + std::to_string(n * m.n_head));
    }
    if (m.head_dim <= 64) {
        f(std::integral_constant<int, 8>());
    } else if (m.head_dim <= 128) {
        f(std::integral_constant<int, 16>());
    } else {
        f(std::integral_constant<int, 32>());
    }
}

} // namespace

void turn_heads(const head_map &m, const bf16 *x, int64_t ld_x, int64_t n, bf16 *y, int64_t ld_y, cudaStream_t stream) {
    with_lanes(m, n, [&](auto size) {
        constexpr int lanes_of_head = decltype(size)::value;
        launch("turn heads", turn_heads_kernel<lanes_of_head>, blocks_for(n * groups_of(m.n_head) * lanes_of_head, threads), threads, 0, stream, m,
               groups_of(m.n_head), x, ld_x, n, y, ld_y);
    });
}

void turn_heads_backward(const head_map &m, const bf16 *dy, int64_t ld_dy, const bf16 *x, int64_t ld_x, int64_t n, bf16 *dx, int64_t ld_dx,
                         cudaStream_t stream) {
    with_lanes(m, n, [&](auto size) {
        constexpr int lanes_of_head = decltype(size)::value;
        launch("turn heads back", turn_heads_backward_kernel<lanes_of_head>, blocks_for(n * m.n_head * lanes_of_head, threads), threads, 0, stream, m, dy,
               ld_dy, x, ld_x, n, dx, ld_dx);
    });
}

void rope_table(const int32_t *positions, int64_t n, const float *frequencies, int half, float amplitude, float *table, cudaStream_t stream) {
    launch("rope_table", rope_table_kernel, blocks_for(n * half, threads), threads, 0, stream, positions, n, frequencies, half, amplitude, table);
}

} // namespace cft::cuda
