// infer_file.cpp - see infer_file.h. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#include "infer_file.h"

#include "failure.h"

#include "ggml.h"
#include "gguf.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <unordered_set>

namespace cft {
namespace {

constexpr uint64_t max_key_bytes = 65535; // the format's limit

[[noreturn]] void damaged(const std::string &path, const std::string &what) {
    throw failure(CFT_ERR_FORMAT, path + ": " + what);
}

// reader reads a file forward and knows how much of it is left, so that no length in the file is trusted.
class reader {
  public:
    explicit reader(const std::string &path) : path_(path) {
        struct stat st;
        if (stat(path.c_str(), &st) != 0) {
            throw failure(CFT_ERR_IO, "open " + path + ": " + std::strerror(errno));
        }
        if (!S_ISREG(st.st_mode)) {
            throw failure(CFT_ERR_IO, "open " + path + ": not a regular file");
        }
        size_ = uint64_t(st.st_size);
        file_.reset(std::fopen(path.c_str(), "rb"));
        if (!file_) {
            throw failure(CFT_ERR_IO, "open " + path + ": " + std::strerror(errno));
        }
    }

    uint64_t size() const { return size_; }
    uint64_t at() const { return at_; }
    uint64_t left() const { return size_ - at_; }

    void bytes(void *dst, uint64_t n) {
        if (n > left()) {
            damaged(path_, "cut off: the header goes on after the file's end at byte " + std::to_string(size_));
        }
        if (n > 0 && std::fread(dst, 1, n, file_.get()) != n) {
            throw failure(CFT_ERR_IO, "read " + path_ + ": " + (std::ferror(file_.get()) ? std::strerror(errno) : "it got shorter"));
        }
        at_ += n;
    }

    template <typename T> T number() {
        T value;
        bytes(&value, sizeof value);
        return value;
    }

    std::string text() {
        const uint64_t n = number<uint64_t>();
        std::string    s(n <= left() ? n : 0, '\0');
        bytes(s.data(), n); // refuses n > left() before anything is written
        return s;
    }

    void skip(uint64_t n) {
        char scratch[4096];
        while (n > 0) { // reading past small things is faster than seeking, which drops the buffer
            const uint64_t part = std::min<uint64_t>(n, sizeof scratch);
            bytes(scratch, part);
            n -= part;
        }
    }

  private:
    struct closer {
        void operator()(FILE *f) const { std::fclose(f); }
    };
    std::string                   path_;
    std::unique_ptr<FILE, closer> file_;
    uint64_t                      size_ = 0, at_ = 0;
};

// scalar_bytes is the size of a scalar of this gguf_type, 0 for strings, arrays and unknown types.
uint64_t scalar_bytes(int32_t type) {
    switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_BOOL: return 1;
    case GGUF_TYPE_UINT16:
    case GGUF_TYPE_INT16: return 2;
    case GGUF_TYPE_UINT32:
    case GGUF_TYPE_INT32:
    case GGUF_TYPE_FLOAT32: return 4;
    case GGUF_TYPE_UINT64:
    case GGUF_TYPE_INT64:
    case GGUF_TYPE_FLOAT64: return 8;
    default: return 0;
    }
}

// read_array skips an array's elements; those of the token list are looked at for duplicates.
void read_array(reader &in, const std::string &path, const std::string &key, gguf_value &v, gguf_outline &outline) {
    v.element_type = in.number<int32_t>();
    v.count        = in.number<uint64_t>();
    if (v.element_type != GGUF_TYPE_STRING) {
        const uint64_t size = scalar_bytes(v.element_type);
        if (size == 0) {
            damaged(path, "key " + key + ": unknown element type " + std::to_string(v.element_type));
        }
        if (v.count > in.left() / size) {
            damaged(path, "cut off: key " + key + " has " + std::to_string(v.count) + " elements, which go past the file's end");
        }
        in.skip(v.count * size);
        return;
    }
    if (v.count > in.left() / sizeof(uint64_t)) {
        damaged(path, "cut off: key " + key + " has " + std::to_string(v.count) + " strings, which go past the file's end");
    }
    const bool                      tokens = key == "tokenizer.ggml.tokens";
    std::unordered_set<std::string> seen;
    for (uint64_t i = 0; i < v.count; i++) {
        const std::string s = in.text().c_str(); // libllama reads up to a NUL
        if (tokens && !s.empty() && !seen.insert(s).second) { // it gives empty ones names of their own
            outline.duplicate_tokens = true;
        }
    }
}

void read_value(reader &in, const std::string &path, gguf_outline &outline) {
    const uint64_t key_bytes = in.number<uint64_t>();
    if (key_bytes == 0 || key_bytes > max_key_bytes) {
        damaged(path, "a key of " + std::to_string(key_bytes) + " bytes at byte " + std::to_string(in.at()));
    }
    std::string key(std::min(key_bytes, in.left()), '\0');
    in.bytes(key.data(), key_bytes);
    gguf_value v;
    v.type = in.number<int32_t>();
    if (v.type == GGUF_TYPE_STRING) {
        v.text = in.text();
    } else if (v.type == GGUF_TYPE_ARRAY) {
        read_array(in, path, key, v, outline);
    } else if (const uint64_t size = scalar_bytes(v.type)) {
        in.bytes(&v.number, size); // little endian, as the version check before has made sure
    } else {
        damaged(path, "key " + key + ": unknown type " + std::to_string(v.type));
    }
    if (!outline.values.emplace(key, v).second) {
        damaged(path, "key " + key + " is there twice");
    }
}

// read_tensor reads one tensor's description and returns the offset that it states.
uint64_t read_tensor(reader &in, const std::string &path, gguf_tensor &t) {
    t.name = in.text();
    if (t.name.empty() || t.name.size() >= GGML_MAX_NAME) {
        damaged(path, "a tensor name of " + std::to_string(t.name.size()) + " bytes");
    }
    const uint32_t n_dims = in.number<uint32_t>();
    if (n_dims > GGML_MAX_DIMS) {
        damaged(path, "tensor " + t.name + ": " + std::to_string(n_dims) + " dimensions");
    }
    uint64_t elements = 1;
    for (uint32_t d = 0; d < GGML_MAX_DIMS; d++) {
        t.ne[d] = d < n_dims ? in.number<int64_t>() : 1;
        // One byte holds at most a few elements of any type, so more than 64 times the file's size is damage; it also
        // keeps the products below from overflowing.
        if (t.ne[d] < 1 || uint64_t(t.ne[d]) > 64 * in.size() / elements) {
            damaged(path, "tensor " + t.name + ": a dimension of " + std::to_string(t.ne[d]));
        }
        elements *= uint64_t(t.ne[d]);
    }
    t.type = in.number<int32_t>();
    if (t.type < 0 || t.type >= GGML_TYPE_COUNT || ggml_blck_size(ggml_type(t.type)) == 0) {
        damaged(path, "tensor " + t.name + ": unknown type " + std::to_string(t.type));
    }
    const int64_t block = ggml_blck_size(ggml_type(t.type));
    if (t.ne[0] % block != 0) {
        damaged(path, "tensor " + t.name + ": rows of " + std::to_string(t.ne[0]) + " are not made of blocks of " + std::to_string(block));
    }
    t.bytes = elements / uint64_t(block) * ggml_type_size(ggml_type(t.type));
    return in.number<uint64_t>();
}

uint64_t padded(uint64_t n, uint64_t alignment) { return (n + alignment - 1) / alignment * alignment; }

uint64_t alignment_of(const std::string &path, const gguf_outline &outline) {
    const auto it = outline.values.find(GGUF_KEY_GENERAL_ALIGNMENT);
    if (it == outline.values.end()) {
        return GGUF_DEFAULT_ALIGNMENT;
    }
    const uint64_t a = it->second.number;
    if (it->second.type != GGUF_TYPE_UINT32 || a == 0 || (a & (a - 1)) != 0) {
        damaged(path, "general.alignment is not a power of 2");
    }
    return a;
}

void read_tensors(reader &in, const std::string &path, uint64_t n_tensors, gguf_outline &outline) {
    const uint64_t                  alignment = alignment_of(path, outline);
    std::unordered_set<std::string> names;
    std::vector<uint64_t>           offsets;
    for (uint64_t i = 0; i < n_tensors; i++) {
        gguf_tensor t;
        offsets.push_back(read_tensor(in, path, t));
        if (!names.insert(t.name).second) {
            damaged(path, "tensor " + t.name + " is there twice");
        }
        outline.tensors.push_back(std::move(t));
    }
    const uint64_t start    = padded(in.at(), alignment);
    uint64_t       expected = 0;
    for (uint64_t i = 0; i < n_tensors; i++) {
        const gguf_tensor &t = outline.tensors[i];
        if (offsets[i] != expected) {
            damaged(path, "tensor " + t.name + ": offset " + std::to_string(offsets[i]) + ", expected " + std::to_string(expected));
        }
        if (start + expected + t.bytes > in.size()) {
            damaged(path, "cut off: tensor " + t.name + " ends at byte " + std::to_string(start + expected + t.bytes) +
                              ", the file has " + std::to_string(in.size()));
        }
        expected = padded(expected + t.bytes, alignment);
    }
}

const gguf_value *find(const gguf_outline &outline, const std::string &key) {
    const auto it = outline.values.find(key);
    return it == outline.values.end() ? nullptr : &it->second;
}

// text_of returns the string under key, "" where it is missing.
std::string text_of(const std::string &path, const gguf_outline &outline, const std::string &key) {
    const gguf_value *v = find(outline, key);
    if (v && v->type != GGUF_TYPE_STRING) {
        damaged(path, "key " + key + " is not a string");
    }
    return v ? v->text : "";
}

// need_array checks the type of an array that may be missing.
void need_array(const std::string &path, const gguf_outline &outline, const std::string &key, int32_t element_type, uint64_t count) {
    const gguf_value *v = find(outline, key);
    if (!v) {
        return;
    }
    if (v->type != GGUF_TYPE_ARRAY || v->element_type != element_type) {
        damaged(path, "key " + key + " is not an array of " + gguf_type_name(gguf_type(element_type)));
    }
    if (count != UINT64_MAX && v->count != count) {
        damaged(path, "key " + key + " has " + std::to_string(v->count) + " elements for " + std::to_string(count) + " tokens");
    }
}

} // namespace

namespace {

gguf_outline check_one_file(const std::string &path) {
    reader in(path);
    char   magic[4] = {};
    if (in.size() < sizeof magic) {
        damaged(path, "not a GGUF file: " + std::to_string(in.size()) + " bytes");
    }
    in.bytes(magic, sizeof magic);
    if (std::memcmp(magic, GGUF_MAGIC, sizeof magic) != 0) {
        damaged(path, "not a GGUF file: it does not begin with GGUF");
    }
    const uint32_t version = in.number<uint32_t>();
    if (version < 2 || version > GGUF_VERSION) {
        damaged(path, "GGUF version " + std::to_string(version) + ", known are 2 and 3");
    }
    const uint64_t n_tensors = in.number<uint64_t>();
    const uint64_t n_values  = in.number<uint64_t>();
    if (n_tensors > in.size() || n_values > in.size()) {
        damaged(path, std::to_string(n_tensors) + " tensors and " + std::to_string(n_values) + " keys do not fit the file");
    }
    gguf_outline outline;
    for (uint64_t i = 0; i < n_values; i++) {
        read_value(in, path, outline);
    }
    read_tensors(in, path, n_tensors, outline);
    outline.parts = {path};
    return outline;
}

uint64_t number_of(const gguf_outline &outline, const char *key) {
    const gguf_value *v = find(outline, key);
    return v && v->type != GGUF_TYPE_STRING && v->type != GGUF_TYPE_ARRAY ? v->number : 0;
}

// shard_name is "-00002-of-00003.gguf" for i = 1 of 3.
std::string shard_name(uint64_t i, uint64_t count) {
    char text[64];
    std::snprintf(text, sizeof text, "-%05d-of-%05d.gguf", int(i + 1), int(count));
    return text;
}

// add_shard checks a further file of a model and adds its tensors.
void add_shard(gguf_outline &all, const std::string &path, uint64_t i, uint64_t count, std::unordered_set<std::string> &names) {
    struct stat st;
    if (stat(path.c_str(), &st) != 0 && errno == ENOENT) {
        damaged(all.parts[0], "shard " + std::to_string(i + 1) + " of " + std::to_string(count) + " is missing: " + path);
    }
    const gguf_outline one = check_one_file(path);
    if (number_of(one, "split.no") != i || number_of(one, "split.count") != count) {
        damaged(path, "it says that it is shard " + std::to_string(number_of(one, "split.no") + 1) + " of " + std::to_string(number_of(one, "split.count")));
    }
    for (gguf_tensor t : one.tensors) {
        if (!names.insert(t.name).second) {
            damaged(path, "tensor " + t.name + " is in another shard as well");
        }
        t.part = i;
        all.tensors.push_back(std::move(t));
    }
    all.parts.push_back(path);
}

} // namespace

gguf_outline check_gguf_file(const std::string &path) {
    gguf_outline   all   = check_one_file(path);
    const uint64_t count = number_of(all, "split.count");
    if (count <= 1) {
        return all;
    }
    const std::string suffix = shard_name(number_of(all, "split.no"), count);
    const bool        named  = path.size() > suffix.size() && path.compare(path.size() - suffix.size(), suffix.size(), suffix) == 0;
    if (count > UINT16_MAX || !named) {
        damaged(path, "one of " + std::to_string(count) + " shards, whose name should end in " + suffix);
    }
    const std::string prefix = path.substr(0, path.size() - suffix.size());
    if (number_of(all, "split.no") != 0) {
        damaged(path, "not the first of " + std::to_string(count) + " shards: name " + prefix + shard_name(0, count));
    }
    std::unordered_set<std::string> names;
    for (const gguf_tensor &t : all.tensors) {
        names.insert(t.name);
    }
    for (uint64_t i = 1; i < count; i++) {
        add_shard(all, prefix + shard_name(i, count), i, count, names);
    }
    if (find(all, "split.tensors.count") && number_of(all, "split.tensors.count") != all.tensors.size()) {
        damaged(path, "its shards have " + std::to_string(all.tensors.size()) + " tensors, split.tensors.count says " +
                          std::to_string(number_of(all, "split.tensors.count")));
    }
    return all;
}

void check_vocabulary(const std::string &path, const gguf_outline &outline) {
    if (text_of(path, outline, "general.architecture").empty()) {
        damaged(path, "key general.architecture is missing");
    }
    const std::string model = text_of(path, outline, "tokenizer.ggml.model");
    if (model.empty() || model == "none" || model == "no_vocab") {
        damaged(path, "it has no vocabulary (key tokenizer.ggml.model)");
    }
    text_of(path, outline, "tokenizer.ggml.pre");
    const gguf_value *tokens = find(outline, "tokenizer.ggml.tokens");
    if (!tokens || tokens->count == 0 || tokens->count > INT32_MAX) {
        damaged(path, "it has no vocabulary (key tokenizer.ggml.tokens)");
    }
    need_array(path, outline, "tokenizer.ggml.tokens", GGUF_TYPE_STRING, UINT64_MAX);
    need_array(path, outline, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, tokens->count);
    need_array(path, outline, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, tokens->count);
    need_array(path, outline, "tokenizer.ggml.merges", GGUF_TYPE_STRING, UINT64_MAX);
    if (outline.duplicate_tokens) {
        damaged(path, "a token is in the vocabulary twice");
    }
}

void check_model_keys(const std::string &path, const gguf_outline &outline) {
    const std::string prefix = text_of(path, outline, "general.architecture") + ".";
    auto              number = [&](const char *key) {
        const gguf_value *v = find(outline, prefix + key);
        return v ? v->number : 0;
    };
    const uint64_t experts = number("expert_count"), used = number("expert_used_count");
    if (experts > 512 || used > experts || (experts > 0 && used == 0)) { // LLAMA_MAX_EXPERTS
        damaged(path, std::to_string(used) + " experts used of " + std::to_string(experts));
    }
    const gguf_value *scaling = find(outline, prefix + "rope.scaling.type");
    if (scaling) {
        const std::string name = text_of(path, outline, prefix + "rope.scaling.type");
        if (name != "none" && name != "linear" && name != "yarn" && name != "longrope") {
            damaged(path, "key " + prefix + "rope.scaling.type: unknown value " + name);
        }
    }
    if (outline.tensors.empty()) {
        damaged(path, "it holds no tensors");
    }
}

void check_adapter(const std::string &path, const gguf_outline &outline) {
    if (outline.parts.size() > 1) {
        damaged(path, "an adapter in shards: llama.cpp loads the first one only");
    }
    const std::string type = text_of(path, outline, "general.type");
    if (type != "adapter" || text_of(path, outline, "adapter.type") != "lora") {
        damaged(path, "not a LoRA adapter: general.type is '" + type + "', adapter.type is '" +
                          text_of(path, outline, "adapter.type") + "'");
    }
    text_of(path, outline, "general.architecture");
    const gguf_value *alpha = find(outline, "adapter.lora.alpha");
    if (!alpha || alpha->type != GGUF_TYPE_FLOAT32) {
        damaged(path, "key adapter.lora.alpha is missing or not a 32-bit float");
    }
    for (const gguf_tensor &t : outline.tensors) {
        const auto kind    = ggml_type(t.type);
        const bool product = kind == GGML_TYPE_F32 || kind == GGML_TYPE_F16 || kind == GGML_TYPE_BF16 || ggml_is_quantized(kind);
        const bool experts = t.name.find("_exps") != std::string::npos;
        if (!product || (!experts && (t.ne[2] != 1 || t.ne[3] != 1))) {
            damaged(path, "tensor " + t.name + ": not a matrix that LoRA can use");
        }
    }
}

} // namespace cft
