// gains.cu - what DoRA adds to a linear map: a gain for each output, the magnitude over the length of its row of W + s B A, and that gain's
// way back. ../dora.h tells what is computed.
#include "device.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256;
constexpr int wide    = 8;                       // columns of a thread, 16 bytes
constexpr int columns_of_block = 64;             // in gain_backward: 128 bytes of a row
constexpr int rows_of_block    = threads / (columns_of_block / wide);

__global__ void scale_columns_kernel(const float *x, const float *gains, int64_t n, int64_t columns, bf16 *y, int64_t ld_y) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x, eighths = columns / wide;
    if (i >= n * eighths) {
        return;
    }
    const eight g = load8(gains + i % eighths * wide);
    eight       v = load8(x + i * wide);
#pragma unroll
    for (int k = 0; k < wide; k++) {
        v.x[k] *= g.x[k];
    }
    store8(y + i / eighths * ld_y + i % eighths * wide, v);
}

// A block has 64 columns of one slice of the rows; its threads' sums are added in order of the rows.
__global__ void gain_backward_kernel(const bf16 *y, int64_t ld_y, const float *gains, int64_t n, int64_t columns, bf16 *dy, int64_t ld_dy, float *partials) {
    __shared__ float sums[rows_of_block][columns_of_block];
    const int     mine = int(threadIdx.x) % (columns_of_block / wide) * wide, lane = int(threadIdx.x) / (columns_of_block / wide);
    const int64_t column = int64_t(blockIdx.x) * columns_of_block + mine;
    const int64_t slice = (n + gain_slices - 1) / gain_slices, begin = slice * blockIdx.y, end = begin + slice < n ? begin + slice : n;
    eight         sum = {};
    if (column < columns) {
        const eight g = load8(gains + column);
        for (int64_t i = begin + lane; i < end; i += rows_of_block) {
            const eight a = load8(y + i * ld_y + column);
            eight       d = load8(dy + i * ld_dy + column);
#pragma unroll
            for (int k = 0; k < wide; k++) {
                sum.x[k] += d.x[k] * a.x[k];
                d.x[k] *= g.x[k];
            }
            store8(dy + i * ld_dy + column, d);
        }
    }
#pragma unroll
    for (int k = 0; k < wide; k++) {
        sums[lane][mine + k] = sum.x[k];
    }
    __syncthreads();
    const int64_t c = int64_t(blockIdx.x) * columns_of_block + threadIdx.x;
    if (threadIdx.x < columns_of_block && c < columns) {
        float total = 0;
        for (int i = 0; i < rows_of_block; i++) {
            total += sums[i][threadIdx.x];
        }
        partials[int64_t(blockIdx.y) * columns + c] = total;
    }
}

__global__ void magnitude_gradient_kernel(const float *partials, const float *norms, int64_t columns, float *d_magnitudes) {
    const int64_t c = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (c >= columns) {
        return;
    }
    float total = 0;
    for (int i = 0; i < gain_slices; i++) {
        total += partials[i * columns + c];
    }
    d_magnitudes[c] += total / norms[c];
}

// A warp has a row. Its lanes have elements of B's row; A Aᵀ is symmetric, so that they read neighbours.
__global__ void gains_kernel(const gain_source s, int64_t n, float *norms, float *gains) {
    const int64_t row = (int64_t(blockIdx.x) * threads + threadIdx.x) / lanes;
    if (row >= n) { // a whole warp
        return;
    }
    const float *const b = s.b + row * s.rank;
    double             cross = 0, square = 0;
    for (int64_t i = threadIdx.x % lanes; i < s.rank; i += lanes) {
        float mine = 0;
        for (int64_t j = 0; j < s.rank; j++) {
            mine += s.a_at[j * s.rank + i] * b[j];
        }
        cross += double(b[i]) * double(s.w_at[row * s.rank + i]);
        square += double(b[i]) * double(mine);
    }
#pragma unroll
    for (int o = lanes / 2; o > 0; o /= 2) {
        cross += __shfl_xor_sync(0xffffffffu, cross, o);
        square += __shfl_xor_sync(0xffffffffu, square, o);
    }
    if (threadIdx.x % lanes == 0) {
        const double w = double(s.weight_norms[row]), scale = double(s.scale);
        norms[row] = float(sqrt(w * w + 2 * scale * cross + scale * scale * square));
        gains[row] = s.magnitudes[row] / norms[row];
    }
}

} // namespace

void scale_columns(const float *x, const float *gains, int64_t n, int64_t columns, bf16 *y, int64_t ld_y, cudaStream_t stream) {
    launch("scale_columns", scale_columns_kernel, blocks_for(n * (columns / wide), threads), threads, 0, stream, x, gains, n, columns, y, ld_y);
}

void gain_backward(const bf16 *y, int64_t ld_y, const float *gains, const float *norms, int64_t n, int64_t columns, bf16 *dy, int64_t ld_dy,
                   float *partials, float *d_magnitudes, cudaStream_t stream) {
    launch("gain_backward", gain_backward_kernel, dim3(blocks_for(columns, columns_of_block), unsigned(gain_slices)), threads, 0, stream, y, ld_y, gains, n,
           columns, dy, ld_dy, partials);
    launch("magnitude_gradient", magnitude_gradient_kernel, blocks_for(columns, threads), threads, 0, stream, partials, norms, columns, d_magnitudes);
}

void row_gains(const gain_source &s, int64_t n, float *norms, float *gains, cudaStream_t stream) {
    launch("row_gains", gains_kernel, blocks_for(n * lanes, threads), threads, 0, stream, s, n, norms, gains);
}

} // namespace cft::cuda
