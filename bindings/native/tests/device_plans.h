// device_plans.h - all plans of a CUDA device for one model, from the one that keeps most to the one that fits least.
#pragma once

#include "device_fixture.h"

#include <set>

namespace tiny {

// What the plans of a model have been like.
struct plans_seen {
    int  n = 0, n_whole = 0, n_layers = 0, n_between = 0, n_streamed = 0, n_offloaded = 0; // nothing, all, or some of the products again
    bool small_weights = false;
    std::set<uint64_t> weights; // bytes on the device, with none of the layers' on the host
};

// Plans from the one that keeps most to the one that fits least, `stride` bytes apart, give the same bits, and take what was said.
// may_leave: the token embedding may leave the device.
inline plans_seen every_plan(const std::string &path, const batch &b, cft_trainer_params p, uint64_t stride, bool may_leave = false,
                             const std::vector<cft_module> &modules = {}) {
    using namespace checks;
    const std::string outer = where;
    const opened on_device(path, "cuda");
    gradients    values, want;
    double       loss = 0;
    plans_seen   seen;
    cft_memory_estimate before{};
    float               for_dora = 0; // what is computed again when all is kept
    for (; seen.n < 1000; seen.n++) {
        p.memory_limit = seen.n > 0 ? before.total - stride : 0;
        cft_memory_estimate e, asked; // what does not fit is told, not refused
        OK(cft_memory_estimate_get(on_device.handle, &p, modules.data(), modules.size(), &asked, &err));
        if (seen.n > 0 && asked.total > p.memory_limit) {
            cft_trainer *probe = nullptr;
            REFUSED(cft_trainer_new(on_device.handle, &p, modules.data(), modules.size(), &probe, &err), CFT_ERR_NO_MEMORY, "train.seq_len");
            CHECK(std::strstr(err.message, "CUDA0"));
            break;
        }
        where = outer + ", plan " + std::to_string(seen.n);
        trainer t(on_device.handle, p, modules);
        OK(cft_trainer_get_memory(t.handle, &e, &err));
        CHECK(std::memcmp(&e, &asked, sizeof e) == 0);
        CHECK(e.total == e.weights + e.adapter + e.gradients + e.moments + e.activations + e.workspace + e.loss);
        for_dora = seen.n == 0 ? e.computed_again : for_dora;
        CHECK((for_dora > 0) == (p.dora != 0) && e.computed_again >= for_dora && (seen.n == 0 || e.total < before.total));
        // With weights where they were, less memory means more products, or more that waits on the host instead.
        CHECK(e.weights != before.weights || e.streamed != before.streamed || e.offloaded > before.offloaded || e.computed_again >= before.computed_again);
        const float not_kept = e.computed_again - for_dora;
        CHECK((not_kept > 0) == (e.keep_activations == CFT_KEEP_LAYERS) && not_kept < 1);
        if (seen.n == 0) {
            values = some_values(t);
        }
        t.write(CFT_SLOT_VALUE, values);
        const double    l = t.accumulate(b);
        const gradients g = t.read(CFT_SLOT_GRADIENT);
        if (seen.n == 0) {
            want = g, loss = l;
            CHECK(norm(flat(g)) > 0);
        }
        CHECK(l == loss && worst_tensor(g, want) == 0);
        // What is not on the device is on the host, with an embedding that must be on the device.
        CHECK(e.streamed == 0 || may_leave || !seen.small_weights || seen.weights.count(e.streamed + e.weights));
        if (e.streamed == 0) {
            seen.weights.insert(e.weights);
        }
        seen.n_whole += not_kept == 0;
        seen.n_layers += not_kept > 0.4f;
        seen.n_between += not_kept > 0 && not_kept < 0.4f;
        seen.n_streamed += e.streamed > 0;
        seen.n_offloaded += e.offloaded > 0;
        seen.small_weights = seen.small_weights || (e.streamed == 0 && e.weights < before.weights);
        before             = e;
    }
    where = outer;
    return seen;
}

} // namespace tiny
