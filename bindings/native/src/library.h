// library.h - what all parts of the library share: the log of native lines, host memory, and whether backends are loaded.
#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <string>
#include <vector>

namespace cft {

// log_line adds one line of ours to the ring that cft_log_drain empties.
void log_line(const std::string &line);

std::string library_folder(); // where libcftune lies

#if defined(__APPLE__)
constexpr const char *library_ending = ".dylib";
#else
constexpr const char *library_ending = ".so";
#endif

// log_capture collects the warnings and errors that ggml and libllama log on this thread while it lives, so that the
// reason behind a NULL from libllama reaches the caller. Captures nest; the innermost one gets the lines.
class log_capture {
  public:
    log_capture();
    ~log_capture();
    log_capture(const log_capture &)            = delete;
    log_capture &operator=(const log_capture &) = delete;

    // errors returns the error lines joined by "; ", the warnings where there are no errors, "" where there is neither.
    std::string errors() const;

    void add(ggml_log_level level, const std::string &line);

  private:
    log_capture             *outer_;
    std::vector<std::string> errors_, warnings_;
};

// assertions_throw makes assertions of ggml and libllama that fail on this thread throw failure (CFT_ERR_FORMAT) while it
// lives, instead of ending the process. For loading only, which nothing but the file can make fail: what was being
// computed, and by how many threads, cannot be left in the middle. Our own checks come first and give better words.
class assertions_throw {
  public:
    assertions_throw();
    ~assertions_throw();
    assertions_throw(const assertions_throw &)            = delete;
    assertions_throw &operator=(const assertions_throw &) = delete;
};

// give_memory_back returns to the system what the allocator holds and nobody uses. Loading leaves holes in the arenas of
// several threads, which glibc would keep: a program that loads model after model would grow.
void give_memory_back();

struct memory_sizes {
    uint64_t total, free; // bytes; free is what can be taken without swapping, within the container's limit
};
memory_sizes host_memory();

// cpu_device returns the CPU backend's device; it throws failure when cft_init has loaded none.
ggml_backend_dev_t cpu_device();

} // namespace cft
