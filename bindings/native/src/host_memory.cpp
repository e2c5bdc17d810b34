// host_memory.cpp - see library.h. Apart, since the device library needs it too and no other part of library.cpp.
#include "library.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

#if defined(__APPLE__)

#include <mach/mach.h>

namespace cft {

memory_sizes host_memory() {
    const uint64_t         page = uint64_t(sysconf(_SC_PAGESIZE));
    memory_sizes           m{uint64_t(sysconf(_SC_PHYS_PAGES)) * page, 0};
    vm_statistics64_data_t pages{};
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    m.free                       = m.total; // where the system does not tell
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&pages), &count) == KERN_SUCCESS) {
        m.free = std::min(m.total, (uint64_t(pages.free_count) + pages.inactive_count) * page); // inactive: mostly files, had back at once
    }
    return m;
}

} // namespace cft

#else

namespace cft {
namespace {

// read_number returns the number that a file starts with, or fallback.
uint64_t read_number(const char *path, uint64_t fallback) {
    std::ifstream file(path);
    uint64_t      value = 0;
    return file >> value ? value : fallback;
}

} // namespace

memory_sizes host_memory() {
    memory_sizes  m{uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGE_SIZE)), 0};
    std::ifstream meminfo("/proc/meminfo");
    std::string   key, unit;
    uint64_t      kib = 0;
    m.free            = m.total; // where the system does not tell
    while (meminfo >> key >> kib && std::getline(meminfo, unit)) {
        if (key == "MemAvailable:") {
            m.free = kib * 1024;
        }
    }
    // A container's limit (cgroup v2) may lie far below the machine's memory. Page cache counts as used there, though it
    // can be had back, so only the limit itself is compared.
    const uint64_t limit = read_number("/sys/fs/cgroup/memory.max", m.total);
    m.total              = std::min(m.total, limit);
    m.free               = std::min(m.free, m.total);
    return m;
}

} // namespace cft

#endif
