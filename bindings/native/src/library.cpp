// library.cpp - loading of ggml's backends, devices, CPU features, and the ring of native log lines.
#include "library.h"

#include "device_trainer.h"
#include "failure.h"
#include "portable/device.h"

#include "llama.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace cft {
namespace {

// ---- log

// Lines are kept until drained; past this many bytes the oldest go, and the next drain says how many.
constexpr size_t log_ring_bytes = 256 * 1024;

struct log_ring {
    std::mutex              mutex;
    std::deque<std::string> lines;
    size_t                  bytes   = 0;
    size_t                  dropped = 0;

    void push(const std::string &line) {
        std::lock_guard<std::mutex> lock(mutex);
        lines.push_back(line);
        bytes += line.size() + 1;
        while (bytes > log_ring_bytes && lines.size() > 1) {
            bytes -= lines.front().size() + 1;
            lines.pop_front();
            dropped++;
        }
    }

    // drain takes whole lines; a line longer than the buffer is handed out in parts.
    size_t drain(char *buf, size_t capacity) {
        std::lock_guard<std::mutex> lock(mutex);
        if (dropped > 0) {
            std::string note = "(" + std::to_string(dropped) + " earlier lines were dropped)";
            bytes += note.size() + 1;
            lines.push_front(std::move(note));
            dropped = 0;
        }
        size_t used = 0;
        while (!lines.empty() && used < capacity) {
            std::string &line      = lines.front();
            const size_t separator = used > 0 ? 1 : 0;
            const size_t space     = capacity - used;
            if (line.size() + separator <= space) {
                if (separator) {
                    buf[used++] = '\n';
                }
                std::memcpy(buf + used, line.data(), line.size());
                used += line.size();
                bytes -= line.size() + 1;
                lines.pop_front();
            } else if (used == 0) {
                std::memcpy(buf, line.data(), space);
                line.erase(0, space);
                bytes -= space;
                return space;
            } else {
                break;
            }
        }
        return used;
    }
};

// Never destroyed: libraries may log while the process ends.
log_ring &ring() {
    static log_ring *r = new log_ring;
    return *r;
}

thread_local log_capture *capturing = nullptr;
thread_local std::string  unfinished; // a line that has not seen its newline yet
thread_local ggml_log_level unfinished_level = GGML_LOG_LEVEL_NONE;

void take_log_text(ggml_log_level level, const char *text) {
    if (level != GGML_LOG_LEVEL_CONT) {
        unfinished_level = level;
    }
    for (const char *p = text; *p;) {
        const char *end = std::strchr(p, '\n');
        if (!end) {
            unfinished += p;
            return;
        }
        unfinished.append(p, size_t(end - p));
        // Debug lines (a page per decode) are of use to ggml's authors only.
        if (!unfinished.empty() && unfinished_level != GGML_LOG_LEVEL_DEBUG) {
            if (capturing) {
                capturing->add(unfinished_level, unfinished);
            }
            ring().push(unfinished);
        }
        unfinished.clear();
        p = end + 1;
    }
}

void log_callback(ggml_log_level level, const char *text, void *) {
    try {
        take_log_text(level, text);
    } catch (...) {
        // Only memory can be short here, and a lost log line must not end the process.
    }
}

// ---- assertions

thread_local int throwing = 0; // assertions_throw alive on this thread

// on_assertion is called by ggml_abort, which ends the process when it returns. ggml is compiled with unwind tables
// (third_party/llama.cpp/CMakeLists.txt), so that an exception can leave it.
void on_assertion(const char *message) {
    if (throwing > 0) {
        const char *slash = std::strrchr(message, '/'); // of the source's path; some messages have none
        throw failure(CFT_ERR_FORMAT, std::string("llama.cpp refuses it: ") + (slash ? slash + 1 : message));
    }
    std::fprintf(stderr, "%s\n", message);
}

// ---- backends

void load_backends(const std::string &dir) {
    struct stat st;
    if (stat(dir.c_str(), &st) != 0) {
        throw failure(CFT_ERR_IO, "backend folder " + dir + ": " + std::strerror(errno));
    }
    if (!S_ISDIR(st.st_mode)) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "backend folder " + dir + ": not a folder");
    }
    llama_log_set(log_callback, nullptr);
    ggml_set_abort_callback(on_assertion);
    if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        ggml_backend_load_all_from_path(dir.c_str());
    }
    if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        throw failure(CFT_ERR_DEVICE, "backend folder " + dir + " holds no CPU backend (libggml-cpu*.so) that loads here; one built on "
                                      "another machine may need a newer processor: CFTUNE_PORTABLE=1 make builds for all");
    }
    llama_backend_init();
}

void copy_text(char *dst, size_t size, const char *src) {
    std::snprintf(dst, size, "%s", src ? src : "");
}

} // namespace

void log_line(const std::string &line) { ring().push(line); }

std::string library_folder() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<const void *>(&cft_init), &info) || !info.dli_fname) {
        throw failure(CFT_ERR_DEVICE, "the folder of libcftune is unknown; name the backend folder");
    }
    const std::string path(info.dli_fname);
    const size_t      slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

void give_memory_back() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

assertions_throw::assertions_throw() { throwing++; }

assertions_throw::~assertions_throw() { throwing--; }

log_capture::log_capture() : outer_(capturing) { capturing = this; }
log_capture::~log_capture() { capturing = outer_; }

void log_capture::add(ggml_log_level level, const std::string &line) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        errors_.push_back(line);
    } else if (level == GGML_LOG_LEVEL_WARN) {
        warnings_.push_back(line);
    }
}

std::string log_capture::errors() const {
    std::string all;
    for (const std::string &line : errors_.empty() ? warnings_ : errors_) {
        all += (all.empty() ? "" : "; ") + line;
    }
    return all;
}

ggml_backend_dev_t cpu_device() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!device) {
        throw failure(CFT_ERR_DEVICE, "no CPU backend is loaded: call cft_init first");
    }
    return device;
}

} // namespace cft

#if !defined(__APPLE__)
// Other CBLAS libraries have no such function.
extern "C" char *openblas_get_config(void) __attribute__((weak));
#endif

using namespace cft;

const char *cft_headers(void) { return CFT_HEADERS_DIGEST; }

cft_status cft_init(const char *backend_dir, size_t backend_dir_len, cft_error *err) {
    return guard(err, [&] {
        static std::mutex           mutex;
        static bool                 done = false;
        std::lock_guard<std::mutex> lock(mutex);
        if (done) {
            return; // backends cannot be unloaded, so a second folder could not replace the first
        }
        const std::string dir(backend_dir ? backend_dir : "", backend_dir ? backend_dir_len : 0);
        load_backends(dir.empty() ? library_folder() : dir);
        done = true;
    });
}

// Devices of libcftune-cuda follow ggml's.
static size_t cuda_count() {
    std::string                 reason;
    const cft::device_library *const library = cuda_library(reason);
    return library ? size_t(library->count()) : 0;
}

size_t cft_device_count(void) {
    size_t n = 0;
    guard(nullptr, [&] {
        portable::load_devices();
        n = ggml_backend_dev_count() + cuda_count();
    });
    return n;
}

cft_status cft_device_get(size_t index, cft_device *out, cft_error *err) {
    return guard(err, [&] {
        if (!out) {
            throw failure(CFT_ERR_INVALID_ARGUMENT, "out is NULL");
        }
        portable::load_devices();
        const size_t of_ggml = ggml_backend_dev_count(), of_cuda = cuda_count();
        if (index >= of_ggml + of_cuda) {
            throw failure(CFT_ERR_INVALID_ARGUMENT, "device " + std::to_string(index) + " of " + std::to_string(of_ggml + of_cuda));
        }
        if (index >= of_ggml) {
            std::string reason;
            cuda_library(reason)->describe(int(index - of_ggml), out);
            return;
        }
        cft_device d = {};
        portable::library()->describe(int(index), &d);
        if (ggml_backend_dev_type(ggml_backend_dev_get(index)) == GGML_BACKEND_DEVICE_TYPE_CPU) { // ggml calls all of the host's memory free
            const memory_sizes m = host_memory();
            d.memory_total       = m.total;
            d.memory_free        = m.free;
            d.can_train          = CFT_TRAINS; // as the device cpu; as ggml-cpu by ggml's ops
        }
        *out = d;
    });
}

void cft_cuda_state(char *buf, size_t capacity) {
    guard(nullptr, [&] {
        std::string                 reason;
        const cft::device_library *const library = cuda_library(reason);
        const int                   count = library ? library->count() : 0;
        std::string                 text;
        if (!library) {
            text = "cannot be used: " + reason;
        } else if (count == 0) {
            text = "there is no CUDA device here (or no driver for it)";
        } else {
            text = std::to_string(count) + (count == 1 ? " device" : " devices") + "; device: cuda trains on the first";
        }
        copy_text(buf, capacity, text.c_str());
    });
}

size_t cft_log_drain(char *buf, size_t capacity) {
    size_t n = 0;
    guard(nullptr, [&] { n = buf ? ring().drain(buf, capacity) : 0; });
    return n;
}

const char *cft_cpu_features(void) {
#if defined(__x86_64__) || defined(__amd64__)
    // The same conditions under which the kernels' variants are chosen.
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        return "avx512";
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return "avx2+fma";
    }
#endif
    return "generic";
}

const char *cft_library_versions(void) {
    static const std::string *versions = [] {
        std::string v = std::string("ggml and libllama ") + ggml_version() + " (" + ggml_commit() + ")";
#if defined(__APPLE__)
        v += "\nApple Accelerate";
#else
        if (openblas_get_config) {
            v += std::string("\n") + openblas_get_config();
        }
#endif
        return new std::string(v); // never destroyed: callers keep the pointer
    }();
    return versions->c_str();
}
