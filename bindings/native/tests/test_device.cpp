// test_device.cpp - training on a CUDA device against the CPU engine, through cft.h: losses, gradients, logits, optimizer steps,
// state and refusals, of every family and type. CFT_CUDA_LIBRARY names the library under test: without a device it is
// the engine over the shim (a test double of CUDA that runs on the CPU), on a device the real one.
#include "device_cuda.h"
#include "device_plans.h"
#include "family_file.h"

using namespace checks;
using namespace tiny;

namespace {

void test_llama() {
    compare_llama("cuda", "device-", device_params(), near);
    where     = "llama, one layer";
    options o = device_sizes();
    o.n_layer = 1, o.tied = false;
    const model one(o, "device-one.gguf");
    compare(one.path, segments(o.n_vocab), device_params());
}

void test_families() { compare_families("cuda", 96, 64, device_params(), near); }
void test_types() { compare_types("cuda", "device-", device_params(), near); }

// Norms of which weights are 0, next to it, negative or large: their way back divides by them.
void test_uneven_norms() {
    for (const char *name : {"llama", "qwen3", "gemma3"}) {
        where = std::string("uneven norms, ") + name;
        family_sizes sizes;
        sizes.n_embd = 64, sizes.n_ff = 96, sizes.n_head = 4, sizes.head_dim = 64, sizes.spread = 0.14f, sizes.n_layer = 3;
        int               n_norms = 0;
        const family_file file(*cft::family_of(name), [&](gguf_context *, ggml_context *ctx) {
            for (ggml_tensor *t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
                if (!std::strstr(t->name, "norm.weight")) {
                    continue;
                }
                n_norms++;
                constexpr float odd[] = {0, -0.0f, 1e-30f, 1e-5f, -1, 2};
                float *const    w = static_cast<float *>(t->data);
                for (size_t i = 0; i < std::size(odd); i++) {
                    w[9 * i + 2] = odd[i];
                }
            }
        }, sizes);
        CHECK(n_norms > 2 * sizes.n_layer);
        compare(file.path, segments(sizes.n_vocab), device_params());
        const plans_seen s = every_plan(file.path, segments(sizes.n_vocab), device_params(), 20 << 10);
        CHECK(s.n_whole >= 2 && s.n_between + s.n_layers >= 2);
    }
}

void test_logits() {
    where = "logits";
    const model  m(device_sizes(), "device-logits.gguf");
    const batch  b = segments(m.o.n_vocab);
    const opened on_cpu(m.path, "cpu"), on_device(m.path, "cuda:0");
    trainer      cpu(on_cpu.handle, device_params()), device(on_device.handle, device_params());
    const std::vector<int32_t> rows = {0, 5, 20, 33, 50};
    std::vector<float>         want(rows.size() * size_t(m.o.n_vocab)), got(want.size());
    for (const auto &[t, out] : {std::pair{&cpu, &want}, std::pair{&device, &got}}) {
        OK(cft_trainer_logits(t->handle, b.tokens.data(), b.positions.data(), b.visible_until.data(), b.size(), rows.data(), rows.size(),
                              out->data(), &err));
    }
    CHECK(worst(got, want) < logit_tolerance);
}

void test_plans() {
    const auto check = [](const plans_seen &s) {
        if (std::getenv("CFT_SHOW")) {
            std::fprintf(stderr, "%s: %d plans: %d, %d, %d; %d streamed\n", where.c_str(), s.n, s.n_whole, s.n_between, s.n_layers, s.n_streamed);
        }
        CHECK(s.n_whole >= 2 && s.n_between >= 2 && s.n_layers >= 2 && s.n_streamed >= 1);
    };
    constexpr uint64_t far = 60 << 10; // for the variants: some ten plans
    where     = "plans";
    options o = device_sizes();
    o.type = GGML_TYPE_Q8_0, o.n_layer = 6;
    const model m(o, "device-plans.gguf");
    const batch b = segments(o.n_vocab);
    const plans_seen all = every_plan(m.path, b, device_params(), 1);
    check(all);
    CHECK(all.n >= 20 && all.small_weights);
    where                = "plans with dropout";
    cft_trainer_params p = device_params();
    p.dropout            = 0.2f;
    check(every_plan(m.path, b, p, far));
    where     = "plans without all adapters";
    p         = device_params();
    p.targets = CFT_TARGET_ATTN_K | CFT_TARGET_FFN_UP;
    check(every_plan(m.path, b, p, far));
    where  = "plans of a model with a head of its own"; // whose embedding can stay on the host, whatever the layers do
    o.tied = false, o.n_vocab = 4000;
    const model    apart(o, "device-plans-apart.gguf");
    const uint64_t table  = ggml_row_size(o.type, o.n_embd) * uint64_t(o.n_vocab);
    const auto     halves = every_plan(apart.path, b, device_params(), far / 2, true);
    check(halves);
    CHECK(halves.weights.count(*halves.weights.rbegin() - table)); // all layers as before, the embedding gone
    for (const char *name : {"qwen3", "gemma3"}) {
        where = std::string("plans of ") + name;
        family_sizes sizes;
        sizes.n_embd = 64, sizes.n_ff = 96, sizes.n_head = 4, sizes.head_dim = 64, sizes.spread = 0.14f, sizes.n_layer = 6;
        const family_file file(*cft::family_of(name), nullptr, sizes);
        check(every_plan(file.path, tree(sizes.n_vocab), device_params(), far));
    }
}

// Products of gate and up that wait on the host: the same bits. Nothing is computed again where all are asked to be kept.
void test_offload() {
    const auto enough = [](const plans_seen &s) {
        if (std::getenv("CFT_SHOW")) {
            std::fprintf(stderr, "%s: %d plans, %d with products on the host\n", where.c_str(), s.n, s.n_offloaded);
        }
        CHECK(s.n_offloaded >= 3 && s.n_between + s.n_layers >= 3);
    };
    const offloads some;
    where     = "offload";
    options o = device_sizes();
    o.type = GGML_TYPE_Q8_0, o.n_layer = 8, o.n_embd = 128; // so wide that to compute a product again costs more than to copy it
    const model m(o, "device-offload.gguf");
    const batch b = segments(o.n_vocab);
    enough(every_plan(m.path, b, device_params(), 56 << 10));
    where                = "offload, all kept";
    cft_trainer_params p = device_params();
    p.keep_activations   = CFT_KEEP_ALL;
    const plans_seen kept = every_plan(m.path, b, p, 56 << 10);
    CHECK(kept.n_offloaded >= 3 && kept.n_whole == kept.n);
    where     = "offload, without all adapters";
    p         = device_params();
    p.targets = CFT_TARGET_ATTN_K | CFT_TARGET_FFN_UP;
    enough(every_plan(m.path, b, p, 56 << 10));
    where = "offload of gemma3";
    family_sizes sizes;
    sizes.n_embd = 128, sizes.n_ff = 96, sizes.n_head = 4, sizes.head_dim = 64, sizes.spread = 0.14f, sizes.n_layer = 8;
    const family_file file(*cft::family_of("gemma3"), nullptr, sizes);
    enough(every_plan(file.path, tree(sizes.n_vocab), device_params(), 56 << 10));

    // A tiny model's layers hide no copy, so by itself it has none; and a layer cannot leave that does not keep the product.
    where = "no offload";
    const opened        on_device(m.path, "cuda");
    cft_memory_estimate e;
    p                  = device_params();
    p.keep_activations = CFT_KEEP_LAYERS;
    OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &e, &err));
    CHECK(e.offloaded == 0);
    setenv("CFT_CUDA_OFFLOAD", "0", 1);
    CHECK(every_plan(m.path, b, device_params(), 150 << 10).n_offloaded == 0);
    unsetenv("CFT_CUDA_OFFLOAD");
    CHECK(every_plan(m.path, b, device_params(), 150 << 10).n_offloaded == 0);
}

// What is asked for holds whatever memory there is: all computes no product again, layers all but the last layer's; the bits are the same.
void test_keep() {
    where     = "keep";
    options o = device_sizes();
    o.n_layer = 6;
    const model        m(o, "device-keep.gguf");
    const opened       on_device(m.path, "cuda");
    const batch        b = segments(o.n_vocab);
    cft_trainer_params p = device_params();
    gradients          values, want;
    uint64_t           all = 0;
    for (const cft_keep keep : {CFT_KEEP_AUTO, CFT_KEEP_ALL, CFT_KEEP_LAYERS}) {
        p.keep_activations = keep;
        trainer             t(on_device.handle, p);
        cft_memory_estimate e;
        OK(cft_trainer_get_memory(t.handle, &e, &err));
        CHECK((e.computed_again > 0) == (keep == CFT_KEEP_LAYERS) && (e.keep_activations == CFT_KEEP_LAYERS) == (keep == CFT_KEEP_LAYERS));
        values = values.empty() ? some_values(t) : values;
        t.write(CFT_SLOT_VALUE, values);
        const gradients g = t.gradient(b);
        want              = want.empty() ? g : want;
        CHECK(worst_tensor(g, want) == 0 && norm(flat(g)) > 0);
        all = keep == CFT_KEEP_ALL ? e.total : all;
    }
    cft_memory_estimate e;
    p.memory_limit = all;
    for (int i = 0; i < 1000; i++) { // down to the least of "all"
        p.keep_activations = CFT_KEEP_ALL;
        OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &e, &err));
        CHECK(e.computed_again == 0);
        if (e.total > p.memory_limit) {
            break;
        }
        p.memory_limit = e.total - 1;
    }
    cft_trainer *refused = nullptr;
    REFUSED(cft_trainer_new(on_device.handle, &p, nullptr, 0, &refused, &err), CFT_ERR_NO_MEMORY, "train.keep_activations: auto");
    p.keep_activations = CFT_KEEP_AUTO;
    OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &e, &err));
    CHECK(e.total <= p.memory_limit && e.computed_again > 0);
}

// Weights that come from the host while other work goes on: the same bits when copies are as late as they may be, and when work is. Over the
// shim only, which can make them late; a device does what it does.
void test_streams() {
    where     = "streams";
    options o = device_sizes();
    o.type = GGML_TYPE_Q8_0, o.n_layer = 7;
    const model m(o, "device-streams.gguf");
    const batch          b = segments(o.n_vocab), other = tree(o.n_vocab);
    cft_trainer_params   p = device_params();
    compare_streams(m.path, b, other, product_bytes_of(o));
    where     = "streams with dropout";
    p.dropout = 0.2f;
    compare_streams(m.path, b, other, product_bytes_of(o), p);
}

std::string remark_of(const trainer &t) {
    char text[512];
    cft_trainer_remark(t.handle, text, sizeof text);
    return text;
}

// Weights that stay on the host are locked there while a trainer lives, once for all trainers of a model, and only where they do stay there.
// Where locking is refused, for all of them or in the middle, or not wanted, a trainer says so and comes to the same bits.
void test_locks() {
    where     = "locks";
    options o = device_sizes();
    o.type = GGML_TYPE_Q8_0, o.n_layer = 7, o.n_head = 1, o.n_ff = 64;
    o.n_embd = 2048; // whole pages of norms lie between the layers' matrices, so that each layer is a range
    const model m(o, "device-locks.gguf");
    const batch b = segments(o.n_vocab);
    const locked_count count  = locked_on_shim();
    const auto         locked = [&](size_t otherwise) { return count ? count() : otherwise; };
    const opened       on_device(m.path, "cuda"), again(m.path, "cuda");
    cft_trainer_params p = device_params(), host = p;
    plan_that(on_device, host, {}, [](const cft_memory_estimate &e) { return e.streamed > 0; });
    gradients values, want;
    const auto same = [&](trainer &t) {
        values = values.empty() ? some_values(t) : values;
        t.write(CFT_SLOT_VALUE, values);
        const gradients g = t.gradient(b);
        want              = want.empty() ? g : want;
        return norm(flat(g)) > 0 && worst_tensor(g, want) == 0;
    };
    {
        trainer t(on_device.handle, p);
        CHECK(same(t) && locked(0) == 0 && remark_of(t).empty());
    }
    {
        cft_memory_estimate e{};
        auto                first = std::make_unique<trainer>(on_device.handle, host);
        const size_t        bytes = locked(1);
        OK(cft_trainer_get_memory(first->handle, &e, &err));
        if (!remark_of(*first).empty()) { // a driver that refuses says why
            std::fprintf(stderr, "%s: %s\n", where.c_str(), remark_of(*first).c_str());
        }
        CHECK(same(*first));
        CHECK(remark_of(*first).empty());
        CHECK(!count || (bytes >= e.streamed && bytes < e.streamed + (size_t(o.n_layer) << 16)));
        trainer second(on_device.handle, host), other(again.handle, host); // of the same model, and of another one
        CHECK(locked(2 * bytes) == 2 * bytes);
        first.reset();
        CHECK(locked(2 * bytes) == 2 * bytes && same(second) && same(other));
    }
    CHECK(locked(0) == 0);
    setenv("CFT_CUDA_PAGE_LOCKS", "0", 1);
    {
        trainer t(on_device.handle, host);
        CHECK(same(t) && locked(0) == 0 && remark_of(t).find("each copy waits for the host (CFT_CUDA_PAGE_LOCKS=0)") != std::string::npos);
    }
    unsetenv("CFT_CUDA_PAGE_LOCKS");
    setenv("CFT_SHIM_LOCKS", "10", 1);
    if (count) {
        trainer      first(on_device.handle, host);
        const size_t bytes = count();
        trainer      refused(again.handle, host); // at its fourth layer
        CHECK(bytes > 0 && count() == bytes && remark_of(first).empty() && same(first));
        CHECK(remark_of(refused).find("the shim was told to refuse") != std::string::npos && same(refused));
    }
    unsetenv("CFT_SHIM_LOCKS");
    trainer small(on_device.handle, host);
    in_tiles(small, {{}, host.memory_limit}); // with nothing that may be locked
    CHECK(remark_of(small).find("at most 0 MiB can be locked now") != std::string::npos && same(small) && locked(0) == 0);
}

// A small model's tensors share pages, so that of its head some is locked with the layer that lies behind it: another trainer of the model copies it all the same.
void test_shared_pages() {
    where     = "locks, pages of several tensors";
    options o = device_sizes();
    o.type = GGML_TYPE_Q8_0, o.n_layer = 7, o.tied = false;
    const model          m(o, "device-shared-pages.gguf");
    const batch          b = segments(o.n_vocab);
    const locked_count   count = locked_on_shim();
    const opened         on_device(m.path, "cuda");
    cft_trainer_params   p = device_params(), host = p;
    plan_that(on_device, host, {}, [](const cft_memory_estimate &e) { return e.streamed > 0; });
    trainer              first(on_device.handle, host);
    const gradients      values = some_values(first);
    const size_t         bytes  = count ? count() : 1;
    first.write(CFT_SLOT_VALUE, values);
    const gradients want = first.gradient(b);
    CHECK(bytes > 0 && norm(flat(want)) > 0);
    for (const cft_trainer_params &of : {p, host}) {
        trainer t(on_device.handle, of);
        t.write(CFT_SLOT_VALUE, values);
        CHECK(worst_tensor(t.gradient(b), want) == 0);
    }
    setenv("CFT_CUDA_PAGE_LOCKS", "0", 1);
    trainer t(on_device.handle, host);
    unsetenv("CFT_CUDA_PAGE_LOCKS");
    t.write(CFT_SLOT_VALUE, values);
    CHECK(worst_tensor(t.gradient(b), want) == 0 && (!count || count() == bytes));
}

// Steps as the CPU takes them, and a run that goes on from written state to the same bits.
void test_steps() {
    where = "steps";
    const model        m(device_sizes(), "device-steps.gguf");
    cft_trainer_params p = device_params();
    p.dropout = 0.1f, p.weight_decay = 0.01f, p.rank = 5;
    const batch b = segments(m.o.n_vocab), other = tree(m.o.n_vocab);
    compare_steps(m.path, p, 1e-3f, b, other);
}

// auto takes the device where there is one: its sums, not the CPU's.
void test_auto() {
    where = "auto";
    const model  m(device_sizes(), "device-auto.gguf");
    const batch  b = segments(m.o.n_vocab);
    const auto   loss_on = [&](const char *name) {
        const opened on(m.path, name);
        return trainer(on.handle, device_params()).accumulate(b);
    };
    CHECK(loss_on("auto") == loss_on("CUDA0"));
    CHECK(loss_on("auto") != loss_on("cpu"));
}

void test_refusals() {
    where = "refusals";
    const model m(device_sizes(), "device-refusals.gguf");
    cft_model  *none = nullptr;
    const auto  load = [&](const std::string &device) { return cft_model_load(m.path.data(), m.path.size(), device.data(), device.size(), &none, &err); };
    for (const char *name : {"cuda:1x", "cuda:", "sycl", "cudax", "cuda:99999", "cuda: 0"}) {
        REFUSED(load(name), CFT_ERR_DEVICE, "cannot train");
    }
    REFUSED(load("cuda:99"), CFT_ERR_DEVICE, " here, "); // one, or so many
    CHECK(none == nullptr);

    const opened on_device(m.path, "CUDA0");
    trainer      t(on_device.handle, device_params());
    batch        b = segments(m.o.n_vocab);
    double       loss = -1;
    size_t       n    = 99;
    cft_trainer_cancel(t.handle);
    REFUSED(cft_trainer_accumulate(t.handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(), nullptr, b.size(), &loss, &n, &err),
            CFT_ERR_CANCELLED, "cancelled");
    CHECK(loss == -1 && n == 99);
    gradients values = t.read(CFT_SLOT_VALUE), broken = values;
    broken.begin()->second[0] = INFINITY;
    t.write(CFT_SLOT_VALUE, broken);
    REFUSED(cft_trainer_accumulate(t.handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(), nullptr, b.size(), &loss, &n, &err),
            CFT_ERR_NON_FINITE, "not finite");
    double length = -1;
    REFUSED(cft_trainer_apply(t.handle, 1e-3f, 1, 1, &length, &err), CFT_ERR_NON_FINITE, "not finite");
    cft_trainer_discard(t.handle);
    t.write(CFT_SLOT_VALUE, values);
    CHECK(std::isfinite(t.accumulate(b)));

    options o  = device_sizes();
    o.head_dim = 32;
    const model  narrow(o, "device-narrow.gguf");
    const opened on_narrow(narrow.path, "cuda");
    const auto   p = device_params();
    cft_trainer *refused = nullptr;
    REFUSED(cft_trainer_new(on_narrow.handle, &p, nullptr, 0, &refused, &err), CFT_ERR_UNSUPPORTED, "heads of size 32");
}

void test_devices() {
    where = "devices";
    int n_cuda = 0;
    for (size_t i = 0; i < cft_device_count(); i++) {
        cft_device d;
        OK(cft_device_get(i, &d, &err));
        n_cuda += std::string(d.name).rfind("CUDA", 0) == 0 && d.can_train && d.memory_total > 0;
    }
    CHECK(n_cuda >= 1);
}

// A whole model of people's, where one is at hand: CFTUNE_MODEL.
void test_real_model() {
    const char *const path = real_model("test_device");
    if (!path) {
        return;
    }
    where = "real model";
    compare(path, real_pack(), device_params());
}

} // namespace

int main(int argc, char **argv) {
    return run_cases("test_device", argc, argv,
                     {{"devices", test_devices},
                      {"auto", test_auto},
                      {"llama", test_llama},
                      {"families", test_families},
                      {"types", test_types},
                      {"norms", test_uneven_norms},
                      {"logits", test_logits},
                      {"steps", test_steps},
                      {"plans", test_plans},
                      {"keep", test_keep},
                      {"offload", test_offload},
                      {"streams", test_streams},
                      {"locks", test_locks},
                      {"pages", test_shared_pages},
                      {"refusals", test_refusals},
                      {"real", test_real_model}});
}
