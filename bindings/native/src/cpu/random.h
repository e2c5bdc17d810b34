// random.h - Philox 4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11):
// the value is a function of (key, counter) alone, so dropout masks are recomputed in the backward pass, never stored.
//
// key = the seed. counter = (column / 4 or element / 4, row, stream | high bits, low bits), where
//   dropout:           row = token's index in the pack, stream = layer * 8 + module, bits = number of the micro-batch;
//   A's first values:  row = 0, stream = layer * 8 + module with its top bit set, bits = 0.
// The four words of a block belong to four neighbouring columns.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CFT_HOST_DEVICE __host__ __device__ // the CUDA kernels draw the same numbers
#else
#define CFT_HOST_DEVICE
#endif

namespace cft::cpu {

struct philox_counter {
    uint32_t x[4];
};

constexpr uint32_t philox_multiplier0 = 0xD2511F53u, philox_multiplier1 = 0xCD9E8D57u;
constexpr uint32_t philox_weyl0 = 0x9E3779B9u, philox_weyl1 = 0xBB67AE85u;
constexpr int      philox_rounds = 10;

CFT_HOST_DEVICE inline philox_counter philox(uint64_t key, philox_counter c) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < philox_rounds; round++) {
        const uint64_t p0 = uint64_t(philox_multiplier0) * c.x[0], p1 = uint64_t(philox_multiplier1) * c.x[2];
        c = {{uint32_t(p1 >> 32) ^ c.x[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.x[3] ^ k1, uint32_t(p0)}};
        k0 += philox_weyl0;
        k1 += philox_weyl1;
    }
    return c;
}

// 8 modules a layer and at most 2^12 layers leave the upper half of the word: its top bit tells the two uses apart, the
// other 15 bits continue the number of the micro-batch.
constexpr uint32_t random_init_bit = 0x80000000u;

inline philox_counter dropout_counter(uint64_t micro_batch, int layer, int module, uint32_t token) {
    return {{0, token, uint32_t(layer * 8 + module) | (uint32_t(micro_batch >> 32) & 0x7fffu) << 16, uint32_t(micro_batch)}};
}
inline philox_counter init_counter(int layer, int module) { return {{0, 0, uint32_t(layer * 8 + module) | random_init_bit, 0}}; }

// uniform maps 32 random bits to [0, 1) in steps of 2^-24, exactly representable.
inline float uniform(uint32_t bits) { return float(bits >> 8) * (1.0f / 16777216.0f); }

// dropout_threshold: an element is dropped when its 32 bits are below it.
inline uint32_t dropout_threshold(float probability) { return uint32_t(double(probability) * 4294967296.0); }

} // namespace cft::cpu
