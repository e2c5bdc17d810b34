// device_cuda.h - what the tests of whole models on a CUDA device share: how near it must come to the CPU engine, steps, copies that are late,
// and how tests are run.
#pragma once

#include "device_fixture.h"

#include <dlfcn.h>
#include <functional>

namespace tiny {

// bf16 rounds each activation to 8 bits. The tiny models' activations are as rough as it gets: nothing averages out.
constexpr double   norm_tolerance = 0.01, loss_tolerance = 5e-3, logit_tolerance = 0.03;
constexpr nearness near = {0.999, 0.985, norm_tolerance, loss_tolerance};

// The shim's count of the host's bytes that are locked; NULL where the library under test is a device's, which has no such count.
using locked_count = size_t (*)();
inline locked_count locked_on_shim() {
    void *const library = dlopen(std::getenv("CFT_CUDA_LIBRARY"), RTLD_LAZY);
    return reinterpret_cast<locked_count>(library ? dlsym(library, "cft_shim_locked") : nullptr);
}

inline void compare(const std::string &path, const batch &b, const cft_trainer_params &p, const std::vector<cft_module> &modules = {}) {
    compare_on("cuda", path, b, p, near, modules);
}

// Steps as the CPU takes them, and a run that goes on from written state to the same bits.
inline void compare_steps(const std::string &path, const cft_trainer_params &p, float lr, const batch &b, const batch &other,
                          const std::vector<cft_module> &modules = {}) {
    using namespace checks;
    const opened on_cpu(path, "cpu"), on_device(path, "cuda");
    trainer      cpu(on_cpu.handle, p, modules), device(on_device.handle, p, modules), again(on_device.handle, p, modules);
    const auto   step = [&](trainer &t) {
        double length = NAN;
        t.accumulate(b), t.accumulate(other);
        OK(cft_trainer_apply(t.handle, lr, 1.0f, 40, &length, &err));
        return length;
    };
    // B begins at 0, so the first gradient of A is 0 and its moments are rounding errors' size: compare after some steps.
    for (int i = 0; i < 4; i++) {
        const double want = step(cpu);
        CHECK_NEAR(step(device), want, want, norm_tolerance * 2);
    }
    const double want = cpu.evaluate(b);
    CHECK_NEAR(device.evaluate(b), want, want, loss_tolerance);
    compare_resumed(device, again, 4, 8, step);
    device.accumulate(b);
    CHECK(norm(flat(device.read(CFT_SLOT_GRADIENT))) > 0);
    cft_trainer_discard(device.handle);
    CHECK(norm(flat(device.read(CFT_SLOT_GRADIENT))) == 0);
}

// offloads lets as many layers' products wait on the host as there are, while it lives: the few bytes that a tiny model's layers could hide
// behind their products are less than one product.
struct offloads {
    offloads() { setenv("CFT_CUDA_OFFLOAD", "1000", 1); }
    ~offloads() { unsetenv("CFT_CUDA_OFFLOAD"); }
};

// The first plan, from the one that keeps most towards the one that fits least, that `is`; memory_limit is set to what it needs.
inline cft_memory_estimate plan_that(const opened &on_device, cft_trainer_params &p, const std::vector<cft_module> &modules,
                                     const std::function<bool(const cft_memory_estimate &)> &is) {
    using namespace checks;
    cft_memory_estimate e{};
    p.memory_limit = 0;
    for (int i = 0; i < 1000; i++) {
        OK(cft_memory_estimate_get(on_device.handle, &p, modules.data(), modules.size(), &e, &err));
        if (is(e) || (p.memory_limit > 0 && e.total > p.memory_limit)) {
            break;
        }
        p.memory_limit = e.total - 1;
    }
    CHECK(is(e));
    p.memory_limit = e.total;
    return e;
}

// Bytes of a layer's product of gate and up in a pack of device_params, without its adapters' columns.
inline uint64_t product_bytes_of(const options &o) { return uint64_t(device_params().max_tokens) * 2 * uint64_t(o.n_ff) * 2; }

// Work, and copies, as late as the waits between streams allow: the same bits, with weights on the device and from the host, whose
// copies come while other work goes on, and with products that wait on the host. Over the shim only, which can make them late; a device does what it does.
// product_bytes are product_bytes_of; 0: the model's do not wait there.
inline void compare_streams(const std::string &path, const batch &b, const batch &other, uint64_t product_bytes, cft_trainer_params p = device_params()) {
    using namespace checks;
    const std::string outer = where;
    const opened      on_device(path, "cuda");
    gradients         values, want;
    double            loss = 0;
    const struct {
        const char *name;
        std::function<bool(const cft_memory_estimate &)> is;
    } kinds[] = {{"on the device", [](const cft_memory_estimate &e) { return e.streamed == 0 && e.offloaded == 0; }},
                 {"from the host", [](const cft_memory_estimate &e) { return e.streamed > 0; }},
                 // At least two products beside the two in the places that all share: each is used more than once.
                 {"offloaded", [&](const cft_memory_estimate &e) { return e.streamed == 0 && e.offloaded >= 2 * product_bytes; }}};
    for (const char *late : {"nothing", "work", "copies", "side"}) {
        for (const auto &kind : kinds) {
            if (product_bytes == 0 && std::strcmp(kind.name, "offloaded") == 0) {
                continue;
            }
            where = outer + ", late: " + late + ", " + kind.name;
            setenv("CFT_SHIM_LATE", late, 1);
            const offloads some;
            plan_that(on_device, p, {}, kind.is);
            trainer t(on_device.handle, p);
            values = values.empty() ? some_values(t) : values;
            t.write(CFT_SLOT_VALUE, values);
            t.evaluate(other); // ends at the last layer; the next pack begins at the first
            const double l = t.accumulate(b);
            t.accumulate(other);
            const gradients before = t.read(CFT_SLOT_GRADIENT);
            double          length = 0;
            OK(cft_trainer_apply(t.handle, 1e-2f, 1.0f, 40, &length, &err)); // the next pack is prepared while the device is at it
            t.accumulate(b);
            gradients g = t.read(CFT_SLOT_GRADIENT);
            CHECK(norm(flat(before)) > 0 && length > 0);
            for (const auto &[name, v] : before) {
                g[name].insert(g[name].end(), v.begin(), v.end());
            }
            if (want.empty()) {
                want = g, loss = l;
                CHECK(norm(flat(g)) > 0);
            }
            CHECK(l == loss && worst_tensor(g, want) == 0);
        }
    }
    unsetenv("CFT_SHIM_LATE");
    where = outer;
}

struct test_case {
    const char *name;
    void (*run)();
};

// The case of the name that is given, or all; "cases" prints their names, so that whoever runs them one by one (scripts/gpu-check) forgets none.
inline int run_cases(const char *program, int argc, char **argv, const std::vector<test_case> &cases) {
    const std::string wanted = argc > 1 ? argv[1] : "";
    bool              found  = false;
    for (const test_case &c : cases) {
        if (wanted == "cases") {
            std::printf("%s\n", c.name);
        } else if (wanted.empty() || wanted == c.name) {
            checks::random_bits.seed(1); // the same models alone and with the others
            c.run();
        }
        found = found || wanted.empty() || wanted == "cases" || wanted == c.name;
    }
    if (!found) {
        std::fprintf(stderr, "%s: no case %s\n", program, wanted.c_str());
        return 2;
    }
    return wanted == "cases" ? 0 : checks::finish(program);
}

} // namespace tiny
