// adapters.cu - what belongs to adapters alone: their bf16 copies, dropout, the gradient's norm and AdamW.
#include "device.h"

#include "../cpu/random.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256;

__global__ void copy_adapters_kernel(const float *values, const adapter_copy *copies) {
    const adapter_copy c = copies[blockIdx.y];
    const int64_t      i = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (i < c.rows * c.columns) {
        c.to[i / c.columns * c.ld_to + i % c.columns] = narrow<bf16>(c.from < 0 ? 0.0f : c.scale * values[c.from + i]);
    }
}

// A thread has four columns: the words of one random block.
template <typename T>
__global__ void dropout_kernel(uint64_t seed, cpu::philox_counter counter, uint32_t threshold, float keep, int64_t first_row, const bf16 *x, int64_t ld_x,
                               const int32_t *rows, int64_t n, int64_t columns, bool add, T *y, int64_t ld_y) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x, quarters = (columns + 3) / 4;
    if (i >= n * quarters) {
        return;
    }
    const int64_t row = i / quarters, column = i % quarters * 4;
    counter.x[0] = uint32_t(column / 4);
    counter.x[1] = uint32_t(rows ? rows[row] : first_row + row);
    const cpu::philox_counter random = cpu::philox(seed, counter);
    for (int k = 0; k < 4 && column + k < columns; k++) {
        // Rounded before it is added, as on the CPU.
        const float v = times(random.x[k] < threshold ? 0.0f : keep, widen(x[row * ld_x + column + k]));
        T *const    p = y + row * ld_y + column + k;
        *p            = narrow<T>(add ? plus(widen(*p), v) : v);
    }
}

// A block has a token, a thread a column.
__global__ void add_by_token_kernel(const float *from, int64_t ld_from, const int32_t *tokens, const int32_t *starts, const int32_t *order, int64_t columns,
                                    float *to, int64_t ld_to) {
    const int begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    for (int64_t c = threadIdx.x; c < columns; c += threads) {
        float sum = 0;
        for (int j = begin; j < end; j++) {
            sum += from[order[j] * ld_from + c];
        }
        to[tokens[blockIdx.x] * ld_to + c] += sum;
    }
}

__global__ void adamw_kernel(adamw_step s, const float *more_scale, float *value, const float *gradient, float *moment1, float *moment2,
                             int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (i >= n) {
        return;
    }
    // Rounded step by step as in the CPU engine's plain loop: rows_kernels.inc.
    const float scale = more_scale ? times(s.gradient_scale, *more_scale) : s.gradient_scale;
    const float step = s.lr / s.correction1, root = 1.0f / sqrtf(s.correction2), keep = plus(1.0f, -times(s.lr, s.weight_decay));
    const float g = times(gradient[i], scale);
    const float m = plus(times(s.beta1, moment1[i]), times(1.0f - s.beta1, g));
    const float v = plus(times(s.beta2, moment2[i]), times(times(1.0f - s.beta2, g), g));
    moment1[i]    = m;
    moment2[i]    = v;
    value[i]      = plus(times(value[i], keep), -(times(step, m) / plus(times(sqrtf(v), root), s.eps)));
}

// Block b sums the elements of part b of norm_partials; the last kernel sums the parts in order.
constexpr int norm_threads = 256;

__global__ void partial_squares_kernel(const float *x, int64_t n, double *partials) {
    const int64_t part = (n + norm_partials - 1) / norm_partials, begin = part * blockIdx.x, end = begin + part < n ? begin + part : n;
    double        sum = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += norm_threads) {
        sum += double(x[i]) * double(x[i]);
    }
    sum = block_sum<norm_threads>(sum);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

__global__ void sum_partials_kernel(const double *partials, double *sum) {
    double s = 0;
    for (int i = int(threadIdx.x); i < norm_partials; i += norm_threads) {
        s += partials[i];
    }
    s = block_sum<norm_threads>(s);
    if (threadIdx.x == 0) {
        *sum = s;
    }
}

template <typename T> __global__ void find_non_finite_kernel(const T *x, int64_t n, int32_t *flag) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
    // An exponent of all ones. Whoever finds one writes the same word.
    if (i < n && (as_bits(widen(x[i])) & 0x7f800000u) == 0x7f800000u) {
        *flag = 1;
    }
}

} // namespace

void copy_adapters(const float *values, const adapter_copy *copies, int n, int64_t max_elements, cudaStream_t stream) {
    launch("copy_adapters", copy_adapters_kernel, dim3(blocks_for(max_elements, threads), unsigned(n)), threads, 0, stream, values, copies);
}

template <typename T>
void dropout(const cft::dropout &drop, int module, const bf16 *x, int64_t ld_x, const int32_t *rows, int64_t n, int64_t columns, bool add, T *y,
             int64_t ld_y, cudaStream_t stream) {
    launch("dropout", dropout_kernel<T>, blocks_for(n * ((columns + 3) / 4), threads), threads, 0, stream, drop.seed,
           cpu::dropout_counter(drop.micro_batch, drop.layer, module, 0), cpu::dropout_threshold(drop.probability),
           1.0f / (1.0f - drop.probability), drop.first_row, x, ld_x, rows, n, columns, add, y, ld_y);
}

void add_by_token(const float *from, int64_t ld_from, const int32_t *tokens, const int32_t *starts, const int32_t *order, int64_t n, int64_t columns, float *to,
                  int64_t ld_to, cudaStream_t stream) {
    launch("add_by_token", add_by_token_kernel, unsigned(n), threads, 0, stream, from, ld_from, tokens, starts, order, columns, to, ld_to);
}

void adamw(const adamw_step &step, const float *gradient_scale_on_device, float *value, const float *gradient, float *moment1, float *moment2,
           int64_t n, cudaStream_t stream) {
    launch("adamw", adamw_kernel, blocks_for(n, threads), threads, 0, stream, step, gradient_scale_on_device, value, gradient, moment1, moment2, n);
}

void sum_of_squares(const float *x, int64_t n, double *partials, double *sum, cudaStream_t stream) {
    launch("partial_squares", partial_squares_kernel, unsigned(norm_partials), norm_threads, 0, stream, x, n, partials);
    launch("sum_partials", sum_partials_kernel, 1u, norm_threads, 0, stream, partials, sum);
}

template <typename T> void find_non_finite(const T *x, int64_t n, int32_t *flag, cudaStream_t stream) {
    launch("find_non_finite", find_non_finite_kernel<T>, blocks_for(n, threads), threads, 0, stream, x, n, flag);
}

#define CFT_FOR(T)                                                                                                                              \
    template void dropout(const cft::dropout &, int, const bf16 *, int64_t, const int32_t *, int64_t, int64_t, bool, T *, int64_t, cudaStream_t); \
    template void find_non_finite(const T *, int64_t, int32_t *, cudaStream_t);
CFT_FOR(float)
CFT_FOR(bf16)
#undef CFT_FOR

} // namespace cft::cuda
