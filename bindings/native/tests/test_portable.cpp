// test_portable.cpp - training by ggml's ops on one of ggml's devices against the CPU engine, through cft.h: losses, gradients,
// logits, optimizer steps, state, memory and refusals, of every family and type. See portable_fixture.h.
#include "portable_fixture.h"
#include "device_tiles.h"

using namespace checks;
using namespace tiny;

namespace {

constexpr double   logit_tolerance = 1e-4;

void test_llama() {
    compare_llama(device_name(), "portable-", params(), near);
    const batch        b = segments(device_sizes().n_vocab);
    cft_trainer_params p = params();
    p.dropout            = 0.3f;
    const family_file fused(*cft::family_of("phi3"), nullptr, fused_sizes());
    where = "phi3, dropout";
    compare(fused.path, b, p);
    where     = "llama, one layer, a head of its own";
    options o = device_sizes();
    o.n_layer = 1, o.tied = false;
    const model one(o, "portable-one.gguf");
    compare(one.path, b, params());
    where = "llama, one target";
    batch single;
    single.add_segment(12, o.n_vocab, 0.0);
    single.targets[11] = 3, single.weights[11] = 1;
    p             = params();
    p.max_targets = 1;
    compare(one.path, single, p);
    where          = "llama, frequencies with factors, scaled";
    o              = device_sizes();
    o.rope_factors = true, o.rope_scale = 2, o.head_dim = 24, o.n_head = 4, o.n_head_kv = 2; // and heads of a size like no other
    const model scaled(o, "portable-scaled.gguf");
    compare(scaled.path, b, params());
}

void test_families() { compare_families(device_name(), 128, 32, params(), near); }
void test_types() { compare_types(device_name(), "portable-", params(), near); }

void test_logits() {
    where = "logits";
    const family_file file(*cft::family_of("gemma2")); // whose logits are capped
    const batch       b = segments(61);
    const opened      on_cpu(file.path, "cpu"), on_device(file.path, device_name());
    trainer           cpu(on_cpu.handle, params()), device(on_device.handle, params());
    const std::vector<int32_t> rows = {0, 5, 20, 33, 50};
    std::vector<float>         want(rows.size() * 61), got(want.size());
    for (const auto &[t, out] : {std::pair{&cpu, &want}, std::pair{&device, &got}}) {
        OK(cft_trainer_logits(t->handle, b.tokens.data(), b.positions.data(), b.visible_until.data(), b.size(), rows.data(), rows.size(), out->data(), &err));
    }
    CHECK(worst(got, want) < logit_tolerance);
}

// Loss and head in several tiles: the last one full, and not.
void test_tiles() {
    constexpr nearness near_whole = {1 - 1e-7, 1 - 1e-6, 1e-5, 1e-6};
    size_t             i = 0;
    for (const tiles_case &c : tiles_cases("portable-tiles", params())) {
        where = "tiles, " + c.name;
        compare_tiles(device_name(), c, {std::vector<cft::loss_tiles>{{5, 64}, {1, 128}, {11, 192}}[i++ % 3], 0}, near, logit_tolerance, near_whole);
    }
}

// A target whose probability is smaller than any float: its loss is that of its logits.
void test_unlikely_target() {
    where = "unlikely target";
    options o = device_sizes();
    o.tied    = false;
    const model m(o, "portable-unlikely.gguf", [](gguf_context *, ggml_context *ctx) {
        float *const head = static_cast<float *>(ggml_get_tensor(ctx, "output.weight")->data);
        for (int64_t i = 0; i < ggml_nelements(ggml_get_tensor(ctx, "output.weight")); i++) {
            head[i] *= 60;
        }
    });
    batch b = segments(o.n_vocab);
    const opened on_cpu(m.path, "cpu"), on_device(m.path, device_name());
    trainer      cpu(on_cpu.handle, params()), device(on_device.handle, params());
    device.write(CFT_SLOT_VALUE, cpu.read(CFT_SLOT_VALUE));
    const double want = cpu.evaluate(b);
    CHECK(want > 88 * double(b.rows().size())); // a probability of e^-88 is no float any more
    CHECK_NEAR(device.evaluate(b), want, want, near.loss);
}

void test_memory() {
    where = "memory";
    const model        m(device_sizes(), "portable-memory.gguf");
    const opened       on_device(m.path, device_name());
    cft_trainer_params p = params();
    trainer            t(on_device.handle, p);
    cft_memory_estimate before, asked, after;
    OK(cft_trainer_get_memory(t.handle, &before, &err));
    OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &asked, &err));
    CHECK(std::memcmp(&before, &asked, sizeof asked) == 0);
    CHECK(asked.total == asked.weights + asked.adapter + asked.gradients + asked.moments + asked.activations + asked.workspace + asked.loss);
    CHECK(asked.weights >= m.values.size() && asked.adapter == asked.gradients && asked.keep_activations == CFT_KEEP_LAYERS);
    p.memory_limit = asked.total - 1;
    cft_trainer *none = nullptr;
    REFUSED(cft_trainer_new(on_device.handle, &p, nullptr, 0, &none, &err), CFT_ERR_NO_MEMORY, "train.seq_len) would fit");
    OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &after, &err)); // what does not fit is told, not refused
    CHECK(after.total == asked.total);
    p.memory_limit = 1000;
    REFUSED(cft_trainer_new(on_device.handle, &p, nullptr, 0, &none, &err), CFT_ERR_NO_MEMORY, "no pack fits");
    CHECK(none == nullptr);
}

// Scores of one tile of attention are alive at a time: but for masks, twice the length takes less than twice the memory for work.
void test_long_packs() {
    where = "long packs";
    const model  m(device_sizes(), "portable-long.gguf");
    const opened on_device(m.path, device_name());
    const auto   work = [&](int32_t tokens) {
        cft_trainer_params p = params();
        p.max_tokens  = tokens;
        p.max_targets = 64;
        cft_memory_estimate e;
        OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &e, &err));
        return double(e.workspace) - double(tokens) * double(tokens); // a half for each pair of a query and a key before it
    };
    const double shorter = work(4096), longer = work(8192);
    if (!(longer < 2 * shorter) || std::getenv("CFT_SHOW")) {
        std::fprintf(stderr, "work without masks: %.1f MiB for 4096 tokens, %.1f for 8192\n", shorter / (1 << 20), longer / (1 << 20));
    }
    CHECK(longer < 2 * shorter);
}

// Steps as the CPU takes them, and a run that goes on from written state to the same bits.
void test_steps() {
    where = "steps";
    const model        m(device_sizes(), "portable-steps.gguf");
    const opened       on_cpu(m.path, "cpu"), on_device(m.path, device_name());
    cft_trainer_params p = params();
    p.dropout = 0.1f, p.weight_decay = 0.01f, p.rank = 5;
    trainer     cpu(on_cpu.handle, p), device(on_device.handle, p), again(on_device.handle, p);
    const batch b = segments(m.o.n_vocab), other = tree(m.o.n_vocab);
    const auto  step = [&](trainer &t) {
        double length = NAN;
        t.accumulate(b), t.accumulate(other);
        OK(cft_trainer_apply(t.handle, 1e-3f, 1.0f, 40, &length, &err));
        return length;
    };
    for (int i = 0; i < 4; i++) {
        const double want = step(cpu);
        CHECK_NEAR(step(device), want, want, step_tolerance);
    }
    const double want = cpu.evaluate(b);
    CHECK_NEAR(device.evaluate(b), want, want, step_tolerance);
    compare_resumed(device, again, 4, 8, step);
    device.accumulate(b);
    const gradients once = device.read(CFT_SLOT_GRADIENT);
    CHECK(norm(flat(once)) > 0);
    again.write(CFT_SLOT_GRADIENT, once); // a written gradient is what the next pack adds to
    OK(cft_trainer_set_counters(again.handle, 6, 13, &err));
    again.accumulate(other), device.accumulate(other);
    CHECK(worst_tensor(again.read(CFT_SLOT_GRADIENT), device.read(CFT_SLOT_GRADIENT)) == 0);
    cft_trainer_discard(device.handle);
    CHECK(norm(flat(device.read(CFT_SLOT_GRADIENT))) == 0);
    OK(cft_trainer_set_counters(device.handle, 6, 12, &err));
    device.accumulate(b);
    CHECK(worst_tensor(device.read(CFT_SLOT_GRADIENT), once) == 0); // the same pack and numbers, the same bits
}

void test_refusals() {
    where = "refusals";
    const model m(device_sizes(), "portable-refusals.gguf");
    cft_model  *none = nullptr;
    const auto  load = [&](const std::string &device) { return cft_model_load(m.path.data(), m.path.size(), device.data(), device.size(), &none, &err); };
    REFUSED(load(device_name() + ":99"), CFT_ERR_DEVICE, "counted from 0");
    REFUSED(load("ggml-nothing"), CFT_ERR_DEVICE, "there is none here");
    REFUSED(load("metal:"), CFT_ERR_DEVICE, "cannot train");
    REFUSED(load("vulkan:1x"), CFT_ERR_DEVICE, "cannot train");
    CHECK(none == nullptr);

    const opened on_device(m.path, device_name());
    trainer      t(on_device.handle, params());
    batch        b = segments(m.o.n_vocab);
    double       loss = -1;
    size_t       n    = 99;
    const auto   accumulate = [&] {
        return cft_trainer_accumulate(t.handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(), nullptr, b.size(), &loss, &n, &err);
    };
    cft_trainer_cancel(t.handle);
    REFUSED(accumulate(), CFT_ERR_CANCELLED, "cancelled");
    CHECK(loss == -1 && n == 99);
    gradients values = t.read(CFT_SLOT_VALUE), broken = values;
    broken.begin()->second[0] = INFINITY;
    t.write(CFT_SLOT_VALUE, broken);
    REFUSED(accumulate(), CFT_ERR_NON_FINITE, "not finite");
    cft_trainer_discard(t.handle);
    t.write(CFT_SLOT_VALUE, values);
    CHECK(std::isfinite(t.accumulate(b)));
    gradients bad = t.read(CFT_SLOT_GRADIENT);
    bad.begin()->second[0] = NAN;
    t.write(CFT_SLOT_GRADIENT, bad);
    double length = -1;
    REFUSED(cft_trainer_apply(t.handle, 1e-3f, 1, 1, &length, &err), CFT_ERR_NON_FINITE, "not finite");
    CHECK(worst_tensor(t.read(CFT_SLOT_VALUE), values) == 0 && length == -1);

    const auto        p = params();
    cft_trainer      *refused = nullptr;
    const family_file fused(*cft::family_of("phi3")); // up begins at row 48
    const opened      on_fused(fused.path, device_name());
    REFUSED(cft_trainer_new(on_fused.handle, &p, nullptr, 0, &refused, &err), CFT_ERR_UNSUPPORTED, "multiples of 64");
    auto other = p;
    other.keep_activations = CFT_KEEP_ALL;
    REFUSED(cft_trainer_new(on_device.handle, &other, nullptr, 0, &refused, &err), CFT_ERR_UNSUPPORTED, "keep_activations: all");
    CHECK(refused == nullptr);
}

// Every op runs on the device that was asked for; what it cannot run is refused with its name, what lies elsewhere is found.
void test_placement() {
    where = "placement";
    int                      index  = -1;
    const ggml_backend_dev_t device = cft::portable::find_device(device_name(), &index);
    CHECK(device && index >= 0);
    const options         o = device_sizes();
    const model           m(o, "portable-placement.gguf");
    const cft_model       loaded_model(m.path);
    const cft::adapter_shape shape(loaded_model, params(), nullptr, 0);
    cft::portable::engine    e(loaded_model, params(), shape, device, false);
    CHECK(e.on().device() == device && e.on().n_ops() == 0); // rehearsing computes nothing
    run_on(e, segments(o.n_vocab));
    CHECK(e.on().n_ops() > 100u * uint64_t(o.n_layer)); // all of them checked by machine::run to lie on the device

    using namespace cft::portable;
    machine on(device, 1, false);
    const auto refused = [&](graph &g, cft_status status, const char *words) {
        try {
            on.run(g);
            CHECK(false);
        } catch (const cft::failure &f) {
            CHECK(f.status == status);
            if (!std::strstr(f.what(), words)) {
                std::fprintf(stderr, "message: %s\n", f.what());
            }
            CHECK(std::strstr(f.what(), words) && std::strstr(f.what(), on.name()));
        }
    };
    store        s(2);
    ggml_tensor *a = s.tensor(GGML_TYPE_F16, 8, 4), *c = s.tensor(GGML_TYPE_F32, 8, 4);
    s.allocate(device, false, "a test");
    graph unknown(16);
    unknown.add(ggml_out_prod(unknown.ctx(), a, c)); // of halves no backend has it
    refused(unknown, CFT_ERR_UNSUPPORTED, "cannot run OUT_PROD of f16[8,4], f32[8,4] to f32[8,8]");
    graph  elsewhere(16);
    float  numbers[8] = {};
    ggml_tensor *const outside = ggml_new_tensor_1d(elsewhere.ctx(), GGML_TYPE_F32, 8);
    outside->data = numbers;
    elsewhere.add(ggml_add(elsewhere.ctx(), c, outside));
    refused(elsewhere, CFT_ERR_INTERNAL, "does not lie on");
}

void test_devices() {
    where = "devices";
    int                      index  = -1;
    const ggml_backend_dev_t device = cft::portable::find_device(device_name(), &index);
    bool                     listed = false;
    for (size_t i = 0; i < cft_device_count(); i++) {
        cft_device d;
        OK(cft_device_get(i, &d, &err));
        if (std::string(d.name) == ggml_backend_dev_name(device)) {
            listed = true;
            CHECK(d.can_train == (std::string(d.name) == "CPU" ? CFT_TRAINS : CFT_TRAINS_PORTABLE) && d.memory_total > 0);
        }
    }
    CHECK(listed);
    int same = -1;
    for (const std::string &name : {device_name() + ":0", std::string("ggml-cpu")}) {
        CHECK(cft::portable::find_device(name, &same) != nullptr);
    }
}

// A whole model of people's, where one is at hand: CFTUNE_MODEL.
void test_real_model() {
    const char *const path = real_model("test_portable");
    if (!path) {
        return;
    }
    where = "real model";
    compare(path, real_pack(), params());
}

} // namespace

int main(int argc, char **argv) {
    return run_tests("test_portable", {
        {"llama", test_llama}, {"families", test_families}, {"types", test_types}, {"logits", test_logits}, {"tiles", test_tiles}, {"unlikely", test_unlikely_target},
        {"memory", test_memory}, {"long", test_long_packs}, {"steps", test_steps}, {"refusals", test_refusals}, {"placement", test_placement},
        {"devices", test_devices}, {"real", test_real_model},
    }, argc, argv);
}
