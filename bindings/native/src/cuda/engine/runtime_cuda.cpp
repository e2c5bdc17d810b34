// runtime_cuda.cpp - see runtime.h.
#include "runtime.h"

#include "../../failure.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <string>

namespace cft::cuda {
namespace {

void check(cudaError_t e, const char *what) {
    if (e == cudaErrorMemoryAllocation) {
        throw failure(CFT_ERR_NO_MEMORY, std::string("CUDA: ") + what + ": out of memory");
    }
    if (e != cudaSuccess) {
        throw failure(CFT_ERR_DEVICE, std::string("CUDA: ") + what + ": " + cudaGetErrorString(e));
    }
}

} // namespace

int count_devices() {
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        (void)cudaGetLastError(); // a missing driver is no device, not an error that stays
        return 0;
    }
    return n;
}

void describe_device(int device, cft_device *out) {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, device), "properties of a device");
    *out = {};
    std::snprintf(out->name, sizeof out->name, "CUDA%d", device);
    std::snprintf(out->description, sizeof out->description, "%.150s, compute capability %d.%d", p.name, p.major, p.minor);
    out->memory_total = p.totalGlobalMem;
    out->memory_free  = free_bytes(device);
    out->can_train    = p.major >= 8; // bf16 on tensor cores
}

void use_device(int device) { check(cudaSetDevice(device), "choosing a device"); }

size_t free_bytes(int device) {
    size_t free = 0, total = 0;
    use_device(device);
    check(cudaMemGetInfo(&free, &total), "free memory");
    return free;
}

memory::memory(size_t bytes) : size_(bytes) {
    void *p = nullptr;
    if (bytes > 0) {
        check(cudaMalloc(&p, bytes), ("allocating " + std::to_string(bytes >> 20) + " MiB").c_str());
    }
    data_ = static_cast<char *>(p);
}
memory::~memory() { cudaFree(data_); }

pinned::pinned(size_t bytes) {
    void *p = nullptr;
    if (bytes > 0) {
        check(cudaMallocHost(&p, bytes), "allocating memory of the host");
    }
    data_ = static_cast<char *>(p);
}
pinned::~pinned() { cudaFreeHost(data_); }

bool lock_pages(const void *at, size_t bytes, std::string &why) {
    // Portable: for all devices. Read-only: the file is mapped so, and the driver refuses to lock it otherwise.
    const cudaError_t e = cudaHostRegister(const_cast<void *>(at), bytes, cudaHostRegisterPortable | cudaHostRegisterReadOnly);
    if (e != cudaSuccess) {
        (void)cudaGetLastError(); // it is no error of what comes next
        why = std::string("cudaHostRegister: ") + cudaGetErrorString(e);
    }
    return e == cudaSuccess;
}
void unlock_pages(const void *at) { cudaHostUnregister(const_cast<void *>(at)); }

stream::stream(stream_use) { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
stream::~stream() { cudaStreamDestroy(stream_); }
void stream::wait_for(const event &e) const { check(cudaStreamWaitEvent(stream_, e.event_, 0), "waiting for an event"); }

event::event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event"); }
event::~event() { cudaEventDestroy(event_); }
void event::record(const stream &s) { check(cudaEventRecord(event_, s.get()), "recording an event"); }
void event::wait() const { check(cudaEventSynchronize(event_), "waiting for the device"); }

void stream::wait() const { check(cudaStreamSynchronize(stream_), "waiting for the device"); }

void to_device(void *to, const void *from, size_t bytes, cudaStream_t s) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, s), "copy to the device");
}
void to_device_from_locked(void *to, const void *from, size_t bytes, cudaStream_t s) { to_device(to, from, bytes, s); } // CUDA knows locked memory
void to_host(void *to, const void *from, size_t bytes, cudaStream_t s) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, s), "copy from the device");
}
void to_device_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t s) {
    check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, cudaMemcpyHostToDevice, s), "copy to the device");
}
void to_host_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t s) {
    check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, cudaMemcpyDeviceToHost, s), "copy from the device");
}

} // namespace cft::cuda
