// runtime_cpu.cpp - runtime.h for the shim: one device, which is the host. CFT_SHIM_MEMORY is how much memory it says to have free,
// in bytes, so that plans for small devices can be tested. With CFT_SHIM_LATE=work, =copies or =side, what is put on the stream of that
// name happens no sooner than somebody waits for it, and all else at once. Memory of the host that is locked is kept count of: locked twice,
// given back unlocked, left locked when the process ends, or copied from when it is not locked or only in part, it is an error. With CFT_SHIM_LOCKS=N all but the
// first N ranges are refused.
#include "runtime.h"

#include "../../failure.h"
#include "../shim/cuda_shim.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

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
#if defined(MADV_HUGEPAGE) // a fault for each page of the products' 96 MiB, which every trainer has, would be a third of a test's time
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), begin = (uintptr_t(data_) + page - 1) / page * page, end = uintptr_t(data_) + bytes;
    if (begin < end) {
        (void)madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
    }
#endif
    std::memset(data_, 0xff, bytes); // NaNs: what is read must have been written
}
memory::~memory() { std::free(data_); }

pinned::pinned(size_t bytes) : data_(static_cast<char *>(std::malloc(bytes))) {}
pinned::~pinned() { std::free(data_); }

namespace {

struct locks {
    std::map<const char *, size_t> ranges;

    ~locks() {
        if (!ranges.empty()) {
            fail("memory is locked when the process ends");
        }
    }
    [[noreturn]] static void fail(const char *what) {
        std::fprintf(stderr, "CUDA shim: %s\n", what);
        std::_Exit(1);
    }
    // The range that holds the byte, or NULL.
    const std::pair<const char *const, size_t> *of(const char *at) const {
        auto r = ranges.upper_bound(at);
        return r != ranges.begin() && at < (--r)->first + r->second ? &*r : nullptr;
    }
};
locks locked;

} // namespace

bool lock_pages(const void *at, size_t bytes, std::string &why) {
    const char *const first = static_cast<const char *>(at), *const most = std::getenv("CFT_SHIM_LOCKS");
    if (bytes == 0 || uintptr_t(at) % size_t(sysconf(_SC_PAGESIZE)) != 0 || bytes % size_t(sysconf(_SC_PAGESIZE)) != 0) {
        locks::fail("locked memory is not in whole pages");
    }
    const auto next = locked.ranges.lower_bound(first);
    if (locked.of(first) || (next != locked.ranges.end() && next->first < first + bytes)) {
        locks::fail("memory is locked twice");
    }
    if (most && locked.ranges.size() >= std::strtoull(most, nullptr, 10)) {
        why = "the shim was told to refuse";
        return false;
    }
    locked.ranges[first] = bytes;
    return true;
}

void unlock_pages(const void *at) {
    if (locked.ranges.erase(static_cast<const char *>(at)) == 0) {
        locks::fail("memory is given back that is not locked");
    }
}

stream::stream(stream_use use) : stream_(new CUstream_st) {
    const char *late = std::getenv("CFT_SHIM_LATE");
    stream_->late    = late && std::string(late) == (use == stream_use::work ? "work" : use == stream_use::copies ? "copies" : "side");
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
void event::wait() const { event_->of ? shim::finish(event_->of, event_->pieces) : (void)0; }

namespace {

void copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t s) {
    shim::put(s, [=] {
        for (size_t i = 0; i < rows; i++) {
            std::memcpy(static_cast<char *>(to) + i * to_pitch, static_cast<const char *>(from) + i * from_pitch, width);
        }
    });
}

} // namespace

void to_device(void *to, const void *from, size_t bytes, cudaStream_t s) {
    const char *const first = static_cast<const char *>(from), *const end = first + bytes;
    for (const auto &[at, size] : locked.ranges) {
        if (at < end && first < at + size && (first < at || end > at + size)) { // cudaErrorInvalidValue
            locks::fail("a copy from memory of which a part is locked");
        }
    }
    copy_rows(to, 0, from, 0, bytes, 1, s);
}
void to_device_from_locked(void *to, const void *from, size_t bytes, cudaStream_t s) {
    shim::put(s, [=] { // when the copy happens, it must still be locked
        const auto *const r = locked.of(static_cast<const char *>(from));
        if (!r || static_cast<const char *>(from) + bytes > r->first + r->second) {
            locks::fail("a copy from memory that is not locked");
        }
        std::memcpy(to, from, bytes);
    });
}
void to_host(void *to, const void *from, size_t bytes, cudaStream_t s) { copy_rows(to, 0, from, 0, bytes, 1, s); }
void to_device_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t s) {
    copy_rows(to, to_pitch, from, from_pitch, width, rows, s);
}
void to_host_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, cudaStream_t s) {
    copy_rows(to, to_pitch, from, from_pitch, width, rows, s);
}

} // namespace cft::cuda

// For tests: bytes of the host's memory that are locked.
extern "C" __attribute__((visibility("default"))) size_t cft_shim_locked() {
    size_t bytes = 0;
    for (const auto &range : cft::cuda::locked.ranges) {
        bytes += range.second;
    }
    return bytes;
}

// For tests: how often a kernel was launched, and products of warpgroups, which the shim computes slowly.
extern "C" __attribute__((visibility("default"))) size_t cft_shim_launches(const char *kernel) { return cft::cuda::shim::launches[kernel]; }
extern "C" __attribute__((visibility("default"))) void cft_shim_use_warpgroups(bool use) { cft::cuda::use_warpgroups(use); }
