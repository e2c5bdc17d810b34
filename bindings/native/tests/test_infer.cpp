// test_infer.cpp - vocabulary, sessions, sampling and file checks, on a tiny model that the test writes itself.
#include "cft_infer.h"
#include "checks.h"
#include "failure.h"
#include "infer_file.h"
#include "infer_sample.h"
#include "library.h"

#include "ggml.h"
#include "gguf.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

using namespace checks;

namespace {

// ---- a tiny llama: 2 layers, 32 wide, a SentencePiece vocabulary of bytes and letters

constexpr int n_embd = 32, n_ff = 64, n_layer = 2, n_head = 2;
constexpr int first_byte = 3, first_letter = first_byte + 256, n_vocab = first_letter + 27;

std::string folder;
std::string in_folder(const char *name) { return folder + "/" + name; }

struct gguf_builder {
    gguf_context *gguf = gguf_init_empty();
    ggml_context *ctx  = ggml_init({64 << 20, nullptr, false});
    uint32_t      noise = 1;

    ~gguf_builder() {
        gguf_free(gguf);
        ggml_free(ctx);
    }
    void matrix(const std::string &name, int cols, int rows, float spread) {
        ggml_tensor *t = rows ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, cols, rows) : ggml_new_tensor_1d(ctx, GGML_TYPE_F32, cols);
        ggml_set_name(t, name.c_str());
        auto *data = static_cast<float *>(t->data);
        for (int64_t i = 0; i < ggml_nelements(t); i++) {
            noise   = noise * 1664525u + 1013904223u;
            data[i] = rows ? spread * (float(noise >> 8) / float(1 << 24) - 0.5f) : 1.0f;
        }
        gguf_add_tensor(gguf, t);
    }
    std::string write(const char *name) {
        gguf_write_to_file(gguf, in_folder(name).c_str(), false);
        return in_folder(name);
    }
};

void add_vocabulary(gguf_context *g) {
    std::vector<std::string> texts = {"<unk>", "<s>", "</s>"};
    std::vector<int32_t>     types = {2, 3, 3};
    for (int i = 0; i < 256; i++) {
        char text[8];
        std::snprintf(text, sizeof text, "<0x%02X>", i);
        texts.push_back(text);
        types.push_back(6);
    }
    texts.push_back("\xe2\x96\x81"); // SentencePiece's space
    for (char c = 'a'; c <= 'z'; c++) {
        texts.push_back(std::string(1, c));
    }
    types.resize(texts.size(), 1);
    std::vector<const char *> pointers;
    for (const std::string &t : texts) {
        pointers.push_back(t.c_str());
    }
    const std::vector<float> scores(texts.size(), 0.0f);
    gguf_set_val_str(g, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
    gguf_set_val_u32(g, "tokenizer.ggml.bos_token_id", 1);
    gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", 2);
}

std::string write_model(const char *name, const std::function<void(gguf_context *)> &change = {}) {
    gguf_builder b;
    gguf_set_val_str(b.gguf, "general.architecture", "llama");
    gguf_set_val_u32(b.gguf, "llama.context_length", 512);
    gguf_set_val_u32(b.gguf, "llama.embedding_length", n_embd);
    gguf_set_val_u32(b.gguf, "llama.feed_forward_length", n_ff);
    gguf_set_val_u32(b.gguf, "llama.block_count", n_layer);
    gguf_set_val_u32(b.gguf, "llama.attention.head_count", n_head);
    gguf_set_val_f32(b.gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    add_vocabulary(b.gguf);
    if (change) {
        change(b.gguf);
    }
    b.matrix("token_embd.weight", n_embd, n_vocab, 2);
    b.matrix("output_norm.weight", n_embd, 0, 1);
    for (int i = 0; i < n_layer; i++) {
        const std::string p = "blk." + std::to_string(i) + ".";
        b.matrix(p + "attn_norm.weight", n_embd, 0, 1);
        b.matrix(p + "ffn_norm.weight", n_embd, 0, 1);
        for (const char *m : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
            b.matrix(p + m + ".weight", n_embd, n_embd, 1);
        }
        b.matrix(p + "ffn_gate.weight", n_embd, n_ff, 1);
        b.matrix(p + "ffn_up.weight", n_embd, n_ff, 1);
        b.matrix(p + "ffn_down.weight", n_ff, n_embd, 1);
    }
    return b.write(name);
}

std::string write_adapter(const char *name, int in, const char *type) {
    gguf_builder b;
    gguf_set_val_str(b.gguf, "general.architecture", "llama");
    gguf_set_val_str(b.gguf, "general.type", "adapter");
    gguf_set_val_str(b.gguf, "adapter.type", type);
    gguf_set_val_f32(b.gguf, "adapter.lora.alpha", 8);
    b.matrix("blk.0.attn_q.weight.lora_a", in, 4, 2);
    b.matrix("blk.0.attn_q.weight.lora_b", 4, n_embd, 2);
    return b.write(name);
}

std::string read_file(const std::string &path) {
    std::ifstream f(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(f), {}};
}
std::string write_file(const char *name, const std::string &bytes) {
    std::ofstream(in_folder(name), std::ios::binary) << bytes;
    return in_folder(name);
}

cft_status load_vocab(const std::string &path, cft_vocab **v) { return cft_vocab_load(path.data(), path.size(), v, &err); }
cft_status new_session(const std::string &model, const std::string &adapter, const cft_session_params &p, cft_session **s) {
    return cft_session_new(model.data(), model.size(), adapter.data(), adapter.size(), &p, s, &err);
}

const cft_session_params usual = {512, 64, 4, 2, 0, 1.0f, 1};

// ---- tests

void test_vocabulary(const std::string &model) {
    cft_vocab *v = nullptr;
    OK(load_vocab(model, &v));
    if (!v) {
        return;
    }
    cft_vocab_info info;
    OK(cft_vocab_get_info(v, &info, &err));
    CHECK(info.n_tokens == n_vocab && info.bos == 1 && info.eos == 2 && info.add_space_prefix == 1);

    int32_t tokens[16];
    size_t  n = 0;
    OK(cft_vocab_tokenize(v, "ab</s>", 2, 0, tokens, 16, &n, &err));
    CHECK(n == 3 && tokens[0] == first_letter && tokens[1] == first_letter + 1 && tokens[2] == first_letter + 2);
    OK(cft_vocab_tokenize(v, "</s>", 4, 1, tokens, 16, &n, &err));
    CHECK(n == 1 && tokens[0] == 2);
    OK(cft_vocab_tokenize(v, "</s>", 4, 0, tokens, 16, &n, &err));
    CHECK(n > 1 && tokens[0] != 2);
    OK(cft_vocab_tokenize(v, "", 0, 1, nullptr, 0, &n, &err));
    CHECK(n == 0);
    tokens[0] = -7;
    OK(cft_vocab_tokenize(v, "abcdef", 6, 0, tokens, 2, &n, &err));
    CHECK(n == 7 && tokens[0] == -7); // too little room: the number only
    REFUSED(cft_vocab_tokenize(v, "a\xff", 2, 0, tokens, 16, &n, &err), CFT_ERR_INVALID_ARGUMENT, "not UTF-8 at byte 1");
    REFUSED(cft_vocab_tokenize(v, "\xc3", 1, 0, tokens, 16, &n, &err), CFT_ERR_INVALID_ARGUMENT, "not UTF-8 at byte 0");
    REFUSED(cft_vocab_tokenize(v, "\xed\xa0\x80", 3, 0, tokens, 16, &n, &err), CFT_ERR_INVALID_ARGUMENT, "not UTF-8 at byte 0");

    char buf[8];
    OK(cft_vocab_piece(v, first_letter + 1, 0, buf, sizeof buf, &n, &err));
    CHECK(n == 1 && buf[0] == 'a');
    OK(cft_vocab_piece(v, first_byte + 0xe9, 0, buf, sizeof buf, &n, &err));
    CHECK(n == 1 && buf[0] == '\xe9');
    OK(cft_vocab_piece(v, 2, 1, buf, sizeof buf, &n, &err));
    CHECK(std::string(buf, n) == "</s>");
    OK(cft_vocab_piece(v, 2, 0, buf, sizeof buf, &n, &err));
    CHECK(n == 0);
    REFUSED(cft_vocab_piece(v, n_vocab, 0, buf, sizeof buf, &n, &err), CFT_ERR_INVALID_ARGUMENT, "not in the vocabulary");
    REFUSED(cft_vocab_piece(v, -1, 0, buf, sizeof buf, &n, &err), CFT_ERR_INVALID_ARGUMENT, "not in the vocabulary");
    int32_t control = -1, eog = -1;
    OK(cft_vocab_token_kind(v, 2, &control, &eog, &err));
    CHECK(control == 1 && eog == 1);
    OK(cft_vocab_token_kind(v, first_letter, &control, &eog, &err));
    CHECK(control == 0 && eog == 0);
    OK(cft_vocab_chat_template(v, nullptr, 0, &n, &err));
    CHECK(n == 0);
    cft_vocab_free(v);
    cft_vocab_free(nullptr);

    const std::string source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    cft_vocab        *chat   = nullptr;
    OK(load_vocab(write_model("chat.gguf", [&](gguf_context *g) { gguf_set_val_str(g, "tokenizer.chat_template", source.c_str()); }), &chat));
    std::string read(source.size(), '?');
    OK(cft_vocab_chat_template(chat, read.data(), 4, &n, &err));
    CHECK(n == source.size() && read[0] == '?');
    OK(cft_vocab_chat_template(chat, read.data(), read.size(), &n, &err));
    CHECK(read == source);
    cft_vocab_free(chat);
}

// logits_after decodes tokens as sequence seq_id from position 0 and returns the logits of the last.
std::vector<float> logits_after(cft_session *s, const std::vector<int32_t> &tokens, int32_t seq_id) {
    std::vector<int32_t> positions(tokens.size()), ids(tokens.size(), seq_id);
    std::vector<int8_t>  want(tokens.size(), 0);
    for (size_t i = 0; i < tokens.size(); i++) {
        positions[i] = int32_t(i);
    }
    want.back() = 1;
    std::vector<float> logits(n_vocab);
    OK(cft_session_decode(s, tokens.data(), positions.data(), ids.data(), want.data(), tokens.size(), &err));
    OK(cft_session_logits(s, tokens.size() - 1, logits.data(), logits.size(), &err));
    return logits;
}

float max_difference(const std::vector<float> &a, const std::vector<float> &b) {
    float most = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const float d = std::fabs(a[i] - b[i]);
        most          = std::isnan(most) || most >= d ? most : d;
    }
    return most;
}

// F32 sums in another order; logits here are of size 10.
constexpr float rounding = 1e-4f;

void test_session(const std::string &model) {
    cft_session *s = nullptr;
    OK(new_session(model, "", usual, &s));
    if (!s) {
        return;
    }
    const std::vector<int32_t> text = {1, 260, 261, 262, 270};
    const std::vector<float>   alone = logits_after(s, text, 0);

    // The same tokens beside another sequence, and continued from a shared prefix, give the same logits.
    const int32_t tokens[]    = {1, 1, 260, 280, 261, 281, 262, 282, 270};
    const int32_t positions[] = {0, 0, 1, 1, 2, 2, 3, 3, 4};
    const int32_t ids[]       = {1, 2, 1, 2, 1, 2, 1, 2, 1};
    const int8_t  want[]      = {0, 0, 0, 0, 0, 0, 0, 1, 1};
    OK(cft_session_decode(s, tokens, positions, ids, want, 9, &err));
    std::vector<float> beside(n_vocab);
    OK(cft_session_logits(s, 8, beside.data(), beside.size(), &err));
    CHECK(max_difference(alone, beside) < rounding);

    OK(cft_session_share(s, 0, 3, 3, &err));
    const int32_t rest[] = {262, 270}, at[] = {3, 4}, third[] = {3, 3};
    const int8_t  last[] = {0, 1};
    OK(cft_session_decode(s, rest, at, third, last, 2, &err));
    std::vector<float> shared(n_vocab);
    OK(cft_session_logits(s, 1, shared.data(), shared.size(), &err));
    CHECK(max_difference(alone, shared) < rounding);

    cft_sampling greedy = {0, 0, 1, 0, 0, 0};
    int32_t      token  = -1;
    OK(cft_session_sample(s, 1, &greedy, &token, &err));
    CHECK(token >= 0 && shared[size_t(token)] == *std::max_element(shared.begin(), shared.end()));
    REFUSED(cft_session_sample(s, 0, &greedy, &token, &err), CFT_ERR_INVALID_ARGUMENT, "not wanted");
    REFUSED(cft_session_sample(s, 2, &greedy, &token, &err), CFT_ERR_INVALID_ARGUMENT, "token 2 of a decode of 2");
    REFUSED(cft_session_logits(s, 1, shared.data(), 5, &err), CFT_ERR_INVALID_ARGUMENT, "room for 5");

    // What libllama would assert on.
    const int8_t  none[] = {0, 0};
    const int32_t bad_token[] = {n_vocab, 1}, bad_seq[] = {4, 0}, seq0[] = {0, 0}, gap[] = {5, 7}, again[] = {4, 5};
    const int32_t good[] = {1, 1}, next[] = {5, 6};
    REFUSED(cft_session_decode(s, bad_token, next, seq0, none, 2, &err), CFT_ERR_INVALID_ARGUMENT, "not in the vocabulary");
    REFUSED(cft_session_decode(s, good, next, bad_seq, none, 2, &err), CFT_ERR_INVALID_ARGUMENT, "sequence 4 of 4");
    REFUSED(cft_session_decode(s, good, gap, seq0, none, 2, &err), CFT_ERR_INVALID_ARGUMENT, "expected 6");
    REFUSED(cft_session_decode(s, good, again, seq0, none, 2, &err), CFT_ERR_INVALID_ARGUMENT, "expected 5");
    REFUSED(cft_session_decode(s, good, next, seq0, none, 0, &err), CFT_ERR_INVALID_ARGUMENT, "no tokens");
    REFUSED(cft_session_decode(s, good, next, seq0, none, 65, &err), CFT_ERR_INVALID_ARGUMENT, "n_batch is 64");
    REFUSED(cft_session_share(s, 0, 3, 2, &err), CFT_ERR_INVALID_ARGUMENT, "not empty");
    REFUSED(cft_session_share(s, 0, 0, 2, &err), CFT_ERR_INVALID_ARGUMENT, "itself");
    REFUSED(cft_session_forget(s, 9, &err), CFT_ERR_INVALID_ARGUMENT, "sequence 9 of 4");
    OK(cft_session_forget(s, 3, &err));
    REFUSED(cft_session_share(s, 0, 3, 6, &err), CFT_ERR_INVALID_ARGUMENT, "has 5");
    OK(cft_session_forget(s, -1, &err));
    CHECK(max_difference(alone, logits_after(s, text, 3)) == 0.0f);
    cft_session_free(s);
    cft_session_free(nullptr);
}

void test_full_cache(const std::string &model) {
    cft_session_params p = usual;
    p.n_ctx = 256;
    cft_session *s = nullptr;
    OK(new_session(model, "", p, &s));
    std::vector<int32_t> tokens(64, 260), positions(64), ids(64, 0);
    std::vector<int8_t>  want(64, 0);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 64; i++) {
            positions[size_t(i)] = round * 64 + i;
        }
        if (round < 4) {
            OK(cft_session_decode(s, tokens.data(), positions.data(), ids.data(), want.data(), 64, &err));
        } else {
            REFUSED(cft_session_decode(s, tokens.data(), positions.data(), ids.data(), want.data(), 64, &err), CFT_ERR_NO_MEMORY, "no room for 64");
        }
    }
    OK(cft_session_forget(s, 0, &err)); // and goes on
    CHECK(logits_after(s, {1, 260}, 0).size() == size_t(n_vocab));
    cft_session_free(s);
}

void test_adapter(const std::string &model) {
    const std::string  adapter = write_adapter("adapter.gguf", n_embd, "lora");
    cft_session_params p       = usual;
    cft_session       *base = nullptr, *adapted = nullptr, *off = nullptr;
    OK(new_session(model, "", p, &base));
    OK(new_session(model, adapter, p, &adapted));
    p.adapter_scale = 0;
    OK(new_session(model, adapter, p, &off));
    const std::vector<int32_t> text = {1, 260, 261, 262};
    const std::vector<float>   plain = logits_after(base, text, 0);
    CHECK(max_difference(plain, logits_after(adapted, text, 0)) > 100 * rounding);
    CHECK(max_difference(plain, logits_after(off, text, 0)) < rounding);
    for (cft_session *s : {base, adapted, off}) {
        cft_session_free(s);
    }
    cft_session *s = nullptr;
    REFUSED(new_session(model, model, usual, &s), CFT_ERR_FORMAT, "not a LoRA adapter");
    REFUSED(new_session(model, write_adapter("wide.gguf", n_embd + 8, "lora"), usual, &s), CFT_ERR_FORMAT, "incorrect shape");
    REFUSED(new_session(model, write_adapter("other.gguf", n_embd, "dora"), usual, &s), CFT_ERR_FORMAT, "not a LoRA adapter");
    REFUSED(new_session(model, in_folder("missing.gguf"), usual, &s), CFT_ERR_IO, "No such file");
    REFUSED(new_session(model, write_file("cut-adapter.gguf", read_file(adapter).substr(0, 900)), usual, &s), CFT_ERR_FORMAT, "cut off");
    CHECK(s == nullptr);
}

void test_parameters(const std::string &model) {
    cft_session *s = nullptr;
    auto with = [&](const std::function<void(cft_session_params &)> &change) {
        cft_session_params p = usual;
        change(p);
        return new_session(model, "", p, &s);
    };
    REFUSED(with([](auto &p) { p.n_ctx = 0; }), CFT_ERR_INVALID_ARGUMENT, "n_ctx is 0");
    REFUSED(with([](auto &p) { p.n_batch = -1; }), CFT_ERR_INVALID_ARGUMENT, "n_batch is -1");
    REFUSED(with([](auto &p) { p.n_sequences = 0; }), CFT_ERR_INVALID_ARGUMENT, "n_sequences is 0");
    REFUSED(with([](auto &p) { p.n_sequences = 100000; }), CFT_ERR_INVALID_ARGUMENT, "n_sequences is 100000");
    REFUSED(with([](auto &p) { p.n_threads = -2; }), CFT_ERR_INVALID_ARGUMENT, "n_threads is -2");
    REFUSED(with([](auto &p) { p.adapter_scale = NAN; }), CFT_ERR_INVALID_ARGUMENT, "adapter_scale");
    REFUSED(with([](auto &p) { p.n_ctx = 2000000000; }), CFT_ERR_NO_MEMORY, "n_ctx 2000000000 takes about");
    REFUSED(cft_session_new(nullptr, 0, nullptr, 0, &usual, &s, &err), CFT_ERR_INVALID_ARGUMENT, "path is empty");
    CHECK(s == nullptr);
}

// test_damage cuts the model at every byte of its header's start and then at steps, and changes single bytes: all must
// come back as an error or as a model, never end the process.
void test_damage(const std::string &model) {
    const std::string whole = read_file(model);
    cft_vocab        *v     = nullptr;
    for (size_t n = 0; n < whole.size(); n += n < 600 ? 1 : 997) {
        REFUSED(load_vocab(write_file("cut.gguf", whole.substr(0, n)), &v), CFT_ERR_FORMAT, n < 4 ? "not a GGUF" : "cut.gguf");
    }
    REFUSED(load_vocab(write_file("cut.gguf", whole.substr(0, whole.size() - 1)), &v), CFT_ERR_FORMAT, "cut off");
    REFUSED(load_vocab(in_folder("missing.gguf"), &v), CFT_ERR_IO, "No such file");
    REFUSED(load_vocab(folder, &v), CFT_ERR_IO, "not a regular file");
    REFUSED(load_vocab(write_file("text.gguf", "hello, world"), &v), CFT_ERR_FORMAT, "does not begin with GGUF");
    CHECK(v == nullptr);

    int refused = 0, loaded = 0;
    for (size_t i = 0; i < 12000 && i < whole.size(); i += 7) {
        std::string bytes = whole;
        bytes[i]          = char(bytes[i] ^ 0xff);
        cft_session *s    = nullptr;
        const cft_status status = new_session(write_file("changed.gguf", bytes), "", usual, &s);
        status == CFT_OK ? loaded++ : refused++;
        cft_session_free(s);
    }
    CHECK(refused > 300 && loaded > 10); // a changed letter of a token is no damage
}

void test_vocabulary_damage() {
    cft_vocab *v = nullptr;
    REFUSED(load_vocab(write_model("v1.gguf", [](gguf_context *g) { gguf_remove_key(g, "tokenizer.ggml.tokens"); }), &v), CFT_ERR_FORMAT, "no vocabulary");
    REFUSED(load_vocab(write_model("v2.gguf", [](gguf_context *g) { gguf_set_val_str(g, "tokenizer.ggml.tokens", "x"); }), &v), CFT_ERR_FORMAT, "not an array of str");
    REFUSED(load_vocab(write_model("v3.gguf", [](gguf_context *g) {
                const int32_t three[] = {1, 1, 1};
                gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, three, 3);
            }), &v), CFT_ERR_FORMAT, "has 3 elements");
    REFUSED(load_vocab(write_model("v4.gguf", [](gguf_context *g) {
                const char *twice[] = {"a", "b", "a"};
                gguf_remove_key(g, "tokenizer.ggml.scores");
                gguf_remove_key(g, "tokenizer.ggml.token_type");
                gguf_set_arr_str(g, "tokenizer.ggml.tokens", twice, 3);
            }), &v), CFT_ERR_FORMAT, "twice");
    REFUSED(load_vocab(write_model("v5.gguf", [](gguf_context *g) { gguf_set_val_str(g, "tokenizer.ggml.model", "morse"); }), &v), CFT_ERR_FORMAT, "unknown tokenizer: 'morse'");
    REFUSED(load_vocab(write_model("v6.gguf", [](gguf_context *g) { gguf_set_val_u16(g, "split.count", 3); }), &v), CFT_ERR_FORMAT, "one of 3 shards, whose name should end in -00001-of-00003.gguf");
    cft_session *s = nullptr;
    REFUSED(new_session(write_model("m1.gguf", [](gguf_context *g) { gguf_set_val_str(g, "llama.rope.scaling.type", "spiral"); }), "", usual, &s), CFT_ERR_FORMAT, "spiral");
    REFUSED(new_session(write_model("m2.gguf", [](gguf_context *g) { gguf_set_val_u32(g, "llama.expert_used_count", 2); }), "", usual, &s), CFT_ERR_FORMAT, "experts");
    REFUSED(new_session(write_model("m3.gguf", [](gguf_context *g) { gguf_set_val_u32(g, "llama.block_count", 3); }), "", usual, &s), CFT_ERR_FORMAT, "blk.2.");
    CHECK(v == nullptr && s == nullptr);
}

void test_sampling() {
    const std::vector<float> logits = {1, 3, 2, 3, -INFINITY, 0};
    auto draw = [&](const cft_sampling &s) { return cft::sample_token(logits.data(), logits.size(), s); };
    CHECK(draw({0, 0, 1, 0, 7, 7}) == 1); // lowest id of equals

    // Shares drawn against shares wanted; 40,000 draws of p <= 0.5 spread by 0.0025, and 4 of those are allowed.
    constexpr int    draws  = 40000;
    constexpr double spread = 4 * 0.0025;
    auto             shares = [&](cft_sampling s) {
        std::vector<double> share(logits.size(), 0.0);
        for (int i = 0; i < draws; i++) {
            s.counter = uint64_t(i);
            share[size_t(draw(s))] += 1.0 / draws;
        }
        return share;
    };
    auto expected = [&](const std::vector<int> &ids, double temperature) {
        std::vector<double> p(logits.size(), 0.0);
        double              total = 0;
        for (int id : ids) {
            total += p[size_t(id)] = std::exp(double(logits[size_t(id)]) / temperature);
        }
        for (double &x : p) {
            x /= total;
        }
        return p;
    };
    auto agree = [&](const std::vector<double> &a, const std::vector<double> &b) {
        for (size_t i = 0; i < a.size(); i++) {
            if (std::fabs(a[i] - b[i]) > spread || (b[i] == 0 && a[i] != 0)) {
                return false;
            }
        }
        return true;
    };
    CHECK(agree(shares({1, 0, 1, 0, 5, 0}), expected({0, 1, 2, 3, 5}, 1)));
    CHECK(agree(shares({2, 0, 1, 0, 5, 0}), expected({0, 1, 2, 3, 5}, 2)));
    CHECK(agree(shares({1, 3, 1, 0, 6, 0}), expected({1, 2, 3}, 1)));
    CHECK(agree(shares({1, 1, 1, 0, 6, 0}), expected({1}, 1)));
    CHECK(agree(shares({1, 0, 0.7f, 0, 7, 0}), expected({1, 3}, 1)));      // 0.39 + 0.39 reach 0.7
    CHECK(agree(shares({1, 0, 0.9f, 0, 7, 0}), expected({1, 2, 3}, 1)));
    CHECK(agree(shares({1, 0, 1, 0.3f, 8, 0}), expected({1, 2, 3}, 1)));   // e^-1 = 0.37 of the best, e^-2 = 0.14
    CHECK(agree(shares({1, 0, 0.999f, 0.5f, 8, 0}), expected({1, 3}, 1)));
    CHECK(draw({1, 0, 1, 0, 9, 3}) == draw({1, 0, 1, 0, 9, 3}));
    CHECK(cft::uniform(1, 2) != cft::uniform(2, 1) && cft::uniform(3, 4) == cft::uniform(3, 4));

    auto status = [&](const cft_sampling &s, std::vector<float> l) {
        return cft::guard(&err, [&] { cft::sample_token(l.data(), l.size(), s); });
    };
    REFUSED(status({-1, 0, 1, 0, 0, 0}, logits), CFT_ERR_INVALID_ARGUMENT, "temperature");
    REFUSED(status({NAN, 0, 1, 0, 0, 0}, logits), CFT_ERR_INVALID_ARGUMENT, "temperature");
    REFUSED(status({1, -1, 1, 0, 0, 0}, logits), CFT_ERR_INVALID_ARGUMENT, "top_k");
    REFUSED(status({1, 0, 0, 0, 0, 0}, logits), CFT_ERR_INVALID_ARGUMENT, "top_p");
    REFUSED(status({1, 0, 1, 2, 0, 0}, logits), CFT_ERR_INVALID_ARGUMENT, "min_p");
    REFUSED(status({0, 0, 1, 0, 0, 0}, {1, NAN}), CFT_ERR_NON_FINITE, "token 1 is NaN");
    REFUSED(status({0, 0, 1, 0, 0, 0}, {-INFINITY, -INFINITY}), CFT_ERR_NON_FINITE, "no token");
}

void test_library() {
    CHECK(cft_device_count() >= 1);
    cft_device d;
    OK(cft_device_get(0, &d, &err));
    CHECK(d.memory_total > 0 && d.memory_free > 0 && d.memory_free <= d.memory_total);
    REFUSED(cft_device_get(cft_device_count(), &d, &err), CFT_ERR_INVALID_ARGUMENT, "device");
    const std::string features = cft_cpu_features();
    CHECK(features == "avx512" || features == "avx2+fma" || features == "generic");

    CHECK(std::string(cft_library_versions()).find("ggml") == 0);

    std::vector<char> buf(1 << 20);
    while (cft_log_drain(buf.data(), buf.size()) > 0) {
    }
    cft::log_line("first");
    cft::log_line("the second line");
    CHECK(cft_log_drain(buf.data(), 8) == 5 && std::string(buf.data(), 5) == "first");
    CHECK(cft_log_drain(buf.data(), 10) == 10 && std::string(buf.data(), 10) == "the second"); // longer than the room
    CHECK(cft_log_drain(buf.data(), 10) == 5 && std::string(buf.data(), 5) == " line");
    CHECK(cft_log_drain(buf.data(), buf.size()) == 0);
    cft::log_line("a");
    cft::log_line("b");
    CHECK(std::string(buf.data(), cft_log_drain(buf.data(), buf.size())) == "a\nb");
    for (int i = 0; i < 100000; i++) {
        cft::log_line("line " + std::to_string(i));
    }
    const size_t      n = cft_log_drain(buf.data(), buf.size());
    const std::string kept(buf.data(), n);
    CHECK(n < 300 * 1024 && kept.substr(0, kept.find('\n')).find("earlier lines were dropped") != std::string::npos);
    CHECK(kept.substr(kept.rfind('\n') + 1) == "line 99999");
}

} // namespace

int main() {
    char name[] = "/tmp/cft-test-infer-XXXXXX";
    if (!mkdtemp(name)) {
        std::perror("mkdtemp");
        return 1;
    }
    folder = name;
    const char       *env = std::getenv("CFT_BACKEND_DIR");
    const std::string dir = env ? env : "";
    const std::string model = write_model("tiny.gguf");

    cft_session *early = nullptr;
    REFUSED(new_session(model, "", usual, &early), CFT_ERR_DEVICE, "cft_init");
    REFUSED(cft_init("/no/such/folder", 15, &err), CFT_ERR_IO, "No such file");
    REFUSED(cft_init(folder.data(), folder.size(), &err), CFT_ERR_DEVICE, "no CPU backend");
    std::vector<std::thread> threads; // once, whoever comes first
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&] {
            cft_error own;
            CHECK(cft_init(dir.data(), dir.size(), &own) == CFT_OK);
        });
    }
    for (std::thread &t : threads) {
        t.join();
    }
    test_vocabulary(model);
    test_session(model);
    test_full_cache(model);
    test_adapter(model);
    test_parameters(model);
    test_damage(model);
    test_vocabulary_damage();
    test_sampling();
    test_library();
    if (std::system(("rm -rf " + folder).c_str()) != 0) {
        std::perror("rm");
    }
    return finish("test_infer");
}
