// experts.cu - see experts.h. Lists are made without atomics: each part of the pairs is counted for every expert, the counts are summed in
// order, and each expert's thread writes what it finds.
#include "experts.h"

#include "gate.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256, warps = threads / lanes;
constexpr int part = 2048; // pairs

// ---- the choice: a warp has a row

constexpr int most_of_lane = most_experts / lanes;

struct candidate {
    float   value;
    int32_t expert;
};
__device__ __forceinline__ candidate better(const candidate &a, const candidate &b) {
    return b.value > a.value || (b.value == a.value && b.expert < a.expert) ? b : a;
}
__device__ __forceinline__ candidate warp_best(candidate c) {
#pragma unroll
    for (int o = lanes / 2; o > 0; o /= 2) {
        c = better(c, {__shfl_xor_sync(0xffffffffu, c.value, o), __shfl_xor_sync(0xffffffffu, c.expert, o)});
    }
    return c;
}

// A lane has `of_lane` experts, `lanes` apart.
template <int of_lane> __global__ void choose_experts_kernel(const float *logits, int64_t ld, expert_rows e) {
    constexpr float nobody = -2, not_a_number = -1, taken = -3; // probabilities are 0 or more
    const int       lane   = int(threadIdx.x) % lanes;
    const int64_t   row    = int64_t(blockIdx.x) * warps + threadIdx.x / lanes;
    if (row >= e.n) {
        return;
    }
    float p[of_lane], largest = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < of_lane; i++) {
        const int x = i * lanes + lane;
        p[i]        = x < e.n_expert ? logits[row * ld + x] : -INFINITY;
        largest     = fmaxf(largest, p[i]);
    }
#pragma unroll
    for (int o = lanes / 2; o > 0; o /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, o));
    }
#pragma unroll
    for (int i = 0; i < of_lane; i++) {
        p[i] = i * lanes + lane < e.n_expert ? expf(p[i] - largest) : 0.0f;
        sum += p[i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < of_lane; i++) {
        p[i] = i * lanes + lane < e.n_expert ? p[i] / sum : nobody;
    }
    float chosen = 0;
    for (int k = 0; k < e.n_used; k++) {
        candidate best = {nobody, most_experts};
#pragma unroll
        for (int i = 0; i < of_lane; i++) { // what is not a number comes last, so that the choice is one of experts all the same
            best = better(best, {p[i] == p[i] ? p[i] : not_a_number, i * lanes + lane});
        }
        best          = warp_best(best);
        float of_best = 0;
#pragma unroll
        for (int i = 0; i < of_lane; i++) {
            if (i * lanes + lane == best.expert) {
                of_best = p[i];
                p[i]    = taken;
            }
        }
        of_best = __shfl_sync(0xffffffffu, of_best, best.expert % lanes);
        chosen += of_best;
        if (lane == 0) {
            e.expert[row * e.n_used + k] = best.expert;
            e.share[row * e.n_used + k]  = of_best;
        }
    }
    __syncwarp();
    for (int k = lane; k < e.n_used; k += lanes) {
        e.share[row * e.n_used + k] /= chosen;
    }
}

// ---- the lists

// The part's experts; -1 behind the end.
__device__ __forceinline__ void load_part(const expert_rows &e, int32_t *experts) {
    const int64_t begin = int64_t(blockIdx.x) * part;
    for (int i = threadIdx.x; i < part; i += threads) {
        experts[i] = begin + i < e.n * e.n_used ? e.expert[begin + i] : -1;
    }
    __syncthreads();
}

// parts[i][expert]: pairs of part i.
__global__ void count_experts_kernel(expert_rows e, int32_t *parts) {
    __shared__ int32_t experts[part];
    load_part(e, experts);
    for (int x = threadIdx.x; x < e.n_expert; x += threads) {
        int32_t n = 0;
#pragma unroll 8
        for (int i = 0; i < part; i++) {
            n += experts[i] == x;
        }
        parts[int64_t(blockIdx.x) * e.n_expert + x] = n;
    }
}

// One block: parts[i][expert] becomes the place where that part's first pair of the expert goes.
__global__ void sum_expert_parts_kernel(expert_rows e, int32_t *parts, int64_t n_parts) {
    __shared__ int32_t totals[most_experts];
    const int          x = threadIdx.x;
    int32_t            total = 0;
    if (x < e.n_expert) {
        for (int64_t i = 0; i < n_parts; i++) {
            total += parts[i * e.n_expert + x];
        }
        e.count[x] = total;
    }
    totals[x] = total;
    __syncthreads();
    if (x < e.n_expert) {
        int32_t at = 0;
        for (int i = 0; i < x; i++) {
            at += totals[i];
        }
        for (int64_t i = 0; i < n_parts; i++) {
            const int32_t n            = parts[i * e.n_expert + x];
            parts[i * e.n_expert + x] = at;
            at += n;
        }
    }
}

__global__ void fill_expert_lists_kernel(expert_rows e, const int32_t *parts) {
    __shared__ int32_t experts[part];
    load_part(e, experts);
    for (int x = threadIdx.x; x < e.n_expert; x += threads) {
        int32_t at = parts[int64_t(blockIdx.x) * e.n_expert + x];
#pragma unroll 4
        for (int i = 0; i < part; i++) {
            if (experts[i] == x) {
                const int64_t pair = int64_t(blockIdx.x) * part + i;
                e.place[pair]      = at;
                e.row[at]          = int32_t(pair / e.n_used);
                e.weight[at]       = e.share[pair];
                at++;
            }
        }
    }
}

// ---- rows

__global__ void sum_experts_kernel(const bf16 *from, expert_rows e, bool shares, bool add, int64_t columns, bf16 *to, int64_t ld_to) {
    const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x, eighths = columns / 8, row = i / eighths, column = i % eighths * 8;
    if (row >= e.n) {
        return;
    }
    eight sum{};
    for (int k = 0; k < e.n_used; k++) {
        const int64_t pair   = row * e.n_used + k;
        const eight   y      = load8(from + e.place[pair] * columns + column);
        const float   factor = shares ? e.share[pair] : 1.0f;
        for (int c = 0; c < 8; c++) {
            sum.x[c] += factor * y.x[c];
        }
    }
    if (add) {
        const eight old = load8(to + row * ld_to + column);
        for (int c = 0; c < 8; c++) {
            sum.x[c] += old.x[c];
        }
    }
    store8(to + row * ld_to + column, sum);
}

// A warp has a place.
__global__ void gated_experts_backward_kernel(bool gelu, const bf16 *d_act, const float *weight, int64_t n, int64_t columns, bf16 *gate_up, float *d_weight) {
    const int     lane = int(threadIdx.x) % lanes;
    const int64_t at   = int64_t(blockIdx.x) * warps + threadIdx.x / lanes;
    if (at >= n) {
        return;
    }
    bf16 *const gates = gate_up + at * 2 * columns, *const ups = gates + columns;
    const float share = weight[at];
    float       product = 0;
    for (int64_t c = lane * 8; c < columns; c += lanes * 8) {
        const eight d = load8(d_act + at * columns + c), g = load8(gates + c), u = load8(ups + c);
        eight       d_gate, d_up;
        for (int k = 0; k < 8; k++) {
            float act, slope;
            gate_of(gelu, g.x[k], act, slope);
            product += d.x[k] * widen(narrow<bf16>(act * u.x[k]));
            d_up.x[k]   = share * d.x[k] * act;
            d_gate.x[k] = share * d.x[k] * u.x[k] * slope;
        }
        store8(gates + c, d_gate);
        store8(ups + c, d_up);
    }
    product = warp_sum(product);
    if (lane == 0) {
        d_weight[at] = product;
    }
}

// A warp has a row; a lane looks through the row's experts for each of its columns.
__global__ void choose_experts_backward_kernel(expert_rows e, const float *d_weight, int64_t n_padded, bf16 *d_logits) {
    const int     lane = int(threadIdx.x) % lanes;
    const int64_t row  = int64_t(blockIdx.x) * warps + threadIdx.x / lanes;
    if (row >= e.n) {
        return;
    }
    float mean = 0;
    for (int k = 0; k < e.n_used; k++) {
        mean += e.share[row * e.n_used + k] * d_weight[e.place[row * e.n_used + k]];
    }
    for (int64_t x = lane; x < n_padded; x += lanes) {
        float d = 0;
        for (int k = 0; k < e.n_used; k++) {
            const int64_t pair = row * e.n_used + k;
            if (e.expert[pair] == x) {
                d = e.share[pair] * (d_weight[e.place[pair]] - mean);
            }
        }
        d_logits[row * n_padded + x] = narrow<bf16>(d);
    }
}

int64_t parts_of(int64_t places) { return (places + part - 1) / part; }

template <int of_lane> void start_choice(const float *logits, int64_t ld, const expert_rows &e, cudaStream_t stream) {
    launch("choose_experts", choose_experts_kernel<of_lane>, blocks_for(e.n, warps), threads, 0, stream, logits, ld, e);
}

} // namespace

void choose_experts(const float *logits, int64_t ld_logits, const expert_rows &e, cudaStream_t stream) {
    if (e.n_expert > most_experts || e.n_used > e.n_expert) {
        throw failure(CFT_ERR_UNSUPPORTED, "CUDA: " + std::to_string(e.n_used) + " experts of " + std::to_string(e.n_expert));
    }
    e.n_expert <= 128 ? start_choice<128 / lanes>(logits, ld_logits, e, stream) : start_choice<most_of_lane>(logits, ld_logits, e, stream);
}

int64_t expert_part_words(int64_t places, int n_expert) { return parts_of(places) * n_expert; }

void list_experts(const expert_rows &e, int32_t *parts, cudaStream_t stream) {
    const int64_t n_parts = parts_of(e.places());
    launch("count rows of experts", count_experts_kernel, unsigned(n_parts), threads, 0, stream, e, parts);
    launch("sum rows of experts", sum_expert_parts_kernel, 1, most_experts, 0, stream, e, parts, n_parts);
    launch("list rows of experts", fill_expert_lists_kernel, unsigned(n_parts), threads, 0, stream, e, parts);
}

void sum_experts(const bf16 *from, const expert_rows &e, bool shares, bool add, int64_t columns, bf16 *to, int64_t ld_to, cudaStream_t stream) {
    launch("sum_experts", sum_experts_kernel, blocks_for(e.n * (columns / 8), threads), threads, 0, stream, from, e, shares, add, columns, to, ld_to);
}

void gated_experts_backward(bool gelu, const bf16 *d_act, const float *weight, int64_t n, int64_t columns, bf16 *gate_up, float *d_weight,
                            cudaStream_t stream) {
    launch("gated_experts_backward", gated_experts_backward_kernel, blocks_for(n, warps), threads, 0, stream, gelu, d_act, weight, n, columns, gate_up, d_weight);
}

void choose_experts_backward(const expert_rows &e, const float *d_weight, int64_t n_padded, bf16 *d_logits, cudaStream_t stream) {
    launch("choose_experts_backward", choose_experts_backward_kernel, blocks_for(e.n, warps), threads, 0, stream, e, d_weight, n_padded, d_logits);
}

} // namespace cft::cuda
