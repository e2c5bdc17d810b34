// rows.cu - norms, gates and what else goes row by row or element by element. All are bound by memory:
// sixteen bytes at a time, nothing kept that can be computed again.
#include "device.h"

namespace cft::cuda {
namespace {

constexpr int norm_threads = 128, threads = 256;

// Index of a matrix in steps of eight columns: what one thread of a flat grid works on.
struct place {
    int64_t row, column;
    bool    inside;
};
__device__ __forceinline__ place place_of(int64_t n, int64_t columns) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x, eighths = columns / 8;
    if (n * eighths <= UINT32_MAX) { // division of 32 bits is several times as fast
        const uint32_t row = uint32_t(i) / uint32_t(eighths);
        return {row, int64_t(uint32_t(i) - row * uint32_t(eighths)) * 8, i < n * eighths};
    }
    return {i / eighths, i % eighths * 8, i < n * eighths};
}

// ---- norms: a block has one row

template <typename T>
__global__ void add_rmsnorm_kernel(const T *x, const bf16 *delta, T *sum, const float *w, int64_t d, float eps, bf16 *normed, int64_t ld_normed,
                                   float *rstd) {
    const int64_t row = blockIdx.x;
    x += row * d;
    float squares = 0;
    for (int64_t j = threadIdx.x * 8; j < d; j += norm_threads * 8) {
        eight e = load8(x + j);
        if (delta) {
            const eight a = load8(delta + row * d + j);
            for (int k = 0; k < 8; k++) {
                // Rounded before the norm, so that forward and backward see what is stored.
                e.x[k] = widen(narrow<T>(e.x[k] + a.x[k]));
            }
        }
        if (sum) {
            store8(sum + row * d + j, e);
        }
        for (float v : e.x) {
            squares += v * v;
        }
    }
    squares       = block_sum<norm_threads>(squares);
    const float r = 1.0f / sqrtf(squares / float(d) + eps);
    if (rstd && threadIdx.x == 0) {
        rstd[row] = r;
    }
    if (!normed) {
        return;
    }
    // A thread reads again what it wrote itself. delta may share memory with sum, so it is not added again.
    const T *const from = sum ? sum + row * d : x;
    for (int64_t j = threadIdx.x * 8; j < d; j += norm_threads * 8) {
        eight       e = load8(from + j);
        const eight g = load8(w + j);
        if (delta && !sum) {
            const eight a = load8(delta + row * d + j);
            for (int k = 0; k < 8; k++) {
                e.x[k] = widen(narrow<T>(e.x[k] + a.x[k]));
            }
        }
        for (int k = 0; k < 8; k++) {
            e.x[k] = e.x[k] * r * g.x[k];
        }
        store8(normed + row * ld_normed + j, e);
    }
}

template <typename T, typename G>
__global__ void rmsnorm_backward_kernel(const bf16 *dy, int64_t ld_dy, const T *x, const float *w, const float *rstd, int64_t d, const G *d_add,
                                        G *dx, bf16 *copy, int64_t ld_copy) {
    const int64_t row = blockIdx.x;
    dy += row * ld_dy;
    x += row * d;
    float product = 0;
    for (int64_t j = threadIdx.x * 8; j < d; j += norm_threads * 8) {
        const eight a = load8(dy + j), b = load8(x + j), g = load8(w + j);
        for (int k = 0; k < 8; k++) {
            product += a.x[k] * b.x[k] * g.x[k];
        }
    }
    product       = block_sum<norm_threads>(product);
    const float r = rstd[row], c = -product * r * r * r / float(d);
    for (int64_t j = threadIdx.x * 8; j < d; j += norm_threads * 8) {
        const eight a = load8(dy + j), b = load8(x + j), g = load8(w + j);
        eight       e = {};
        if (d_add) {
            e = load8(d_add + row * d + j);
        }
        for (int k = 0; k < 8; k++) {
            e.x[k] += r * a.x[k] * g.x[k] + c * b.x[k];
        }
        store8(dx + row * d + j, e);
        if (copy) {
            store8(copy + row * ld_copy + j, e);
        }
    }
}

// ---- gates

// gelu(g) = g sigmoid(2u), u = slope (g + cube g³): its tanh form.
constexpr float gelu_slope = 0.79788456080286535588f, gelu_cube = 0.044715f;

// The gate's sigmoid s, act = g s, and the derivative of act.
__device__ __forceinline__ void gate_of(bool gelu, float g, float &act, float &slope) {
    const float u = gelu ? 2.0f * gelu_slope * g * (1.0f + gelu_cube * g * g) : g;
    const float s = 1.0f / (1.0f + expf(-u)), du = gelu ? 2.0f * gelu_slope * (1.0f + 3.0f * gelu_cube * g * g) : 1.0f;
    act   = g * s;
    slope = s * (1.0f + g * (1.0f - s) * du);
}

__global__ void gated_kernel(bool gelu, const bf16 *gate, int64_t ld_gate, const bf16 *up, int64_t ld_up, int64_t n, int64_t columns, bf16 *act,
                             int64_t ld_act) {
    const place p = place_of(n, columns);
    if (!p.inside) {
        return;
    }
    eight       e = load8(gate + p.row * ld_gate + p.column);
    const eight u = load8(up + p.row * ld_up + p.column);
    for (int k = 0; k < 8; k++) {
        float a, slope;
        gate_of(gelu, e.x[k], a, slope);
        e.x[k] = a * u.x[k];
    }
    store8(act + p.row * ld_act + p.column, e);
}

struct gated_backward_args {
    const bf16 *d_act, *gate, *up;
    bf16       *d_gate, *d_up, *act;
    int64_t     ld_d_act, ld_gate, ld_up, ld_d_gate, ld_d_up, ld_act;
};

__global__ void gated_backward_kernel(bool gelu, gated_backward_args m, int64_t n, int64_t columns) {
    const place p = place_of(n, columns);
    if (!p.inside) {
        return;
    }
    const eight d = load8(m.d_act + p.row * m.ld_d_act + p.column), g = load8(m.gate + p.row * m.ld_gate + p.column),
                u = load8(m.up + p.row * m.ld_up + p.column);
    eight       d_gate, d_up, act;
    for (int k = 0; k < 8; k++) {
        float a, slope;
        gate_of(gelu, g.x[k], a, slope);
        act.x[k]    = a * u.x[k];
        d_up.x[k]   = d.x[k] * a;
        d_gate.x[k] = d.x[k] * u.x[k] * slope;
    }
    store8(m.d_gate + p.row * m.ld_d_gate + p.column, d_gate);
    store8(m.d_up + p.row * m.ld_d_up + p.column, d_up);
    if (m.act) {
        store8(m.act + p.row * m.ld_act + p.column, act);
    }
}

// ---- elements

__global__ void add_bias_kernel(const float *bias, int64_t n, int64_t columns, bf16 *y, int64_t ld_y) {
    const place p = place_of(n, columns);
    if (!p.inside) {
        return;
    }
    eight       e = load8(y + p.row * ld_y + p.column);
    const eight b = load8(bias + p.column);
    for (int k = 0; k < 8; k++) {
        e.x[k] += b.x[k];
    }
    store8(y + p.row * ld_y + p.column, e);
}

// An element at a time: these are for small arrays and odd lengths.
template <typename T, typename U> __global__ void add_kernel(const T *x, int64_t n, U *y) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (i < n) {
        y[i] = narrow<U>(widen(y[i]) + widen(x[i]));
    }
}

template <typename T, typename U> __global__ void cast_kernel(const T *x, float scale, int64_t n, U *y) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (i < n) {
        y[i] = narrow<U>(scale * widen(x[i]));
    }
}

template <typename T> __global__ void soft_cap_kernel(T *x, int64_t n, float cap) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (i < n) {
        x[i] = narrow<T>(cap * tanhf(widen(x[i]) / cap));
    }
}

enum class move { gather, scatter, scatter_add };

template <move how, typename T, typename U>
__global__ void move_kernel(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to) {
    const place p = place_of(n, columns);
    if (!p.inside) {
        return;
    }
    const int64_t other = rows[p.row], source = how == move::gather ? other : p.row, target = how == move::gather ? p.row : other;
    eight         e = load8(from + source * ld_from + p.column);
    if (how == move::scatter_add) {
        const eight old = load8(to + target * ld_to + p.column);
        for (int k = 0; k < 8; k++) {
            e.x[k] += old.x[k];
        }
    }
    store8(to + target * ld_to + p.column, e);
}

template <move how, typename T, typename U>
void start_move(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to, cudaStream_t stream) {
    launch("move rows", move_kernel<how, T, U>, blocks_for(n * (columns / 8), threads), threads, 0, stream, from, ld_from, rows, n, columns, to, ld_to);
}

} // namespace

template <typename T>
void add_rmsnorm(const T *x, const bf16 *delta, T *sum, const float *w, int64_t n, int64_t d, float eps, bf16 *normed, int64_t ld_normed,
                 float *rstd, cudaStream_t stream) {
    launch("add_rmsnorm", add_rmsnorm_kernel<T>, unsigned(n), norm_threads, 0, stream, x, delta, sum, w, d, eps, normed, ld_normed, rstd);
}

template <typename T, typename G>
void rmsnorm_backward(const bf16 *dy, int64_t ld_dy, const T *x, const float *w, const float *rstd, int64_t n, int64_t d, const G *d_add, G *dx,
                      bf16 *copy, int64_t ld_copy, cudaStream_t stream) {
    launch("rmsnorm_backward", rmsnorm_backward_kernel<T, G>, unsigned(n), norm_threads, 0, stream, dy, ld_dy, x, w, rstd, d, d_add, dx,
           copy, ld_copy);
}

void gated(bool gelu, const bf16 *gate, int64_t ld_gate, const bf16 *up, int64_t ld_up, int64_t n, int64_t columns, bf16 *act, int64_t ld_act,
           cudaStream_t stream) {
    launch("gated", gated_kernel, blocks_for(n * (columns / 8), threads), threads, 0, stream, gelu, gate, ld_gate, up, ld_up, n, columns, act,
           ld_act);
}

void gated_backward(bool gelu, const bf16 *d_act, int64_t ld_d_act, const bf16 *gate, int64_t ld_gate, const bf16 *up, int64_t ld_up, int64_t n,
                    int64_t columns, bf16 *d_gate, int64_t ld_d_gate, bf16 *d_up, int64_t ld_d_up, bf16 *act, int64_t ld_act,
                    cudaStream_t stream) {
    const gated_backward_args m = {d_act, gate, up, d_gate, d_up, act, ld_d_act, ld_gate, ld_up, ld_d_gate, ld_d_up, ld_act};
    launch("gated_backward", gated_backward_kernel, blocks_for(n * (columns / 8), threads), threads, 0, stream, gelu, m, n, columns);
}

void add_bias(const float *bias, int64_t n, int64_t columns, bf16 *y, int64_t ld_y, cudaStream_t stream) {
    launch("add_bias", add_bias_kernel, blocks_for(n * (columns / 8), threads), threads, 0, stream, bias, n, columns, y, ld_y);
}

template <typename T, typename U> void add(const T *x, int64_t n, U *y, cudaStream_t stream) {
    launch("add", add_kernel<T, U>, blocks_for(n, threads), threads, 0, stream, x, n, y);
}

template <typename T, typename U> void cast(const T *x, float scale, int64_t n, U *y, cudaStream_t stream) {
    launch("cast", cast_kernel<T, U>, blocks_for(n, threads), threads, 0, stream, x, scale, n, y);
}

template <typename T> void soft_cap(T *x, int64_t n, float cap, cudaStream_t stream) {
    launch("soft_cap", soft_cap_kernel<T>, blocks_for(n, threads), threads, 0, stream, x, n, cap);
}

void zero(void *x, size_t bytes, cudaStream_t stream) { check(cudaMemsetAsync(x, 0, bytes, stream), "zero"); }

template <typename T, typename U>
void gather(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to, cudaStream_t stream) {
    start_move<move::gather>(from, ld_from, rows, n, columns, to, ld_to, stream);
}
template <typename T, typename U>
void scatter(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to, cudaStream_t stream) {
    start_move<move::scatter>(from, ld_from, rows, n, columns, to, ld_to, stream);
}
template <typename T, typename U>
void scatter_add(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to, cudaStream_t stream) {
    start_move<move::scatter_add>(from, ld_from, rows, n, columns, to, ld_to, stream);
}

#define CFT_FOR(T)                                                                                                                              \
    template void add_rmsnorm(const T *, const bf16 *, T *, const float *, int64_t, int64_t, float, bf16 *, int64_t, float *, cudaStream_t);    \
    template void soft_cap(T *, int64_t, float, cudaStream_t);
#define CFT_FOR_PAIR(T, U)                                                                                                                      \
    template void rmsnorm_backward(const bf16 *, int64_t, const T *, const float *, const float *, int64_t, int64_t, const U *, U *, bf16 *,    \
                                   int64_t, cudaStream_t);                                                                                               \
    template void add(const T *, int64_t, U *, cudaStream_t);                                                                                   \
    template void cast(const T *, float, int64_t, U *, cudaStream_t);                                                                           \
    template void gather(const T *, int64_t, const int32_t *, int64_t, int64_t, U *, int64_t, cudaStream_t);                                    \
    template void scatter(const T *, int64_t, const int32_t *, int64_t, int64_t, U *, int64_t, cudaStream_t);                                   \
    template void scatter_add(const T *, int64_t, const int32_t *, int64_t, int64_t, U *, int64_t, cudaStream_t);
CFT_FOR(float)
CFT_FOR(bf16)
CFT_FOR_PAIR(float, float)
CFT_FOR_PAIR(float, bf16)
CFT_FOR_PAIR(bf16, float)
CFT_FOR_PAIR(bf16, bf16)
#undef CFT_FOR
#undef CFT_FOR_PAIR

} // namespace cft::cuda
