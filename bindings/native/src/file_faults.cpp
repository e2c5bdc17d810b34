// file_faults.cpp - see file_faults.h. As systemd-journald's sigbus.c, which keeps a list of its mappings; libllama's are not known here, so
// /proc/self/maps is read when it comes to that.
#include "file_faults.h"

#ifdef __linux__

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>

namespace cft {
namespace {

struct sigaction before; // the host's

// The first loss. Written under busy before lost is set, read after.
std::atomic<bool> lost{false};
uint64_t          lost_offset;
char              lost_path[4096];

std::atomic_flag busy = ATOMIC_FLAG_INIT; // two threads may fault at once; a handler blocks all signals, so none waits for itself

// What follows is run by a signal handler: no memory, no locks of the library, no errno left changed.

// hex reads a number and goes on behind it.
uint64_t hex(const char *&p) {
    uint64_t n = 0;
    for (;; p++) {
        if (*p >= '0' && *p <= '9') {
            n = n * 16 + uint64_t(*p - '0');
        } else if (*p >= 'a' && *p <= 'f') {
            n = n * 16 + uint64_t(*p - 'a' + 10);
        } else {
            return n;
        }
    }
}

const char *behind_word(const char *p) {
    while (*p != 0 && *p != ' ') {
        p++;
    }
    while (*p == ' ') {
        p++;
    }
    return p;
}

struct region {
    uint64_t    start, end, offset;
    bool        shared_reading; // r--s
    bool        nameless;       // r--p of no file, as what replaces pages
    const char *path;
};

// parse_region reads a line of /proc/self/maps: "7f00-7f10 r--s 00000000 08:01 1234    /path".
region parse_region(const char *line) {
    region      r{};
    const char *p = line;
    r.start       = hex(p);
    p += *p == '-';
    r.end             = hex(p);
    p                 = behind_word(p);
    r.shared_reading  = std::strncmp(p, "r--s", 4) == 0;
    const bool apart  = std::strncmp(p, "r--p", 4) == 0;
    p                 = behind_word(p);
    r.offset          = hex(p);
    p                 = behind_word(behind_word(behind_word(p))); // the offset, the device, the inode
    r.path            = p;
    r.shared_reading &= *p == '/';
    r.nameless        = apart && *p == 0;
    return r;
}

// region_of finds the region that an address lies in; the line is its path's memory.
bool region_of(uint64_t address, char *line, size_t capacity, region &found) {
    const int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    char    chunk[1024];
    size_t  length = 0;
    bool    have   = false;
    ssize_t n;
    while (!have && ((n = read(fd, chunk, sizeof chunk)) > 0 || (n < 0 && errno == EINTR))) {
        for (ssize_t i = 0; i < n && !have; i++) {
            if (chunk[i] != '\n') {
                if (length + 1 < capacity) { // a longer path is cut
                    line[length++] = chunk[i];
                }
                continue;
            }
            line[length] = 0;
            length       = 0;
            found        = parse_region(line);
            have         = address >= found.start && address < found.end;
        }
    }
    close(fd);
    return have;
}

// replace puts zeros in the place of the page at an address, and of all behind it, which are gone too where the file was cut off. Returns
// whether the address can be read now.
bool replace(uint64_t address) {
    static char line[sizeof lost_path + 128]; // under busy
    region      r;
    if (!region_of(address, line, sizeof line, r)) {
        return false;
    }
    if (!r.shared_reading) {
        return r.nameless && lost.load(); // another thread has been here
    }
    const uint64_t page = address & ~uint64_t(sysconf(_SC_PAGESIZE) - 1);
    void *const    at   = reinterpret_cast<void *>(page);
    if (mmap(at, size_t(r.end - page), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != at) {
        return false;
    }
    if (!lost.load()) {
        lost_offset = r.offset + (page - r.start);
        std::strncpy(lost_path, r.path, sizeof lost_path - 1);
        lost.store(true);
    }
    return true;
}

extern "C" void on_bus_error(int signal, siginfo_t *info, void *context) {
    const int  kept  = errno;
    bool       going = false;
    if (info->si_code == BUS_ADRERR) {
        while (busy.test_and_set(std::memory_order_acquire)) {
        }
        going = replace(uint64_t(reinterpret_cast<uintptr_t>(info->si_addr)));
        busy.clear(std::memory_order_release);
    }
    errno = kept;
    if (going) {
        return; // and read again
    }
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(signal);
    } else {
        sigaction(signal, &before, nullptr); // and fault again
    }
}

} // namespace

void catch_file_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        // As Go wants handlers of others to be: on the alternate stack, and handing on what is not theirs.
        struct sigaction mine{};
        mine.sa_sigaction = on_bus_error;
        mine.sa_flags     = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
        sigfillset(&mine.sa_mask);
        if (sigaction(SIGBUS, nullptr, &before) == 0) {
            sigaction(SIGBUS, &mine, nullptr);
        }
    });
}

void check_file_faults() {
    if (!lost.load()) {
        return;
    }
    const std::string path = lost_path;
    struct stat       st;
    if (stat(lost_path, &st) == 0 && uint64_t(st.st_size) <= lost_offset) {
        throw failure(CFT_ERR_IO, path + " was cut off while it was in use: it has " + std::to_string(st.st_size) + " bytes now, and those from " +
                                      std::to_string(lost_offset) + " on are needed");
    }
    throw failure(CFT_ERR_IO, path + " could not be read at byte " + std::to_string(lost_offset) +
                                  " while it was in use: it was written anew meanwhile, or its disk fails");
}

} // namespace cft

#else

namespace cft {

// Elsewhere there is no list of what is mapped that a signal handler could read, and such a fault ends the process.
void catch_file_faults() {}

void check_file_faults() {}

} // namespace cft

#endif
