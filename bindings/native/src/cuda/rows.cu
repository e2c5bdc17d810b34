// rows.cu - norms, gates and what else goes row by row or element by element. All are bound by memory:
// sixteen bytes at a time, nothing kept that can be computed again.
#include "device.h"
#include "gate.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256;

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

// ---- norms: a block has one row, all of it in registers, so that memory is read once

// The row's elements [i * 8, i * 8 + 8) + more. What is added is rounded to T each time, as if it had been stored.
template <typename T> __device__ __forceinline__ eight load_sum(const addends<T> &s, int64_t at) {
    eight             e      = load8(s.x + at);
    const bf16 *const more[] = {s.a, s.b};
#pragma unroll
    for (const bf16 *p : more) {
        if (p) {
            const eight a = load8(p + at);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                e.x[k] = widen(narrow<T>(e.x[k] + a.x[k]));
            }
        }
    }
    return e;
}

// A thread has `chunks` times eight elements, `threads` times eight apart.
template <int threads, int chunks, typename T>
__global__ void add_rmsnorm_kernel(addends<T> x, T *sum, const float *w, int64_t d, float eps, bf16 *normed, int64_t ld_normed, float *rstd) {
    const int64_t row = blockIdx.x;
    eight         e[chunks];
    float         squares = 0;
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        const int64_t j = (int64_t(i) * threads + threadIdx.x) * 8;
        if (j < d) {
            e[i] = load_sum(x, row * d + j);
        }
    }
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        const int64_t j = (int64_t(i) * threads + threadIdx.x) * 8;
        if (j < d) {
            if (sum) {
                store8(sum + row * d + j, e[i]);
            }
            for (float v : e[i].x) {
                squares += v * v;
            }
        }
    }
    squares       = block_sum<threads>(squares);
    const float r = 1.0f / sqrtf(squares / float(d) + eps);
    if (rstd && threadIdx.x == 0) {
        rstd[row] = r;
    }
    if (!normed) {
        return;
    }
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        const int64_t j = (int64_t(i) * threads + threadIdx.x) * 8;
        if (j < d) {
            const eight g = load8(w + j);
            for (int k = 0; k < 8; k++) {
                e[i].x[k] = e[i].x[k] * r * g.x[k];
            }
            store8(normed + row * ld_normed + j, e[i]);
        }
    }
}

struct plain_rows {
    bf16   *x;
    int64_t ld;
};
__device__ __forceinline__ eight load_row(const plain_rows &r, int64_t row, int64_t, int64_t j) { return load8(r.x + row * r.ld + j); }
__device__ __forceinline__ eight load_row(const split_rows &r, int64_t row, int64_t d, int64_t j) {
    return load8(r.high + row * r.ld + j, r.low + row * d + j);
}
__device__ __forceinline__ void store_row(const plain_rows &r, int64_t row, int64_t, int64_t j, const eight &e) { store8(r.x + row * r.ld + j, e); }
__device__ __forceinline__ void store_row(const split_rows &r, int64_t row, int64_t d, int64_t j, const eight &e) {
    store8(r.high + row * r.ld + j, r.low + row * d + j, e);
}

// With x' = x rstd = y / w, the gradient at x is rstd (w dy - x' mean(dy y)).
template <int threads, int chunks, typename From, typename To>
__global__ void rmsnorm_backward_kernel(From dy, norm_output y, int64_t d, bool add, To dx, bf16 *copy, int64_t ld_copy) {
    const int64_t row = blockIdx.x;
    eight         a[chunks], b[chunks];
    float         product = 0;
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        const int64_t j = (int64_t(i) * threads + threadIdx.x) * 8;
        if (j < d) {
            a[i] = load_row(dy, row, d, j);
            b[i] = load8(y.y + row * y.ld + j);
        }
    }
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        const int64_t j = (int64_t(i) * threads + threadIdx.x) * 8;
        if (j < d) {
            for (int k = 0; k < 8; k++) {
                product += a[i].x[k] * b[i].x[k];
            }
        }
    }
    product       = block_sum<threads>(product);
    const float r = y.rstd[row], c = product * r / float(d);
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        const int64_t j = (int64_t(i) * threads + threadIdx.x) * 8;
        if (j >= d) {
            continue;
        }
        const eight w = load8(y.w + j);
        eight       e = {};
        if (add) {
            e = load_row(dx, row, d, j);
        }
        for (int k = 0; k < 8; k++) {
            e.x[k] += r * w.x[k] * a[i].x[k] - b[i].x[k] * quotient(c, w.x[k]);
        }
        store_row(dx, row, d, j, e);
        if (copy) {
            store8(copy + row * ld_copy + j, e);
        }
    }
}

// Calls f with constants for the threads of a block and the chunks of each that rows of d elements need.
template <typename F> void with_rows_of(int64_t d, F &&f) {
    if (d <= 1024) {
        f(std::integral_constant<int, 128>(), std::integral_constant<int, 1>());
    } else if (d <= 2048) {
        f(std::integral_constant<int, 256>(), std::integral_constant<int, 1>());
    } else if (d <= 4096) {
        f(std::integral_constant<int, 256>(), std::integral_constant<int, 2>());
    } else if (d <= 8192) {
        f(std::integral_constant<int, 512>(), std::integral_constant<int, 2>());
    } else if (d <= widest_norm) {
        f(std::integral_constant<int, 512>(), std::integral_constant<int, 4>());
    } else {
        throw failure(CFT_ERR_UNSUPPORTED, "CUDA: a norm of rows of " + std::to_string(d) + " elements");
    }
}

template <typename From, typename To>
void start_rmsnorm_backward(const From &dy, const norm_output &y, int64_t n, int64_t d, bool add, const To &dx, bf16 *copy, int64_t ld_copy,
                            cudaStream_t stream) {
    with_rows_of(d, [&](auto threads_, auto chunks) {
        constexpr int size = decltype(threads_)::value;
        launch("rmsnorm_backward", rmsnorm_backward_kernel<size, decltype(chunks)::value, From, To>, unsigned(n), size, 0, stream, dy, y, d, add, dx,
               copy, ld_copy);
    });
}

// ---- gates

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
    const int64_t other = rows ? rows[p.row] : p.row, source = how == move::gather ? other : p.row, target = how == move::gather ? p.row : other;
    from += source * ld_from + p.column, to += target * ld_to + p.column;
    if constexpr (how != move::scatter_add && std::is_same_v<T, U>) { // any bits, as they are
        must_be_aligned<16>(from), must_be_aligned<16>(to);
#pragma unroll
        for (size_t k = 0; k < 8 * sizeof(T) / sizeof(uint4); k++) {
            reinterpret_cast<uint4 *>(to)[k] = reinterpret_cast<const uint4 *>(from)[k];
        }
    } else {
        eight e = load8(from);
        if (how == move::scatter_add) {
            const eight old = load8(to);
            for (int k = 0; k < 8; k++) {
                e.x[k] += old.x[k];
            }
        }
        store8(to, e);
    }
}

template <move how, typename T, typename U>
void start_move(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to, cudaStream_t stream) {
    launch("move rows", move_kernel<how, T, U>, blocks_for(n * (columns / 8), threads), threads, 0, stream, from, ld_from, rows, n, columns, to, ld_to);
}

} // namespace

template <typename T>
void add_rmsnorm(const addends<T> &x, T *sum, const float *w, int64_t n, int64_t d, float eps, bf16 *normed, int64_t ld_normed, float *rstd,
                 cudaStream_t stream) {
    with_rows_of(d, [&](auto threads_, auto chunks) {
        constexpr int size = decltype(threads_)::value;
        launch("add_rmsnorm", add_rmsnorm_kernel<size, decltype(chunks)::value, T>, unsigned(n), size, 0, stream, x, sum, w, d, eps, normed,
               ld_normed, rstd);
    });
}

void rmsnorm_backward(const bf16 *dy, int64_t ld_dy, const norm_output &y, int64_t n, int64_t d, bool add, const split_rows &dx, bf16 *copy,
                      int64_t ld_copy, cudaStream_t stream) {
    start_rmsnorm_backward(plain_rows{const_cast<bf16 *>(dy), ld_dy}, y, n, d, add, dx, copy, ld_copy, stream);
}

void rmsnorm_backward(const split_rows &dy, const norm_output &y, int64_t n, int64_t d, bf16 *dx, int64_t ld_dx, cudaStream_t stream) {
    start_rmsnorm_backward(dy, y, n, d, false, plain_rows{dx, ld_dx}, nullptr, 0, stream);
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
    template void add_rmsnorm(const addends<T> &, T *, const float *, int64_t, int64_t, float, bf16 *, int64_t, float *, cudaStream_t);         \
    template void soft_cap(T *, int64_t, float, cudaStream_t);
#define CFT_FOR_PAIR(T, U)                                                                                                                      \
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
template void scatter(const uint16_t *, int64_t, const int32_t *, int64_t, int64_t, uint16_t *, int64_t, cudaStream_t);
#undef CFT_FOR
#undef CFT_FOR_PAIR

} // namespace cft::cuda
