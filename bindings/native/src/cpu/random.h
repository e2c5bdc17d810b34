// random.h - Philox 4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11):
// the value is a function of (key, counter) alone, so dropout masks are recomputed in the backward pass, never stored.
#pragma once

#include <cstdint>

namespace cft::cpu {

struct philox_block {
    uint32_t x[4];
};

inline philox_block philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
        const uint32_t n0 = uint32_t(p1 >> 32) ^ c1 ^ k0, n2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(p1);
        c3 = uint32_t(p0);
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// uniform maps 32 random bits to [0, 1) in steps of 2^-24, exactly representable.
inline float uniform(uint32_t bits) { return float(bits >> 8) * (1.0f / 16777216.0f); }

} // namespace cft::cpu
