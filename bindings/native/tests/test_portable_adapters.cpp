// test_portable_adapters.cpp - on the portable path, adapters that are more than one rank and scale for all, and mixtures of experts, against
// the CPU engine. See portable_fixture.h.
#include "portable_fixture.h"

using namespace checks;
using namespace tiny;

namespace {

// No adapter of these layers' modules.
std::vector<cft_module> without(std::initializer_list<int> layers, uint32_t modules) {
    std::vector<cft_module> none;
    for (int32_t layer : layers) {
        for (int m = 0; m < cft::n_target_modules; m++) {
            if (modules >> m & 1) {
                none.push_back({layer, 1u << m, 0, 0});
            }
        }
    }
    return none;
}

constexpr uint32_t all_seven = CFT_TARGET_ATTN_Q | CFT_TARGET_ATTN_K | CFT_TARGET_ATTN_V | CFT_TARGET_ATTN_OUTPUT | CFT_TARGET_FFN_GATE | CFT_TARGET_FFN_UP |
                               CFT_TARGET_FFN_DOWN;

// Ranks and scales by module, and a choice of layers.
void test_shapes() {
    const model m(device_sizes(), "portable-shapes.gguf");
    const batch b = segments(m.o.n_vocab);
    cft_trainer_params p = params();
    p.dropout = 0.2f;
    where = "ranks by module and layer";
    compare(m.path, b, p, {{0, CFT_TARGET_ATTN_Q, 5, 10}, {1, CFT_TARGET_ATTN_V, 1, 2}, {2, CFT_TARGET_FFN_UP, 2, 7}, {2, CFT_TARGET_FFN_DOWN, 12, 6},
                           {0, CFT_TARGET_ATTN_OUTPUT, 0, 0}, {1, CFT_TARGET_FFN_GATE, 0, 0}});
    p = params();
    where = "the last layer only";
    compare(m.path, b, p, without({0, 1}, all_seven));
    where = "the middle layer only, its units";
    std::vector<cft_module> middle = without({0, 2}, all_seven);
    for (const cft_module &none : without({1}, CFT_TARGET_ATTN_Q | CFT_TARGET_ATTN_K | CFT_TARGET_ATTN_V | CFT_TARGET_ATTN_OUTPUT)) {
        middle.push_back(none);
    }
    compare(m.path, tree(m.o.n_vocab), p, middle);
    where = "the middle layer only, its attention's output";
    middle = without({0, 2}, all_seven);
    for (const cft_module &none : without({1}, all_seven & ~CFT_TARGET_ATTN_OUTPUT)) {
        middle.push_back(none);
    }
    compare(m.path, b, p, middle);

    where = "layers below the lowest adapter have no way back";
    const cft_model loaded_model(m.path);
    const auto      ops = [&](const std::vector<cft_module> &modules) {
        cft::portable::engine e(loaded_model, p, cft::adapter_shape(loaded_model, p, modules.data(), modules.size()), ggml_device(), false);
        run_on(e, b);
        return e.on().n_ops();
    };
    const uint64_t all = ops({}), upper = ops(without({0}, all_seven)), last = ops(without({0, 1}, all_seven));
    CHECK(all - upper > all / 5 && upper - last > all / 5); // of three layers and the head
}

void test_dora() {
    const model m(device_sizes(), "portable-dora.gguf");
    const batch b = segments(m.o.n_vocab);
    cft_trainer_params p = params();
    p.dora = 1;
    where  = "dora";
    compare(m.path, b, p);
    where = "dora, ranks, some layers";
    std::vector<cft_module> modules = without({0}, all_seven);
    modules.push_back({1, CFT_TARGET_ATTN_K, 5, 10}), modules.push_back({1, CFT_TARGET_FFN_DOWN, 1, 2}), modules.push_back({2, CFT_TARGET_ATTN_V, 0, 0});
    compare(m.path, tree(m.o.n_vocab), p, modules);
    for (const char *name : {"phi3", "gemma2"}) { // fused tensors; norms after, caps
        where = std::string("dora, ") + name;
        const family_file file(*cft::family_of(name), nullptr, fused_sizes());
        compare(file.path, b, p);
    }
    where     = "dora, Q4_K";
    options o = device_sizes();
    o.n_layer = 2, o.n_embd = 256, o.n_ff = 256, o.n_head = 4, o.n_head_kv = 2, o.type = GGML_TYPE_Q4_K, o.gain = 0.25f;
    const model quantized(o, "portable-dora-q4.gguf");
    compare(quantized.path, b, p);
}

// Adapters of embedding and head, alone and with others.
void test_ends() {
    options o = device_sizes();
    o.tied    = false;
    const model        m(o, "portable-ends.gguf");
    batch              b = segments(o.n_vocab);
    b.tokens[3] = b.tokens[9] = b.tokens[30] = b.tokens[31]; // one row of A, four times
    cft_trainer_params p = params();
    where     = "embedding and head";
    p.targets = CFT_TARGET_ALL_LINEAR | CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
    compare(m.path, b, p, {{-1, CFT_TARGET_TOKEN_EMBD, 5, 20}, {-1, CFT_TARGET_OUTPUT, 2, 3}});
    where     = "embedding and head, dropout, tree";
    p.dropout = 0.3f;
    compare(m.path, tree(o.n_vocab), p);
    where     = "head alone, dropout";
    p.targets = CFT_TARGET_OUTPUT;
    compare(m.path, b, p);
    where     = "embedding alone";
    p         = params();
    p.targets = CFT_TARGET_TOKEN_EMBD;
    compare(m.path, b, p);
    where     = "embedding and one module";
    p.targets = CFT_TARGET_TOKEN_EMBD | CFT_TARGET_FFN_UP;
    compare(m.path, b, p);
}

// A vocabulary whose head is widened in parts, as the engine chooses them; test_portable has small tiles, also of rows.
void test_parts() {
    where     = "a large vocabulary";
    options o = device_sizes();
    o.tied = false, o.n_layer = 1, o.n_vocab = 270000, o.type = GGML_TYPE_Q4_0; // 64 MiB of F32 rows are 262144
    const model        m(o, "portable-parts.gguf");
    cft_trainer_params p = params();
    p.targets = CFT_TARGET_ATTN_V | CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
    p.dropout = 0.2f, p.rank = 4;
    compare(m.path, segments(o.n_vocab), p);
}

// A mixture of experts, whose adapters are those of attention. Experts are 5, with sizes that are no multiples of 64.
void test_experts() {
    const cft::family &f = *cft::family_of("qwen3moe");
    family_sizes       sizes;
    sizes.n_layer = 3;
    const family_file  file(f, nullptr, sizes);
    cft_trainer_params p = params();
    where = "experts, segments";
    compare(file.path, segments(sizes.n_vocab), p);
    where = "experts, tree, dropout";
    p.dropout = 0.2f;
    compare(file.path, tree(sizes.n_vocab), p);
    where = "experts, some layers, ranks";
    compare(file.path, segments(sizes.n_vocab), p, without({0, 2}, CFT_TARGET_ATTN_Q | CFT_TARGET_ATTN_K | CFT_TARGET_ATTN_V | CFT_TARGET_ATTN_OUTPUT));
    where = "experts, one layer, one target";
    sizes.n_layer = 1;
    const family_file one(f, nullptr, sizes);
    batch             single;
    single.add_segment(12, sizes.n_vocab, 0.0);
    single.targets[11] = 3, single.weights[11] = 1;
    p             = params();
    p.max_targets = 1;
    compare(one.path, single, p);
    where = "experts, dora, sizes of people's models, Q4_K";
    p     = params();
    p.dora = 1;
    sizes.n_layer = 2, sizes.n_embd = 256, sizes.n_ff = 256, sizes.n_head = 4, sizes.head_dim = 64, sizes.spread = 0.05f, sizes.type = GGML_TYPE_Q4_K;
    const family_file quantized(f, nullptr, sizes);
    compare(quantized.path, segments(sizes.n_vocab), p);
}

// What is counted before is what graphs of any pack then take.
void test_counted() {
    options o = device_sizes();
    o.tied    = false;
    const model       plain(o, "portable-counted.gguf");
    const family_file experts(*cft::family_of("qwen3moe"));
    batch             longest;
    longest.add_segment(params().max_tokens, 61, 1.0);
    cft_trainer_params dora = params(), ends = params();
    dora.dora    = 1;
    ends.targets |= CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
    ends.dropout = 0.1f;
    const struct {
        const char        *name, *path;
        cft_trainer_params p;
    } kinds[] = {{"dora, counted", plain.path.c_str(), dora}, {"ends, counted", plain.path.c_str(), ends}, {"experts, counted", experts.path.c_str(), params()}};
    for (const auto &kind : kinds) {
        where = kind.name;
        const cft_model       m(kind.path);
        cft::portable::engine e(m, kind.p, cft::adapter_shape(m, kind.p, nullptr, 0), ggml_device(), false);
        const auto            before = e.estimate();
        for (const batch &b : {segments(61), tree(61), longest}) {
            run_on(e, b);
        }
        const auto after = e.estimate();
        CHECK(before.workspace > 0 && std::memcmp(&before, &after, sizeof after) == 0);
    }
}

// Steps from the same values, by LoRA+ and with DoRA, whose gains follow the values; without it, of embedding and head as well.
void test_other_steps() {
    options o = device_sizes();
    o.tied    = false;
    const model m(o, "portable-other-steps.gguf");
    const batch b = segments(m.o.n_vocab);
    for (const bool dora : {false, true}) {
        where                = dora ? "steps of dora and lora+" : "steps of lora+";
        cft_trainer_params p = params();
        p.lora_plus_ratio = 16, p.dora = dora;
        p.targets |= dora ? 0 : CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
        const opened    on_cpu(m.path, "cpu"), on_device(m.path, device_name());
        trainer         cpu(on_cpu.handle, p), device(on_device.handle, p);
        const gradients from = some_values(cpu);
        for (trainer *t : {&cpu, &device}) {
            t->write(CFT_SLOT_VALUE, from);
            for (int i = 0; i < 3; i++) {
                double length = 0;
                t->accumulate(b);
                OK(cft_trainer_apply(t->handle, 1e-4f, 1.0f, 40, &length, &err));
            }
        }
        const gradients want = cpu.read(CFT_SLOT_VALUE), got = device.read(CFT_SLOT_VALUE);
        CHECK(worst_tensor(want, from) > 100 * step_tolerance && worst_tensor(got, want) < step_tolerance);
        const double loss = cpu.evaluate(b);
        CHECK_NEAR(device.evaluate(b), loss, loss, step_tolerance);
        trainer again(on_device.handle, p);
        again.write(CFT_SLOT_VALUE, got);
        CHECK(again.evaluate(b) == device.evaluate(b));
    }
}

} // namespace

int main(int argc, char **argv) {
    return run_tests("test_portable_adapters", {
        {"shapes", test_shapes}, {"dora", test_dora}, {"ends", test_ends}, {"parts", test_parts}, {"experts", test_experts},
        {"counted", test_counted}, {"other-steps", test_other_steps},
    }, argc, argv);
}
