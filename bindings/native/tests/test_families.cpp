// test_families.cpp - tiny random models of every family: gradients against differences of the loss, and the ways to compute
// the same thing that must agree; and files of a family that lack something, or have too much. What the families compute is
// compared with transformers' figures in cmd/cftune/families_test.go.
#include "engine_fixture.h"
#include "family.h"

using namespace checks;
using namespace tiny;
using cft::family;

namespace {

// The same sums in another order.
constexpr double order_tolerance = 2e-5;
// Differences of a float loss of about 100 along the gradient with a step of 1e-2 of the adapter's values: rounding over step,
// and the loss's curvature.
constexpr double slope_tolerance = 1e-2, slope_step = 1e-2;

constexpr int n_layer = 7, n_embd = 32, n_ff = 48, n_head = 4, n_head_kv = 2, head_dim = 16, n_vocab = 61, n_expert = 5, window = 6;

// A file of the family with all that its row in the table names.
class family_file {
  public:
    std::string path;

    explicit family_file(const family &f, const model::customizer &customize = nullptr) : f_(f), gguf_(gguf_init_empty()) {
        ctx_ = ggml_init({size_t(64) << 20, nullptr, false});
        keys();
        matrix("token_embd.weight", n_vocab, n_embd);
        vector("output_norm.weight", n_embd);
        if (f.has(cft::rope_factors)) {
            vector("rope_freqs.weight", head_dim / 2);
        }
        if (f.has(cft::long_rope)) {
            vector("rope_factors_short.weight", head_dim / 2);
            vector("rope_factors_long.weight", head_dim / 2);
        }
        for (int i = 0; i < n_layer; i++) {
            layer("blk." + std::to_string(i) + ".");
        }
        if (customize) {
            customize(gguf_, ctx_);
        }
        static int n_files = 0; // one file each: they are mapped while others are written
        path = folder() + "/" + f.architecture + std::to_string(n_files++) + ".gguf";
        CHECK(gguf_write_to_file(gguf_, path.c_str(), false));
        gguf_free(gguf_);
        ggml_free(ctx_);
    }

  private:
    void keys() {
        const std::string prefix = std::string(f_.architecture) + ".";
        gguf_set_val_str(gguf_, "general.architecture", f_.architecture);
        const auto number = [&](const char *key, int value) { gguf_set_val_u32(gguf_, (prefix + key).c_str(), uint32_t(value)); };
        number("block_count", n_layer);
        number("context_length", 256);
        number("embedding_length", n_embd);
        number("feed_forward_length", n_ff);
        number("attention.head_count", n_head);
        number("attention.head_count_kv", n_head_kv);
        number("attention.key_length", head_dim);
        number("attention.value_length", head_dim);
        if (f_.has(cft::may_window)) {
            number("attention.sliding_window", window);
        }
        if (f_.has(cft::experts)) {
            number("expert_count", n_expert);
            number("expert_used_count", 2);
            number("expert_feed_forward_length", n_ff);
        }
        gguf_set_val_f32(gguf_, (prefix + "attention.layer_norm_rms_epsilon").c_str(), 1e-6f);
        if (f_.has(cft::attention_cap)) {
            gguf_set_val_f32(gguf_, (prefix + "attn_logit_softcapping").c_str(), 3.0f);
        }
        if (f_.has(cft::logit_cap) || f_.has(cft::may_logit_cap)) {
            gguf_set_val_f32(gguf_, (prefix + "final_logit_softcapping").c_str(), 4.0f);
        }
    }

    void layer(const std::string &p) {
        const int q = n_head * head_dim, kv = n_head_kv * head_dim;
        vector(p + "attn_norm.weight", n_embd);
        vector(p + "ffn_norm.weight", n_embd);
        if (f_.has(cft::fused_tensors)) {
            matrix(p + "attn_qkv.weight", q + 2 * kv, n_embd);
        } else {
            matrix(p + "attn_q.weight", q, n_embd);
            matrix(p + "attn_k.weight", kv, n_embd);
            matrix(p + "attn_v.weight", kv, n_embd);
        }
        matrix(p + "attn_output.weight", n_embd, q);
        if (f_.has(cft::qkv_bias) || f_.has(cft::may_qkv_bias)) {
            vector(p + "attn_q.bias", q);
            vector(p + "attn_k.bias", kv);
            vector(p + "attn_v.bias", kv);
        }
        if (f_.has(cft::head_norms)) {
            vector(p + "attn_q_norm.weight", head_dim);
            vector(p + "attn_k_norm.weight", head_dim);
        }
        if (f_.has(cft::post_norms)) {
            vector(p + "post_attention_norm.weight", n_embd);
            vector(p + "post_ffw_norm.weight", n_embd);
        }
        if (f_.has(cft::experts)) {
            matrix(p + "ffn_gate_inp.weight", n_expert, n_embd);
            matrix(p + "ffn_gate_exps.weight", n_ff, n_embd, n_expert);
            matrix(p + "ffn_up_exps.weight", n_ff, n_embd, n_expert);
            matrix(p + "ffn_down_exps.weight", n_embd, n_ff, n_expert);
            return;
        }
        if (!f_.has(cft::fused_tensors)) {
            matrix(p + "ffn_gate.weight", n_ff, n_embd);
        }
        matrix(p + "ffn_up.weight", f_.has(cft::fused_tensors) ? 2 * n_ff : n_ff, n_embd);
        matrix(p + "ffn_down.weight", n_embd, n_ff);
    }

    void add(ggml_tensor *t, const std::string &name, float mean, float spread) {
        ggml_set_name(t, name.c_str());
        auto values = random_floats(size_t(ggml_nelements(t)), spread);
        for (float &v : values) {
            v += mean;
        }
        std::memcpy(t->data, values.data(), ggml_nbytes(t));
        gguf_add_tensor(gguf_, t);
    }
    void matrix(const std::string &name, int rows, int cols, int n = 1) {
        add(ggml_new_tensor_3d(ctx_, GGML_TYPE_F32, cols, rows, n), name, 0.0f, 0.2f);
    }
    void vector(const std::string &name, int n) { add(ggml_new_tensor_1d(ctx_, GGML_TYPE_F32, n), name, 1.0f, 0.1f); }

    const family &f_;
    gguf_context *gguf_;
    ggml_context *ctx_;
};

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
    OK(cft_memory_estimate_get(m.handle, &p, &estimate, &err));
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
        REFUSED(cft_trainer_new(m.handle, &p, &t, &err), CFT_ERR_INVALID_ARGUMENT, c.words);
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
