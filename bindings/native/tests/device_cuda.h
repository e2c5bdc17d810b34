// device_cuda.h - what the tests of whole models on a CUDA device share: how near it must come to the CPU engine, steps, copies that are late,
// and how tests are run.
#pragma once

#include "device_fixture.h"

namespace tiny {

// bf16 rounds each activation to 8 bits. The tiny models' activations are as rough as it gets: nothing averages out.
constexpr double   norm_tolerance = 0.01, loss_tolerance = 5e-3, logit_tolerance = 0.03;
constexpr nearness near = {0.999, 0.985, norm_tolerance, loss_tolerance};

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
    for (cft_slot slot : {CFT_SLOT_VALUE, CFT_SLOT_MOMENT1, CFT_SLOT_MOMENT2}) {
        again.write(slot, device.read(slot));
    }
    uint64_t steps = 0, micro_batches = 0;
    OK(cft_trainer_get_counters(device.handle, &steps, &micro_batches, &err));
    CHECK(steps == 4 && micro_batches == 8);
    OK(cft_trainer_set_counters(again.handle, steps, micro_batches, &err));
    for (int i = 0; i < 2; i++) {
        CHECK(step(device) == step(again));
    }
    for (cft_slot slot : {CFT_SLOT_VALUE, CFT_SLOT_MOMENT1, CFT_SLOT_MOMENT2}) {
        const gradients a = device.read(slot), c = again.read(slot);
        CHECK(worst_tensor(a, c) == 0 && norm(flat(a)) > 0);
    }
    CHECK(norm(flat(device.read(CFT_SLOT_GRADIENT))) == 0);
    device.accumulate(b);
    CHECK(norm(flat(device.read(CFT_SLOT_GRADIENT))) > 0);
    cft_trainer_discard(device.handle);
    CHECK(norm(flat(device.read(CFT_SLOT_GRADIENT))) == 0);
}

// The most memory with which a trainer's weights stay on the host.
inline uint64_t limit_from_host(const opened &on_device, cft_trainer_params p) {
    cft_memory_estimate e{};
    p.memory_limit = 0;
    for (int i = 0; e.streamed == 0 && i < 1000; i++) {
        OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &e, &checks::err));
        p.memory_limit = e.streamed == 0 ? e.total - 1 : p.memory_limit;
    }
    CHECK(e.streamed > 0);
    return p.memory_limit;
}

// Work, and copies of weights, as late as the waits between streams allow: the same bits, with weights on the device and from the host, whose
// copies come while other work goes on. Over the shim only, which can make them late; a device does what it does.
inline void compare_streams(const std::string &path, const batch &b, const batch &other) {
    using namespace checks;
    const std::string  outer = where;
    const opened       on_device(path, "cuda");
    cft_trainer_params p = device_params();
    gradients          values, want;
    double             loss = 0;
    for (const char *late : {"nothing", "work", "copies"}) {
        for (const bool stream : {false, true}) {
            where = outer + ", late: " + late + (stream ? ", from the host" : "");
            setenv("CFT_SHIM_LATE", late, 1);
            p.memory_limit = stream ? limit_from_host(on_device, p) : 0;
            trainer t(on_device.handle, p);
            values = values.empty() ? some_values(t) : values;
            t.write(CFT_SLOT_VALUE, values);
            t.evaluate(other); // ends at the last layer; the next pack begins at the first
            const double l = t.accumulate(b);
            t.accumulate(other);
            const gradients g = t.read(CFT_SLOT_GRADIENT);
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

} // namespace tiny
