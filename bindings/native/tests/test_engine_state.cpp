// test_engine_state.cpp - the trainer beside gradients: first values, optimizer steps, what is not finite, cancelling,
// memory and its limit, and every argument that is refused.
#include "engine_fixture.h"
#include "trainer.h"

#include <cstring>
#include <limits>

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#include <malloc.h>
#define COUNTS_HEAP 1
#else
#define COUNTS_HEAP 0
#endif

using namespace checks;
using namespace tiny;

namespace {

// Float against double over three optimizer steps.
constexpr double optimizer_tolerance = 2e-6;
// The estimate counts buffers; the rest of a trainer (tensor table, threads) is small beside them.
constexpr double memory_tolerance = 0.02;

batch one_segment(int n_vocab, int n = 20) {
    batch b;
    b.add_segment(n, n_vocab, 0.5);
    return b;
}

void test_first_values() {
    where = "first values";
    const model        m((options()));
    const loaded       l(m);
    cft_trainer_params p = some_params();
    p.rank               = 16;
    trainer         t(l, p), same(l, p);
    const gradients values = t.read(CFT_SLOT_VALUE);
    CHECK(values.size() == 14u * size_t(m.o.n_layer));
    CHECK(same.read(CFT_SLOT_VALUE) == values);
    for (const auto &[name, v] : values) {
        if (name.find("lora_b") != std::string::npos) {
            CHECK(std::all_of(v.begin(), v.end(), [](float x) { return x == 0.0f; }));
            continue;
        }
        const double bound = 1 / std::sqrt(double(v.size()) / p.rank), n = double(v.size());
        double       sum = 0;
        for (float x : v) {
            CHECK(std::fabs(double(x)) <= bound);
            sum += double(x);
        }
        // Uniform on [-bound, bound]: variance bound²/3; five standard deviations of the mean and of the mean square.
        CHECK_NEAR(sum / n, 0.0, bound, 5 / std::sqrt(3 * n));
        CHECK_NEAR(dot(v, v) / n, bound * bound / 3, bound * bound, 5 * std::sqrt(4.0 / 45 / n));
    }
    CHECK(values.at("blk.0.attn_q.weight.lora_a") != values.at("blk.1.attn_q.weight.lora_a"));
    CHECK(values.at("blk.0.attn_q.weight.lora_a") != values.at("blk.0.attn_k.weight.lora_a"));
    p.seed++;
    CHECK(trainer(l, p).read(CFT_SLOT_VALUE) != values);
}

// torch.nn.utils.clip_grad_norm_ and torch.optim.AdamW in double.
void test_optimizer() {
    const model  m((options()));
    const loaded l(m);
    for (float max_norm : {0.0f, 1e-3f, 1e6f}) {
        where                = "optimizer, max norm " + std::to_string(max_norm);
        cft_trainer_params p = some_params();
        p.weight_decay       = 0.05f;
        trainer t(l, p);
        t.randomize();
        const batch   b = one_segment(m.o.n_vocab);
        constexpr int steps = 3;
        constexpr double lr = 1e-2;
        const double  normalizer = 7.0;
        std::map<std::string, doubles> value, m1, m2;
        for (const auto &[name, v] : t.read(CFT_SLOT_VALUE)) {
            value[name] = doubles(v.begin(), v.end());
            m1[name] = m2[name] = doubles(v.size(), 0.0);
        }
        for (int step = 1; step <= steps; step++) {
            t.accumulate(b);
            const gradients g = t.read(CFT_SLOT_GRADIENT);
            double          squares = 0, got = 0;
            for (const auto &[name, v] : g) {
                squares += dot(v, v);
            }
            const double norm_want = std::sqrt(squares) / normalizer;
            const double clip = max_norm > 0 ? std::min(1.0, double(max_norm) / (norm_want + 1e-6)) : 1.0;
            OK(cft_trainer_apply(t.handle, float(lr), max_norm, normalizer, &got, &err));
            CHECK_NEAR(got, norm_want, norm_want, 1e-9);
            const double b1 = double(p.beta1), b2 = double(p.beta2);
            for (const auto &[name, v] : g) {
                for (size_t i = 0; i < v.size(); i++) {
                    const double gi = double(v[i]) / normalizer * clip;
                    double &w = value[name][i], &m1i = m1[name][i], &m2i = m2[name][i];
                    w *= 1 - lr * double(p.weight_decay);
                    m1i = b1 * m1i + (1 - b1) * gi;
                    m2i = b2 * m2i + (1 - b2) * gi * gi;
                    w -= lr / (1 - std::pow(b1, step)) * m1i / (std::sqrt(m2i / (1 - std::pow(b2, step))) + double(p.eps));
                }
            }
        }
        const gradients got = t.read(CFT_SLOT_VALUE), got1 = t.read(CFT_SLOT_MOMENT1), got2 = t.read(CFT_SLOT_MOMENT2);
        for (const auto &[name, v] : value) {
            // A step moves by about lr, whose error counts: eps in float, and the two corrections.
            CHECK(worst(got.at(name), v) < 10 * optimizer_tolerance);
            CHECK(worst(got1.at(name), m1[name]) < optimizer_tolerance);
            CHECK(worst(got2.at(name), m2[name]) < 1e-4); // 1 - beta2 in float
        }
        uint64_t n_steps = 0, n_packs = 0;
        OK(cft_trainer_get_counters(t.handle, &n_steps, &n_packs, &err));
        CHECK(n_steps == steps && n_packs == steps);
        for (const auto &[name, v] : t.read(CFT_SLOT_GRADIENT)) {
            CHECK(norm(v) == 0);
        }
    }
}

// A run written out and read into another trainer goes on to the same bits.
void test_resume() {
    where = "resume";
    const model        m((options()));
    const loaded       l(m);
    cft_trainer_params p = some_params();
    p.dropout            = 0.1f;
    trainer     straight(l, p), resumed(l, p);
    const batch b    = one_segment(m.o.n_vocab);
    double      ignored = 0;
    const auto  step = [&](trainer &t) {
        t.accumulate(b);
        OK(cft_trainer_apply(t.handle, 1e-2f, 1.0f, 10.0, &ignored, &err));
    };
    step(straight);
    for (cft_slot slot : {CFT_SLOT_VALUE, CFT_SLOT_MOMENT1, CFT_SLOT_MOMENT2}) {
        resumed.write(slot, straight.read(slot));
    }
    OK(cft_trainer_set_counters(resumed.handle, 1, 1, &err));
    step(straight);
    step(resumed);
    CHECK(resumed.read(CFT_SLOT_VALUE) == straight.read(CFT_SLOT_VALUE));
    CHECK(resumed.read(CFT_SLOT_MOMENT2) == straight.read(CFT_SLOT_MOMENT2));
}

void test_not_finite() {
    where = "not finite";
    const model  m((options()));
    const loaded l(m);
    trainer      t(l, some_params());
    t.randomize();
    const batch b = one_segment(m.o.n_vocab);
    t.accumulate(b);
    const gradients good = t.read(CFT_SLOT_GRADIENT), values = t.read(CFT_SLOT_VALUE);
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        gradients broken = good;
        broken.begin()->second[1] = bad;
        t.write(CFT_SLOT_GRADIENT, broken);
        double   norm_got = -1;
        uint64_t steps = 9, packs = 9;
        REFUSED(cft_trainer_apply(t.handle, 1e-2f, 1.0f, 5.0, &norm_got, &err), CFT_ERR_NON_FINITE, "gradient");
        OK(cft_trainer_get_counters(t.handle, &steps, &packs, &err));
        CHECK(norm_got == -1 && steps == 0);
        CHECK(t.read(CFT_SLOT_VALUE) == values);
        for (const auto &[name, v] : t.read(CFT_SLOT_MOMENT1)) {
            CHECK(norm(v) == 0);
        }
        gradients broken_values = values;
        broken_values["blk.1.ffn_up.weight.lora_b"][3] = bad;
        t.write(CFT_SLOT_VALUE, broken_values);
        double loss = -1;
        size_t n    = 99;
        REFUSED(cft_trainer_accumulate(t.handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(), nullptr,
                                       b.size(), &loss, &n, &err),
                CFT_ERR_NON_FINITE, "loss");
        CHECK(loss == -1 && n == 99);
        t.write(CFT_SLOT_VALUE, values);
        CHECK(t.gradient(b) == good); // after a discard all is as before
    }
}

void test_cancel() {
    where = "cancel";
    const model  m((options()));
    const loaded l(m);
    trainer      t(l, some_params());
    const batch  b = one_segment(m.o.n_vocab);
    const double want = t.evaluate(b);
    double       loss = -1;
    size_t       n    = 99;
    cft_trainer_cancel(t.handle);
    REFUSED(cft_trainer_evaluate(t.handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(), b.weights.data(),
                                 b.size(), &loss, &n, &err),
            CFT_ERR_CANCELLED, "cancelled");
    CHECK(loss == -1 && n == 99);
    CHECK(t.evaluate(b) == want); // once per call to cancel
}

uint64_t buffers_of(const cft_memory_estimate &e) { return e.adapter + e.gradients + e.moments + e.activations + e.workspace + e.loss; }

void test_memory() {
    where = "memory";
    options o;
    o.n_vocab = 4000;
    o.n_layer = 6;
    const model        m(o);
    const loaded       l(m);
    cft_trainer_params p = some_params();
    p.max_tokens         = 2000;
    cft_memory_estimate all, layers, chosen;
    p.keep_activations = CFT_KEEP_ALL;
    OK(cft_memory_estimate_get(l.handle, &p, nullptr, 0, &all, &err));
    p.keep_activations = CFT_KEEP_LAYERS;
    OK(cft_memory_estimate_get(l.handle, &p, nullptr, 0, &layers, &err));
    CHECK(all.total == buffers_of(all) + all.weights && layers.total == buffers_of(layers) + layers.weights);
    CHECK(all.keep_activations == CFT_KEEP_ALL && layers.keep_activations == CFT_KEEP_LAYERS);
    CHECK(layers.activations < all.activations / 2 && layers.moments == 2 * layers.adapter);
    p.keep_activations = CFT_KEEP_AUTO;
    for (const auto &[limit, want] : {std::pair<uint64_t, int>{buffers_of(all), CFT_KEEP_ALL}, {buffers_of(all) - 1, CFT_KEEP_LAYERS}, {buffers_of(layers), CFT_KEEP_LAYERS}}) {
        p.memory_limit = limit;
        OK(cft_memory_estimate_get(l.handle, &p, nullptr, 0, &chosen, &err));
        CHECK(chosen.keep_activations == want);
#if COUNTS_HEAP
        const struct mallinfo2 before = mallinfo2();
        trainer                t(l, p);
        const struct mallinfo2 after  = mallinfo2();
        const double           taken  = double(after.uordblks + after.hblkhd) - double(before.uordblks + before.hblkhd);
        CHECK_NEAR(taken, double(buffers_of(chosen)), double(buffers_of(chosen)), memory_tolerance);
#else
        trainer t(l, p);
#endif
        cft_memory_estimate made;
        OK(cft_trainer_get_memory(t.handle, &made, &err));
        CHECK(std::memcmp(&made, &chosen, sizeof made) == 0);
    }
    p.memory_limit     = buffers_of(layers) - 1;
    cft_trainer *none = nullptr;
    REFUSED(cft_trainer_new(l.handle, &p, nullptr, 0, &none, &err), CFT_ERR_NO_MEMORY, "MiB");
    CHECK(none == nullptr);
    OK(cft_memory_estimate_get(l.handle, &p, nullptr, 0, &chosen, &err)); // numbers for what does not fit, too
    CHECK(chosen.total == layers.total);
    p.memory_limit     = buffers_of(all) - 1;
    p.keep_activations = CFT_KEEP_ALL;
    REFUSED(cft_trainer_new(l.handle, &p, nullptr, 0, &none, &err), CFT_ERR_NO_MEMORY, "MiB");
}

void test_params_refused() {
    where = "parameters";
    const model  m((options()));
    const loaded l(m);
    struct {
        const char *words;
        void (*spoil)(cft_trainer_params &);
    } const cases[] = {
        {"rank", [](cft_trainer_params &p) { p.rank = 0; }},
        {"alpha", [](cft_trainer_params &p) { p.alpha = NAN; }},
        {"dropout", [](cft_trainer_params &p) { p.dropout = 1; }},
        {"dropout", [](cft_trainer_params &p) { p.dropout = -0.1f; }},
        {"targets", [](cft_trainer_params &p) { p.targets = 0; }},
        {"targets", [](cft_trainer_params &p) { p.targets = 1 << 10; }},
        {"keep_activations", [](cft_trainer_params &p) { p.keep_activations = 3; }},
        {"max_tokens", [](cft_trainer_params &p) { p.max_tokens = 0; }},
        {"max_targets", [](cft_trainer_params &p) { p.max_targets = 65; }},
        {"n_threads", [](cft_trainer_params &p) { p.n_threads = -1; }},
        {"beta", [](cft_trainer_params &p) { p.beta1 = 1; }},
        {"eps", [](cft_trainer_params &p) { p.eps = 0; }},
        {"weight_decay", [](cft_trainer_params &p) { p.weight_decay = -1; }},
    };
    for (const auto &c : cases) {
        cft_trainer_params  p = some_params();
        cft_trainer        *t = nullptr;
        cft_memory_estimate e{};
        c.spoil(p);
        REFUSED(cft_trainer_new(l.handle, &p, nullptr, 0, &t, &err), CFT_ERR_INVALID_ARGUMENT, c.words);
        REFUSED(cft_memory_estimate_get(l.handle, &p, nullptr, 0, &e, &err), CFT_ERR_INVALID_ARGUMENT, c.words);
        CHECK(t == nullptr && e.total == 0);
    }
}

void test_packs_refused() {
    where = "packs";
    const model        m((options()));
    const loaded       l(m);
    cft_trainer_params p = some_params();
    p.max_tokens = 30, p.max_targets = 12;
    trainer      t(l, p);
    const batch  good = one_segment(m.o.n_vocab); // 20 tokens, 10 targets
    const double want = t.evaluate(good);
    struct {
        const char *words;
        void (*spoil)(batch &);
    } const cases[] = {
        {"1 to 30 tokens", [](batch &b) { b = {}; }},
        {"1 to 30 tokens", [](batch &b) { b.add_segment(11, 10, 0); }},
        {"token 61", [](batch &b) { b.tokens[3] = 61; }},
        {"token -1", [](batch &b) { b.tokens[3] = -1; }},
        {"target 61", [](batch &b) { b.targets[15] = 61; }},
        {"target -1 at position 15", [](batch &b) { b.targets[15] = -1; }},
        {"position -3", [](batch &b) { b.positions[4] = -3; }},
        {"visible_until 5 at position 5", [](batch &b) { b.visible_until[5] = 5; }},
        {"visible_until 21", [](batch &b) { b.visible_until[5] = 21; }},
        {"weight at position 19", [](batch &b) { b.weights[19] = NAN; }},
        {"weight at position 19", [](batch &b) { b.weights[19] = -1; }},
        {"14 targets", [](batch &b) { std::fill(b.targets.begin() + 6, b.targets.end(), 2); }},
    };
    for (const auto &c : cases) {
        batch b = good;
        c.spoil(b);
        double loss = -1;
        size_t n    = 99;
        b.tokens.reserve(1), b.targets.reserve(1), b.positions.reserve(1), b.visible_until.reserve(1); // pointers even when empty
        REFUSED(cft_trainer_accumulate(t.handle, b.tokens.data(), b.targets.data(), b.positions.data(), b.visible_until.data(),
                                       b.weights.data(), b.size(), &loss, &n, &err),
                CFT_ERR_INVALID_ARGUMENT, c.words);
        CHECK(loss == -1 && n == 99);
    }
    CHECK(t.evaluate(good) == want);
    std::vector<float> logits(size_t(m.o.n_vocab) * 3);
    for (const auto &rows : {std::vector<int32_t>{3, 3}, {4, 2}, {-1}, {20}}) {
        REFUSED(cft_trainer_logits(t.handle, good.tokens.data(), good.positions.data(), good.visible_until.data(), good.size(), rows.data(),
                                   rows.size(), logits.data(), &err),
                CFT_ERR_INVALID_ARGUMENT, "ascending");
    }
    double norm_got = -1;
    REFUSED(cft_trainer_apply(t.handle, 1e-3f, 1, 0, &norm_got, &err), CFT_ERR_INVALID_ARGUMENT, "normalizer");
    REFUSED(cft_trainer_apply(t.handle, NAN, 1, 1, &norm_got, &err), CFT_ERR_INVALID_ARGUMENT, "lr");
    REFUSED(cft_trainer_apply(t.handle, 1e-3f, -1, 1, &norm_got, &err), CFT_ERR_INVALID_ARGUMENT, "max_grad_norm");
}

void test_handles() {
    where = "handles";
    const model     m((options()));
    const loaded    l(m);
    trainer         t(l, some_params());
    cft_tensor_info info;
    float           x = 0;
    const size_t    count = cft_trainer_tensor_count(t.handle);
    REFUSED(cft_trainer_tensor_info(t.handle, count, &info, &err), CFT_ERR_INVALID_ARGUMENT, "tensor 28 of 28");
    REFUSED(cft_trainer_tensor_read(t.handle, 0, CFT_SLOT_VALUE, &x, 1, &err), CFT_ERR_INVALID_ARGUMENT, "96 elements, not 1");
    REFUSED(cft_trainer_get_counters(nullptr, nullptr, nullptr, &err), CFT_ERR_INVALID_ARGUMENT, "NULL");
    REFUSED(cft_trainer_new(nullptr, nullptr, nullptr, 0, nullptr, &err), CFT_ERR_INVALID_ARGUMENT, "NULL");
    CHECK(cft_trainer_tensor_count(nullptr) == 0);
    cft_trainer_free(nullptr);
    cft_model_free(nullptr);
    cft_trainer_discard(nullptr);
    cft_trainer_cancel(nullptr);
    double flops = 0;
    OK(cft_bench_sgemm(64, 64, 64, 2, &flops, &err));
    CHECK(flops > 0);
    REFUSED(cft_bench_sgemm(0, 64, 64, 2, &flops, &err), CFT_ERR_INVALID_ARGUMENT, "range");
}

} // namespace

int main() {
    test_first_values();
    test_optimizer();
    test_resume();
    test_not_finite();
    test_cancel();
    test_memory();
    test_params_refused();
    test_packs_refused();
    test_handles();
    return finish("test_engine_state");
}
