// test_engine_files.cpp - model files: every weight type trains like the F32 model of the same values, and files that are
// cut off, damaged or of a kind that we do not train are refused in words.
#include "engine_fixture.h"

#include <fstream>
#include <iterator>
#include <limits>

using namespace checks;
using namespace tiny;

namespace {

// Quantized weights are dequantized to the very values of the F32 model; tiles divide sums differently.
constexpr double same_values_tolerance = 1e-5;

cft_status load(const std::string &path, cft_model **out) { return cft_model_load(path.data(), path.size(), "auto", 4, out, &err); }

void refused(const std::string &path, cft_status status, const char *words) {
    cft_model *m = nullptr;
    REFUSED(load(path, &m), status, words);
    CHECK(m == nullptr);
    cft_model_free(m);
}

void test_info() {
    where = "info";
    options o;
    o.head_dim = 16, o.tied = false;
    const model    m(o);
    const loaded   l(m);
    cft_model_info i;
    OK(cft_model_get_info(l.handle, &i, &err));
    CHECK(std::string(i.architecture) == "llama" && i.n_layer == 2 && i.n_embd == 32 && i.n_ff == 48 && i.n_head == 4 && i.n_head_kv == 2);
    CHECK(i.head_dim == 16 && i.n_vocab == 61 && i.n_ctx_train == 256 && i.tied_output == 0);
    CHECK(i.rope_freq_base == rope_base && i.rms_eps == rms_eps);
    uint64_t n = 0;
    for (const auto &[name, v] : m.values) {
        n += v.size();
    }
    CHECK(i.n_params == n && i.weight_bytes == 4 * n);
    cft_model *none = nullptr;
    REFUSED(cft_model_load(m.path.data(), m.path.size(), "CUDA7", 5, &none, &err), CFT_ERR_DEVICE, "CUDA7");
    REFUSED(cft_model_load("", 0, "cpu", 3, &none, &err), CFT_ERR_INVALID_ARGUMENT, "empty");
}

void test_weight_types() {
    for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
                           GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS}) {
        where = ggml_type_name(type);
        options o;
        o.type  = type;
        o.n_ff  = 256;
        o.n_embd = 256, o.head_dim = 64;
        const model  m(o), plain = m.in_f32("plain.gguf");
        const loaded l(m), lp(plain);
        trainer      t(l, some_params()), tp(lp, some_params());
        t.randomize();
        tp.write(CFT_SLOT_VALUE, t.read(CFT_SLOT_VALUE));
        batch b;
        b.add_segment(24, o.n_vocab, 0.5);
        CHECK_NEAR(t.evaluate(b), tp.evaluate(b), tp.evaluate(b), same_values_tolerance);
        CHECK(worst_tensor(t.gradient(b), tp.gradient(b)) < same_values_tolerance);
    }
}

std::string bytes_of(const std::string &path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
}

std::string write(const char *name, const std::string &bytes) {
    const std::string path = folder() + "/" + name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
}

void test_cut_off() {
    const model       m((options()));
    const std::string whole = bytes_of(m.path);
    CHECK(whole.size() > 20000);
    // Every length within the header, and then in steps that hit the middle of tensors and their ends.
    for (size_t n = 0; n < whole.size(); n += n < 3000 ? 7 : 997) {
        where = "cut off after " + std::to_string(n) + " bytes";
        cft_model       *out = nullptr;
        const cft_status got = load(write("cut.gguf", whole.substr(0, n)), &out);
        CHECK((got == CFT_ERR_FORMAT || (n == 0 && got == CFT_ERR_IO)) && out == nullptr && err.message[0] != 0);
        cft_model_free(out);
    }
    where = "one byte short";
    refused(write("cut.gguf", whole.substr(0, whole.size() - 1)), CFT_ERR_FORMAT, "");
    where = "missing";
    refused(folder() + "/missing.gguf", CFT_ERR_IO, "missing.gguf");
    where = "no GGUF";
    refused(write("text.gguf", "this is a text file, long enough to hold a header of its own kind"), CFT_ERR_FORMAT, "");
    where = "folder";
    refused(folder(), CFT_ERR_IO, "");
}

// Bytes changed at random: refused or loaded, never a crash.
void test_damaged() {
    const model       m((options()));
    const std::string whole = bytes_of(m.path);
    int               n_loaded = 0;
    constexpr int     n_trials = 400, header = 2200;
    for (int trial = 0; trial < n_trials; trial++) {
        where = "damage " + std::to_string(trial);
        std::string bytes = whole;
        for (int i = random_int(1, 3); i > 0; i--) {
            bytes[size_t(random_int(0, header))] = char(random_int(0, 255));
        }
        cft_model       *out = nullptr;
        const cft_status got = load(write("damaged.gguf", bytes), &out);
        CHECK((got == CFT_OK) == (out != nullptr));
        CHECK(got == CFT_OK || err.message[0] != 0);
        n_loaded += got == CFT_OK;
        cft_model_free(out);
    }
    CHECK(n_loaded < n_trials); // damage was seen at all
}

ggml_tensor *new_tensor(gguf_context *gguf, ggml_context *ctx, const char *name, int64_t cols) {
    ggml_tensor *t = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, cols);
    ggml_set_name(t, name);
    std::fill_n(static_cast<float *>(t->data), cols, 1.0f);
    gguf_add_tensor(gguf, t);
    return t;
}

void test_unsupported() {
    struct {
        cft_status  status;
        const char *words;
        void (*change)(gguf_context *, ggml_context *);
    } const cases[] = {
        {CFT_ERR_UNSUPPORTED, "gpt2 is not trained; these are: llama (", [](gguf_context *g, ggml_context *) { gguf_set_val_str(g, "general.architecture", "gpt2"); }},
        {CFT_ERR_UNSUPPORTED, "llama.expert_count", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "llama.expert_count", 8); }},
        {CFT_ERR_UNSUPPORTED, "llama.rope.scaling.type = longrope", [](gguf_context *g, ggml_context *) { gguf_set_val_str(g, "llama.rope.scaling.type", "longrope"); }},
        {CFT_ERR_UNSUPPORTED, "llama.rope.scaling.yarn_beta_fast", [](gguf_context *g, ggml_context *) { gguf_set_val_f32(g, "llama.rope.scaling.yarn_beta_fast", 16); }},
        {CFT_ERR_UNSUPPORTED, "llama.logit_scale", [](gguf_context *g, ggml_context *) { gguf_set_val_f32(g, "llama.logit_scale", 0.5f); }},
        {CFT_ERR_UNSUPPORTED, "llama.attention.scale", [](gguf_context *g, ggml_context *) { gguf_set_val_f32(g, "llama.attention.scale", 0.1f); }},
        {CFT_ERR_UNSUPPORTED, "llama.attn_logit_softcapping", [](gguf_context *g, ggml_context *) { gguf_set_val_f32(g, "llama.attn_logit_softcapping", 50); }},
        {CFT_ERR_UNSUPPORTED, "llama.attention.value_length", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "llama.attention.value_length", 4); }},
        {CFT_ERR_UNSUPPORTED, "blk.1.attn_output.bias", [](gguf_context *g, ggml_context *c) { new_tensor(g, c, "blk.1.attn_output.bias", 32); }},
        {CFT_ERR_FORMAT, "blk.1.attn_q.bias is 1 x 31, expected 1 x 32", [](gguf_context *g, ggml_context *c) { new_tensor(g, c, "blk.1.attn_q.bias", 31); }},
        {CFT_ERR_UNSUPPORTED, "blk.0.attn_q_norm.weight", [](gguf_context *g, ggml_context *c) { new_tensor(g, c, "blk.0.attn_q_norm.weight", 8); }},
        {CFT_ERR_UNSUPPORTED, "head size 12", [](gguf_context *g, ggml_context *) {
             gguf_set_val_u32(g, "llama.attention.key_length", 12);
             gguf_set_val_u32(g, "llama.attention.value_length", 12);
         }},
        {CFT_ERR_FORMAT, "llama.block_count", [](gguf_context *g, ggml_context *) { gguf_remove_key(g, "llama.block_count"); }},
        {CFT_ERR_FORMAT, "llama.block_count", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "llama.block_count", 0); }},
        {CFT_ERR_FORMAT, "blk.2.attn_norm.weight is missing", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "llama.block_count", 3); }},
        {CFT_ERR_FORMAT, "llama.embedding_length", [](gguf_context *g, ggml_context *) { gguf_set_val_str(g, "llama.embedding_length", "32"); }},
        {CFT_ERR_FORMAT, "token_embd.weight is 61 x 32, expected 61 x 64", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "llama.embedding_length", 64); }},
        {CFT_ERR_FORMAT, "llama.attention.head_count", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "llama.attention.head_count", 5); }},
        {CFT_ERR_FORMAT, "rope.freq_base", [](gguf_context *g, ggml_context *) { gguf_set_val_f32(g, "llama.rope.freq_base", std::numeric_limits<float>::infinity()); }},
        {CFT_ERR_FORMAT, "rope.dimension_count", [](gguf_context *g, ggml_context *) { gguf_set_val_u32(g, "llama.rope.dimension_count", 10); }},
    };
    for (const auto &c : cases) {
        where = c.words;
        const model m(options(), "changed.gguf", c.change);
        refused(m.path, c.status, c.words);
    }
}

// Keys that change nothing are taken.
void test_supported() {
    where = "harmless keys";
    const model m(options(), "harmless.gguf", [](gguf_context *g, ggml_context *) {
        gguf_set_val_u32(g, "llama.expert_count", 0);
        gguf_set_val_u32(g, "llama.attention.sliding_window", 0);
        gguf_set_val_bool(g, "llama.rope.scaling.finetuned", false);
        gguf_set_val_str(g, "llama.rope.scaling.type", "none");
        gguf_set_val_u32(g, "llama.vocab_size", 61);
        gguf_set_val_str(g, "general.name", "harmless");
    });
    const loaded l(m);
    CHECK(l.handle != nullptr);
    // A factor without a type is linear, as llama.cpp has it.
    options o;
    o.rope_scale = 4;
    const model  typed(o, "typed.gguf");
    const loaded lt(typed);
    const auto  &values = typed.values;
    const model  untyped(options(), "untyped.gguf", [&](gguf_context *g, ggml_context *ctx) {
        gguf_set_val_f32(g, "llama.rope.scaling.factor", 4);
        for (ggml_tensor *t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            std::memcpy(t->data, values.at(t->name).data(), ggml_nbytes(t));
        }
    });
    const loaded lu(untyped);
    batch        b;
    b.add_segment(30, o.n_vocab, 0.5);
    CHECK(trainer(lu, some_params()).evaluate(b) == trainer(lt, some_params()).evaluate(b));
}

} // namespace

int main() {
    test_info();
    test_weight_types();
    test_cut_off();
    test_damaged();
    test_unsupported();
    test_supported();
    ggml_quantize_free();
    return finish("test_engine_files");
}
