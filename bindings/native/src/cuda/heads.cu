// heads.cu - queries and keys as attention takes them: norms of heads and rotary embeddings in one pass, and back.
#include "device.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256;

// Heads of a thread, which share what is read of the table and of the norm's weights. On the way back, where there is twice as much to hold, one is faster.
constexpr int at_once = 4;

// A head belongs to neighbouring lanes of a warp, 8, 16 or 32; each has eight of its elements, the last ones perhaps none.
struct head_place {
    int64_t row;
    int     column; // of the head
    int     first, step, n; // heads
    bool    inside;
    __device__ __forceinline__ bool has(int k) const { return inside && first + k * step < n; }
    __device__ __forceinline__ int  head(int k) const { return first + k * step; }
};
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

template <int lanes_of_head> __device__ __forceinline__ float head_sum(float x) {
#pragma unroll
    for (int o = lanes_of_head / 2; o > 0; o /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, o);
    }
    return x;
}

// rotation is the row's part of the table that a lane turns its elements by; direction -1 turns back. Every lane of the warp must come to its turns.
class rotation {
  public:
    __device__ __forceinline__ rotation(const head_place &p, const head_map &m, float direction) : rotates_(m.n_rot > 0), halves_(m.halves) {
        if (!rotates_) {
            return;
        }
        const int          half  = m.n_rot / 2;
        const float *const table = m.table + (p.inside ? int64_t(m.rows ? m.rows[p.row] : p.row) * m.n_rot : 0);
        turns_ = p.inside && p.column < m.n_rot;
        if (halves_) {
            const bool first = p.column < half;
            const int  lane = int(threadIdx.x) % lanes, j = turns_ ? first ? p.column : p.column - half : 0;
            partner_ = turns_ ? lane + (first ? half : -half) / 8 : lane;
            cos_ = load8(table + j), sin_ = load8(table + half + j);
            sign_ = first ? -direction : direction;
            return;
        }
        for (int k = 0; k < 4; k++) { // pairs of neighbours
            const int j = p.column / 2 + k;
            cos_.x[k] = turns_ && j < half ? table[j] : 1.0f;
            sin_.x[k] = turns_ && j < half ? direction * table[half + j] : 0.0f;
        }
    }
    __device__ __forceinline__ void turn(eight &e) const {
        if (!rotates_) {
            return;
        }
        if (!halves_) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float a = e.x[2 * k], b = e.x[2 * k + 1];
                e.x[2 * k]     = a * cos_.x[k] - b * sin_.x[k];
                e.x[2 * k + 1] = a * sin_.x[k] + b * cos_.x[k];
            }
            return;
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float other = __shfl_sync(0xffffffffu, e.x[k], partner_);
            if (turns_) {
                e.x[k] = e.x[k] * cos_.x[k] + sign_ * other * sin_.x[k];
            }
        }
    }

  private:
    bool  rotates_, halves_, turns_ = false;
    int   partner_ = 0;
    float sign_    = 0;
    eight cos_, sin_;
};

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
        if (m.w) {
            float squares = 0;
#pragma unroll
            for (float v : e[k].x) {
                squares += v * v;
            }
            const float r = 1.0f / sqrtf(head_sum<lanes_of_head>(squares) / float(m.head_dim) + m.eps);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                e[k].x[i] = e[k].x[i] * r * w.x[i];
            }
            if (m.rstd && p.column == 0 && p.has(k)) {
                m.rstd[p.row * m.n_head + p.head(k)] = r;
            }
        }
        by.turn(e[k]);
        if (p.has(k)) {
            store8(y + p.row * ld_y + int64_t(p.head(k)) * m.head_dim + p.column, e[k]);
        }
    }
}

template <int lanes_of_head>
__global__ void turn_heads_backward_kernel(head_map m, const bf16 *dy, int64_t ld_dy, const bf16 *x, int64_t ld_x, int64_t n, bf16 *dx, int64_t ld_dx) {
    const head_place p  = head_place_of<lanes_of_head>(n, m, m.n_head);
    const int64_t    at = int64_t(p.first) * m.head_dim + p.column;
    eight            d  = {};
    if (p.inside) {
        d = load8(dy + p.row * ld_dy + at);
    }
    rotation(p, m, -1.0f).turn(d);
    if (m.w) {
        eight b = {};
        float product = 0;
        if (p.inside) {
            b             = load8(x + p.row * ld_x + at);
            const eight w = load8(m.w + p.column);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                d.x[k] *= w.x[k];
                product += d.x[k] * b.x[k];
            }
        }
        const float sum = head_sum<lanes_of_head>(product), r = p.inside ? m.rstd[p.row * m.n_head + p.first] : 0.0f;
        const float c = -sum * r * r * r / float(m.head_dim);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            d.x[k] = r * d.x[k] + c * b.x[k];
        }
    }
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
