// device_library.cpp - finds and loads libcftune-cuda.so, which lies beside libcftune or where CFT_CUDA_LIBRARY says.
#include "device_trainer.h"

#include "failure.h"
#include "library.h"
#include "portable/device.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>

namespace cft {
namespace {

struct opened {
    const device_library *library = nullptr;
    std::string           reason;
};

opened open_library() {
    const char       *named = std::getenv("CFT_CUDA_LIBRARY");
    const std::string path  = named && *named ? named : library_folder() + "/libcftune-cuda.so";
    if (access(path.c_str(), R_OK) != 0) {
        return {nullptr, path + " is missing (it is built where a CUDA toolkit is: see docs/cuda.md)"};
    }
    // Never closed: threads and atexit handlers of CUDA may outlive every trainer.
    void *const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        std::string why = std::string("loading it failed: ") + dlerror();
        if (why.find("libcublasLt") != std::string::npos) {
            why += " (it is part of CUDA, and of the Python wheel nvidia-cublas; LD_LIBRARY_PATH names its folder)";
        }
        return {nullptr, why};
    }
    const auto get    = reinterpret_cast<cft_device_library_function *>(dlsym(handle, "cft_device_library"));
    const auto digest = reinterpret_cast<cft_device_digest_function *>(dlsym(handle, "cft_device_digest"));
    if (!get) {
        return {nullptr, path + " has no cft_device_library"};
    }
    if (!digest || std::string(digest()) != CFT_NATIVE_DIGEST) {
        return {nullptr, path + " was built from other sources than libcftune: build both again (make cuda)"};
    }
    return {get(), ""};
}

} // namespace

const device_library *cuda_library(std::string &reason) {
    static std::mutex           mutex;
    static opened              *once = nullptr;
    std::lock_guard<std::mutex> lock(mutex);
    if (!once) {
        once = new opened(open_library());
    }
    reason = once->reason;
    return once->library;
}

// The first CUDA device if it can train, else the CPU.
static device_choice first_device() {
    std::string                 reason;
    const device_library *const library = cuda_library(reason);
    cft_device                  first{};
    if (library && library->count() > 0) {
        library->describe(0, &first);
    }
    return first.can_train ? device_choice{library, 0} : device_choice{};
}

device_choice choose_device(const std::string &name) {
    if (name.empty() || name == "auto") {
        return first_device();
    }
    if (name == "cpu" || name == "CPU") {
        return {};
    }
    int ggml_index = 0;
    if (portable::find_device(name, &ggml_index)) {
        return {portable::library(), ggml_index};
    }
    const bool plain = name == "cuda" || name == "CUDA";
    const bool known = plain || name.rfind("cuda:", 0) == 0 || name.rfind("CUDA", 0) == 0;
    const auto digits = name.find_first_of("0123456789");
    if (!known || (!plain && (digits == std::string::npos || digits > 5 || name.find_first_not_of("0123456789", digits) != std::string::npos ||
                              name.size() - digits > 4))) {
        throw failure(CFT_ERR_DEVICE, "device " + name + " cannot train; cpu, cuda, cuda:1 (the second device), vulkan, metal and hip can");
    }
    std::string reason;
    const device_library *const library = cuda_library(reason);
    if (!library) {
        throw failure(CFT_ERR_DEVICE, "device " + name + ": " + reason);
    }
    const int index = plain ? 0 : std::stoi(name.substr(digits)), count = library->count();
    if (index >= count) {
        throw failure(CFT_ERR_DEVICE, "device " + name + ": " + (count == 0   ? "there is no CUDA device here (or no driver for it)"
                                                              : count == 1 ? "one CUDA device is here, cuda:0"
                                                                           : std::to_string(count) + " CUDA devices are here, counted from 0"));
    }
    return {library, index};
}

} // namespace cft
