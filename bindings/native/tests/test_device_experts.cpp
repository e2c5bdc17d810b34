// test_device_experts.cpp - mixtures of experts on a CUDA device against the CPU engine. What test_device.cpp says of the library under test
// holds here; where choices matter, the model's are clear ones (device_experts.h).
#include "device_cuda.h"
#include "device_experts.h"
#include "device_plans.h"

using namespace checks;
using namespace tiny;

namespace {

const int n_vocab = family_sizes().n_vocab;

void test_experts() {
    const family_sizes sizes = expert_sizes();
    for (const int n_used : {1, 3}) {
        where = "experts, " + std::to_string(n_used) + " of 13";
        const family_file file(expert_family(), clear_choices(n_used, sizes), sizes);
        compare(file.path, segments(n_vocab), device_params());
        where += ", tree";
        compare(file.path, tree(n_vocab), device_params());
    }
    where = "experts, all of them";
    const family_file all(expert_family(), all_experts(sizes), sizes);
    compare(all.path, segments(n_vocab), device_params());
}

// Adapters of some layers and modules, with dropout; one layer alone.
void test_adapters() {
    where = "experts, adapters of some layers";
    const family_sizes sizes = expert_sizes();
    const family_file  file(expert_family(), clear_choices(3, sizes), sizes);
    std::vector<cft_module> uneven = {{1, CFT_TARGET_ATTN_Q, 3, 5}};
    for (const uint32_t module : {CFT_TARGET_ATTN_Q, CFT_TARGET_ATTN_K, CFT_TARGET_ATTN_V, CFT_TARGET_ATTN_OUTPUT}) {
        uneven.push_back({0, module, 0, 0}); // none in the first layer, which goes forward only
    }
    compare(file.path, segments(n_vocab), device_params(), uneven);
    where                      = "experts, dora"; // has no use for rows of zeros
    const family_file  all(expert_family(), all_experts(sizes), sizes);
    cft_trainer_params lengths = device_params();
    lengths.dora               = 1;
    compare(all.path, segments(n_vocab), lengths);
    where = "experts, adapters of embedding and head";
    const family_file apart(expert_family(), [&](gguf_context *g, ggml_context *ctx) { // a head of its own
        all_experts(sizes)(g, ctx);
        ggml_tensor *const head   = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, sizes.n_embd, sizes.n_vocab);
        const auto         values = random_floats(size_t(ggml_nelements(head)), sizes.spread);
        std::memcpy(head->data, values.data(), ggml_nbytes(head));
        ggml_set_name(head, "output.weight");
        gguf_add_tensor(g, head);
    }, sizes);
    cft_trainer_params ends = device_params();
    ends.targets            = CFT_TARGET_ATTN_Q | CFT_TARGET_ATTN_OUTPUT | CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
    compare(apart.path, segments(n_vocab), ends);
    where              = "experts, dropout, one layer";
    family_sizes single = sizes;
    single.n_layer      = 1;
    const family_file  one(expert_family(), clear_choices(2, single), single);
    cft_trainer_params p = device_params();
    p.dropout            = 0.3f;
    compare(one.path, tree(n_vocab), p);
}

void test_types() {
    for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K,
                           GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS}) {
        where              = std::string("experts of type ") + ggml_type_name(type);
        family_sizes sizes = expert_sizes();
        sizes.n_embd = 256, sizes.n_ff = 256, sizes.n_layer = 2, sizes.n_expert = 7, sizes.spread = 0.07f, sizes.type = type;
        const family_file file(expert_family(), clear_choices(2, sizes), sizes);
        batch             b;
        b.add_segment(24, n_vocab, 0.5);
        compare(file.path, b, device_params());
    }
}

void test_logits() {
    where = "experts, logits";
    const family_sizes sizes = expert_sizes();
    const family_file  file(expert_family(), clear_choices(3, sizes), sizes);
    const batch        b = segments(n_vocab);
    const opened       on_cpu(file.path, "cpu"), on_device(file.path, "cuda");
    trainer            cpu(on_cpu.handle, device_params()), device(on_device.handle, device_params());
    const std::vector<int32_t> rows = {0, 5, 20, 33, 50};
    std::vector<float>         want(rows.size() * size_t(n_vocab)), got(want.size());
    for (const auto &[t, out] : {std::pair{&cpu, &want}, std::pair{&device, &got}}) {
        OK(cft_trainer_logits(t->handle, b.tokens.data(), b.positions.data(), b.visible_until.data(), b.size(), rows.data(), rows.size(), out->data(), &err));
    }
    CHECK(worst(got, want) < logit_tolerance);
}

// The same bits whatever is kept and wherever weights are. Random choices: both sides of the comparison are the device's.
void test_plans() {
    constexpr uint64_t far = 150 << 10;
    where              = "experts, plans";
    family_sizes sizes = expert_sizes();
    sizes.n_layer = 5, sizes.type = GGML_TYPE_Q8_0;
    const family_file file(expert_family(), nullptr, sizes);
    for (const bool dropout : {false, true}) {
        cft_trainer_params p = device_params();
        p.dropout            = dropout ? 0.2f : 0;
        const plans_seen s   = every_plan(file.path, dropout ? segments(n_vocab) : tree(n_vocab), p, dropout ? 2 * far : far);
        if (std::getenv("CFT_SHOW")) {
            std::fprintf(stderr, "%s: %d plans: %d, %d, %d; %d streamed\n", where.c_str(), s.n, s.n_whole, s.n_between, s.n_layers, s.n_streamed);
        }
        CHECK(s.n_whole >= 1 && s.n_between >= 2 && s.n_layers >= 1 && s.n_streamed >= 1 && (dropout || s.small_weights));
    }
}

// Steps as the CPU takes them, and a run that goes on from written state to the same bits.
void test_steps() {
    where = "experts, steps";
    const family_sizes sizes = expert_sizes();
    const family_file  file(expert_family(), clear_choices(3, sizes), sizes);
    cft_trainer_params p = device_params();
    p.dropout = 0.1f, p.weight_decay = 0.01f;
    const batch b = segments(n_vocab), other = tree(n_vocab);
    compare_steps(file.path, p, 1e-3f, b, other);
}

// The host's reading of the numbers of rows is one of the waits.
void test_streams() {
    where = "experts";
    family_sizes sizes = expert_sizes();
    sizes.n_layer = 5, sizes.type = GGML_TYPE_Q8_0;
    const family_file file(expert_family(), nullptr, sizes);
    const batch       b = segments(n_vocab), other = tree(n_vocab);
    compare_streams(file.path, b, other, 0);
}

// What is not a number chooses experts too, and is found in the loss.
void test_not_finite() {
    where = "experts, not finite";
    const family_sizes sizes = expert_sizes();
    const family_file  file(expert_family(), nullptr, sizes);
    const opened       on_device(file.path, "cuda");
    trainer            t(on_device.handle, device_params());
    const batch        b = segments(n_vocab);
    gradients          values = t.read(CFT_SLOT_VALUE), broken = values;
    for (auto &[name, v] : broken) {
        std::fill(v.begin(), v.end(), INFINITY);
    }
    double loss = -1;
    size_t n    = 99;
    t.write(CFT_SLOT_VALUE, broken);
    REFUSED(cft_trainer_accumulate(t.handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(), nullptr, b.size(), &loss, &n, &err),
            CFT_ERR_NON_FINITE, "not finite");
    CHECK(loss == -1 && n == 99);
    cft_trainer_discard(t.handle);
    t.write(CFT_SLOT_VALUE, values);
    CHECK(std::isfinite(t.accumulate(b)));
}

} // namespace

int main(int argc, char **argv) {
    return run_cases("test_device_experts", argc, argv,
                     {{"experts", test_experts},
                      {"adapters", test_adapters},
                      {"types", test_types},
                      {"logits", test_logits},
                      {"plans", test_plans},
                      {"steps", test_steps},
                      {"streams", test_streams},
                      {"finite", test_not_finite}});
}
