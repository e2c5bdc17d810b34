// loss.cu - cross entropy of logits, its gradient in their place, and the sum of the losses.
#include "device.h"

namespace cft::cuda {
namespace {

constexpr int threads = 512, groups = 2, per_thread = 4 * groups, per_round = threads * per_thread; // of four neighbours each

// A running maximum with the sum of exp(x - maximum).
struct soft_sum {
    float max, sum;
};
__device__ __forceinline__ soft_sum merge(soft_sum a, soft_sum b) {
    const float m = fmaxf(a.max, b.max);
    if (m == -INFINITY) {
        return {m, 0.0f};
    }
    return {m, a.sum * expf(a.max - m) + b.sum * expf(b.max - m)};
}

__device__ soft_sum block_soft_sum(soft_sum s) {
    constexpr int       warps = threads / lanes;
    __shared__ soft_sum parts[warps];
    for (int o = lanes / 2; o > 0; o /= 2) {
        soft_sum other;
        other.max = __shfl_xor_sync(0xffffffffu, s.max, o);
        other.sum = __shfl_xor_sync(0xffffffffu, s.sum, o);
        s         = merge(s, other);
    }
    if (threadIdx.x % lanes == 0) {
        parts[threadIdx.x / lanes] = s;
    }
    __syncthreads();
    soft_sum total = parts[0];
    for (int i = 1; i < warps; i++) {
        total = merge(total, parts[i]);
    }
    return total;
}

// Four neighbours from j on, of those that are below n; whole: their address is a multiple of what they take.
__device__ __forceinline__ void load4(const float *x, int64_t j, int64_t n, bool whole, float *v) {
    if (whole && j + 4 <= n) {
        const float4 a = *reinterpret_cast<const float4 *>(x + j);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        return;
    }
    for (int k = 0; k < 4; k++) {
        v[k] = j + k < n ? x[j + k] : 0.0f;
    }
}
__device__ __forceinline__ void load4(const bf16 *x, int64_t j, int64_t n, bool, float *v) {
    for (int k = 0; k < 4; k++) {
        v[k] = j + k < n ? widen(x[j + k]) : 0.0f;
    }
}

// Where a thread's k-th value of a round lies in the row.
__device__ __forceinline__ int64_t place_of(int64_t first, int k) { return first + (k / 4 * threads + int(threadIdx.x)) * 4 + k % 4; }

__device__ __forceinline__ float capped(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }

// A block has one row. Before anything is written, all has been read that the loss needs: each round has a barrier. Rounds go in ascending order, and a round is read by all threads before any of it is written: a
// gradient in the place of F32 logits lies at half their distance from the row's start, so it covers only what was read.
template <typename T>
__global__ void cross_entropy_kernel(const T *logits, int64_t ld_logits, int64_t n_vocab, int64_t n_padded, const int32_t *targets,
                                     const float *weights, float cap, float *losses, bf16 *gradient, int64_t ld_gradient) {
    const int64_t row    = blockIdx.x;
    const int64_t target = targets[row];
    const T      *x      = logits + row * ld_logits;
    bf16         *dx     = gradient ? gradient + row * ld_gradient : nullptr;
    if (target < 0) {
        if (threadIdx.x == 0) {
            losses[row] = 0;
        }
        for (int64_t j = threadIdx.x; dx && j < n_padded; j += threads) {
            dx[j] = bf16{0};
        }
        return;
    }
    const bool whole = reinterpret_cast<uintptr_t>(x) % (4 * sizeof(T)) == 0, dx_whole = reinterpret_cast<uintptr_t>(dx) % (4 * sizeof(bf16)) == 0;
    soft_sum   s     = {-INFINITY, 0.0f};
    for (int64_t first = 0; first < n_vocab; first += per_round) {
        // The maximum of a thread's values first: one exponential for each, one more for the sum so far.
        float v[per_thread], m = s.max;
#pragma unroll
        for (int g = 0; g < groups; g++) {
            load4(x, place_of(first, 4 * g), n_vocab, whole, v + 4 * g);
        }
#pragma unroll
        for (int k = 0; k < per_thread; k++) {
            v[k] = place_of(first, k) < n_vocab ? capped(v[k], cap) : -INFINITY;
            m    = fmaxf(m, v[k]);
        }
        if (m == -INFINITY) {
            continue;
        }
        s.sum *= expf(s.max - m);
        s.max = m;
        for (float e : v) {
            s.sum += expf(e - m);
        }
    }
    s                  = block_soft_sum(s);
    const float lse    = s.max + logf(s.sum), weight = weights[row];
    if (threadIdx.x == 0) {
        losses[row] = weight * (lse - capped(widen(x[target]), cap));
    }
    if (!dx) {
        return;
    }
    for (int64_t first = 0; first < n_padded; first += per_round) {
        float v[per_thread];
#pragma unroll
        for (int g = 0; g < groups; g++) {
            load4(x, place_of(first, 4 * g), n_vocab, whole, v + 4 * g);
        }
#pragma unroll
        for (int k = 0; k < per_thread; k++) {
            const int64_t j = place_of(first, k);
            const float   c = capped(v[k], cap), slope = cap > 0 ? 1.0f - c / cap * (c / cap) : 1.0f;
            v[k] = j < n_vocab ? weight * slope * (expf(c - lse) - (j == target ? 1.0f : 0.0f)) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int g = 0; g < groups; g++) {
            const int64_t      j = place_of(first, 4 * g);
            const float *const of = v + 4 * g;
            if (dx_whole && j + 4 <= n_padded) {
                *reinterpret_cast<uint64_t *>(dx + j) = uint64_t(pack(of[0], of[1])) | uint64_t(pack(of[2], of[3])) << 32;
                continue;
            }
            for (int k = 0; k < 4 && j + k < n_padded; k++) {
                dx[j + k] = narrow<bf16>(of[k]);
            }
        }
    }
}

constexpr int sum_threads = 1024;

__global__ void sum_kernel(const float *x, int64_t n, bool add, double *sum) {
    double part = 0;
    for (int64_t i = threadIdx.x; i < n; i += sum_threads) {
        part += double(x[i]);
    }
    part = block_sum<sum_threads>(part);
    if (threadIdx.x == 0) {
        *sum = (add ? *sum : 0.0) + part;
    }
}

} // namespace

template <typename T>
void cross_entropy(const T *logits, int64_t ld_logits, int64_t n, int64_t n_vocab, int64_t n_padded, const int32_t *targets, const float *weights,
                   float cap, float *losses, bf16 *gradient, int64_t ld_gradient, cudaStream_t stream) {
    launch("cross_entropy", cross_entropy_kernel<T>, unsigned(n), threads, 0, stream, logits, ld_logits, n_vocab, n_padded, targets, weights, cap,
           losses, gradient, ld_gradient);
}

void sum(const float *x, int64_t n, bool add, double *sum, cudaStream_t stream) {
    launch("sum", sum_kernel, 1u, sum_threads, 0, stream, x, n, add, sum);
}

#define CFT_FOR(T)                                                                                                                              \
    template void cross_entropy(const T *, int64_t, int64_t, int64_t, int64_t, const int32_t *, const float *, float, float *, bf16 *, int64_t, \
                                cudaStream_t);
CFT_FOR(float)
CFT_FOR(bf16)
#undef CFT_FOR

} // namespace cft::cuda
