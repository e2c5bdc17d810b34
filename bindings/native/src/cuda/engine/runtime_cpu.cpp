// runtime_cpu.cpp - runtime.h for the shim: one device, which is the host. CFT_SHIM_MEMORY is how much memory it says to have free,
// in bytes, so that plans for small devices can be tested. With CFT_SHIM_LATE=work or CFT_SHIM_LATE=copies, what is put on the stream of that
// name happens no sooner than somebody waits for it, and all else at once.
#include "runtime.h"

#include "../../failure.h"
#include "../shim/cuda_shim.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

struct CUevent_st {
    CUstream_st *of     = nullptr;
    size_t       pieces = 0; // of its work
};

namespace cft::cuda {

int count_devices() { return 1; }

void describe_device(int device, cft_device *out) {
    *out = {};
    std::snprintf(out->name, sizeof out->name, "CUDA%d", device);
    std::snprintf(out->description, sizeof out->description, "no device: the kernels run on the CPU, for tests");
    out->memory_total = out->memory_free = free_bytes(device);
    out->can_train                       = 1;
}

void use_device(int) {}

size_t free_bytes(int) {
    const char *bytes = std::getenv("CFT_SHIM_MEMORY");
    return bytes ? size_t(std::strtoull(bytes, nullptr, 10)) : size_t(4) << 30;
}

memory::memory(size_t bytes) : size_(bytes) {
    data_ = static_cast<char *>(std::aligned_alloc(256, (bytes + 256) / 256 * 256));
    if (!data_) {
        throw failure(CFT_ERR_NO_MEMORY, "allocating " + std::to_string(bytes >> 20) + " MiB: out of memory");
    }
    std::memset(data_, 0xff, bytes); // NaNs: what is read must have been written
}
memory::~memory() { std::free(data_); }

pinned::pinned(size_t bytes) : data_(static_cast<char *>(std::malloc(bytes))) {}
pinned::~pinned() { std::free(data_); }

stream::stream(stream_use use) : stream_(new CUstream_st) {
    const char *late = std::getenv("CFT_SHIM_LATE");
    stream_->late    = late && std::string(late) == (use == stream_use::work ? "work" : "copies");
}
stream::~stream() { delete stream_; } // with what nobody has waited for
void stream::wait() const { shim::finish(stream_, stream_->done + stream_->work.size()); }
void stream::wait_for(const event &e) const {
    const CUevent_st at = *e.event_;
    shim::put(stream_, [at] { at.of ? shim::finish(at.of, at.pieces) : (void)0; });
}

event::event() : event_(new CUevent_st) {}
event::~event() { delete event_; }
void event::record(const stream &s) { *event_ = {s.get(), s.get()->done + s.get()->work.size()}; }

namespace {

void copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t s) {
    shim::put(s, [=] {
        for (size_t i = 0; i < rows; i++) {
            std::memcpy(static_cast<char *>(to) + i * to_pitch, static_cast<const char *>(from) + i * from_pitch, width);
        }
    });
}

} // namespace

void to_device(void *to, const void *from, size_t bytes, cudaStream_t s) { copy_rows(to, 0, from, 0, bytes, 1, s); }
void to_host(void *to, const void *from, size_t bytes, cudaStream_t s) { copy_rows(to, 0, from, 0, bytes, 1, s); }
void to_device_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t s) {
    copy_rows(to, to_pitch, from, from_pitch, width, rows, s);
}
void to_host_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t s) {
    copy_rows(to, to_pitch, from, from_pitch, width, rows, s);
}

} // namespace cft::cuda
