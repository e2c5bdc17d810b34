// table.cpp - the one symbol of libcftune-cuda; see ../../device_trainer.h.
#include "engine.h"

#include "../../failure.h"
#include "../../library.h"

#include <algorithm>

namespace cft::cuda {
namespace {

constexpr double usable = 0.95; // of what is free: the driver takes some for kernels, and memory comes in pages
constexpr double usable_by_activations = 0.5; // of the host's free memory, which the file's pages and others need too

size_t memory_for(const cft_trainer_params &p, int device) {
    const size_t free = size_t(double(free_bytes(device)) * usable);
    return p.memory_limit ? std::min<size_t>(free, p.memory_limit) : free;
}

plan plan_for(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, int device, bool must_fit, loss_tiles tiles) {
    return choose_plan(model, params, adapter, memory_for(params, device), size_t(double(host_memory().free) * usable_by_activations), must_fit,
                       "CUDA" + std::to_string(device), tiles);
}

cft_memory_estimate estimate(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, int device, bool must_fit,
                             loss_tiles tiles) {
    return plan_for(model, params, adapter, device, must_fit, tiles).estimate();
}

device_trainer *make(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, int device, const trainer_setup &setup) {
    cft_device d;
    describe_device(device, &d);
    if (!d.can_train) {
        throw failure(CFT_ERR_DEVICE, std::string(d.name) + " (" + d.description + ") has no tensor cores for bf16; devices from compute capability 8.0 on train");
    }
    use_device(device);
    return new engine(plan_for(model, params, adapter, device, true, setup.tiles), device, setup.lockable);
}

} // namespace
} // namespace cft::cuda

extern "C" __attribute__((visibility("default"))) const char *cft_device_digest() { return CFT_NATIVE_DIGEST; }

extern "C" __attribute__((visibility("default"))) const cft::device_library *cft_device_library() {
    static const cft::device_library library = {cft::cuda::count_devices, cft::cuda::describe_device, cft::cuda::estimate, cft::cuda::make};
    return &library;
}
