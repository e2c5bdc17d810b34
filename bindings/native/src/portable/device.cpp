// device.cpp - see device.h.
#include "device.h"

#include "../failure.h"
#include "../library.h"
#include "engine.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace cft::portable {
namespace {

constexpr double usable = 0.95; // of what is free: drivers take some for shaders, and memory comes in pages

std::string lower(std::string s) {
    std::transform(s.begin(), s.end(), s.begin(), [](unsigned char c) { return char(std::tolower(c)); });
    return s;
}

// Users' names of backends, where ggml's own differ.
std::vector<std::string> registered_as(const std::string &backend) {
    if (backend == "hip" || backend == "rocm") {
        return {"rocm", "hip"};
    }
    if (backend == "metal") {
        return {"metal", "mtl"};
    }
    return {backend};
}

bool is_of(ggml_backend_dev_t device, const std::string &backend) {
    const std::string reg = lower(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)));
    const auto        all = registered_as(backend);
    return std::find(all.begin(), all.end(), reg) != all.end();
}

// "vulkan:1", "Vulkan1" and "vulkan" to backend and number; false for other forms.
bool parse(const std::string &name, std::string *backend, int *number) {
    const size_t      digits = std::min(name.find_last_not_of("0123456789") + 1, name.size());
    const std::string tail   = name.substr(digits);
    std::string       head   = name.substr(0, digits);
    if (tail.size() > 4 || head.empty()) {
        return false;
    }
    if (head.back() == ':') {
        if (tail.empty()) {
            return false;
        }
        head.pop_back();
    }
    *backend = lower(head);
    *number  = tail.empty() ? 0 : std::stoi(tail);
    return !backend->empty() && backend->find(':') == std::string::npos;
}

std::string devices_folder() {
    const char *const named = std::getenv("CFT_DEVICE_LIBRARIES");
    return named && *named ? named : library_folder() + "/devices";
}

ggml_backend_dev_t device_at(int index) { return ggml_backend_dev_get(size_t(index)); }

size_t memory_for(const cft_trainer_params &p, ggml_backend_dev_t device) {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device, &free, &total);
    if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        free = host_memory().free;
    }
    free = size_t(double(free) * usable);
    return p.memory_limit ? std::min<size_t>(free, p.memory_limit) : free;
}

cft_memory_estimate measure(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, ggml_backend_dev_t device,
                            loss_tiles tiles = {}) {
    return engine(model, params, adapter, device, true, tiles).estimate();
}

[[noreturn]] void refuse(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, ggml_backend_dev_t device,
                         const cft_memory_estimate &needs, size_t memory) {
    // The longest pack that fits, by halving.
    int32_t fits = 0;
    for (int32_t low = 1, high = params.max_tokens; low <= high;) {
        cft_trainer_params shorter = params;
        shorter.max_tokens         = low + (high - low) / 2;
        shorter.max_targets        = std::min(params.max_targets, shorter.max_tokens);
        if (measure(model, shorter, adapter, device).total <= memory) {
            fits = shorter.max_tokens;
            low  = shorter.max_tokens + 1;
        } else {
            high = shorter.max_tokens - 1;
        }
    }
    const std::string text = "training needs " + mebibytes(needs.total) + " on " + ggml_backend_dev_name(device) + ", usable are " + mebibytes(memory);
    throw failure(CFT_ERR_NO_MEMORY, fits > 0 ? text + "; packs of " + std::to_string(fits) + " tokens (train.seq_len) would fit"
                                              : text + "; no pack fits: weights alone take " + mebibytes(needs.weights));
}

// ---- the table

int count() { return int(ggml_backend_dev_count()); }

void describe(int index, cft_device *out) {
    ggml_backend_dev_t device = device_at(index);
    cft_device         d{};
    std::snprintf(d.name, sizeof d.name, "%s", ggml_backend_dev_name(device));
    std::snprintf(d.description, sizeof d.description, "%s", ggml_backend_dev_description(device));
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device, &free, &total);
    d.memory_free  = free;
    d.memory_total = total;
    d.can_train    = CFT_TRAINS_PORTABLE;
    *out           = d;
}

cft_memory_estimate estimate(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, int index, bool must_fit,
                             loss_tiles tiles) {
    ggml_backend_dev_t        device = device_at(index);
    const cft_memory_estimate e      = measure(model, params, adapter, device, tiles);
    if (must_fit) {
        if (const size_t memory = memory_for(params, device); e.total > memory) {
            refuse(model, params, adapter, device, e, memory);
        }
    }
    return e;
}

device_trainer *make(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, int index, const trainer_setup &setup) {
    return new engine(model, params, adapter, device_at(index), false, setup.tiles);
}

} // namespace

void load_devices() {
    static std::mutex           mutex;
    static bool                 done = false;
    std::lock_guard<std::mutex> lock(mutex);
    if (done) {
        return;
    }
    done = true;
    // ggml's Vulkan backend rounds operands of F32 products to halves on devices that compute with halves: gradients in F32 then
    // are right to 3 digits, those of small numbers to none. It asks this variable when it opens a device.
    setenv("GGML_VK_DISABLE_F16", "1", 0);
    setenv("GGML_METAL_TENSOR_DISABLE", "1", 0); // the tensor units of newer Apple GPUs, which take halves
    const std::string folder = devices_folder();
    struct stat       st;
    if (stat(folder.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) {
        ggml_backend_load_all_from_path(folder.c_str());
    }
}

ggml_backend_dev_t find_device(const std::string &name, int *index) {
    std::string backend;
    int         number = 0;
    if (!parse(name, &backend, &number)) {
        return nullptr;
    }
    const bool general = backend.rfind("ggml-", 0) == 0;
    if (general) {
        backend = backend.substr(5);
    } else if (backend != "vulkan" && backend != "metal" && backend != "hip" && backend != "rocm") {
        return nullptr;
    }
    load_devices();
    int         here = 0;
    std::string all;
    for (int i = 0; i < count(); i++) {
        ggml_backend_dev_t device = device_at(i);
        all += std::string(all.empty() ? "" : ", ") + ggml_backend_dev_name(device);
        if (is_of(device, backend) && here++ == number) {
            *index = i;
            return device;
        }
    }
    const std::string found = here > 0 ? std::to_string(here) + " of them are here, counted from 0"
                                       : "there is none here, or no library of ggml's for it (in " + devices_folder() + ", see docs/devices.md)";
    throw failure(CFT_ERR_DEVICE, "device " + name + ": " + found + "; ggml's devices here: " + all);
}

const device_library *library() {
    static const device_library table = {count, describe, estimate, make};
    return &table;
}

} // namespace cft::portable
