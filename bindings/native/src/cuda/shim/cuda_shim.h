// cuda_shim.h - what our kernels use of CUDA, on the CPU, so that they can be tested on machines without a device. It takes
// the place of cuda_runtime.h where the compiler is not nvcc.
//
// A launch runs its blocks one after the other on the calling thread, each thread of a block as a fiber that runs until it
// reaches a barrier or a warp's exchange; a warp goes as far as it can before the next one moves. Blocks, warps and threads run
// in ascending or descending order (shim::descending), so that a kernel which needs one of the two is found by running it in
// both; asynchronous copies happen as late as they may in the former, at once in the latter. Memory is the host's. What is put on a stream
// happens at once or, on a late stream, no sooner than somebody waits for it, so that two streams that do not wait for one another where they
// must are found. It shows wrong sums, wrong indices, missing barriers; not speed, and not races that need real parallelism.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};

namespace cft::cuda::shim {

inline bool descending = false; // the order of blocks, and of threads between two barriers

// What a kernel sees of itself.
inline dim3  thread_index, block_index, block_size, grid_size;
inline char *shared_memory = nullptr;

constexpr int warp_size = 32;

// How often each kernel was launched, by the name that launch() is given.
inline std::map<std::string, size_t> launches;

// Runs body once for each thread of each block. A block whose threads wait for one another forever, or that writes past its
// dynamic shared memory, ends the process with words; so does an address that its vectors or copies are not aligned to.
void run(const char *name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &body);

void block_barrier();
// Ends the process with words where the address is no multiple of so many bytes, which a device refuses.
void misaligned(const void *p, size_t bytes);
inline void check_alignment(const void *p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
        misaligned(p, bytes);
    }
}
// What the threads of a warp bring to an exchange: lane i's bytes, at most 32, at of_lane[i].
struct warp_values {
    alignas(16) unsigned char of_lane[warp_size][32];
};
inline int   current_lane = 0;
inline int   lane() { return current_lane; }
warp_values &next_values(); // where this thread leaves what it brings next
void         wait_for_warp();

// Waits for the warp's threads, and gives what each of them brought.
template <typename T> const warp_values &exchange(const T &value) {
    static_assert(sizeof value <= sizeof warp_values::of_lane[0], "more than a lane has room for");
    warp_values &values = next_values();
    std::memcpy(values.of_lane[lane()], &value, sizeof value);
    wait_for_warp();
    return values;
}

// Copies to shared memory that happen at once, or no sooner than the thread waits for them (from NULL: zeros).
void copy_later(void *to, const void *from, size_t bytes);
void end_copy_group();
void finish_copies(size_t pending_groups); // all but the newest so many groups

} // namespace cft::cuda::shim

#define threadIdx (cft::cuda::shim::thread_index)
#define blockIdx (cft::cuda::shim::block_index)
#define blockDim (cft::cuda::shim::block_size)
#define gridDim (cft::cuda::shim::grid_size)

inline void __syncthreads() { cft::cuda::shim::block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { cft::cuda::shim::exchange(char()); }

template <typename T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
    const int  from = cft::cuda::shim::lane() ^ mask;
    T          result;
    std::memcpy(&result, cft::cuda::shim::exchange(value).of_lane[from], sizeof result);
    return result;
}

template <typename T> T __shfl_sync(unsigned, T value, int from, int = 32) {
    T result;
    std::memcpy(&result, cft::cuda::shim::exchange(value).of_lane[from], sizeof result);
    return result;
}

// ---- the runtime's functions

struct CUstream_st {
    bool                              late = false;
    std::deque<std::function<void()>> work;     // not done yet
    size_t                            done = 0; // pieces of work
};
typedef CUstream_st *cudaStream_t;

namespace cft::cuda::shim {

// No stream is one that is never late.
inline void put(cudaStream_t s, std::function<void()> work) {
    if (s && s->late) {
        s->work.push_back(std::move(work));
    } else {
        work();
    }
}

// Does a stream's work until so many pieces are done.
inline void finish(cudaStream_t s, size_t pieces) {
    while (s->done < pieces && !s->work.empty()) {
        const std::function<void()> next = std::move(s->work.front());
        s->work.pop_front();
        s->done++;
        next();
    }
}

} // namespace cft::cuda::shim

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline const char *cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : e == cudaErrorMemoryAllocation ? "out of memory" : "invalid value"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void **p, size_t bytes) { return (*p = std::aligned_alloc(256, (bytes + 255) / 256 * 256)) ? cudaSuccess : cudaErrorMemoryAllocation; }
inline cudaError_t cudaFree(void *p) { return std::free(p), cudaSuccess; }
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind) {
    return n > 0 ? (void)std::memmove(to, from, n) : (void)0, cudaSuccess; // of nothing, the addresses may be null
}
inline cudaError_t cudaMemsetAsync(void *to, int byte, size_t n, cudaStream_t s = nullptr) {
    cft::cuda::shim::put(s, [=] { n > 0 ? (void)std::memset(to, byte, n) : (void)0; });
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
