// test_families.cpp - tiny random models of every family: gradients against differences of the loss, and the ways to compute
// the same thing that must agree; and files of a family that lack something, or have too much. What the families compute is
// compared with transformers' figures in cmd/cftune/families_test.go.
#include "engine_fixture.h"
#include "family_file.h"

using namespace checks;
using namespace tiny;
using cft::family;

namespace {

// The same sums in another order.
constexpr double order_tolerance = 2e-5;
// Differences of a float loss of about 100 along the gradient with a step of 1e-2 of the adapter's values: rounding over step,
// and the loss's curvature.
constexpr double slope_tolerance = 1e-2, slope_step = 1e-2;

constexpr int n_vocab = family_sizes().n_vocab, n_expert = family_sizes().n_expert;

struct open_family {
    cft_model *handle = nullptr;
    explicit open_family(const family_file &f) { OK(cft_model_load(f.path.data(), f.path.size(), "cpu", 3, &handle, &err)); }
    ~open_family() { cft_model_free(handle); }
};

batch segments() {
    batch b;
    b.add_segment(11, n_vocab, 0.5);
    b.add_segment(20, n_vocab, 0.4);
    return b;
}

// Three branches under a prefix, all longer than the window.
batch tree_of(std::vector<batch> &rows) {
    constexpr int prefix = 9, branch = 8, n_branches = 3;
    batch         tree;
    tree.add_segment(prefix + n_branches * branch, n_vocab, 0);
    for (int i = 0; i < n_branches; i++) {
        const int begin = prefix + i * branch;
        batch     row;
        row.add_segment(prefix + branch, n_vocab, 0);
        std::copy_n(tree.tokens.begin(), prefix, row.tokens.begin());
        for (int j = 0; j < branch; j++) {
            const size_t at = size_t(begin + j), in_row = size_t(prefix + j);
            tree.positions[at]     = prefix + j;
            tree.visible_until[at] = begin + branch;
            tree.targets[at] = row.targets[in_row] = random_int(0, n_vocab - 1);
            row.tokens[in_row]  = tree.tokens[at];
            row.weights[in_row] = tree.weights[at];
        }
        rows.push_back(row);
    }
    return tree;
}

void test_gradient(trainer &t, const batch &b) {
    const gradients start = t.read(CFT_SLOT_VALUE), g = t.gradient(b);
    for (const auto &[name, slope] : g) {
        const double length = norm(slope);
        CHECK(length > 1e-3); // every tensor has a say in the loss
        double side[2];
        for (int s = 0; s < 2; s++) {
            gradients moved = start;
            for (size_t i = 0; i < slope.size(); i++) {
                moved[name][i] += float((s == 0 ? slope_step : -slope_step) * double(slope[i]) / length);
            }
            t.write(CFT_SLOT_VALUE, moved);
            side[s] = t.evaluate(b);
        }
        CHECK_NEAR((side[0] - side[1]) / (2 * slope_step), length, length, slope_tolerance);
    }
    t.write(CFT_SLOT_VALUE, start);
}

void add_to(gradients &sum, const gradients &g) {
    for (const auto &[name, v] : g) {
        auto &s = sum[name];
        s.resize(v.size(), 0.0f);
        std::transform(v.begin(), v.end(), s.begin(), s.begin(), std::plus<>());
    }
}

void test_same_ways(const open_family &m, trainer &t, const batch &b) {
    const double    loss = t.evaluate(b);
    const gradients want = t.gradient(b);
    for (int keep : {CFT_KEEP_ALL, CFT_KEEP_LAYERS}) {
        cft_trainer_params p = some_params();
        p.keep_activations = keep, p.n_threads = keep == CFT_KEEP_ALL ? 3 : 1;
        trainer other(m.handle, p);
        other.write(CFT_SLOT_VALUE, t.read(CFT_SLOT_VALUE));
        CHECK_NEAR(other.accumulate(b), loss, loss, order_tolerance);
        CHECK(worst_tensor(other.read(CFT_SLOT_GRADIENT), want) < order_tolerance);
    }
    // Segments alone.
    gradients sum;
    for (size_t begin = 0; begin < b.size(); begin = size_t(b.visible_until[begin])) {
        batch      part;
        const auto cut = [&](const auto &from, auto &to) { to.assign(from.begin() + long(begin), from.begin() + b.visible_until[begin]); };
        cut(b.tokens, part.tokens), cut(b.targets, part.targets), cut(b.positions, part.positions), cut(b.weights, part.weights);
        part.visible_until.assign(part.size(), int32_t(part.size()));
        add_to(sum, t.gradient(part));
    }
    CHECK(worst_tensor(sum, want) < order_tolerance);
}

void test_tree(trainer &t) {
    std::vector<batch> rows;
    const batch        tree = tree_of(rows);
    gradients          sum;
    double             loss = 0;
    for (const batch &row : rows) {
        loss += t.evaluate(row);
        add_to(sum, t.gradient(row));
    }
    CHECK_NEAR(t.evaluate(tree), loss, loss, order_tolerance);
    CHECK(worst_tensor(t.gradient(tree), sum) < order_tolerance);
}

void test_estimate(const open_family &m, const trainer &t) {
    const cft_trainer_params p = some_params();
    cft_memory_estimate      estimate, actual;
    OK(cft_memory_estimate_get(m.handle, &p, nullptr, 0, &estimate, &err));
    OK(cft_trainer_get_memory(t.handle, &actual, &err));
    CHECK(std::memcmp(&estimate, &actual, sizeof estimate) == 0);
    uint64_t floats = 0;
    for (const auto &[name, v] : t.read(CFT_SLOT_VALUE)) {
        floats += v.size();
    }
    CHECK(estimate.adapter == floats * sizeof(float) && estimate.activations > 0);
}

void test_family(const family &f) {
    where = f.architecture;
    const family_file file(f);
    const open_family m(file);
    trainer           t(m.handle, some_params());
    t.randomize();
    const batch b = segments();
    if (f.has(cft::experts)) {
        // A step along the gradient changes which experts are chosen, unless all are.
        const family_file all(f, [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "qwen3moe.expert_used_count", n_expert); });
        const open_family ma(all);
        trainer           ta(ma.handle, some_params());
        ta.randomize();
        test_gradient(ta, b);
    } else {
        test_gradient(t, b);
    }
    where += ", other ways";
    test_same_ways(m, t, b);
    where = std::string(f.architecture) + ", tree";
    test_tree(t);
    where = std::string(f.architecture) + ", estimate";
    test_estimate(m, t);
}

// The tree's and the segments' windows reach less far than the sequences: with another window, or none, losses differ.
void test_windows_matter() {
    const batch b = segments();
    for (const char *name : {"llama", "phi3", "gemma2", "gemma3"}) {
        where            = std::string(name) + ", windows";
        const family &f  = *cft::family_of(name);
        const auto    change = [&](gguf_context *g, ggml_context *) {
            gguf_set_val_u32(g, (std::string(name) + ".attention.sliding_window").c_str(), 12);
        };
        random_bits.seed(7);
        const family_file narrow(f);
        const open_family m(narrow);
        trainer           t(m.handle, some_params());
        const double      loss = t.evaluate(b);
        random_bits.seed(7);
        const family_file wide(f, change);
        const open_family mw(wide);
        CHECK(std::fabs(trainer(mw.handle, some_params()).evaluate(b) - loss) > 1e-3);
    }
}

void test_refusals() {
    struct {
        const char *name;
        cft_status  status;
        const char *words;
        void (*change)(gguf_context *, ggml_context *);
    } const cases[] = {
        {"qwen2", CFT_ERR_UNSUPPORTED, "qwen2.attention.sliding_window", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "qwen2.attention.sliding_window", 9); }},
        {"qwen3", CFT_ERR_UNSUPPORTED, "qwen3.rope.scaling.type = su", [](gguf_context *g, ggml_context *) { gguf_set_val_str(g, "qwen3.rope.scaling.type", "su"); }},
        {"phi3", CFT_ERR_UNSUPPORTED, "phi3.rope.scaling.factor", [](gguf_context *g, ggml_context *) { gguf_set_val_f32(g, "phi3.rope.scaling.factor", 4); }},
        {"phi3", CFT_ERR_UNSUPPORTED, "phi3.rope.scaling.type = yarn", [](gguf_context *g, ggml_context *) { gguf_set_val_str(g, "phi3.rope.scaling.type", "yarn"); }},
        {"gemma3", CFT_ERR_UNSUPPORTED, "gemma3.attn_logit_softcapping", [](gguf_context *g, ggml_context *) { gguf_set_val_f32(g, "gemma3.attn_logit_softcapping", 9); }},
        {"qwen3moe", CFT_ERR_UNSUPPORTED, "qwen3moe.expert_shared_count", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "qwen3moe.expert_shared_count", 1); }},
        {"qwen3moe", CFT_ERR_UNSUPPORTED, "qwen3moe.expert_weights_scale", [](gguf_context *g, ggml_context *) { gguf_set_val_f32(g, "qwen3moe.expert_weights_scale", 2); }},
        {"qwen3moe", CFT_ERR_FORMAT, "qwen3moe.expert_used_count", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "qwen3moe.expert_used_count", 6); }},
    };
    for (const auto &c : cases) {
        where = c.words;
        const family_file f(*cft::family_of(c.name), c.change);
        cft_model        *m = nullptr;
        REFUSED(cft_model_load(f.path.data(), f.path.size(), "cpu", 3, &m, &err), c.status, c.words);
        CHECK(m == nullptr);
    }
    where = "targets that a family lacks";
    const struct {
        const char *name;
        uint32_t    targets;
        const char *words;
    } lacking[] = {{"phi3", CFT_TARGET_ATTN_Q, "target attn_q"}, {"qwen3moe", CFT_TARGET_FFN_UP, "target ffn_up"}, {"gemma2", CFT_TARGET_ATTN_QKV, "target attn_qkv"}};
    for (const auto &c : lacking) {
        const family_file  f(*cft::family_of(c.name));
        const open_family  m(f);
        cft_trainer_params p = some_params();
        p.targets            = c.targets;
        cft_trainer *t       = nullptr;
        REFUSED(cft_trainer_new(m.handle, &p, nullptr, 0, &t, &err), CFT_ERR_INVALID_ARGUMENT, c.words);
        CHECK(t == nullptr);
    }
}

} // namespace

int main() {
    for (const char *name : {"llama", "qwen2", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3"}) {
        const family *f = cft::family_of(name);
        CHECK(f != nullptr && cft::family_list().find(std::string(name) + " (") != std::string::npos);
        test_family(*f);
    }
    CHECK(cft::family_of("mamba") == nullptr);
    test_windows_matter();
    test_refusals();
    return finish("test_families");
}
