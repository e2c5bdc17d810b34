// portable_fixture.h - what the tests of whole models on the portable path share: the device, how near it must come to the CPU engine, and
// how tests are run. CFT_PORTABLE_DEVICE names the device; without it ggml's CPU backend is one like any other.
#pragma once

#include "device_fixture.h"
#include "failure.h"
#include "family_file.h"
#include "model.h"
#include "portable/device.h"
#include "portable/engine.h"

namespace tiny {

// All of it is F32, widened weights too; sums are in another order, exponentials and rotations are the backend's. Seen on ggml's CPU
// backend and on lavapipe: whole gradients to 1 - 3e-12 in tiny models and 1 - 6e-10 in the real one (bench/results).
constexpr nearness near = {1 - 1e-7, 1 - 1e-5, 1e-4, 1e-5};
constexpr double   step_tolerance = 1e-3; // B begins at 0, so A's first gradient is rounding errors, which AdamW takes at full length

inline std::string device_name() {
    const char *const name = std::getenv("CFT_PORTABLE_DEVICE");
    return name && *name ? name : "ggml-cpu";
}

// One thread: ggml's wait for each other spinning after every op, which on a busy machine takes minutes.
inline cft_trainer_params params() {
    cft_trainer_params p = device_params();
    p.n_threads = 1;
    return p;
}

inline void compare(const std::string &path, const batch &b, const cft_trainer_params &p, const std::vector<cft_module> &modules = {}) {
    compare_on(device_name(), path, b, p, near, modules);
}

inline ggml_backend_dev_t ggml_device() {
    int index = -1;
    return cft::portable::find_device(device_name(), &index);
}

// One pack, forward and backward, on an engine of the test's own.
inline void run_on(cft::portable::engine &e, const batch &b) {
    std::vector<int32_t> rows = b.rows(), targets;
    std::vector<float>   weights(rows.size(), 1.0f);
    for (int32_t row : rows) {
        targets.push_back(b.targets[size_t(row)]);
    }
    const int64_t        t = rows.back() + 1;
    std::vector<int32_t> until(b.visible_until.begin(), b.visible_until.begin() + t);
    for (int32_t &u : until) {
        u = std::min(u, int32_t(t));
    }
    std::atomic<bool> cancelled{false};
    CHECK(e.run({b.tokens.data(), b.positions.data(), until.data(), t, rows, targets, weights, {}}, true, cancelled) > 0);
}

inline family_sizes fused_sizes() {
    family_sizes sizes;
    sizes.n_embd = 64, sizes.n_ff = 128, sizes.head_dim = 32, sizes.spread = 0.14f, sizes.n_layer = 2;
    return sizes;
}

struct named_test {
    const char *name;
    void (*run)();
};

// Runs all tests, or the one named by the first argument; exits with 77, which ctest counts as skipped, where the device is absent.
inline int run_tests(const char *program, const std::vector<named_test> &tests, int argc, char **argv) {
    const char *const folder = std::getenv("CFT_BACKEND_DIR");
    OK(cft_init(folder, folder ? std::strlen(folder) : 0, &checks::err));
    try {
        CHECK(ggml_device() != nullptr);
    } catch (const cft::failure &f) {
        std::printf("%s: SKIP: %s\n", program, f.what());
        return 77;
    }
    for (const named_test &t : tests) {
        if (argc < 2 || std::string(argv[1]) == t.name) {
            t.run();
        }
    }
    return checks::finish(program);
}

} // namespace tiny
