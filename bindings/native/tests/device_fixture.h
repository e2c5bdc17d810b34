// device_fixture.h - a model and a trainer on the CPU and on a device beside each other, through cft.h.
#pragma once

#include "engine_fixture.h"
#include "family_file.h"
#include "trainer.h"

#include <cstring>

namespace tiny {

// How near a device comes to the CPU engine.
struct nearness {
    double cosine, tensor_cosine, norm, loss; // of the whole gradient; of each tensor's; relative
};

constexpr float b_spread = 0.02f, magnitude_spread = 0.1f;

struct opened {
    cft_model *handle = nullptr;
    opened(const std::string &path, const std::string &device) {
        OK(cft_model_load(path.data(), path.size(), device.data(), device.size(), &handle, &checks::err));
        if (!handle) {
            std::exit(checks::finish("device"));
        }
    }
    ~opened() { cft_model_free(handle); }
    opened(const opened &)            = delete;
    opened &operator=(const opened &) = delete;
};

inline double cosine(const std::vector<float> &a, const std::vector<float> &b) { return checks::dot(a, b) / std::max(checks::norm(a) * checks::norm(b), 1e-30); }

inline std::vector<float> flat(const gradients &g) {
    std::vector<float> all;
    for (const auto &[name, v] : g) {
        all.insert(all.end(), v.begin(), v.end());
    }
    return all;
}

// All tensors as one vector: its direction and its length.
inline void compare_whole(const gradients &got, const gradients &want, const nearness &near) {
    using checks::where;
    CHECK(got.size() == want.size());
    const auto g = flat(got), w = flat(want);
    const double whole = cosine(g, w);
    if (!(whole >= near.cosine) || std::getenv("CFT_SHOW")) {
        std::fprintf(stderr, "%s: 1 - cosine %.1e\n", where.c_str(), 1 - whole);
    }
    CHECK(whole >= near.cosine);
    CHECK_NEAR(checks::norm(g), checks::norm(w), checks::norm(w), near.norm);
}

inline void compare_tensor(const std::string &name, double c, const nearness &near) {
    const std::string outer = checks::where;
    checks::where += ", " + name;
    if (!(c >= near.tensor_cosine)) {
        std::fprintf(stderr, "%s: cosine %.6f\n", checks::where.c_str(), c);
    }
    CHECK(c >= near.tensor_cosine);
    checks::where = outer;
}

inline void compare_gradients(const gradients &got, const gradients &want, const nearness &near) {
    compare_whole(got, want, near);
    for (const auto &[name, v] : want) {
        compare_tensor(name, cosine(got.at(name), v), near);
    }
}

// Values as of an adapter in training: A as it begins, B small, magnitudes off their norms. (Large ones make a model in which rounding errors
// explode.)
inline gradients some_values(const trainer &t) {
    gradients values = t.read(CFT_SLOT_VALUE);
    for (auto &[name, v] : values) {
        const bool embedding = name.find("token_embd") == 0; // whose A is what begins at 0
        if (name.find(embedding ? "lora_a" : "lora_b") != std::string::npos) {
            v = checks::random_floats(v.size(), b_spread);
        } else if (name.find("lora_magnitude") != std::string::npos) {
            const auto random = checks::random_floats(v.size(), magnitude_spread);
            for (size_t i = 0; i < v.size(); i++) {
                v[i] *= 1 + random[i];
            }
        }
    }
    return values;
}

// tiling is how a trainer goes through loss and head in tiles: with a memory limit of its own, since it needs less than without.
struct tiling {
    cft::loss_tiles tiles;
    uint64_t        memory_limit = 0;
};

// Has a trainer that was made just now work in tiles: on a device of its own, with the values that it has.
inline void in_tiles(trainer &t, const tiling &how) {
    cft_trainer       &inside = *t.handle;
    const gradients    values = t.read(CFT_SLOT_VALUE);
    cft_trainer_params p      = inside.params;
    p.memory_limit            = how.memory_limit;
    inside.device.reset(); // and what it has locked
    inside.device.reset(inside.model.device->make(inside.model, p, inside.adapter, inside.model.device_index, {how.tiles, 0}));
    for (const cft_trainer::tensor &of : inside.tensors) {
        if (of.kind == cft::magnitude) { // as long as nothing has been trained
            inside.device->write_weight_norms(of.layer, of.module, values.at(of.name).data());
        }
    }
    t.write(CFT_SLOT_VALUE, values);
}

// One pack on both, from the same adapter.
inline void compare_on(const std::string &name, const std::string &path, const batch &b, const cft_trainer_params &p, const nearness &near,
                       const std::vector<cft_module> &modules = {}, const tiling &how = {}) {
    const opened on_cpu(path, "cpu"), on_device(path, name);
    trainer      cpu(on_cpu.handle, p, modules), device(on_device.handle, p, modules);
    if (how.tiles.rows > 0) {
        in_tiles(device, how);
    }
    cpu.write(CFT_SLOT_VALUE, some_values(cpu));
    device.write(CFT_SLOT_VALUE, cpu.read(CFT_SLOT_VALUE));
    CHECK(worst_tensor(device.read(CFT_SLOT_VALUE), cpu.read(CFT_SLOT_VALUE)) == 0);
    const double want = cpu.evaluate(b);
    CHECK_NEAR(device.evaluate(b), want, std::fabs(want), near.loss);
    const double trained = cpu.accumulate(b);
    CHECK_NEAR(device.accumulate(b), trained, std::fabs(trained), near.loss);
    compare_gradients(device.read(CFT_SLOT_GRADIENT), cpu.read(CFT_SLOT_GRADIENT), near);
}

inline options device_sizes() {
    options o;
    o.n_embd = 64, o.n_ff = 96, o.n_head = 2, o.n_head_kv = 1, o.head_dim = 64, o.n_layer = 3, o.gain = 0.5f;
    return o;
}

inline batch segments(int n_vocab) {
    batch b;
    b.add_segment(21, n_vocab, 0.5);
    b.add_segment(40, n_vocab, 0.3);
    return b;
}

// A prefix and branches under it, some longer than a window of 6.
inline batch tree(int n_vocab) {
    constexpr int prefix = 9, branch = 8, n_branches = 4;
    batch         b;
    b.add_segment(prefix + n_branches * branch, n_vocab, 0.7);
    for (int i = prefix; i < int(b.size()); i++) {
        const int of          = (i - prefix) / branch;
        b.positions[size_t(i)]     = prefix + (i - prefix) % branch;
        b.visible_until[size_t(i)] = prefix + (of + 1) * branch;
    }
    return b;
}

// A whole model of people's, where one is at hand (CFTUNE_MODEL); NULL otherwise, which is said.
inline const char *real_model(const char *program) {
    const char *const path = std::getenv("CFTUNE_MODEL");
    if (!path) {
        std::printf("%s: SKIP the real model: CFTUNE_MODEL is not set\n", program);
    }
    return path;
}

inline batch real_pack() {
    batch b;
    b.add_segment(24, 1000, 0.6);
    b.add_segment(40, 1000, 0.5);
    return b;
}

// Log-probabilities of a pack's targets, from the rows of logits.
inline std::vector<float> log_probabilities(const trainer &t, const batch &b, int n_vocab) {
    const std::vector<int32_t> rows = b.rows();
    std::vector<float>         logits(rows.size() * size_t(n_vocab)), p;
    OK(cft_trainer_logits(t.handle, b.tokens.data(), b.positions.data(), b.visible_until.data(), b.size(), rows.data(), rows.size(), logits.data(), &checks::err));
    for (size_t i = 0; i < rows.size(); i++) {
        const float *const row = logits.data() + i * size_t(n_vocab);
        double             sum = 0;
        for (int j = 0; j < n_vocab; j++) {
            sum += std::exp(double(row[j]));
        }
        p.push_back(float(double(row[b.targets[size_t(rows[i])]]) - std::log(sum)));
    }
    return p;
}

inline cft_trainer_params device_params() {
    cft_trainer_params p = some_params();
    p.rank = 8, p.alpha = 12; // the host's rank is the device's
    return p;
}

// Ranks, targets and dropout, in a model of llama's.
inline void compare_llama(const std::string &device, const std::string &prefix, const cft_trainer_params &plain, const nearness &near) {
    const model m(device_sizes(), prefix + "llama.gguf");
    const batch b = segments(m.o.n_vocab);
    checks::where = "llama";
    compare_on(device, m.path, b, plain, near);
    checks::where = "llama, tree";
    compare_on(device, m.path, tree(m.o.n_vocab), plain, near);
    checks::where        = "llama, a rank that is padded, rslora";
    cft_trainer_params p = plain;
    p.rank = 3, p.rslora = 1;
    compare_on(device, m.path, b, p, near);
    checks::where = "llama, some targets";
    p             = plain;
    p.targets     = CFT_TARGET_ATTN_V | CFT_TARGET_FFN_UP | CFT_TARGET_ATTN_OUTPUT;
    compare_on(device, m.path, b, p, near);
    p.targets = CFT_TARGET_FFN_DOWN;
    compare_on(device, m.path, b, p, near);
    checks::where = "llama, dropout";
    p             = plain;
    p.dropout     = 0.3f;
    compare_on(device, m.path, b, p, near);
}

// Every dense family, over segments and over a tree.
inline void compare_families(const std::string &device, int n_ff, int head_dim, const cft_trainer_params &p, const nearness &near) {
    for (const char *name : {"llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"}) {
        const cft::family &f = *cft::family_of(name);
        family_sizes       sizes;
        sizes.n_embd = 64, sizes.n_ff = n_ff, sizes.n_head = 4, sizes.head_dim = head_dim, sizes.spread = 0.14f;
        sizes.n_layer = f.global_every > 2 ? f.global_every + 1 : 3;
        const family_file file(f, nullptr, sizes);
        checks::where = std::string(name) + ", segments";
        compare_on(device, file.path, segments(sizes.n_vocab), p, near);
        checks::where = std::string(name) + ", tree";
        compare_on(device, file.path, tree(sizes.n_vocab), p, near);
    }
}

// Products and gradients go through the dequantized weights of every type that the engine takes.
inline void compare_types(const std::string &device, const std::string &prefix, const cft_trainer_params &p, const nearness &near) {
    for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
                           GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS}) {
        options o = device_sizes();
        o.n_layer = 2, o.n_embd = 256, o.n_ff = 256, o.n_head = 4, o.n_head_kv = 2, o.type = type, o.gain = 0.25f;
        checks::where = std::string("type ") + ggml_type_name(type);
        const model m(o, prefix + ggml_type_name(type) + ".gguf");
        batch       b;
        b.add_segment(24, o.n_vocab, 0.5);
        compare_on(device, m.path, b, p, near);
    }
}

// A trainer that is given another's values, moments and counters, after so many steps and packs, goes on to the same bits.
template <typename F> void compare_resumed(trainer &device, trainer &again, uint64_t n_steps, uint64_t n_packs, F step) {
    using namespace checks;
    for (cft_slot slot : {CFT_SLOT_VALUE, CFT_SLOT_MOMENT1, CFT_SLOT_MOMENT2}) {
        again.write(slot, device.read(slot));
    }
    uint64_t steps = 0, micro_batches = 0;
    OK(cft_trainer_get_counters(device.handle, &steps, &micro_batches, &err));
    CHECK(steps == n_steps && micro_batches == n_packs);
    OK(cft_trainer_set_counters(again.handle, steps, micro_batches, &err));
    for (int i = 0; i < 2; i++) {
        CHECK(step(device) == step(again));
    }
    for (cft_slot slot : {CFT_SLOT_VALUE, CFT_SLOT_MOMENT1, CFT_SLOT_MOMENT2}) {
        const gradients a = device.read(slot), c = again.read(slot);
        CHECK(worst_tensor(a, c) == 0 && norm(flat(a)) > 0);
    }
    CHECK(norm(flat(device.read(CFT_SLOT_GRADIENT))) == 0);
}

} // namespace tiny
