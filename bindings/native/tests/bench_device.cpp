// bench_device.cpp - measures training steps through cft.h on a device, or the CPU, with random weights in the shape of a published
// model, and prints one JSON line. It needs no model file: the GGUF is written to a folder and removed again. With --models DIR it stays there, for
// whoever comes next with the same shape and type: to write 8B takes longer than to train some steps.
//
// With --estimate 1 it prints what the trainer would take, and trains nothing. With --compare 1 it computes one pack's gradient on the device and
// on the CPU instead, and fails where they differ; a mixture's router then decides clearly, since rounding must not send rows to other experts.
//
// A pack has segments side by side or, with --critiques N, what critique fine-tuning has: questions of some --question tokens, answers to each of some
// --answer, N critiques of each answer of some --critique, which are the targets. With --shared 1 all is under one question, and each answer once.
//
// usage: bench_device --shape qwen3-0.6b --type bf16|q8_0|q4_k_m --device cuda --tokens 16384 --segment 2048 --targets 1.0
//                     --critiques 0 --shared 0 --question 130 --answer 480 --critique 480
//                     --steps 8 --accumulate 1 --rank 16 --keep auto|all|layers --layers 0 --memory 0 --folder DIR --models DIR --compare 0
#include "bench_options.h"
#include "cft.h"

#include "ggml.h"
#include "gguf.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

struct shape {
    int n_layer, n_embd, n_ff, n_head, n_head_kv, n_vocab;
    bool tied;
    int  n_expert = 0, n_used = 0; // of a mixture, whose experts are n_ff wide
    bool biases = false;           // Qwen 2's, of q, k and v, in place of norms of heads

    const char *architecture() const { return n_expert > 0 ? "qwen3moe" : biases ? "qwen2" : "qwen3"; }
};
// From the models' published configurations; heads are 128 wide.
const std::map<std::string, shape> shapes = {
    {"qwen3-0.6b", {28, 1024, 3072, 16, 8, 151936, true}}, {"qwen3-1.7b", {28, 2048, 6144, 16, 8, 151936, true}},
    {"qwen3-8b", {36, 4096, 12288, 32, 8, 151936, false}}, {"qwen3-30b-a3b", {48, 2048, 768, 32, 4, 151936, false, 128, 8}},
    {"qwen2.5-7b", {28, 3584, 18944, 28, 4, 152064, false, 0, 0, true}},
    {"tiny", {2, 256, 512, 2, 1, 512, true}}, {"tiny-qwen2", {2, 256, 512, 2, 1, 512, false, 0, 0, true}}, {"tiny-moe", {2, 256, 256, 2, 1, 512, true, 8, 2}}};
constexpr int head_dim = 128;

bench_options options = {{
    {"shape", "qwen3-0.6b"}, {"type", "bf16"}, {"device", "cuda"}, {"tokens", "16384"}, {"segment", "2048"}, {"targets", "1.0"}, {"steps", "8"},
    {"accumulate", "1"}, {"rank", "16"}, {"keep", "auto"}, {"layers", "0"}, {"memory", "0"}, {"folder", "."}, {"models", ""}, {"warmup", "2"}, {"mixed", "0"}, {"compare", "0"}, {"estimate", "0"},
    {"critiques", "0"}, {"shared", "0"}, {"question", "130"}, {"answer", "480"}, {"critique", "480"}}};

std::string path_to_remove;

[[noreturn]] void fail(const std::string &what) {
    std::remove(path_to_remove.c_str());
    std::fprintf(stderr, "bench_device: %s\n", what.c_str());
    std::exit(1);
}
int number(const char *name) { return int(options.number(name)); }

cft_error err;
void ok(cft_status status) {
    if (status != CFT_OK) {
        fail(err.message);
    }
}

// Type of a matrix: as llama.cpp's Q4_K_M has it, v and down of some layers and the head are Q6_K.
ggml_type type_of(const std::string &name, int layer, int n_layer) {
    if (options.at("type") == "bf16") {
        return GGML_TYPE_BF16;
    }
    if (options.at("type") == "q8_0") {
        return GGML_TYPE_Q8_0;
    }
    const bool more = layer < n_layer / 8 || layer >= 7 * n_layer / 8 || (layer - n_layer / 8) % 3 == 2;
    if (name.find("token_embd") == 0 || name.find("output.weight") == 0 ||
        (more && (name.find("attn_v") != std::string::npos || name.find("ffn_down") != std::string::npos))) {
        return GGML_TYPE_Q6_K;
    }
    return GGML_TYPE_Q4_K;
}

// Random rows of a type: some thousand of them, again and again.
class random_rows {
  public:
    // With n_coded > 0, n_used of the first n_coded elements of each row say clearly which experts it is for: clear_router() reads them.
    explicit random_rows(int n_coded, int n_used) : n_coded_(n_coded), n_used_(n_used) {}

    std::vector<char> coded(ggml_type type, int64_t columns) {
        std::vector<float> values = random(columns);
        const float        strong = std::sqrt(float(columns) / float(n_used_));
        for (int64_t row = 0; row < n_rows; row++) {
            for (int k = 0; k < n_used_; k++) {
                const int64_t expert = (row * 7 + k * (1 + row % 3)) % n_coded_; // no two alike
                values[size_t(row * columns + expert)] = strong * (1.0f + 0.25f * float(k % 2));
            }
        }
        return quantized(type, columns, values);
    }
    // Each expert sees its own element, F32.
    std::vector<char> clear_router(int64_t columns) const {
        std::vector<float> values(static_cast<size_t>(n_coded_ * columns));
        for (int e = 0; e < n_coded_; e++) {
            values[size_t(e * columns + e)] = 0.25f;
        }
        std::vector<char> bytes(values.size() * sizeof(float));
        std::memcpy(bytes.data(), values.data(), bytes.size());
        return bytes;
    }

    const std::vector<char> &of(ggml_type type, int64_t columns) {
        auto &bytes = rows_[{type, columns}];
        if (bytes.empty()) {
            bytes = quantized(type, columns, random(columns));
        }
        return bytes;
    }

  private:
    static constexpr int64_t n_rows = 997; // prime, so that layers differ

    std::vector<float> random(int64_t columns) {
        std::vector<float> values(static_cast<size_t>(n_rows * columns));
        for (float &v : values) {
            v = normal_(bits_) / std::sqrt(float(columns));
        }
        return values;
    }
    static std::vector<char> quantized(ggml_type type, int64_t columns, const std::vector<float> &values) {
        std::vector<char> bytes(ggml_row_size(type, columns) * size_t(n_rows));
        ggml_quantize_chunk(type, values.data(), bytes.data(), 0, n_rows, columns, nullptr);
        return bytes;
    }

    int                                                       n_coded_, n_used_;
    std::mt19937                                              bits_{1};
    std::normal_distribution<float>                           normal_;
    std::map<std::pair<ggml_type, int64_t>, std::vector<char>> rows_;
};

struct tensor {
    std::string name;
    ggml_type   type;
    int64_t     columns, rows, n = 1; // rows 0: a vector of ones; n: of experts
};

std::vector<tensor> tensors_of(const shape &s) {
    const int64_t d = s.n_embd, q = int64_t(s.n_head) * head_dim, kv = int64_t(s.n_head_kv) * head_dim;
    std::vector<tensor> all;
    const auto add = [&](const std::string &name, int64_t columns, int64_t rows, int layer, int64_t n = 1) {
        all.push_back({name, rows > 0 ? type_of(name.substr(name.find("attn") != std::string::npos ? name.find("attn") : 0), layer, s.n_layer) : GGML_TYPE_F32, columns, rows, n});
    };
    add("token_embd.weight", d, s.n_vocab, 0);
    add("output_norm.weight", d, 0, 0);
    if (!s.tied) {
        add("output.weight", d, s.n_vocab, 0);
    }
    for (int i = 0; i < s.n_layer; i++) {
        const std::string b = "blk." + std::to_string(i) + ".";
        add(b + "attn_norm.weight", d, 0, i), add(b + "ffn_norm.weight", d, 0, i);
        if (s.biases) {
            add(b + "attn_q.bias", q, 0, i), add(b + "attn_k.bias", kv, 0, i), add(b + "attn_v.bias", kv, 0, i);
        } else {
            add(b + "attn_q_norm.weight", head_dim, 0, i), add(b + "attn_k_norm.weight", head_dim, 0, i);
        }
        add(b + "attn_q.weight", d, q, i), add(b + "attn_k.weight", d, kv, i), add(b + "attn_v.weight", d, kv, i);
        add(b + "attn_output.weight", q, d, i);
        if (s.n_expert > 0) {
            all.push_back({b + "ffn_gate_inp.weight", GGML_TYPE_F32, d, s.n_expert});
            add(b + "ffn_gate_exps.weight", d, s.n_ff, i, s.n_expert), add(b + "ffn_up_exps.weight", d, s.n_ff, i, s.n_expert);
            add(b + "ffn_down_exps.weight", s.n_ff, d, i, s.n_expert);
            continue;
        }
        add(b + "ffn_gate.weight", d, s.n_ff, i), add(b + "ffn_up.weight", d, s.n_ff, i), add(b + "ffn_down.weight", s.n_ff, d, i);
    }
    return all;
}

// Without values, the file is as long as it would be, but empty. clear: a mixture's router decides clearly.
void write_model(const shape &s, const std::string &path, bool with_values, bool clear) {
    gguf_context *g = gguf_init_empty();
    const std::string architecture = s.architecture();
    gguf_set_val_str(g, "general.architecture", architecture.c_str());
    const auto set = [&](const char *key, int value) { gguf_set_val_u32(g, (architecture + "." + key).c_str(), uint32_t(value)); };
    set("block_count", s.n_layer), set("context_length", 40960), set("embedding_length", s.n_embd), set("feed_forward_length", s.n_ff);
    set("attention.head_count", s.n_head), set("attention.head_count_kv", s.n_head_kv), set("attention.key_length", head_dim);
    set("attention.value_length", head_dim);
    if (s.n_expert > 0) {
        set("expert_count", s.n_expert), set("expert_used_count", s.n_used), set("expert_feed_forward_length", s.n_ff);
    }
    gguf_set_val_f32(g, (architecture + ".attention.layer_norm_rms_epsilon").c_str(), 1e-6f);
    gguf_set_val_f32(g, (architecture + ".rope.freq_base").c_str(), 1e6f);
    const std::vector<tensor> all = tensors_of(s);
    ggml_context *ctx = ggml_init({ggml_tensor_overhead() * (all.size() + 1), nullptr, true});
    for (const tensor &t : all) {
        ggml_tensor *made = t.rows > 0 ? ggml_new_tensor_3d(ctx, t.type, t.columns, t.rows, t.n) : ggml_new_tensor_1d(ctx, t.type, t.columns);
        ggml_set_name(made, t.name.c_str());
        gguf_add_tensor(g, made);
    }
    if (!gguf_write_to_file(g, path.c_str(), true)) {
        fail("cannot write " + path);
    }
    FILE *file = std::fopen(path.c_str(), "r+b");
    std::fseek(file, 0, SEEK_END);
    random_rows source(s.n_expert, s.n_used);
    for (const tensor &t : all) {
        size_t bytes = 0;
        if (!with_values) {
            bytes = ggml_row_size(t.type, t.columns) * size_t(std::max<int64_t>(t.rows * t.n, 1));
            std::fseek(file, long(bytes), SEEK_CUR);
        } else if (t.rows == 0) {
            const std::vector<float> ones(size_t(t.columns), 1.0f);
            bytes = std::fwrite(ones.data(), 1, ones.size() * sizeof(float), file);
        } else {
            clear = clear && s.n_expert > 0;
            const std::vector<char> rows = clear && t.name == "token_embd.weight"                          ? source.coded(t.type, t.columns)
                                           : clear && t.name.find("gate_inp") != std::string::npos ? source.clear_router(t.columns)
                                                                                                     : source.of(t.type, t.columns);
            const size_t             total = ggml_row_size(t.type, t.columns) * size_t(t.rows * t.n);
            while (bytes < total) {
                const size_t n = std::fwrite(rows.data(), 1, std::min(rows.size(), total - bytes), file);
                if (n == 0) {
                    fail("the disk is full: " + path);
                }
                bytes += n;
            }
        }
        const std::vector<char> gap((32 - bytes % 32) % 32);
        std::fwrite(gap.data(), 1, gap.size(), file);
    }
    std::fputc(0, file); // a file ends where something was written
    if (std::fclose(file) != 0) {
        fail("cannot write " + path);
    }
    ggml_free(ctx);
    gguf_free(g);
}

struct pack {
    std::vector<int32_t> tokens, targets, positions, until;
    size_t               n_targets = 0, n_rows = 0;
};

// Random tokens for a pack that has room for so many.
class pack_writer {
  public:
    pack_writer(int room, int n_vocab) : room_(size_t(room)), n_vocab_(uint32_t(n_vocab)) {}

    int         left() const { return int(room_ - made.tokens.size()); }
    std::mt19937 bits{7};
    pack         made;

    // n tokens at position `at` and on, of which the last n_targets are learned but for the very last; `inside` writes what sees them besides.
    void put(int n, int at, int n_targets, const std::function<void()> &inside = [] {}) {
        const size_t begin = made.tokens.size();
        for (int i = 0; i < n; i++) {
            made.tokens.push_back(int32_t(bits() % n_vocab_));
            const bool target = i < n - 1 && i >= n - n_targets;
            made.targets.push_back(target ? int32_t(bits() % n_vocab_) : CFT_IGNORE_TARGET);
            made.n_targets += target;
            made.positions.push_back(at + i);
        }
        inside();
        made.until.resize(made.tokens.size(), int32_t(made.tokens.size()));
        std::fill_n(made.until.begin() + std::ptrdiff_t(begin), n, int32_t(made.tokens.size()));
    }

  private:
    size_t   room_;
    uint32_t n_vocab_;
};

// Segments side by side: all of one length or, mixed, of lengths between a sixteenth of it and all of it. Each has its targets at
// the end.
pack segments(int n_tokens, int n_vocab) {
    pack_writer  p(n_tokens, n_vocab);
    const int    longest = number("segment");
    const double share   = std::atof(options.at("targets").c_str());
    for (; p.left() > 0; p.made.n_rows++) {
        const int want = number("mixed") ? int(longest / 16 + p.bits() % uint32_t(longest - longest / 16)) : longest;
        const int n    = std::min(want, p.left());
        p.put(n, 0, n - int(double(n) * (1 - share)));
    }
    return p.made;
}

// As many whole rows as there is room for; answers' and critiques' lengths are between half and one and a half of what was asked for.
pack critiques(int n_tokens, int n_vocab) {
    pack_writer p(n_tokens, n_vocab);
    const bool  shared = number("shared") != 0;
    const int   question = number("question"), each = shared ? number("critiques") : 1;
    const auto  some = [&](const char *name) { return std::max(number(name) / 2 + int(p.bits() % uint32_t(number(name) + 1)), 2); };
    int         next = some("critique");
    const auto  put_critiques = [&](int at) {
        for (int i = 0; i < each && p.left() >= next; i++, p.made.n_rows++, next = some("critique")) {
            p.put(next, at, next);
        }
    };
    const auto put_answers = [&] {
        for (int answer = some("answer"); p.left() >= (shared ? 0 : question) + answer + next; answer = some("answer")) {
            const auto put_answer = [&] { p.put(answer, question, 0, [&] { put_critiques(question + answer); }); };
            shared ? put_answer() : p.put(question, 0, 0, put_answer);
        }
    };
    shared ? p.put(question, 0, 0, put_answers) : put_answers();
    if (p.made.n_rows == 0) {
        fail("no row has room in --tokens");
    }
    return p.made;
}

pack make_pack(int n_tokens, int n_vocab) { return number("critiques") > 0 ? critiques(n_tokens, n_vocab) : segments(n_tokens, n_vocab); }

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

uint64_t free_on_device() {
    for (size_t i = 0; i < cft_device_count(); i++) {
        cft_device d;
        if (cft_device_get(i, &d, &err) == CFT_OK && std::strncmp(d.name, "CUDA", 4) == 0) {
            return d.memory_free;
        }
    }
    return 0;
}

cft_trainer_params trainer_params(const pack &p) {
    cft_trainer_params params{};
    params.rank = number("rank"), params.alpha = 32, params.targets = CFT_TARGET_ALL_LINEAR, params.seed = 1;
    params.keep_activations = options.at("keep") == "all" ? CFT_KEEP_ALL : options.at("keep") == "layers" ? CFT_KEEP_LAYERS : CFT_KEEP_AUTO;
    params.max_tokens   = int32_t(p.tokens.size());
    params.max_targets  = int32_t(p.n_targets);
    params.memory_limit = uint64_t(number("memory")) << 20;
    params.beta1 = 0.9f, params.beta2 = 0.999f, params.eps = 1e-8f;
    return params;
}

// Loss and gradient of one pack, from an adapter whose B is small and random.
double gradient_on(const std::string &path, const std::string &device, const pack &p, std::vector<float> &all) {
    cft_model   *model   = nullptr;
    cft_trainer *trainer = nullptr;
    ok(cft_model_load(path.data(), path.size(), device.data(), device.size(), &model, &err));
    const cft_trainer_params params = trainer_params(p);
    ok(cft_trainer_new(model, &params, nullptr, 0, &trainer, &err));
    std::mt19937                    bits(5);
    std::normal_distribution<float> normal(0, 0.02f);
    double                          loss = 0;
    size_t                          n    = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < cft_trainer_tensor_count(trainer); i++) {
            cft_tensor_info info;
            ok(cft_trainer_tensor_info(trainer, i, &info, &err));
            std::vector<float> v(info.rows * info.cols);
            if (pass == 1) {
                ok(cft_trainer_tensor_read(trainer, i, CFT_SLOT_GRADIENT, v.data(), v.size(), &err));
                all.insert(all.end(), v.begin(), v.end());
            } else if (std::strstr(info.name, "lora_b")) {
                for (float &x : v) {
                    x = normal(bits);
                }
                ok(cft_trainer_tensor_write(trainer, i, CFT_SLOT_VALUE, v.data(), v.size(), &err));
            }
        }
        if (pass == 0) {
            ok(cft_trainer_accumulate(trainer, p.tokens.data(), p.targets.data(), p.positions.data(), p.until.data(), nullptr, p.tokens.size(), &loss, &n, &err));
        }
    }
    cft_trainer_free(trainer);
    cft_model_free(model);
    return loss / double(n);
}

void compare(const shape &s, const std::string &path) {
    constexpr double   least_cosine = 0.999, loss_tolerance = 5e-3; // of bf16 activations
    const pack         p = make_pack(number("tokens"), s.n_vocab);
    std::vector<float> got, again, want;
    const double       loss = gradient_on(path, options.at("device"), p, got), loss_again = gradient_on(path, options.at("device"), p, again);
    const double       expected = gradient_on(path, "cpu", p, want);
    double             gw = 0, gg = 0, ww = 0;
    for (size_t i = 0; i < want.size(); i++) {
        gw += double(got[i]) * double(want[i]), gg += double(got[i]) * double(got[i]), ww += double(want[i]) * double(want[i]);
    }
    const double cosine = gw / std::sqrt(gg * ww);
    const bool   same   = loss == loss_again && got.size() == again.size() && std::memcmp(got.data(), again.data(), got.size() * sizeof(float)) == 0;
    std::printf("{\"tool\":\"compare\",\"shape\":\"%s\",\"type\":\"%s\",\"layers\":%d,\"tokens\":%zu,\"targets\":%zu,\"cosine\":%.7f,\"norm_ratio\":%.6f,"
                "\"loss\":%.6f,\"loss_cpu\":%.6f,\"two_runs_equal\":%s}\n",
                options.at("shape").c_str(), options.at("type").c_str(), s.n_layer, p.tokens.size(), p.n_targets, cosine, std::sqrt(gg / ww), loss, expected,
                same ? "true" : "false");
    if (!(cosine >= least_cosine) || !(std::fabs(loss - expected) <= loss_tolerance * expected) || !same) {
        fail("device and CPU differ, or two runs on the device do");
    }
}

void estimate(const shape &s, const std::string &path) {
    const std::string device = options.at("device");
    cft_model        *model  = nullptr;
    ok(cft_model_load(path.data(), path.size(), device.data(), device.size(), &model, &err));
    const cft_trainer_params params = trainer_params(make_pack(number("tokens"), s.n_vocab));
    cft_memory_estimate      e;
    ok(cft_memory_estimate_get(model, &params, nullptr, 0, &e, &err));
    const auto mib = [](uint64_t bytes) { return double(bytes) / 1048576; };
    std::printf("{\"tool\":\"estimate\",\"shape\":\"%s\",\"type\":\"%s\",\"tokens\":%d,\"total_mib\":%.0f,\"weights_mib\":%.0f,\"adapter_mib\":%.0f,"
                "\"activations_mib\":%.0f,\"workspace_mib\":%.0f,\"loss_mib\":%.0f,\"keep\":%d,\"computed_again\":%.4f,\"streamed_mib\":%.1f,\"offloaded_mib\":%.1f}\n",
                options.at("shape").c_str(), options.at("type").c_str(), number("tokens"), mib(e.total), mib(e.weights),
                mib(e.adapter + e.gradients + e.moments), mib(e.activations), mib(e.workspace), mib(e.loss), int(e.keep_activations),
                double(e.computed_again), mib(e.streamed), mib(e.offloaded));
    cft_model_free(model);
}

void measure(const shape &s, const std::string &path, double written) {
    const std::string device = options.at("device");
    const double      t0     = now();
    cft_model        *model  = nullptr;
    ok(cft_model_load(path.data(), path.size(), device.data(), device.size(), &model, &err));
    const pack p = make_pack(number("tokens"), s.n_vocab);
    const cft_trainer_params params = trainer_params(p);
    const uint64_t free_before = free_on_device();
    cft_trainer   *trainer     = nullptr;
    ok(cft_trainer_new(model, &params, nullptr, 0, &trainer, &err));
    const double loaded = now() - t0;
    const auto   step   = [&] {
        double loss = 0, length = 0;
        size_t n = 0;
        for (int i = 0; i < number("accumulate"); i++) {
            ok(cft_trainer_accumulate(trainer, p.tokens.data(), p.targets.data(), p.positions.data(), p.until.data(), nullptr, p.tokens.size(), &loss, &n, &err));
        }
        ok(cft_trainer_apply(trainer, 1e-4f, 1.0f, double(n) * number("accumulate"), &length, &err));
        return loss / double(n);
    };
    double first = 0, last = 0;
    for (int i = 0; i < number("warmup"); i++) {
        last = step();
        first = i == 0 ? last : first;
    }
    std::vector<double> seconds;
    for (int i = 0; i < number("steps"); i++) {
        const double begin = now();
        last               = step();
        seconds.push_back(now() - begin);
    }
    const uint64_t      free_after = free_on_device();
    std::vector<double> sorted     = seconds;
    std::sort(sorted.begin(), sorted.end());
    const double        tokens = double(p.tokens.size()) * number("accumulate"), middle = sorted[sorted.size() / 2];
    cft_memory_estimate e;
    ok(cft_trainer_get_memory(trainer, &e, &err));
    char remark[512]; // has neither quotes nor line ends
    cft_trainer_remark(trainer, remark, sizeof remark);
    std::printf("{\"tool\":\"cftune\",\"shape\":\"%s\",\"type\":\"%s\",\"device\":\"%s\",\"tokens\":%zu,\"segment\":%d,\"mixed\":%d,\"targets\":%zu,"
                "\"rows\":%zu,\"rows_per_s\":%.3f,\"accumulate\":%d,\"rank\":%d,\"layers\":%d,\"tokens_per_s\":%.1f,\"tokens_per_s_best\":%.1f,\"loss_first\":%.5f,\"loss_last\":%.5f,"
                "\"planned_mib\":%.0f,\"taken_mib\":%.0f,\"weights_mib\":%.0f,\"activations_mib\":%.0f,\"keep\":%d,\"computed_again\":%.4f,\"streamed_mib\":%.1f,\"offloaded_mib\":%.1f,\"load_s\":%.2f,\"write_s\":%.2f,\"remark\":\"%s\"}\n",
                options.at("shape").c_str(), options.at("type").c_str(), device.c_str(), p.tokens.size(), number("segment"), number("mixed"), p.n_targets, p.n_rows,
                double(p.n_rows) * number("accumulate") / middle, number("accumulate"), number("rank"), s.n_layer, tokens / middle, tokens / sorted.front(), first, last, double(e.total) / 1048576,
                double(free_before - free_after) / 1048576, double(e.weights) / 1048576, double(e.activations) / 1048576, int(e.keep_activations),
                double(e.computed_again), double(e.streamed) / 1048576, double(e.offloaded) / 1048576, loaded, written, remark);
    cft_trainer_free(trainer);
    cft_model_free(model);
    if (!std::isfinite(last)) {
        fail("the loss is not finite");
    }
}

} // namespace

int main(int argc, char **argv) {
    if (const std::string wrong = options.read(argc, argv); !wrong.empty()) {
        fail(wrong);
    }
    if (!shapes.count(options.at("shape"))) {
        fail("--shape is qwen3-0.6b, qwen3-1.7b, qwen3-8b, qwen3-30b-a3b, qwen2.5-7b, tiny, tiny-moe or tiny-qwen2");
    }
    if (number("tokens") < 2 || number("segment") < 16 || number("steps") < 1 || number("accumulate") < 1) {
        fail("--tokens, --segment, --steps and --accumulate are too small");
    }
    if (number("critiques") < 0 || number("question") < 1 || number("answer") < 1 || number("critique") < 1) {
        fail("--critiques, --question, --answer and --critique are too small");
    }
    shape s = shapes.at(options.at("shape"));
    s.n_layer = number("layers") > 0 ? number("layers") : s.n_layer;
    const bool        stays = !options.at("models").empty() && !number("estimate") && !number("compare");
    const std::string once  = (stays ? options.at("models") : options.at("folder")) + "/bench_device." + std::to_string(now()) + ".gguf";
    const std::string kept  = options.at("models") + "/model." + options.at("shape") + "-" + options.at("type") + "-" + std::to_string(s.n_layer) + ".gguf";
    const std::string path  = stays ? kept : once;
    const double      begin = now();
    path_to_remove          = once;
    if (!stays || access(kept.c_str(), R_OK) != 0) {
        write_model(s, once, number("estimate") == 0, number("compare") != 0);
        if (stays && std::rename(once.c_str(), kept.c_str()) != 0) {
            fail("cannot write " + kept);
        }
    }
    const double written = now() - begin;
    if (number("estimate")) {
        estimate(s, path);
    } else if (number("compare")) {
        compare(s, path);
    } else {
        measure(s, path, written);
    }
    std::remove(once.c_str());
}
