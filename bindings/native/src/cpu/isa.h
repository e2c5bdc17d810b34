// isa.h - which of the versions of a kernel this CPU runs.
#pragma once

namespace cft::cpu {

enum class isa { generic, avx2, avx512 };

inline bool cpu_has(isa i) {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    switch (i) {
    case isa::avx512:
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw");
    case isa::avx2: return avx2;
    case isa::generic: return true;
    }
#endif
    return i == isa::generic;
}

inline isa best_isa() { return cpu_has(isa::avx512) ? isa::avx512 : cpu_has(isa::avx2) ? isa::avx2 : isa::generic; }

} // namespace cft::cpu
