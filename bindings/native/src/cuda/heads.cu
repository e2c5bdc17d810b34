// heads.cu - queries and keys as attention takes them: norms of heads and rotary embeddings in one pass, and back.
#include "device.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256;

// A head belongs to neighbouring lanes of a warp, 8, 16 or 32; each has eight of its elements, the last ones perhaps none.
struct head_place {
    int64_t row, at; // at: column in the matrix
    int     head, column;
    bool    inside;
};
template <int lanes_of_head> __device__ __forceinline__ head_place head_place_of(int64_t n, const head_map &m) {
    const uint32_t i = (uint32_t(blockIdx.x) * threads + threadIdx.x) / lanes_of_head, row = i / uint32_t(m.n_head);
    head_place     p;
    p.row    = row;
    p.head   = int(i - row * uint32_t(m.n_head));
    p.column = int(threadIdx.x % lanes_of_head) * 8;
    p.at     = int64_t(p.head) * m.head_dim + p.column;
    p.inside = p.row < n && p.column < m.head_dim;
    return p;
}

template <int lanes_of_head> __device__ __forceinline__ float head_sum(float x) {
#pragma unroll
    for (int o = lanes_of_head / 2; o > 0; o /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, o);
    }
    return x;
}

// Turns the head's pairs; direction -1 turns back. Every lane of the warp must come here.
template <int lanes_of_head> __device__ __forceinline__ void rotate(eight &e, const head_place &p, const head_map &m, float direction) {
    if (m.n_rot == 0) {
        return;
    }
    const int          half  = m.n_rot / 2;
    const float *const table = m.table + (p.inside ? int64_t(m.rows ? m.rows[p.row] : p.row) * m.n_rot : 0);
    if (!m.halves) {
        if (p.inside) {
#pragma unroll
            for (int k = 0; k < 8; k += 2) {
                const int j = (p.column + k) / 2;
                if (j < half) {
                    const float c = table[j], s = direction * table[half + j], a = e.x[k], b = e.x[k + 1];
                    e.x[k]     = a * c - b * s;
                    e.x[k + 1] = a * s + b * c;
                }
            }
        }
        return;
    }
    const bool  turns = p.inside && p.column < m.n_rot, first = p.column < half;
    const int   lane  = int(threadIdx.x) % lanes, partner = turns ? lane + (first ? half : -half) / 8 : lane;
    const int   j     = turns ? first ? p.column : p.column - half : 0;
    const eight c = load8(table + j), s = load8(table + half + j);
    const float sign = first ? -direction : direction;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const float other = __shfl_sync(0xffffffffu, e.x[k], partner);
        if (turns) {
            e.x[k] = e.x[k] * c.x[k] + sign * other * s.x[k];
        }
    }
}

template <int lanes_of_head> __global__ void turn_heads_kernel(head_map m, const bf16 *x, int64_t ld_x, int64_t n, bf16 *y, int64_t ld_y) {
    const head_place p = head_place_of<lanes_of_head>(n, m);
    eight            e = {};
    if (p.inside) {
        e = load8(x + p.row * ld_x + p.at);
    }
    if (m.w) {
        float squares = 0;
#pragma unroll
        for (float v : e.x) {
            squares += v * v;
        }
        const float r = 1.0f / sqrtf(head_sum<lanes_of_head>(squares) / float(m.head_dim) + m.eps);
        if (p.inside) {
            const eight w = load8(m.w + p.column);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                e.x[k] = e.x[k] * r * w.x[k];
            }
            if (m.rstd && p.column == 0) {
                m.rstd[p.row * m.n_head + p.head] = r;
            }
        }
    }
    rotate<lanes_of_head>(e, p, m, 1.0f);
    if (p.inside) {
        store8(y + p.row * ld_y + p.at, e);
    }
}

template <int lanes_of_head>
__global__ void turn_heads_backward_kernel(head_map m, const bf16 *dy, int64_t ld_dy, const bf16 *x, int64_t ld_x, int64_t n, bf16 *dx, int64_t ld_dx) {
    const head_place p = head_place_of<lanes_of_head>(n, m);
    eight            d = {};
    if (p.inside) {
        d = load8(dy + p.row * ld_dy + p.at);
    }
    rotate<lanes_of_head>(d, p, m, -1.0f);
    if (m.w) {
        eight b = {};
        float product = 0;
        if (p.inside) {
            b             = load8(x + p.row * ld_x + p.at);
            const eight w = load8(m.w + p.column);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                d.x[k] *= w.x[k];
                product += d.x[k] * b.x[k];
            }
        }
        const float sum = head_sum<lanes_of_head>(product), r = p.inside ? m.rstd[p.row * m.n_head + p.head] : 0.0f;
        const float c = -sum * r * r * r / float(m.head_dim);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            d.x[k] = r * d.x[k] + c * b.x[k];
        }
    }
    if (p.inside) {
        store8(dx + p.row * ld_dx + p.at, d);
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
        launch("turn heads", turn_heads_kernel<lanes_of_head>, blocks_for(n * m.n_head * lanes_of_head, threads), threads, 0, stream, m, x, ld_x, n, y,
               ld_y);
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
