// dequantize.cu - weights of every GGUF type to bf16 or F32. The formulas are ggml's (ggml-quants.c), product by product, so
// that the values are the same bits; its tables and block layouts come from ggml-common.h. A thread makes eight neighbours,
// which one 16-byte store of bf16 takes; the lanes of a warp make 256 neighbours, which is a K-quant's block.
#include "device.h"

#define GGML_COMMON_DECL_C
#define GGML_COMMON_IMPL_CUDA
#include "ggml-common.h"

namespace cft::cuda {
namespace {

constexpr int threads = 256, per_thread = 8;

__device__ __forceinline__ float half_to_float(uint16_t bits) {
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half(bits));
#else
    return ggml_fp16_to_fp32(bits);
#endif
}

// The value of a byte's exponent, halved: MXFP4's tables hold doubled values.
__device__ __forceinline__ float half_power(uint8_t e) { return as_float(e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23); }

// ---- one block's elements [8 * g, 8 * g + 8). `size` is how many elements a block has.

template <int type> struct format;

// Blocks of 32 with the low halves of 16 bytes first, then the high ones.
__device__ __forceinline__ int nibble(const uint8_t *qs, int g, int k) { return qs[g % 2 * 8 + k] >> g / 2 * 4 & 15; }

template <> struct format<GGML_TYPE_Q4_0> {
    using block = block_q4_0;
    static constexpr int size = QK4_0;
    __device__ static void decode(const block &b, int g, float *y) {
        const float d = half_to_float(b.d);
        for (int k = 0; k < 8; k++) {
            y[k] = times(float(nibble(b.qs, g, k) - 8), d);
        }
    }
};

template <> struct format<GGML_TYPE_Q4_1> {
    using block = block_q4_1;
    static constexpr int size = QK4_1;
    __device__ static void decode(const block &b, int g, float *y) {
        const float d = half_to_float(b.d), m = half_to_float(b.m);
        for (int k = 0; k < 8; k++) {
            y[k] = plus(times(float(nibble(b.qs, g, k)), d), m);
        }
    }
};

__device__ __forceinline__ uint32_t high_bits(const uint8_t (&qh)[4]) {
    return uint32_t(qh[0]) | uint32_t(qh[1]) << 8 | uint32_t(qh[2]) << 16 | uint32_t(qh[3]) << 24;
}

template <> struct format<GGML_TYPE_Q5_0> {
    using block = block_q5_0;
    static constexpr int size = QK5_0;
    __device__ static void decode(const block &b, int g, float *y) {
        const float    d = half_to_float(b.d);
        const uint32_t h = high_bits(b.qh) >> 8 * g;
        for (int k = 0; k < 8; k++) {
            y[k] = times(float(int(nibble(b.qs, g, k) | (h >> k & 1) << 4) - 16), d);
        }
    }
};

template <> struct format<GGML_TYPE_Q5_1> {
    using block = block_q5_1;
    static constexpr int size = QK5_1;
    __device__ static void decode(const block &b, int g, float *y) {
        const float    d = half_to_float(b.d), m = half_to_float(b.m);
        const uint32_t h = high_bits(b.qh) >> 8 * g;
        for (int k = 0; k < 8; k++) {
            y[k] = plus(times(float(nibble(b.qs, g, k) | (h >> k & 1) << 4), d), m);
        }
    }
};

template <> struct format<GGML_TYPE_Q8_0> {
    using block = block_q8_0;
    static constexpr int size = QK8_0;
    __device__ static void decode(const block &b, int g, float *y) {
        const float d = half_to_float(b.d);
        for (int k = 0; k < 8; k++) {
            y[k] = times(float(b.qs[8 * g + k]), d);
        }
    }
};

template <> struct format<GGML_TYPE_MXFP4> {
    using block = block_mxfp4;
    static constexpr int size = QK_MXFP4;
    __device__ static void decode(const block &b, int g, float *y) {
        const float d = half_power(b.e);
        for (int k = 0; k < 8; k++) {
            y[k] = times(float(kvalues_mxfp4[nibble(b.qs, g, k)]), d);
        }
    }
};

template <> struct format<GGML_TYPE_IQ4_NL> {
    using block = block_iq4_nl;
    static constexpr int size = QK4_NL;
    __device__ static void decode(const block &b, int g, float *y) {
        const float d = half_to_float(b.d);
        for (int k = 0; k < 8; k++) {
            y[k] = times(d, float(kvalues_iq4nl[nibble(b.qs, g, k)]));
        }
    }
};

// ---- K-quants: blocks of 256. Q2_K and Q3_K: two halves of 128; in each, four rounds of 2 bits over the same 32 bytes.

template <> struct format<GGML_TYPE_Q2_K> {
    using block = block_q2_K;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int   half = g / 16, round = g / 4 % 4, byte = g % 4 * 8;
        const int   sc   = b.scales[8 * half + 2 * round + byte / 16];
        const float dl = times(half_to_float(b.d), float(sc & 15)), ml = times(half_to_float(b.dmin), float(sc >> 4));
        for (int k = 0; k < 8; k++) {
            y[k] = plus(times(dl, float(b.qs[32 * half + byte + k] >> 2 * round & 3)), -ml);
        }
    }
};

template <> struct format<GGML_TYPE_Q3_K> {
    using block = block_q3_K;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int half = g / 16, round = g / 4 % 4, byte = g % 4 * 8, is = 8 * half + 2 * round + byte / 16;
        // Six bits: four of the first eight bytes' halves, two of the last four bytes.
        const int   low = b.scales[is % 8] >> (is / 8 * 4) & 15, high = b.scales[8 + is % 4] >> (is / 4 * 2) & 3;
        const float dl = times(half_to_float(b.d), float((low | high << 4) - 32));
        for (int k = 0; k < 8; k++) {
            const int q = b.qs[32 * half + byte + k] >> 2 * round & 3, set = b.hmask[byte + k] >> (4 * half + round) & 1;
            y[k] = times(dl, float(q - (set ? 0 : 4)));
        }
    }
};

// Six-bit scales and minimums of Q4_K and Q5_K, eight of each in twelve bytes.
__device__ __forceinline__ void scale_and_min(const uint8_t *q, int j, int &scale, int &min) {
    if (j < 4) {
        scale = q[j] & 63;
        min   = q[j + 4] & 63;
    } else {
        scale = (q[j + 4] & 15) | q[j - 4] >> 6 << 4;
        min   = q[j + 4] >> 4 | q[j] >> 6 << 4;
    }
}

template <> struct format<GGML_TYPE_Q4_K> {
    using block = block_q4_K;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int is = g / 4, byte = g / 8 * 32 + g % 4 * 8;
        int       sc, m;
        scale_and_min(b.scales, is, sc, m);
        const float d = times(half_to_float(b.d), float(sc)), min = times(half_to_float(b.dmin), float(m));
        for (int k = 0; k < 8; k++) {
            y[k] = plus(times(d, float(b.qs[byte + k] >> is % 2 * 4 & 15)), -min);
        }
    }
};

template <> struct format<GGML_TYPE_Q5_K> {
    using block = block_q5_K;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int is = g / 4, byte = g / 8 * 32 + g % 4 * 8;
        int       sc, m;
        scale_and_min(b.scales, is, sc, m);
        const float d = times(half_to_float(b.d), float(sc)), min = times(half_to_float(b.dmin), float(m));
        for (int k = 0; k < 8; k++) {
            const int q = (b.qs[byte + k] >> is % 2 * 4 & 15) + (b.qh[g % 4 * 8 + k] >> is & 1) * 16;
            y[k]        = plus(times(d, float(q)), -min);
        }
    }
};

template <> struct format<GGML_TYPE_Q6_K> {
    using block = block_q6_K;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int   half = g / 16, quarter = g / 4 % 4, l = g % 4 * 8;
        const float d = times(half_to_float(b.d), float(b.scales[8 * half + l / 16 + 2 * quarter]));
        for (int k = 0; k < 8; k++) {
            const int low = b.ql[64 * half + quarter % 2 * 32 + l + k] >> quarter / 2 * 4 & 15, high = b.qh[32 * half + l + k] >> 2 * quarter & 3;
            y[k]          = times(d, float((low | high << 4) - 32));
        }
    }
};

// ---- quants of a codebook: eight values are a row of a table; signs are bits

__device__ __forceinline__ float signed_value(float magnitude, uint32_t signs, int k) { return signs >> k & 1 ? -magnitude : magnitude; }

__device__ __forceinline__ uint32_t word(const uint16_t *p) { return uint32_t(p[0]) | uint32_t(p[1]) << 16; }

template <> struct format<GGML_TYPE_IQ2_XXS> {
    using block = block_iq2_xxs;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int      ib = g / 4, l = g % 4;
        const uint32_t indices = word(b.qs + 4 * ib), rest = word(b.qs + 4 * ib + 2), signs = ksigns_iq2xs[rest >> 7 * l & 127];
        const float    db   = times(times(half_to_float(b.d), 0.5f + float(rest >> 28)), 0.25f);
        const uint64_t grid = iq2xxs_grid[indices >> 8 * l & 255];
        for (int k = 0; k < 8; k++) {
            y[k] = signed_value(times(db, float(grid >> 8 * k & 255)), signs, k);
        }
    }
};

template <> struct format<GGML_TYPE_IQ2_XS> {
    using block = block_iq2_xs;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int      q = b.qs[g], scale = b.scales[g / 4] >> g % 4 / 2 * 4 & 15;
        const float    db    = times(times(half_to_float(b.d), 0.5f + float(scale)), 0.25f);
        const uint64_t grid  = iq2xs_grid[q & 511];
        const uint32_t signs = ksigns_iq2xs[q >> 9];
        for (int k = 0; k < 8; k++) {
            y[k] = signed_value(times(db, float(grid >> 8 * k & 255)), signs, k);
        }
    }
};

template <> struct format<GGML_TYPE_IQ2_S> {
    using block = block_iq2_s;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int      ib = g / 4, l = g % 4, scale = b.scales[ib] >> l / 2 * 4 & 15;
        const float    db    = times(times(half_to_float(b.d), 0.5f + float(scale)), 0.25f);
        const uint64_t grid  = iq2s_grid[b.qs[g] | (b.qh[ib] << (8 - 2 * l) & 0x300)];
        const uint32_t signs = b.qs[QK_K / 8 + g];
        for (int k = 0; k < 8; k++) {
            y[k] = signed_value(times(db, float(grid >> 8 * k & 255)), signs, k);
        }
    }
};

// Two rows of four.
__device__ __forceinline__ void two_rows(float scale, uint32_t first, uint32_t second, uint32_t signs, float *y) {
    for (int k = 0; k < 4; k++) {
        y[k]     = signed_value(times(scale, float(first >> 8 * k & 255)), signs, k);
        y[k + 4] = signed_value(times(scale, float(second >> 8 * k & 255)), signs, k + 4);
    }
}

template <> struct format<GGML_TYPE_IQ3_XXS> {
    using block = block_iq3_xxs;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const uint8_t *const p    = b.qs + QK_K / 4 + g / 4 * 4;
        const uint32_t       rest = uint32_t(p[0]) | uint32_t(p[1]) << 8 | uint32_t(p[2]) << 16 | uint32_t(p[3]) << 24;
        const float          db   = times(times(half_to_float(b.d), 0.5f + float(rest >> 28)), 0.5f);
        two_rows(db, iq3xxs_grid[b.qs[2 * g]], iq3xxs_grid[b.qs[2 * g + 1]], ksigns_iq2xs[rest >> 7 * (g % 4) & 127], y);
    }
};

template <> struct format<GGML_TYPE_IQ3_S> {
    using block = block_iq3_s;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int   ib = g / 4, l = g % 4, high = b.qh[ib];
        const float db = times(half_to_float(b.d), float(1 + 2 * (b.scales[ib / 2] >> ib % 2 * 4 & 15)));
        two_rows(db, iq3s_grid[b.qs[2 * g] | (high << (8 - 2 * l) & 256)], iq3s_grid[b.qs[2 * g + 1] | (high << (7 - 2 * l) & 256)], b.signs[g], y);
    }
};

// A row of -1, 0 and 1, stored as 0, 1 and 2 in half a byte each: the first four in the lower halves.
__device__ __forceinline__ void row_with_delta(float scale, uint32_t grid, bool negative, float *y) {
    for (int k = 0; k < 8; k++) {
        const int q = int(grid >> (8 * (k % 4) + k / 4 * 4) & 15) - 1;
        y[k]        = times(scale, plus(float(q), negative ? -IQ1S_DELTA : IQ1S_DELTA));
    }
}

template <> struct format<GGML_TYPE_IQ1_S> {
    using block = block_iq1_s;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int   h  = b.qh[g / 4];
        const float dl = times(half_to_float(b.d), float(2 * (h >> 12 & 7) + 1));
        row_with_delta(dl, iq1s_grid_gpu[b.qs[g] | (h >> 3 * (g % 4) & 7) << 8], h & 0x8000, y);
    }
};

template <> struct format<GGML_TYPE_IQ1_M> {
    using block = block_iq1_m;
    static constexpr int size = QK_K;
    __device__ static int scale_word(const block &b, int i) { return b.scales[2 * i] | b.scales[2 * i + 1] << 8; }
    __device__ static void decode(const block &b, int g, float *y) {
        const int ib = g / 4, high = b.qh[g / 2] >> g % 2 * 4;
        const int d  = scale_word(b, 0) >> 12 | (scale_word(b, 1) >> 8 & 0x00f0) | (scale_word(b, 2) >> 4 & 0x0f00) | (scale_word(b, 3) & 0xf000);
        const int scale = scale_word(b, ib / 2) >> (6 * (ib % 2) + g % 4 / 2 * 3) & 7;
        row_with_delta(times(half_to_float(uint16_t(d)), float(2 * scale + 1)), iq1s_grid_gpu[b.qs[g] | (high & 7) << 8], high & 8, y);
    }
};

template <> struct format<GGML_TYPE_IQ4_XS> {
    using block = block_iq4_xs;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const int   ib = g / 4, scale = (b.scales_l[ib / 2] >> ib % 2 * 4 & 15) | (b.scales_h >> 2 * ib & 3) << 4;
        const float dl = times(half_to_float(b.d), float(scale - 32));
        for (int k = 0; k < 8; k++) {
            y[k] = times(dl, float(kvalues_iq4nl[nibble(b.qs + 16 * ib, g % 4, k)]));
        }
    }
};

// ---- ternary

// Digit n of a byte that holds five of base three.
__device__ __forceinline__ float ternary(int byte, int n) {
    constexpr int powers[5] = {1, 3, 9, 27, 81};
    return float(((byte * powers[n] & 255) * 3 >> 8) - 1);
}

template <> struct format<GGML_TYPE_TQ1_0> {
    using block = block_tq1_0;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const float d = half_to_float(b.d);
        for (int k = 0; k < 8; k++) {
            const int e = 8 * g + k; // 5 digits of 32 bytes, 5 of 16, 4 of 4
            float     digit;
            if (e < 160) {
                digit = ternary(b.qs[e % 32], e / 32);
            } else if (e < 240) {
                digit = ternary(b.qs[32 + e % 16], (e - 160) / 16);
            } else {
                digit = ternary(b.qh[e % 4], (e - 240) / 4);
            }
            y[k] = times(digit, d);
        }
    }
};

template <> struct format<GGML_TYPE_TQ2_0> {
    using block = block_tq2_0;
    static constexpr int size = QK_K;
    __device__ static void decode(const block &b, int g, float *y) {
        const float d = half_to_float(b.d);
        for (int k = 0; k < 8; k++) {
            y[k] = times(float((b.qs[g / 16 * 32 + g % 4 * 8 + k] >> 2 * (g / 4 % 4) & 3) - 1), d);
        }
    }
};

// ---- plain types, as blocks of eight

struct eight_words {
    uint32_t x[8];
};
struct eight_halves {
    uint16_t x[8];
};

template <> struct format<GGML_TYPE_F32> {
    using block = eight_words;
    static constexpr int size = 8;
    __device__ static void decode(const block &b, int, float *y) {
        for (int k = 0; k < 8; k++) {
            y[k] = as_float(b.x[k]);
        }
    }
};

template <> struct format<GGML_TYPE_F16> {
    using block = eight_halves;
    static constexpr int size = 8;
    __device__ static void decode(const block &b, int, float *y) {
        for (int k = 0; k < 8; k++) {
            y[k] = half_to_float(b.x[k]);
        }
    }
};

template <> struct format<GGML_TYPE_BF16> {
    using block = eight_halves;
    static constexpr int size = 8;
    __device__ static void decode(const block &b, int, float *y) {
        for (int k = 0; k < 8; k++) {
            y[k] = as_float(uint32_t(b.x[k]) << 16);
        }
    }
};

struct job {
    const unsigned char *from;
    size_t               row_bytes;
    const int32_t       *rows; // NULL: all in order
    int64_t              n, eighths; // of a row
    float                scale;
    int64_t              ld_to;
    bool                 aligned; // rows of the result allow 16-byte stores
};

template <int type, typename T> __global__ void dequantize_kernel(job j, T *to) {
    using f               = format<type>;
    constexpr int groups  = f::size / per_thread;
    const int64_t i       = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (i >= j.n * j.eighths) {
        return;
    }
    const int64_t row = i / j.eighths, at = i % j.eighths;
    const auto   *blocks = reinterpret_cast<const typename f::block *>(j.from + size_t(j.rows ? j.rows[row] : row) * j.row_bytes);
    eight         e;
    f::decode(blocks[at / groups], int(at % groups), e.x);
    if (j.scale != 1.0f) {
        for (float &x : e.x) {
            x *= j.scale;
        }
    }
    T *const out = to + row * j.ld_to + at * per_thread;
    if (j.aligned) {
        store8(out, e);
    } else {
        for (int k = 0; k < per_thread; k++) {
            out[k] = narrow<T>(e.x[k]);
        }
    }
}

template <int type, typename T> void start(const job &j, T *to, cudaStream_t stream) {
    launch("dequantize", dequantize_kernel<type, T>, blocks_for(j.n * j.eighths, threads), threads, 0, stream, j, to);
}

template <typename T> bool start_type(ggml_type type, const job &j, T *to, cudaStream_t stream) {
    switch (type) {
#define CFT_TYPE(name) case name: start<name>(j, to, stream); return true;
    CFT_TYPE(GGML_TYPE_F32)
    CFT_TYPE(GGML_TYPE_F16)
    CFT_TYPE(GGML_TYPE_BF16)
    CFT_TYPE(GGML_TYPE_Q4_0)
    CFT_TYPE(GGML_TYPE_Q4_1)
    CFT_TYPE(GGML_TYPE_Q5_0)
    CFT_TYPE(GGML_TYPE_Q5_1)
    CFT_TYPE(GGML_TYPE_Q8_0)
    CFT_TYPE(GGML_TYPE_Q2_K)
    CFT_TYPE(GGML_TYPE_Q3_K)
    CFT_TYPE(GGML_TYPE_Q4_K)
    CFT_TYPE(GGML_TYPE_Q5_K)
    CFT_TYPE(GGML_TYPE_Q6_K)
    CFT_TYPE(GGML_TYPE_IQ1_S)
    CFT_TYPE(GGML_TYPE_IQ1_M)
    CFT_TYPE(GGML_TYPE_IQ2_XXS)
    CFT_TYPE(GGML_TYPE_IQ2_XS)
    CFT_TYPE(GGML_TYPE_IQ2_S)
    CFT_TYPE(GGML_TYPE_IQ3_XXS)
    CFT_TYPE(GGML_TYPE_IQ3_S)
    CFT_TYPE(GGML_TYPE_IQ4_NL)
    CFT_TYPE(GGML_TYPE_IQ4_XS)
    CFT_TYPE(GGML_TYPE_MXFP4)
    CFT_TYPE(GGML_TYPE_TQ1_0)
    CFT_TYPE(GGML_TYPE_TQ2_0)
#undef CFT_TYPE
    default: return false;
    }
}

template <typename T>
void convert(ggml_type type, const void *from, size_t row_bytes, const int32_t *rows, int64_t n, int64_t columns, float scale, T *to,
             int64_t ld_to, cudaStream_t stream) {
    const bool aligned = reinterpret_cast<uintptr_t>(to) % 16 == 0 && ld_to * int64_t(sizeof(T)) % 16 == 0;
    const job  j       = {static_cast<const unsigned char *>(from), row_bytes, rows, n, columns / per_thread, scale, ld_to, aligned};
    if (columns % per_thread != 0) {
        throw failure(CFT_ERR_UNSUPPORTED, "CUDA: a weight's rows have " + std::to_string(columns) + " columns, not a multiple of 8");
    }
    if (!start_type(type, j, to, stream)) {
        throw failure(CFT_ERR_UNSUPPORTED, "CUDA: weights of type number " + std::to_string(int(type)) + " cannot be dequantized");
    }
}

} // namespace

bool can_dequantize(ggml_type type) { return start_type<float>(type, job(), nullptr, nullptr); } // a grid of no blocks: nothing starts

template <typename T>
void dequantize(ggml_type type, const void *from, size_t row_bytes, int64_t n, int64_t columns, T *to, int64_t ld_to, cudaStream_t stream) {
    convert(type, from, row_bytes, nullptr, n, columns, 1.0f, to, ld_to, stream);
}

template <typename T>
void embed(ggml_type type, const void *from, size_t row_bytes, const int32_t *rows, int64_t n, int64_t columns, float scale, T *to,
           int64_t ld_to, cudaStream_t stream) {
    convert(type, from, row_bytes, rows, n, columns, scale, to, ld_to, stream);
}

#define CFT_FOR(T)                                                                                                                              \
    template void dequantize(ggml_type, const void *, size_t, int64_t, int64_t, T *, int64_t, cudaStream_t);                                    \
    template void embed(ggml_type, const void *, size_t, const int32_t *, int64_t, int64_t, float, T *, int64_t, cudaStream_t);
CFT_FOR(float)
CFT_FOR(bf16)
#undef CFT_FOR

} // namespace cft::cuda
