// test_device_attention.cpp - gradients of scores that are stored between attention's two kernels, and heads in pairs, on a CUDA device against the CPU
// engine and against a device without (CFT_CUDA_ATTENTION turns them off). What test_device.cpp says of the library under test holds here.
#include "device_cuda.h"
#include "device_plans.h"
#include "device_tiles.h"
#include "family_file.h"

using namespace checks;
using namespace tiny;

namespace {

constexpr const char *variable = "CFT_CUDA_ATTENTION";

// The shim's own functions; NULL where the library under test is a device's.
template <typename F> F on_shim(const char *name) {
    void *const library = dlopen(std::getenv("CFT_CUDA_LIBRARY"), RTLD_LAZY);
    return reinterpret_cast<F>(library ? dlsym(library, name) : nullptr);
}

// How often dq was made from what was stored, and how often by computing it again; a device does not count.
struct counts {
    size_t stored = 0, again = 0;
};
counts launched() {
    const auto of = on_shim<size_t (*)(const char *)>("cft_shim_launches");
    return of ? counts{of("attention query gradient of stored scores"), of("attention query gradient")} : counts{};
}

// Whether body has dq of every layer made from what was stored, or (not) by computing it again.
template <typename F> void has_stored(bool stored, F &&body) {
    const counts before = launched();
    body();
    const counts after = launched();
    if (on_shim<void *>("cft_shim_launches")) {
        CHECK(stored ? after.stored > before.stored && after.again == before.again : after.stored == before.stored && after.again > before.again);
    }
}

// Several tiles, some of which two segments share.
batch long_segments(int n_vocab) {
    batch b;
    b.add_segment(70, n_vocab, 0.5);
    b.add_segment(9, n_vocab, 0.4);
    b.add_segment(75, n_vocab, 0.3);
    return b;
}

cft_trainer_params long_params() {
    cft_trainer_params p = device_params();
    p.max_tokens         = 160;
    return p;
}

// Enough of a vocabulary that the logits' room has gradients of scores of all heads.
options long_sizes(int head_dim) {
    options o  = device_sizes();
    o.n_vocab  = 700;
    o.n_layer  = 2;
    o.n_head   = 4, o.n_head_kv = 2;
    o.head_dim = head_dim;
    return o;
}

gradients gradient_of(const std::string &path, const cft_trainer_params &p, const batch &b, const char *how) {
    setenv(variable, how, 1);
    random_bits.seed(1);
    const opened on_device(path, "cuda");
    trainer      t(on_device.handle, p);
    t.write(CFT_SLOT_VALUE, some_values(t));
    t.accumulate(b);
    gradients g = t.read(CFT_SLOT_GRADIENT);
    unsetenv(variable);
    return g;
}

// As near to the CPU as without; of the shim's kernels, the same bits (a device's compiler may round a score otherwise in the two kernels).
void test_heads(const std::string &kernels, int head_dim) {
    const options            o = long_sizes(head_dim);
    const model              m(o, "device-attention.gguf");
    const cft_trainer_params p = long_params();
    for (const batch &b : {long_segments(o.n_vocab), tree(o.n_vocab)}) {
        where = "stored scores, heads of " + std::to_string(head_dim) + ", " + kernels + ", " + std::to_string(b.size()) + " tokens";
        gradients stored, again;
        has_stored(true, [&] { stored = gradient_of(m.path, p, b, "single"); });
        has_stored(false, [&] { again = gradient_of(m.path, p, b, "twice,single"); });
        CHECK(norm(flat(again)) > 0);
        const double difference = worst_tensor(stored, again);
        CHECK(locked_on_shim() ? difference == 0 : difference < 1e-2);
        setenv(variable, "single", 1);
        compare(m.path, b, p);
        unsetenv(variable);
    }
}

void test_kernels() {
    for (const int head_dim : {64, 80, 128, 256}) {
        test_heads("mma", head_dim);
    }
    if (const auto use = on_shim<void (*)(bool)>("cft_shim_use_warpgroups")) { // a device does what it does
        use(true);
        test_heads("warpgroups", 64);
        test_heads("warpgroups", 128);
        use(false);
    }
}

// Alone and with what is stored: the bits of heads one by one (a device's compiler may round them otherwise).
void test_pairs() {
    const auto use      = on_shim<void (*)(bool)>("cft_shim_use_warpgroups");
    const auto launches = on_shim<size_t (*)(const char *)>("cft_shim_launches");
    const auto in_pairs = [&] { return launches ? launches("attention, heads in pairs") : 0; };
    if (use) {
        use(true);
    }
    for (const int head_dim : {64, 128}) {
        options                  o = long_sizes(head_dim);
        const cft_trainer_params p = long_params();
        for (const int n_head_kv : {1, 2, 4}) { // the last: none share keys
            o.n_head_kv         = n_head_kv;
            where               = "heads in pairs, of " + std::to_string(head_dim) + ", " + std::to_string(n_head_kv) + " of keys";
            const model     m(o, "device-attention-pairs.gguf");
            const batch     b      = long_segments(o.n_vocab);
            const gradients apart  = gradient_of(m.path, p, b, "twice,single");
            const size_t    before = in_pairs();
            for (const char *how : {"twice", ""}) {
                const double difference = worst_tensor(gradient_of(m.path, p, b, how), apart);
                CHECK(locked_on_shim() ? difference == 0 : difference < 1e-2);
            }
            CHECK(!launches || (in_pairs() > before) == (n_head_kv < o.n_head));
            CHECK(norm(flat(apart)) > 0);
        }
    }
    if (use) {
        use(false);
    }
}

// Queries that attention makes, and gradients that it turns back before they are written: the bits of passes of their own, which are not started then.
void test_turned() {
    const auto use      = on_shim<void (*)(bool)>("cft_shim_use_warpgroups");
    const auto launches = on_shim<size_t (*)(const char *)>("cft_shim_launches");
    const auto passes   = [&](const char *name) { return launches ? launches(name) : 0; };
    if (use) {
        use(true);
    }
    for (const char *name : {"llama", "qwen3", "gemma3"}) {
        for (const int head_dim : {64, 128}) {
            where = std::string("turned back, ") + name + ", heads of " + std::to_string(head_dim);
            family_sizes sizes;
            sizes.n_embd = 64, sizes.n_ff = 96, sizes.n_head = 4, sizes.head_dim = head_dim, sizes.spread = 0.14f, sizes.n_layer = 3;
            const family_file        file(*cft::family_of(name), nullptr, sizes);
            const cft_trainer_params p = long_params();
            const batch              b = long_segments(sizes.n_vocab);
            for (const char *together : {"", "twice"}) {
                const auto      n      = size_t(sizes.n_layer);
                const size_t    turned = passes("turn heads"), back = passes("turn heads back");
                const gradients inside = gradient_of(file.path, p, b, together);
                const size_t    own    = head_dim == 128 ? n : 2 * n; // passes for keys, and for queries where attention does not make them
                CHECK(!launches || (passes("turn heads") == turned + own && passes("turn heads back") == back));
                const gradients apart  = gradient_of(file.path, p, b, (std::string(together) + ",apart").c_str());
                CHECK(!launches || (passes("turn heads") == turned + own + 2 * n && passes("turn heads back") == back + 2 * n));
                const double difference = worst_tensor(inside, apart);
                CHECK(locked_on_shim() ? difference == 0 : difference < 1e-2);
                CHECK(norm(flat(apart)) > 0);
            }
            compare(file.path, b, p);
        }
    }
    if (use) {
        use(false);
    }
}

// The same bits whatever is kept, wherever weights are, whatever is late; every family; steps, and a run that goes on.
void test_engine() {
    options o = long_sizes(64);
    o.n_layer = 4, o.type = GGML_TYPE_Q8_0;
    const model        m(o, "device-attention-plans.gguf");
    const batch        b = long_segments(o.n_vocab), other = tree(o.n_vocab);
    cft_trainer_params p = long_params();
    has_stored(true, [&] {
        where              = "stored scores, plans";
        const plans_seen s = every_plan(m.path, b, p, 250 << 10);
        CHECK(s.n >= 4 && s.n_whole >= 1 && s.n_between + s.n_layers >= 2 && s.n_streamed >= 1);
    });
    has_stored(true, [&] {
        where = "stored scores";
        compare_steps(m.path, p, 1e-3f, b, other);
        compare_streams(m.path, b, other, 0, p);
    });
    where = "stored scores, families";
    const counts before = launched();
    compare_families("cuda", 96, 64, p, near); // long packs, so that there is room
    CHECK(!locked_on_shim() || launched().stored > before.stored);
}

// Where the logits have no room for one head's, they are computed again, and memory is what it was but for the lists.
void test_room() {
    const options            o = long_sizes(64);
    const model              m(o, "device-attention-room.gguf");
    const cft_trainer_params p = long_params();
    const batch              b = long_segments(o.n_vocab);
    const opened             on_device(m.path, "cuda");
    cft_memory_estimate      with, without;
    setenv(variable, "twice", 1);
    OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &without, &err));
    unsetenv(variable);
    where = "stored scores, memory";
    OK(cft_memory_estimate_get(on_device.handle, &p, nullptr, 0, &with, &err));
    CHECK(with.total >= without.total && with.total - without.total < 1024 && with.loss == without.loss && with.activations == without.activations);
    where = "stored scores, no room";
    has_stored(false, [&] { compare_on("cuda", m.path, b, p, near, {}, {{8, 64}, 0}); });
    has_stored(true, [&] { compare_on("cuda", m.path, b, p, near, {}, {{100, 64}, 0}); });
}

} // namespace

int main(int argc, char **argv) {
    return run_cases("test_device_attention", argc, argv, {{"kernels", test_kernels}, {"pairs", test_pairs}, {"turned", test_turned}, {"engine", test_engine}, {"room", test_room}});
}
