// page_locks.cpp - see page_locks.h.
#include "page_locks.h"

#include "runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unistd.h>

namespace cft::cuda {
namespace {

// Locked ranges, and how many hold each. Never destroyed: trainers may go while the process ends.
struct table {
    std::mutex                       mutex;
    std::map<page_locks::range, int> uses;
};
table &locked() {
    static table *const t = new table;
    return *t;
}

// The ranges in whole pages, ascending; those that touch are one.
std::vector<page_locks::range> in_pages(std::vector<page_locks::range> ranges) {
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    std::sort(ranges.begin(), ranges.end());
    std::vector<page_locks::range> pages;
    for (const auto &[from, to] : ranges) {
        const char *const first = reinterpret_cast<const char *>(uintptr_t(from) / page * page);
        const char *const end   = reinterpret_cast<const char *>((uintptr_t(to) + page - 1) / page * page);
        if (!pages.empty() && first <= pages.back().second) {
            pages.back().second = std::max(pages.back().second, end);
        } else {
            pages.push_back({first, end});
        }
    }
    return pages;
}

} // namespace

page_locks::page_locks(const std::vector<range> &ranges, uint64_t lockable) {
    const char *const wanted = std::getenv("CFT_CUDA_PAGE_LOCKS");
    if (wanted && std::strcmp(wanted, "0") == 0) {
        refusal_ = "CFT_CUDA_PAGE_LOCKS=0";
        return;
    }
    const std::vector<range>    pages = in_pages(ranges);
    std::lock_guard<std::mutex> lock(locked().mutex);
    uint64_t                    bytes = 0;
    for (const range &r : pages) {
        bytes += locked().uses.count(r) ? 0 : uint64_t(r.second - r.first);
    }
    if (bytes > lockable) {
        refusal_ = "they are " + std::to_string(bytes >> 20) + " MiB, and of the host's memory at most " + std::to_string(lockable >> 20) + " MiB can be locked now";
        return;
    }
    for (const range &r : pages) {
        int &uses = locked().uses[r];
        if (uses == 0 && !lock_pages(r.first, size_t(r.second - r.first), refusal_)) {
            locked().uses.erase(r);
            give_back();
            return;
        }
        uses++;
        held_.push_back(r);
    }
}

page_locks::~page_locks() {
    std::lock_guard<std::mutex> lock(locked().mutex);
    give_back();
}

void page_locks::give_back() {
    for (const range &r : held_) {
        const auto at = locked().uses.find(r);
        if (--at->second == 0) {
            unlock_pages(r.first);
            locked().uses.erase(at);
        }
    }
    held_.clear();
}

void to_device_from_file(void *to, const void *from, size_t bytes, cudaStream_t stream) {
    const char *at = static_cast<const char *>(from), *const end = at + bytes;
    const auto  copy_until = [&](const char *edge) {
        if (at < edge) {
            to_device(to, at, size_t(edge - at), stream);
            to = static_cast<char *>(to) + (edge - at);
            at = edge;
        }
    };
    std::lock_guard<std::mutex> lock(locked().mutex);
    for (const auto &[range, uses] : locked().uses) { // ascending, and apart
        if (range.first < end && range.second > at) {
            copy_until(range.first);
            copy_until(std::min(range.second, end));
        }
    }
    copy_until(end);
}

} // namespace cft::cuda
