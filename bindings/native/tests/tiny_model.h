// tiny_model.h - random llama models of a few kilobytes for the engine's tests: the GGUF file, and the same model in double
// precision, written from the formulas alone, as what the engine's losses and slopes are compared with.
#pragma once

#include "checks.h"

#include "ggml.h"
#include "gguf.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <unistd.h>

namespace tiny {

using doubles = std::vector<double>;

struct options {
    int       n_layer = 2, n_embd = 32, n_ff = 48, n_head = 4, n_head_kv = 2, head_dim = 8, n_vocab = 61;
    bool      tied = true, rope_factors = false;
    float     rope_scale = 0; // linear factor; 0 = none
    float     gain = 1;       // of matrices: small ones make layers that change little
    ggml_type type = GGML_TYPE_F32; // of matrices
};

constexpr float rope_base = 10000.0f, rms_eps = 1e-5f;

// folder is a temporary folder, removed at exit.
inline const std::string &folder() {
    static const struct holder {
        std::string path;
        holder() {
            char name[] = "/tmp/cftune-test-XXXXXX";
            path        = mkdtemp(name) ? name : "";
        }
        ~holder() {
            if (!path.empty()) {
                [[maybe_unused]] const int ignored = std::system(("rm -rf '" + path + "'").c_str());
            }
        }
    } h;
    return h.path;
}

struct model {
    options                                   o;
    std::map<std::string, std::vector<float>> values; // of every tensor, as dequantized
    std::string                               path;

    // customize may add or change keys and tensors before the file is written.
    using customizer = std::function<void(gguf_context *, ggml_context *)>;
    explicit model(const options &opts, const std::string &name = "model.gguf", const customizer &customize = nullptr) : o(opts) {
        gguf_context *gguf = gguf_init_empty();
        ggml_context *ctx  = ggml_init({size_t(64) << 20, nullptr, false});
        write_keys(gguf);
        const int q = o.n_head * o.head_dim, kv = o.n_head_kv * o.head_dim;
        add(gguf, ctx, "token_embd.weight", o.n_embd, o.n_vocab, 0.5f, o.type);
        add(gguf, ctx, "output_norm.weight", o.n_embd, 0, 0.2f, GGML_TYPE_F32);
        if (!o.tied) {
            add(gguf, ctx, "output.weight", o.n_embd, o.n_vocab, 0.4f, o.type);
        }
        if (o.rope_factors) {
            add(gguf, ctx, "rope_freqs.weight", o.head_dim / 2, 0, 0.3f, GGML_TYPE_F32);
        }
        for (int i = 0; i < o.n_layer; i++) {
            const std::string b = "blk." + std::to_string(i) + ".";
            add(gguf, ctx, b + "attn_norm.weight", o.n_embd, 0, 0.2f, GGML_TYPE_F32);
            add(gguf, ctx, b + "ffn_norm.weight", o.n_embd, 0, 0.2f, GGML_TYPE_F32);
            add(gguf, ctx, b + "attn_q.weight", o.n_embd, q, 0.3f, o.type);
            add(gguf, ctx, b + "attn_k.weight", o.n_embd, kv, 0.3f, o.type);
            add(gguf, ctx, b + "attn_v.weight", o.n_embd, kv, 0.3f, o.type);
            add(gguf, ctx, b + "attn_output.weight", q, o.n_embd, 0.2f, o.type);
            add(gguf, ctx, b + "ffn_gate.weight", o.n_embd, o.n_ff, 0.2f, o.type);
            add(gguf, ctx, b + "ffn_up.weight", o.n_embd, o.n_ff, 0.2f, o.type);
            add(gguf, ctx, b + "ffn_down.weight", o.n_ff, o.n_embd, 0.2f, o.type);
        }
        if (customize) {
            customize(gguf, ctx);
        }
        path = folder() + "/" + name;
        if (!gguf_write_to_file(gguf, path.c_str(), false)) {
            std::fprintf(stderr, "cannot write %s\n", path.c_str());
            std::exit(1);
        }
        gguf_free(gguf);
        ggml_free(ctx);
    }

    // The same model in F32, with the values that its quantized tensors stand for.
    model in_f32(const std::string &name) const {
        options plain = o;
        plain.type    = GGML_TYPE_F32;
        const auto &mine = values;
        return model(plain, name, [&mine](gguf_context *, ggml_context *ctx) {
            for (ggml_tensor *t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
                std::memcpy(t->data, mine.at(t->name).data(), ggml_nbytes(t));
            }
        });
    }

  private:
    void write_keys(gguf_context *gguf) const {
        gguf_set_val_str(gguf, "general.architecture", "llama");
        const auto number = [&](const char *key, int value) { gguf_set_val_u32(gguf, (std::string("llama.") + key).c_str(), uint32_t(value)); };
        number("block_count", o.n_layer);
        number("context_length", 256);
        number("embedding_length", o.n_embd);
        number("feed_forward_length", o.n_ff);
        number("attention.head_count", o.n_head);
        number("attention.head_count_kv", o.n_head_kv);
        number("rope.dimension_count", o.head_dim);
        if (o.head_dim * o.n_head != o.n_embd) {
            number("attention.key_length", o.head_dim);
            number("attention.value_length", o.head_dim);
        }
        gguf_set_val_f32(gguf, "llama.rope.freq_base", rope_base);
        gguf_set_val_f32(gguf, "llama.attention.layer_norm_rms_epsilon", rms_eps);
        if (o.rope_scale > 0) {
            gguf_set_val_str(gguf, "llama.rope.scaling.type", "linear");
            gguf_set_val_f32(gguf, "llama.rope.scaling.factor", o.rope_scale);
        }
    }

    // Matrices are around 0, vectors (rows = 0) around 1.
    void add(gguf_context *gguf, ggml_context *ctx, const std::string &name, int cols, int rows, float spread, ggml_type type) {
        ggml_tensor *t = rows ? ggml_new_tensor_2d(ctx, type, cols, rows) : ggml_new_tensor_1d(ctx, type, cols);
        ggml_set_name(t, name.c_str());
        auto source = checks::random_floats(size_t(ggml_nelements(t)), rows ? o.gain * spread : spread);
        if (!rows) {
            for (float &v : source) {
                v = 1.0f + std::tanh(v);
            }
        }
        if (type == GGML_TYPE_F32) {
            std::memcpy(t->data, source.data(), ggml_nbytes(t));
        } else {
            ggml_quantize_chunk(type, source.data(), t->data, 0, rows, cols, nullptr);
            ggml_get_type_traits(type)->to_float(t->data, source.data(), ggml_nelements(t));
        }
        values[name] = source;
        gguf_add_tensor(gguf, t);
    }
};

// ---- the pack and the adapter, as the tests hold them

struct batch {
    std::vector<int32_t> tokens, targets, positions, visible_until;
    std::vector<float>   weights;

    size_t size() const { return tokens.size(); }
    // A segment of its own: random tokens, targets on the share of positions at its end.
    void add_segment(int n, int n_vocab, double target_share) {
        const int begin = int(size());
        for (int i = 0; i < n; i++) {
            tokens.push_back(checks::random_int(0, n_vocab - 1));
            targets.push_back(double(i) >= double(n) * (1 - target_share) ? checks::random_int(0, n_vocab - 1) : CFT_IGNORE_TARGET);
            positions.push_back(i);
            visible_until.push_back(begin + n);
            weights.push_back(0.25f + float(checks::random_int(0, 4)) / 4);
        }
    }
    std::vector<int32_t> rows() const {
        std::vector<int32_t> r;
        for (size_t i = 0; i < size(); i++) {
            if (targets[i] != CFT_IGNORE_TARGET) {
                r.push_back(int32_t(i));
            }
        }
        return r;
    }
};

using adapter = std::map<std::string, doubles>; // by tensor name

// ---- the model in double precision

class reference {
  public:
    reference(const model &m, double scale) : m_(m), o_(m.o), scale_(scale) {}

    std::map<std::string, double>  scales; // of tensors whose scale is another
    std::map<std::string, doubles> norms;  // with DoRA: of the rows of each adapted tensor, constants

    // The lengths of the rows of W + scale B A.
    doubles row_norms(const adapter &lora, const std::string &name) const {
        const auto   &w = m_.values.at(name);
        const doubles &a = lora.at(name + ".lora_a"), &b = lora.at(name + ".lora_b"), &magnitude = lora.at(name + ".lora_magnitude");
        const size_t   rows = magnitude.size(), cols = w.size() / rows, rank = a.size() / cols;
        doubles        n;
        for (size_t r = 0; r < rows; r++) {
            doubles row(w.begin() + long(r * cols), w.begin() + long((r + 1) * cols));
            for (size_t c = 0; c < cols; c++) {
                for (size_t k = 0; k < rank; k++) {
                    row[c] += scale_of(name) * b[r * rank + k] * a[k * cols + c];
                }
            }
            n.push_back(checks::norm(row));
        }
        return n;
    }

    // The logits of one position for every row of b asked for.
    std::vector<doubles> logits(const adapter &lora, const batch &b, const std::vector<int32_t> &rows) const {
        std::vector<doubles> x;
        for (int32_t token : b.tokens) {
            x.push_back(embedding(lora, token));
        }
        for (int l = 0; l < o_.n_layer; l++) {
            layer(lora, b, "blk." + std::to_string(l) + ".", x);
        }
        std::vector<doubles> out;
        for (int32_t i : rows) {
            out.push_back(linear(o_.tied ? adapter() : lora, o_.tied ? "token_embd.weight" : "output.weight", rmsnorm(x[size_t(i)], "output_norm.weight"), o_.n_vocab));
        }
        return out;
    }

    double loss(const adapter &lora, const batch &b) const {
        const auto rows = b.rows();
        const auto z    = logits(lora, b, rows);
        double     sum  = 0;
        for (size_t i = 0; i < rows.size(); i++) {
            double total = 0;
            for (double v : z[i]) {
                total += std::exp(v - z[i][0]);
            }
            sum += double(b.weights[size_t(rows[i])]) * (std::log(total) + z[i][0] - z[i][size_t(b.targets[size_t(rows[i])])]);
        }
        return sum;
    }

  private:
    doubles row(const std::string &name, int64_t i, int64_t cols) const {
        const auto &v = m_.values.at(name);
        return doubles(v.begin() + long(i * cols), v.begin() + long((i + 1) * cols));
    }
    double scale_of(const std::string &name) const {
        const auto found = scales.find(name);
        return found == scales.end() ? scale_ : found->second;
    }
    // A is [n_vocab][rank], B [n_embd][rank].
    doubles embedding(const adapter &lora, int32_t token) const {
        const std::string name = "token_embd.weight";
        doubles           x    = row(name, token, o_.n_embd);
        const auto        a = lora.find(name + ".lora_a"), b = lora.find(name + ".lora_b");
        const size_t      rank = a == lora.end() ? 0 : a->second.size() / size_t(o_.n_vocab);
        for (size_t i = 0; i < x.size(); i++) {
            for (size_t k = 0; k < rank; k++) {
                x[i] += scale_of(name) * b->second[i * rank + k] * a->second[size_t(token) * rank + k];
            }
        }
        return x;
    }
    doubles product(const std::string &name, const doubles &x, int rows) const {
        const auto &w = m_.values.at(name);
        doubles     y(size_t(rows), 0.0);
        for (size_t r = 0; r < y.size(); r++) {
            for (size_t c = 0; c < x.size(); c++) {
                y[r] += double(w[r * x.size() + c]) * x[c];
            }
        }
        return y;
    }
    doubles rmsnorm(const doubles &x, const std::string &name) const {
        const auto   &w = m_.values.at(name);
        const double  r = 1 / std::sqrt(checks::dot(x, x) / double(x.size()) + double(rms_eps));
        doubles       y(x.size());
        for (size_t i = 0; i < x.size(); i++) {
            y[i] = x[i] * r * double(w[i]);
        }
        return y;
    }
    doubles linear(const adapter &lora, const std::string &name, const doubles &x, int rows) const {
        doubles    y = product(name, x, rows);
        const auto a = lora.find(name + ".lora_a"), b = lora.find(name + ".lora_b");
        const size_t rank = a == lora.end() ? 0 : a->second.size() / x.size();
        for (size_t k = 0; k < rank; k++) {
            double h = 0;
            for (size_t c = 0; c < x.size(); c++) {
                h += a->second[k * x.size() + c] * x[c];
            }
            for (size_t r = 0; r < y.size(); r++) {
                y[r] += scale_of(name) * h * b->second[r * rank + k];
            }
        }
        if (const auto n = norms.find(name); n != norms.end()) {
            for (size_t r = 0; r < y.size(); r++) {
                y[r] *= lora.at(name + ".lora_magnitude")[r] / n->second[r];
            }
        }
        return y;
    }
    void rotate(doubles &x, int heads, int position) const {
        for (int h = 0; h < heads; h++) {
            for (int j = 0; j < o_.head_dim / 2; j++) {
                double frequency = std::pow(double(rope_base), -2.0 * j / o_.head_dim);
                frequency /= o_.rope_scale > 0 ? double(o_.rope_scale) : 1.0;
                frequency /= o_.rope_factors ? double(m_.values.at("rope_freqs.weight")[size_t(j)]) : 1.0;
                const double c = std::cos(position * frequency), s = std::sin(position * frequency);
                double      &a = x[size_t(h * o_.head_dim + 2 * j)], &b = x[size_t(h * o_.head_dim + 2 * j + 1)];
                const double turned = a * c - b * s;
                b                   = a * s + b * c;
                a                   = turned;
            }
        }
    }
    void layer(const adapter &lora, const batch &b, const std::string &p, std::vector<doubles> &x) const {
        const int            q_width = o_.n_head * o_.head_dim, kv_width = o_.n_head_kv * o_.head_dim;
        std::vector<doubles> q, k, v;
        for (size_t i = 0; i < x.size(); i++) {
            const doubles n = rmsnorm(x[i], p + "attn_norm.weight");
            q.push_back(linear(lora, p + "attn_q.weight", n, q_width));
            k.push_back(linear(lora, p + "attn_k.weight", n, kv_width));
            v.push_back(linear(lora, p + "attn_v.weight", n, kv_width));
            rotate(q[i], o_.n_head, b.positions[i]);
            rotate(k[i], o_.n_head_kv, b.positions[i]);
        }
        for (size_t i = 0; i < x.size(); i++) {
            const doubles mixed = attend(b, q[i], k, v, i);
            add(x[i], linear(lora, p + "attn_output.weight", mixed, o_.n_embd));
            const doubles n    = rmsnorm(x[i], p + "ffn_norm.weight");
            doubles       gate = linear(lora, p + "ffn_gate.weight", n, o_.n_ff);
            const doubles up   = linear(lora, p + "ffn_up.weight", n, o_.n_ff);
            for (size_t j = 0; j < gate.size(); j++) {
                gate[j] = gate[j] / (1 + std::exp(-gate[j])) * up[j];
            }
            add(x[i], linear(lora, p + "ffn_down.weight", gate, o_.n_embd));
        }
    }
    doubles attend(const batch &b, const doubles &q, const std::vector<doubles> &k, const std::vector<doubles> &v, size_t i) const {
        doubles out(q.size(), 0.0);
        for (int h = 0; h < o_.n_head; h++) {
            const size_t at = size_t(h * o_.head_dim), kv_at = size_t(h / (o_.n_head / o_.n_head_kv) * o_.head_dim), d = size_t(o_.head_dim);
            double       total = 0;
            doubles      sum(d, 0.0);
            for (size_t j = 0; j <= i; j++) {
                if (int64_t(i) >= b.visible_until[j]) {
                    continue;
                }
                double score = 0;
                for (size_t c = 0; c < d; c++) {
                    score += q[at + c] * k[j][kv_at + c];
                }
                const double e = std::exp(score / std::sqrt(double(d)));
                total += e;
                for (size_t c = 0; c < d; c++) {
                    sum[c] += e * v[j][kv_at + c];
                }
            }
            for (size_t c = 0; c < d; c++) {
                out[at + c] = sum[c] / total;
            }
        }
        return out;
    }
    static void add(doubles &x, const doubles &y) {
        for (size_t i = 0; i < x.size(); i++) {
            x[i] += y[i];
        }
    }

    const model   &m_;
    const options &o_;
    double         scale_;
};

} // namespace tiny
