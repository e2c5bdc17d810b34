// device_tiles.h - loss and head in several tiles of rows and of the vocabulary, on a device against the CPU engine. As devices choose them
// themselves, tiles are larger than all of a small model.
#pragma once

#include "device_fixture.h"

namespace tiny {

constexpr uint32_t ends_of_model = CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
constexpr int      tiles_vocab   = 203; // of no multiple of anything; 208 in rows of logits

// What is compared: a model, an adapter, a pack.
struct tiles_case {
    std::string             name, path;
    cft_trainer_params      params;
    std::vector<cft_module> modules = {};
};

// The models are such that memory tells where their weights are: of Q8_0, which widened takes twice as much. n_ff: a multiple of 64 for the portable path.
inline std::vector<tiles_case> tiles_cases(const std::string &prefix, const cft_trainer_params &params) {
    std::vector<tiles_case> cases;
    options                 o = device_sizes();
    o.n_vocab = tiles_vocab, o.n_layer = 3, o.n_ff = 128, o.type = GGML_TYPE_Q8_0;
    const model tied(o, prefix + "-tied.gguf");
    o.tied = false;
    const model  apart(o, prefix + "-apart.gguf");
    family_sizes sizes;
    sizes.n_embd = 64, sizes.n_ff = 128, sizes.n_head = 4, sizes.head_dim = 64, sizes.spread = 0.14f, sizes.n_layer = 3, sizes.n_vocab = tiles_vocab;
    sizes.type = GGML_TYPE_Q8_0;
    const family_file capped(*cft::family_of("gemma2"), nullptr, sizes);
    const family_file capped_apart(*cft::family_of("gemma2"), [](gguf_context *gguf, ggml_context *ctx) {
        ggml_tensor *const head = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 64, tiles_vocab);
        ggml_set_name(head, "output.weight");
        const auto values = checks::random_floats(size_t(ggml_nelements(head)), 0.4f);
        std::memcpy(head->data, values.data(), values.size() * sizeof(float));
        gguf_add_tensor(gguf, head);
    }, sizes);
    cft_trainer_params p = params;
    cases.push_back({"a tied head", tied.path, p});
    p.dora = 1;
    cases.push_back({"a tied head, DoRA in the layers", tied.path, p});
    p = params;
    cases.push_back({"a soft cap", capped.path, p});
    cases.push_back({"a head of its own", apart.path, p});
    p.targets |= ends_of_model;
    cases.push_back({"a head with an adapter", apart.path, p, {{-1, CFT_TARGET_OUTPUT, 11, 3}}});
    p.dropout = 0.3f;
    cases.push_back({"a head with an adapter, soft cap, dropout", capped_apart.path, p});
    p.targets = CFT_TARGET_OUTPUT;
    cases.push_back({"nothing but the head's adapter, dropout", apart.path, p});
    return cases;
}

// Loss, gradients and the targets' log-probabilities; and on the same device, those of all rows at a time: near_whole is how near it is to itself.
inline void compare_tiles(const std::string &device, const tiles_case &c, const tiling &how, const nearness &near, double probability_tolerance,
                          const nearness &near_whole) {
    using namespace checks;
    const std::string outer = where;
    where += ", " + std::to_string(how.tiles.rows) + " rows, " + std::to_string(how.tiles.head_rows) + " of the head";
    const batch b = segments(tiles_vocab);
    CHECK(int64_t(b.rows().size()) > how.tiles.rows && tiles_vocab > how.tiles.head_rows);
    compare_on(device, c.path, b, c.params, near, c.modules, how);
    const opened on_cpu(c.path, "cpu"), on_device(c.path, device);
    trainer      cpu(on_cpu.handle, c.params, c.modules), whole(on_device.handle, c.params, c.modules), parts(on_device.handle, c.params, c.modules);
    in_tiles(parts, how);
    const gradients values = some_values(cpu);
    for (trainer *t : {&cpu, &whole, &parts}) {
        t->write(CFT_SLOT_VALUE, values);
    }
    CHECK(worst(log_probabilities(parts, b, tiles_vocab), log_probabilities(cpu, b, tiles_vocab)) < probability_tolerance);
    const double want = whole.accumulate(b);
    CHECK_NEAR(parts.accumulate(b), want, want, near_whole.loss);
    compare_gradients(parts.read(CFT_SLOT_GRADIENT), whole.read(CFT_SLOT_GRADIENT), near_whole);
    where = outer;
}

} // namespace tiny
