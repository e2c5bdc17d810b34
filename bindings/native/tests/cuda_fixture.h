// cuda_fixture.h - what the tests of the CUDA kernels share. They run on the CPU over the shim, each in both orders of blocks
// and threads, and the same sources compile with nvcc for a device.
#pragma once

#include "checks.h"
#include "cuda/kernels.h"

#include "ggml.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "cuda/shim/cuda_shim.h"
#endif

#include <cstdlib>
#include <cstring>

namespace checks {

using cft::cuda::bf16;

inline void must(cudaError_t e) {
    if (e != cudaSuccess) {
        std::fprintf(stderr, "%s: CUDA: %s\n", where.c_str(), cudaGetErrorString(e));
        std::exit(1);
    }
}

// on_device is an array in device memory. What is not written reads as NaN; what is written behind its end is found.
template <typename T> class on_device {
  public:
    explicit on_device(size_t n) : n_(n) { fill(nullptr); }
    explicit on_device(const std::vector<T> &from) : n_(from.size()) { fill(from.data()); }
    ~on_device() {
        std::vector<unsigned char> behind(guard);
        must(cudaMemcpy(behind.data(), data_ + n_ * sizeof(T), guard, cudaMemcpyDeviceToHost));
        CHECK(std::all_of(behind.begin(), behind.end(), [](unsigned char b) { return b == guard_byte; }));
        must(cudaFree(data_));
    }
    on_device(const on_device &)            = delete;
    on_device &operator=(const on_device &) = delete;

    T             *data() { return reinterpret_cast<T *>(data_); }
    size_t         size() const { return n_; }
    std::vector<T> host() const {
        std::vector<T> v(n_);
        must(cudaMemcpy(v.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost)); // waits for the default stream's work
        return v;
    }

  private:
    static constexpr size_t        guard      = 64;
    static constexpr unsigned char guard_byte = 0xA5, fresh_byte = 0xFF;

    [[gnu::noinline]] void fill(const T *from) { // GCC, where it sees the caller, thinks of sizes that wrap around
        void *p;
        must(cudaMalloc(&p, n_ * sizeof(T) + guard));
        data_ = static_cast<unsigned char *>(p);
        std::vector<unsigned char> bytes(n_ * sizeof(T), fresh_byte);
        bytes.resize(bytes.size() + guard, guard_byte);
        if (from) {
            std::memcpy(bytes.data(), from, n_ * sizeof(T));
        }
        must(cudaMemcpy(data_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    }

    size_t         n_;
    unsigned char *data_;
};

inline bf16  to_bf16(float x) { return bf16{ggml_fp32_to_bf16(x).bits}; }
inline float to_float(bf16 x) { return ggml_bf16_to_fp32(ggml_bf16_t{x.bits}); }
inline float to_float(float x) { return x; }

template <typename T> T to(float x);
template <> inline float to<float>(float x) { return x; }
template <> inline bf16 to<bf16>(float x) { return to_bf16(x); }

template <typename T> std::vector<T> all_to(const std::vector<float> &v) {
    std::vector<T> r(v.size());
    std::transform(v.begin(), v.end(), r.begin(), [](float x) { return to<T>(x); });
    return r;
}
template <typename T> std::vector<float> all_to_float(const std::vector<T> &v) {
    std::vector<float> r(v.size());
    std::transform(v.begin(), v.end(), r.begin(), [](T x) { return to_float(x); });
    return r;
}

// Random numbers that are bf16 already, so that a reference sees what the kernel sees.
inline std::vector<float> random_rounded(size_t n, float spread = 1.0f) { return all_to_float(all_to<bf16>(random_floats(n, spread))); }

template <typename T> bool same_bytes(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Runs a case on the shim in both orders; on a device twice as well, since its order is its own.
template <typename Body> void in_both_orders(const std::string &name, Body &&body) {
    for (int order = 0; order < 2; order++) {
        where = name + (order == 0 ? ", ascending" : ", descending");
#if !defined(__CUDACC__)
        cft::cuda::shim::descending = order == 1;
#endif
        random_bits.seed(1);
        body();
    }
}

} // namespace checks
