// test_adapters.cpp - adapters that are more than one rank and scale for all: ranks by module and layer, DoRA, adapters of the
// embedding and the head, learning rates by LoRA+. Losses and gradients against double precision and its finite differences.
#include "engine_fixture.h"

using namespace checks;
using namespace tiny;

namespace {

constexpr double loss_tolerance = 2e-6, order_tolerance = 1e-5;
// Lengths of rows and steps of AdamW, against double.
constexpr double value_tolerance = 1e-6;

struct expected {
    std::map<std::string, double> scales;
    bool                          dora = false;
};

// One trainer's loss and gradients, with all activations kept and with layers' inputs only.
void check(const options &o, const cft_trainer_params &p, const std::vector<cft_module> &modules, const expected &e, size_t n_tensors) {
    const model  m(o);
    const loaded l(m);
    const batch  b = mixed_batch(o.n_vocab);
    gradients    kept;
    adapter      lora;
    for (int32_t keep : {CFT_KEEP_ALL, CFT_KEEP_LAYERS}) {
        cft_trainer_params params = p;
        params.keep_activations   = keep;
        trainer t(l, params, modules);
        CHECK(cft_trainer_tensor_count(t.handle) == n_tensors);
        if (kept.empty()) {
            lora = t.randomize();
        }
        gradients values = t.read(CFT_SLOT_VALUE);
        for (auto &[name, v] : values) {
            v.assign(lora.at(name).begin(), lora.at(name).end());
        }
        t.write(CFT_SLOT_VALUE, values);
        reference r(m, double(p.alpha) / p.rank);
        r.scales = e.scales;
        for (const auto &[name, v] : lora) {
            const size_t end = name.find(".lora_magnitude");
            if (end != std::string::npos) {
                r.norms[name.substr(0, end)] = r.row_norms(lora, name.substr(0, end));
            }
        }
        CHECK(r.norms.empty() != e.dora);
        const double want = r.loss(lora, b);
        CHECK_NEAR(t.evaluate(b), want, want, loss_tolerance);
        CHECK_NEAR(t.accumulate(b), want, want, loss_tolerance);
        const gradients g = t.read(CFT_SLOT_GRADIENT);
        if (!kept.empty()) {
            CHECK(worst_tensor(g, kept) < order_tolerance);
            continue;
        }
        kept = g;
        check_slopes(r, lora, b, g);
    }
}

void test_ranks() {
    where = "ranks by module and layer";
    const std::vector<cft_module> modules = {{0, CFT_TARGET_ATTN_Q, 5, 10}, {1, CFT_TARGET_ATTN_V, 1, 2}, {1, CFT_TARGET_FFN_UP, 2, 7}, {0, CFT_TARGET_FFN_DOWN, 4, 6},
                                             {1, CFT_TARGET_ATTN_Q, 0, 0}};
    check({}, some_params(), modules, {{{"blk.1.ffn_up.weight", 3.5}, {"blk.0.ffn_down.weight", 1.5}}}, 2 * 13);
    cft_trainer_params p = some_params();
    p.rslora             = 1;
    const double root    = std::sqrt(3.0); // alpha 6, rank 3: the scale of the rest is 2 * sqrt(3), not 2
    expected     e;
    for (const char *name : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
        for (const char *layer : {"blk.0.", "blk.1."}) {
            e.scales[std::string(layer) + name + ".weight"] = 2 * root;
        }
    }
    e.scales["blk.0.attn_q.weight"] = 10 / std::sqrt(5.0);
    check({}, p, {modules[0]}, e, 2 * 14);
}

// The layers below the lowest adapter are not gone through again.
void test_layers() {
    where = "the last layer only";
    options                 o;
    std::vector<cft_module> none;
    for (int m = 0; m < 7; m++) {
        none.push_back({0, 1u << m, 0, 0});
    }
    check(o, some_params(), none, {}, 2 * 7);
    where = "no module is left";
    for (int m = 0; m < 7; m++) {
        none.push_back({1, 1u << m, 0, 0});
    }
    const model        m(o);
    const loaded       l(m);
    cft_trainer_params p = some_params();
    cft_trainer       *t = nullptr;
    REFUSED(cft_trainer_new(l.handle, &p, none.data(), none.size(), &t, &err), CFT_ERR_INVALID_ARGUMENT, "no module is left");
}

void test_dora() {
    cft_trainer_params p = some_params();
    p.dora               = 1;
    where                = "dora";
    check({}, p, {}, {{}, true}, 3 * 14);
    where = "dora with ranks";
    check({}, p, {{0, CFT_TARGET_ATTN_K, 5, 10}, {1, CFT_TARGET_FFN_GATE, 1, 2}, {0, CFT_TARGET_ATTN_V, 0, 0}}, {{}, true}, 3 * 13);
    where = "dora, three threads, one layer, some modules";
    options o;
    o.n_layer = 1, o.n_head_kv = 4;
    p.n_threads = 3, p.targets = CFT_TARGET_ATTN_Q | CFT_TARGET_FFN_DOWN | CFT_TARGET_FFN_UP;
    check(o, p, {}, {{}, true}, 3 * 3);
}

// Magnitudes are the lengths of W's rows at first, so that training begins at the base model; and of quantized rows as well.
void test_dora_begins_at_the_base() {
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_Q8_0}) {
        where = std::string("dora begins at the base, ") + ggml_type_name(type);
        options o;
        o.type = type, o.n_ff = 64;
        const model        m(o);
        const loaded       l(m);
        const batch        b = mixed_batch(o.n_vocab);
        cft_trainer_params p = some_params();
        trainer            plain(l, p);
        p.dora = 1;
        trainer t(l, p);
        CHECK_NEAR(t.evaluate(b), plain.evaluate(b), plain.evaluate(b), loss_tolerance);
        for (const auto &[name, v] : t.read(CFT_SLOT_VALUE)) {
            const size_t end = name.find(".lora_magnitude");
            if (end == std::string::npos) {
                continue;
            }
            const auto &w    = m.values.at(name.substr(0, end));
            const size_t cols = w.size() / v.size();
            for (size_t r = 0; r < v.size(); r++) {
                const double want = norm(std::vector<float>(w.begin() + long(r * cols), w.begin() + long((r + 1) * cols)));
                CHECK_NEAR(double(v[r]), want, want, value_tolerance);
            }
        }
    }
}

// A step moves the rows' lengths: what follows is computed with the new ones.
void test_dora_follows_its_values() {
    where = "dora after a step";
    const model        m((options()));
    const loaded       l(m);
    const batch        b = mixed_batch(m.o.n_vocab);
    cft_trainer_params p = some_params();
    p.dora               = 1;
    trainer t(l, p), other(l, p);
    t.randomize();
    t.accumulate(b);
    double length = 0;
    OK(cft_trainer_apply(t.handle, 1e-2f, 0, 1, &length, &err));
    const double after = t.evaluate(b);
    const double before = other.evaluate(b); // its gains are those of its first values now
    CHECK(before != after);
    other.write(CFT_SLOT_VALUE, t.read(CFT_SLOT_VALUE));
    CHECK(other.evaluate(b) == after);
}

void test_zero_row() {
    where = "a row of zeros";
    const model m((options()), "zero.gguf", [](gguf_context *, ggml_context *ctx) {
        std::memset(ggml_get_tensor(ctx, "blk.1.attn_k.weight")->data, 0, 32 * sizeof(float));
    });
    const loaded       l(m);
    cft_trainer_params p = some_params();
    cft_trainer       *t = nullptr;
    p.dora               = 1;
    REFUSED(cft_trainer_new(l.handle, &p, nullptr, 0, &t, &err), CFT_ERR_INVALID_ARGUMENT, "blk.1.attn_k.weight.lora_magnitude: row 0 of the weight is zero");
}

void test_ends() {
    options o;
    o.tied = false;
    cft_trainer_params p = some_params();
    where                = "embedding and head";
    p.targets            = CFT_TARGET_ALL_LINEAR | CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT;
    check(o, p, {{-1, CFT_TARGET_TOKEN_EMBD, 5, 20}, {-1, CFT_TARGET_OUTPUT, 2, 3}}, {{{"token_embd.weight", 4}, {"output.weight", 1.5}}}, 2 * 16);
    where     = "head alone";
    p.targets = CFT_TARGET_OUTPUT;
    check(o, p, {}, {}, 2);
    where     = "embedding alone";
    p.targets = CFT_TARGET_TOKEN_EMBD;
    check(o, p, {}, {}, 2);
    where     = "embedding and one module";
    p.targets = CFT_TARGET_TOKEN_EMBD | CFT_TARGET_FFN_UP, p.n_threads = 3;
    check(o, p, {}, {}, 6);
}

// With PEFT's first values an adapter of the embedding adds nothing; its B is normal with variance 1.
void test_embedding_first_values() {
    where = "first values of the embedding's adapter";
    options o;
    o.tied = false, o.n_embd = 64, o.head_dim = 16;
    const model        m(o);
    const loaded       l(m);
    const batch        b = mixed_batch(o.n_vocab);
    cft_trainer_params p = some_params();
    trainer            plain(l, p);
    p.targets = CFT_TARGET_TOKEN_EMBD, p.rank = 64;
    trainer t(l, p);
    CHECK(t.evaluate(b) == plain.evaluate(b));
    const gradients values = t.read(CFT_SLOT_VALUE);
    CHECK(norm(values.at("token_embd.weight.lora_a")) == 0);
    const auto &normal = values.at("token_embd.weight.lora_b"); // 4096 of them
    double      sum = 0, fourth = 0;
    for (float x : normal) {
        sum += double(x);
        fourth += double(x) * double(x) * double(x) * double(x);
    }
    const double n = double(normal.size());
    CHECK(std::fabs(sum / n) < 0.08 && std::fabs(dot(normal, normal) / n - 1) < 0.12 && std::fabs(fourth / n - 3) < 0.9);
}

// Slopes of the loss under the same masks are the gradient.
void test_head_dropout() {
    where = "dropout of the head";
    options o;
    o.tied = false;
    const model        m(o);
    const loaded       l(m);
    const batch        b = mixed_batch(o.n_vocab);
    cft_trainer_params p = some_params();
    p.targets = CFT_TARGET_OUTPUT, p.dropout = 0.4f;
    trainer t(l, p);
    t.randomize();
    const auto loss = [&] {
        OK(cft_trainer_set_counters(t.handle, 0, 3, &err));
        cft_trainer_discard(t.handle);
        return t.accumulate(b);
    };
    const double    at = loss();
    const gradients g = t.read(CFT_SLOT_GRADIENT), first = t.read(CFT_SLOT_VALUE);
    CHECK(at != t.evaluate(b));
    for (const auto &[name, slope] : g) {
        constexpr float step = 0.02f;
        double          side[2];
        const double    length = norm(slope);
        for (int s = 0; s < 2; s++) {
            gradients moved = first;
            for (size_t i = 0; i < slope.size(); i++) {
                moved[name][i] += (s == 0 ? step : -step) * slope[i] / float(length);
            }
            t.write(CFT_SLOT_VALUE, moved);
            side[s] = loss();
        }
        t.write(CFT_SLOT_VALUE, first);
        CHECK_NEAR((side[0] - side[1]) / (2 * double(step)), length, length, 2e-3); // float losses, a step of 0.02
    }
}

// B's and magnitudes' first steps are ratio times those of A: at step 1, AdamW moves every element by lr.
void test_lora_plus() {
    where = "LoRA+";
    options o;
    o.tied = false;
    const model        m(o);
    const loaded       l(m);
    const batch        b = mixed_batch(o.n_vocab);
    cft_trainer_params p = some_params();
    const auto         moved = [&](const trainer &t, const gradients &from) {
        std::map<std::string, double> most;
        const gradients               now = t.read(CFT_SLOT_VALUE);
        for (const auto &[name, v] : now) {
            for (size_t i = 0; i < v.size(); i++) {
                most[name] = larger(most[name], std::fabs(double(v[i]) - double(from.at(name)[i])));
            }
        }
        return most;
    };
    for (int ends : {0, 1}) {
        p.lora_plus_ratio = 16;
        p.dora            = ends ? 0 : 1;
        p.targets         = CFT_TARGET_ALL_LINEAR | (ends ? CFT_TARGET_TOKEN_EMBD | CFT_TARGET_OUTPUT : 0);
        trainer t(l, p);
        t.randomize();
        const gradients from = t.read(CFT_SLOT_VALUE);
        t.accumulate(b);
        double length = 0;
        OK(cft_trainer_apply(t.handle, 1e-3f, 0, 1, &length, &err));
        for (const auto &[name, most] : moved(t, from)) {
            const bool slow = name.find(".lora_a") != std::string::npos || name.find("token_embd") == 0;
            CHECK_NEAR(most, slow ? 1e-3 : 16e-3, slow ? 1e-3 : 16e-3, 1e-2);
        }
    }
    // A ratio of 1 is no ratio.
    p = some_params();
    trainer plain(l, p);
    p.lora_plus_ratio = 1;
    trainer one(l, p);
    for (trainer *t : {&plain, &one}) {
        t->accumulate(b);
        double length = 0;
        OK(cft_trainer_apply(t->handle, 1e-3f, 1, 2, &length, &err));
    }
    CHECK(plain.read(CFT_SLOT_VALUE) == one.read(CFT_SLOT_VALUE));
}

void test_refused() {
    options o;
    const model tied(o, "tied.gguf");
    o.tied = false;
    const model  m(o);
    const loaded l(m), l_tied(tied);
    const auto   refused = [&](const loaded &on, const char *words, void (*spoil)(cft_trainer_params &), const std::vector<cft_module> &modules = {}) {
        where                = words;
        cft_trainer_params p = some_params();
        cft_trainer       *t = nullptr;
        spoil(p);
        REFUSED(cft_trainer_new(on.handle, &p, modules.data(), modules.size(), &t, &err), CFT_ERR_INVALID_ARGUMENT, words);
    };
    const auto as_it_is = [](cft_trainer_params &) {};
    refused(l, "with dropout", [](cft_trainer_params &p) { p.dora = 1, p.dropout = 0.1f; });
    refused(l, "token_embd and output", [](cft_trainer_params &p) { p.dora = 1, p.targets |= CFT_TARGET_OUTPUT; });
    refused(l, "lora_plus_ratio", [](cft_trainer_params &p) { p.lora_plus_ratio = -1; });
    refused(l_tied, "target token_embd: the model's head is its embedding", [](cft_trainer_params &p) { p.targets |= CFT_TARGET_TOKEN_EMBD; });
    refused(l_tied, "target output: the model's head is its embedding", [](cft_trainer_params &p) { p.targets = CFT_TARGET_OUTPUT; });
    refused(l, "one of the targets", as_it_is, {{-1, CFT_TARGET_OUTPUT, 3, 6}});
    refused(l, "one of the targets", as_it_is, {{0, CFT_TARGET_ATTN_Q | CFT_TARGET_ATTN_K, 3, 6}});
    refused(l, "attn_q: there is no layer 2", as_it_is, {{2, CFT_TARGET_ATTN_Q, 3, 6}});
    refused(l, "attn_q: there is no layer -1", as_it_is, {{-1, CFT_TARGET_ATTN_Q, 3, 6}});
    refused(l, "blk.1.attn_q: rank must be", as_it_is, {{1, CFT_TARGET_ATTN_Q, 5000, 6}});
    refused(l, "blk.1.attn_q: alpha must be", as_it_is, {{1, CFT_TARGET_ATTN_Q, 4, 0}});
}

} // namespace

int main() {
    test_ranks();
    test_layers();
    test_dora();
    test_dora_begins_at_the_base();
    test_dora_follows_its_values();
    test_zero_row();
    test_ends();
    test_embedding_first_values();
    test_head_dropout();
    test_lora_plus();
    test_refused();
    return finish("test_adapters");
}
