// model.cpp - see model.h. Names and keys: llama.cpp's src/llama-arch.cpp and the GGUF specification in ggml's docs/gguf.md.
#include "model.h"

#include "failure.h"
#include "infer_file.h"

#include "gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>

namespace cft {

void weight::dequantize(int64_t row, int64_t col, int64_t n, float *dst) const {
    const char *src = data + size_t(row) * row_bytes + size_t(col / block()) * ggml_type_size(type);
    if (is_f32()) {
        std::memcpy(dst, src, size_t(n) * sizeof(float));
        return;
    }
    to_float(src, dst, n);
}

mapping::mapping(const std::string &path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        throw failure(CFT_ERR_IO, "open " + path + ": " + std::strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || st.st_size == 0) {
        close(fd);
        throw failure(CFT_ERR_IO, "open " + path + ": empty or unreadable");
    }
    size_   = size_t(st.st_size);
    void *p = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) {
        throw failure(CFT_ERR_IO, "map " + path + ": " + std::strerror(errno));
    }
    data_ = static_cast<char *>(p);
}

mapping::~mapping() {
    if (data_) {
        munmap(data_, size_);
    }
}

namespace {

// loader reads keys and tensors of one file and says which of them is wrong.
class loader {
  public:
    // path has passed check_gguf_file: ggml aborts on some of what that refuses.
    explicit loader(const std::string &path) : path_(path) {
        ggml_context    *tensors = nullptr;
        gguf_init_params params{true, &tensors};
        gguf_.reset(gguf_init_from_file(path.c_str(), params));
        tensors_.reset(tensors);
        if (!gguf_ || !tensors_) {
            throw failure(CFT_ERR_FORMAT, path + ": ggml cannot read it as GGUF");
        }
    }

    [[noreturn]] void unsupported(const std::string &what) const { throw failure(CFT_ERR_UNSUPPORTED, path_ + ": " + what); }
    [[noreturn]] void damaged(const std::string &what) const { throw failure(CFT_ERR_FORMAT, path_ + ": " + what); }

    int64_t find(const std::string &key) const { return gguf_find_key(gguf_.get(), key.c_str()); }

    std::string text(const std::string &key) const {
        const int64_t i = find(key);
        if (i < 0 || gguf_get_kv_type(gguf_.get(), i) != GGUF_TYPE_STRING) {
            damaged("metadata key " + key + " is missing or not a string");
        }
        return gguf_get_val_str(gguf_.get(), i);
    }

    // A whole number within [1, limit], or otherwise where the key is missing and otherwise >= 0.
    int number(const std::string &key, int64_t limit, int64_t otherwise = -1) const {
        const int64_t i = find(key);
        int64_t       value;
        if (i < 0) {
            if (otherwise < 0) {
                damaged("metadata key " + key + " is missing");
            }
            return int(otherwise);
        }
        switch (gguf_get_kv_type(gguf_.get(), i)) {
        case GGUF_TYPE_UINT32: value = gguf_get_val_u32(gguf_.get(), i); break;
        case GGUF_TYPE_INT32: value = gguf_get_val_i32(gguf_.get(), i); break;
        case GGUF_TYPE_UINT64: value = int64_t(gguf_get_val_u64(gguf_.get(), i)); break;
        case GGUF_TYPE_UINT16: value = gguf_get_val_u16(gguf_.get(), i); break;
        case GGUF_TYPE_ARRAY: unsupported("metadata key " + key + " differs from layer to layer"); break;
        default: damaged("metadata key " + key + " is not a whole number");
        }
        if (value < 0 || value > limit || (value == 0 && otherwise != 0)) {
            damaged("metadata key " + key + " is " + std::to_string(value) + ", outside 1.." + std::to_string(limit));
        }
        return int(value);
    }

    // A positive number, or otherwise where the key is missing and otherwise > 0.
    float real(const std::string &key, float otherwise) const {
        const int64_t i = find(key);
        if (i < 0) {
            if (otherwise <= 0) {
                damaged("metadata key " + key + " is missing");
            }
            return otherwise;
        }
        if (gguf_get_kv_type(gguf_.get(), i) != GGUF_TYPE_FLOAT32) {
            damaged("metadata key " + key + " is not a 32-bit float");
        }
        const float value = gguf_get_val_f32(gguf_.get(), i);
        if (!std::isfinite(value) || value <= 0) {
            damaged("metadata key " + key + " is not a positive number");
        }
        return value;
    }

    bool has(const std::string &name) const { return ggml_get_tensor(tensors_.get(), name.c_str()) != nullptr; }

    weight tensor(const mapping &file, const std::string &name, int64_t rows, int64_t cols) const {
        const ggml_tensor *t = ggml_get_tensor(tensors_.get(), name.c_str());
        if (!t) {
            damaged("tensor " + name + " is missing");
        }
        if (t->ne[0] != cols || t->ne[1] != rows || t->ne[2] != 1 || t->ne[3] != 1) {
            damaged("tensor " + name + " is " + std::to_string(t->ne[1]) + " x " + std::to_string(t->ne[0]) + ", expected " +
                    std::to_string(rows) + " x " + std::to_string(cols));
        }
        if (t->type != GGML_TYPE_F32 && !ggml_get_type_traits(t->type)->to_float) {
            unsupported("tensor " + name + " has type " + ggml_type_name(t->type) + ", which ggml cannot dequantize");
        }
        const int64_t id     = gguf_find_tensor(gguf_.get(), name.c_str());
        const size_t  offset = gguf_get_data_offset(gguf_.get()) + gguf_get_tensor_offset(gguf_.get(), id);
        const size_t  bytes  = ggml_nbytes(t);
        if (offset % alignof(float) != 0) {
            unsupported("tensor " + name + " lies at an odd place: general.alignment is below " + std::to_string(alignof(float)));
        }
        if (offset > file.size() || bytes > file.size() - offset) {
            damaged("tensor " + name + " goes on after the file's end: the file is cut off");
        }
        return weight{file.data() + offset, t->type, rows, cols, ggml_row_size(t->type, cols), cpu::dequantizer(t->type)};
    }

    std::vector<float> vector(const mapping &file, const std::string &name, int64_t n) const {
        const weight       w = tensor(file, name, 1, n);
        std::vector<float> out(size_t(n), 0.0f);
        w.dequantize(0, 0, n, out.data());
        return out;
    }

    uint64_t count_bytes(uint64_t &n_params) const {
        uint64_t bytes = 0;
        for (ggml_tensor *t = ggml_get_first_tensor(tensors_.get()); t; t = ggml_get_next_tensor(tensors_.get(), t)) {
            bytes += ggml_nbytes(t);
            n_params += uint64_t(ggml_nelements(t));
        }
        return bytes;
    }

  private:
    struct free_gguf {
        void operator()(gguf_context *g) const { gguf_free(g); }
    };
    struct free_ggml {
        void operator()(ggml_context *c) const { ggml_free(c); }
    };
    std::string                              path_;
    std::unique_ptr<gguf_context, free_gguf> gguf_;
    std::unique_ptr<ggml_context, free_ggml> tensors_;
};

constexpr int64_t max_dimension = 1 << 20; // of any one size; keeps products far from overflow

hyperparameters read_hyperparameters(const loader &in, const std::string &arch) {
    const auto      key = [&](const char *name) { return arch + "." + name; };
    hyperparameters hp{};
    hp.n_layer        = in.number(key("block_count"), 4096);
    hp.n_embd         = in.number(key("embedding_length"), max_dimension);
    hp.n_ff           = in.number(key("feed_forward_length"), max_dimension);
    hp.n_head         = in.number(key("attention.head_count"), 4096);
    hp.n_head_kv      = in.number(key("attention.head_count_kv"), 4096, hp.n_head);
    hp.n_ctx_train    = in.number(key("context_length"), int64_t(1) << 30);
    hp.head_dim       = in.number(key("attention.key_length"), 4096, hp.n_embd / hp.n_head);
    hp.n_rot          = in.number(key("rope.dimension_count"), 4096, hp.head_dim);
    hp.rope_freq_base = in.real(key("rope.freq_base"), 10000.0f);
    hp.rms_eps        = in.real(key("attention.layer_norm_rms_epsilon"), 0);
    if (in.number(key("expert_count"), 4096, 0) > 0) {
        in.unsupported(key("expert_count") + ": mixture-of-experts models are not trained yet");
    }
    if (in.number(key("attention.value_length"), 4096, hp.head_dim) != hp.head_dim) {
        in.unsupported(key("attention.value_length") + " differs from " + key("attention.key_length"));
    }
    if (in.number(key("attention.sliding_window"), int64_t(1) << 30, 0) > 0) {
        in.unsupported(key("attention.sliding_window") + ": sliding-window attention is not trained yet");
    }
    // As llama.cpp has it: a factor without a type is linear, and "none" ignores the factor.
    const std::string type = in.find(key("rope.scaling.type")) >= 0 ? in.text(key("rope.scaling.type")) : "linear";
    if (type != "linear" && type != "none") {
        in.unsupported(key("rope.scaling.type") + " = " + type + " is not trained yet");
    }
    const float factor = in.real(key("rope.scaling.factor"), in.real(key("rope.scale_linear"), 1.0f));
    hp.rope_freq_scale = type == "linear" ? 1.0f / factor : 1.0f;
    if (hp.n_head % hp.n_head_kv != 0) {
        in.damaged(key("attention.head_count") + " is no multiple of " + key("attention.head_count_kv"));
    }
    if (hp.head_dim % 8 != 0 || hp.head_dim > 256) {
        in.unsupported("head size " + std::to_string(hp.head_dim) + " is no multiple of 8 up to 256");
    }
    if (hp.n_rot % 2 != 0 || hp.n_rot > hp.head_dim) {
        in.damaged(key("rope.dimension_count") + " is " + std::to_string(hp.n_rot) + ", not an even number up to the head size " +
                   std::to_string(hp.head_dim));
    }
    return hp;
}

// In the order of the files that llama.cpp writes; `used` collects the names, see refuse_others.
class tensors {
  public:
    tensors(const loader &in, const mapping &file) : in_(in), file_(file) {}

    bool   has(const std::string &name) const { return in_.has(name); }
    weight matrix(const std::string &name, int64_t rows, int64_t cols) {
        used_.insert(name);
        return in_.tensor(file_, name, rows, cols);
    }
    std::vector<float> vector(const std::string &name, int64_t n) {
        used_.insert(name);
        return in_.vector(file_, name, n);
    }
    // A tensor that we do not know would change what the model computes: a bias, a norm of the heads, an expert.
    void refuse_others(const gguf_outline &outline) const {
        for (const auto &t : outline.tensors) {
            if (used_.count(t.name) == 0) {
                in_.unsupported("tensor " + t.name + " belongs to no llama layout that is trained (biases and head norms are not yet)");
            }
        }
    }

  private:
    const loader         &in_;
    const mapping        &file_;
    std::set<std::string> used_;
};

layer_weights read_layer(tensors &in, const hyperparameters &hp, int layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    layer_weights     w;
    w.attn_norm   = in.vector(prefix + "attn_norm.weight", hp.n_embd);
    w.ffn_norm    = in.vector(prefix + "ffn_norm.weight", hp.n_embd);
    w.attn_q      = in.matrix(prefix + "attn_q.weight", hp.q_width(), hp.n_embd);
    w.attn_k      = in.matrix(prefix + "attn_k.weight", hp.kv_width(), hp.n_embd);
    w.attn_v      = in.matrix(prefix + "attn_v.weight", hp.kv_width(), hp.n_embd);
    w.attn_output = in.matrix(prefix + "attn_output.weight", hp.n_embd, hp.q_width());
    w.ffn_gate    = in.matrix(prefix + "ffn_gate.weight", hp.n_ff, hp.n_embd);
    w.ffn_up      = in.matrix(prefix + "ffn_up.weight", hp.n_ff, hp.n_embd);
    w.ffn_down    = in.matrix(prefix + "ffn_down.weight", hp.n_embd, hp.n_ff);
    return w;
}

// Radians per position of each pair: freq_base^(-2i/n_rot), scaled, and divided by the file's factors (Llama 3).
std::vector<float> read_rope_frequencies(const loader &in, tensors &from, const hyperparameters &hp) {
    const int          n = hp.n_rot / 2;
    std::vector<float> factors(size_t(n), 1.0f), frequencies;
    if (from.has("rope_freqs.weight")) {
        factors = from.vector("rope_freqs.weight", n);
    }
    for (int i = 0; i < n; i++) {
        const float factor = factors[size_t(i)];
        if (!(factor > 0) || !std::isfinite(factor)) {
            in.damaged("tensor rope_freqs.weight holds " + std::to_string(factor) + ", not a positive number");
        }
        const double frequency = std::pow(double(hp.rope_freq_base), -2.0 * i / hp.n_rot);
        frequencies.push_back(float(frequency * double(hp.rope_freq_scale) / double(factor)));
    }
    return frequencies;
}

int64_t count_vocabulary(const gguf_outline &outline, const loader &in) {
    for (const auto &t : outline.tensors) {
        if (t.name == "token_embd.weight") {
            return t.ne[1];
        }
    }
    in.damaged("tensor token_embd.weight is missing");
}

} // namespace
} // namespace cft

using namespace cft;

cft_model::cft_model(const std::string &path) : cft_model(path, check_gguf_file(path)) {}

cft_model::cft_model(const std::string &path, const gguf_outline &outline) : file(path) {
    const loader in(path);
    architecture = in.text("general.architecture");
    if (architecture != "llama") {
        in.unsupported("general.architecture = " + architecture + " is not trained; llama (Llama, SmolLM2, Mistral layouts) is");
    }
    hp         = read_hyperparameters(in, architecture);
    hp.n_vocab = int(std::min<int64_t>(count_vocabulary(outline, in), int64_t(1) << 30));

    tensors from(in, file);
    token_embd       = from.matrix("token_embd.weight", hp.n_vocab, hp.n_embd);
    output_norm      = from.vector("output_norm.weight", hp.n_embd);
    hp.tied_output   = !from.has("output.weight");
    output           = hp.tied_output ? token_embd : from.matrix("output.weight", hp.n_vocab, hp.n_embd);
    rope_frequencies = read_rope_frequencies(in, from, hp);
    for (int i = 0; i < hp.n_layer; i++) {
        layers.push_back(read_layer(from, hp, i));
    }
    from.refuse_others(outline);
    weight_bytes = in.count_bytes(n_params);
}
