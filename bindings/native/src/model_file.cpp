// model_file.cpp - see model_file.h.
#include "model_file.h"

#include "failure.h"

#include <cmath>

namespace cft {
namespace {

// Keys under the architecture's name that say nothing about what the model computes.
const char *const informative_keys[] = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"};

std::string shape_text(int64_t cols, int64_t rows, int64_t n) {
    return (n > 1 ? std::to_string(n) + " x " : "") + std::to_string(rows) + " x " + std::to_string(cols);
}

} // namespace

model_file::model_file(const std::string &path, const gguf_outline &outline, const std::deque<mapping> &mapped)
    : path_(path), outline_(outline) {
    for (size_t i = 0; i < mapped.size(); i++) {
        open_part(outline.parts[i], mapped[i]);
    }
    gguf_ = parts_[0].gguf.get();
    const int64_t i = gguf_find_key(gguf_, "general.architecture");
    if (i < 0 || gguf_get_kv_type(gguf_, i) != GGUF_TYPE_STRING) {
        damaged("metadata key general.architecture is missing or not a string");
    }
    architecture_ = gguf_get_val_str(gguf_, i);
    for (const char *key : informative_keys) {
        used_.insert(full(key));
    }
}

void model_file::open_part(const std::string &path, const mapping &mapped) {
    ggml_context    *tensors = nullptr;
    gguf_init_params params{true, &tensors};
    part             p{std::unique_ptr<gguf_context, free_gguf>(gguf_init_from_file(path.c_str(), params)), nullptr, mapped};
    p.tensors.reset(tensors);
    if (!p.gguf || !p.tensors) {
        throw failure(CFT_ERR_FORMAT, path + ": ggml cannot read it as GGUF");
    }
    parts_.push_back(std::move(p));
}

model_file::found model_file::locate(const std::string &name) const {
    for (const part &p : parts_) {
        if (const ggml_tensor *t = ggml_get_tensor(p.tensors.get(), name.c_str())) {
            return {&p, t};
        }
    }
    return {};
}

void model_file::unsupported(const std::string &what) const { throw failure(CFT_ERR_UNSUPPORTED, path_ + ": " + what); }
void model_file::damaged(const std::string &what) const { throw failure(CFT_ERR_FORMAT, path_ + ": " + what); }

int64_t model_file::find(const std::string &key) {
    used_.insert(full(key));
    return gguf_find_key(gguf_, full(key).c_str());
}

bool model_file::has_key(const std::string &key) { return find(key) >= 0; }

std::string model_file::text(const std::string &key, const std::string &otherwise) {
    const int64_t i = find(key);
    if (i < 0) {
        return otherwise;
    }
    if (gguf_get_kv_type(gguf_, i) != GGUF_TYPE_STRING) {
        damaged("metadata key " + full(key) + " is not a string");
    }
    return gguf_get_val_str(gguf_, i);
}

int model_file::number(const std::string &key, int64_t limit, int64_t otherwise) {
    const int64_t i = find(key);
    int64_t       value = 0;
    if (i < 0) {
        if (otherwise < 0) {
            damaged("metadata key " + full(key) + " is missing");
        }
        return int(otherwise);
    }
    switch (gguf_get_kv_type(gguf_, i)) {
    case GGUF_TYPE_UINT32: value = gguf_get_val_u32(gguf_, i); break;
    case GGUF_TYPE_INT32: value = gguf_get_val_i32(gguf_, i); break;
    case GGUF_TYPE_UINT64: value = int64_t(gguf_get_val_u64(gguf_, i)); break;
    case GGUF_TYPE_UINT16: value = gguf_get_val_u16(gguf_, i); break;
    case GGUF_TYPE_ARRAY: unsupported("metadata key " + full(key) + " differs from layer to layer"); break;
    default: damaged("metadata key " + full(key) + " is not a whole number");
    }
    if (value < 0 || value > limit || (value == 0 && otherwise != 0)) {
        damaged("metadata key " + full(key) + " is " + std::to_string(value) + ", outside 1.." + std::to_string(limit));
    }
    return int(value);
}

float model_file::real(const std::string &key, float otherwise) {
    const int64_t i = find(key);
    if (i < 0) {
        if (otherwise <= 0) {
            damaged("metadata key " + full(key) + " is missing");
        }
        return otherwise;
    }
    if (gguf_get_kv_type(gguf_, i) != GGUF_TYPE_FLOAT32) {
        damaged("metadata key " + full(key) + " is not a 32-bit float");
    }
    const float value = gguf_get_val_f32(gguf_, i);
    if (!std::isfinite(value) || value <= 0) {
        damaged("metadata key " + full(key) + " is not a positive number");
    }
    return value;
}

bool model_file::has(const std::string &name) const { return locate(name).tensor != nullptr; }

int64_t model_file::rows_of(const std::string &name) const {
    const ggml_tensor *t = locate(name).tensor;
    if (!t) {
        damaged("tensor " + name + " is missing");
    }
    return t->ne[1];
}

weight model_file::tensor(const std::string &name, int64_t cols, int64_t rows, int64_t n) {
    used_.insert(name);
    const auto [in, t] = locate(name);
    if (!t) {
        damaged("tensor " + name + " is missing");
    }
    if (t->ne[0] != cols || t->ne[1] != rows || t->ne[2] != n || t->ne[3] != 1) {
        damaged("tensor " + name + " is " + shape_text(t->ne[0], t->ne[1], t->ne[2]) + ", expected " + shape_text(cols, rows, n));
    }
    if (t->type != GGML_TYPE_F32 && !ggml_get_type_traits(t->type)->to_float) {
        unsupported("tensor " + name + " has type " + ggml_type_name(t->type) + ", which ggml cannot dequantize");
    }
    const gguf_context *gguf   = in->gguf.get();
    const size_t        offset = gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, gguf_find_tensor(gguf, name.c_str()));
    const size_t        bytes  = ggml_nbytes(t);
    if (offset % alignof(float) != 0) {
        unsupported("tensor " + name + " lies at an odd place: general.alignment is below " + std::to_string(alignof(float)));
    }
    if (offset > in->file.size() || bytes > in->file.size() - offset) {
        damaged("tensor " + name + " goes on after the file's end: the file is cut off");
    }
    return weight{in->file.data() + offset, t->type, rows * n, cols, ggml_row_size(t->type, cols), cpu::dequantizer(t->type)};
}

weight model_file::matrix(const std::string &name, int64_t rows, int64_t cols) { return tensor(name, cols, rows, 1); }

weight model_file::matrices(const std::string &name, int64_t n, int64_t rows, int64_t cols) { return tensor(name, cols, rows, n); }

std::vector<float> model_file::vector(const std::string &name, int64_t n) {
    const weight       w = tensor(name, n, 1, 1);
    std::vector<float> out(size_t(n), 0.0f);
    w.dequantize(0, 0, n, out.data());
    return out;
}

std::vector<float> model_file::vector_if(const std::string &name, int64_t n, bool required) {
    return required || has(name) ? vector(name, n) : std::vector<float>();
}

void model_file::refuse_others() const {
    for (const auto &t : outline_.tensors) {
        if (used_.count(t.name) == 0) {
            unsupported("tensor " + t.name + " has no place in architecture " + architecture_ + " as it is trained here");
        }
    }
    const std::string prefix = architecture_ + ".";
    for (const auto &[key, value] : outline_.values) {
        if (key.compare(0, prefix.size(), prefix) == 0 && used_.count(key) == 0) {
            unsupported("metadata key " + key + " is not known for architecture " + architecture_ + ": it may change what the model computes");
        }
    }
}

uint64_t model_file::count_bytes(uint64_t &n_params) const {
    uint64_t bytes = 0;
    for (const part &p : parts_) {
        for (ggml_tensor *t = ggml_get_first_tensor(p.tensors.get()); t; t = ggml_get_next_tensor(p.tensors.get(), t)) {
            bytes += ggml_nbytes(t);
            n_params += uint64_t(ggml_nelements(t));
        }
    }
    return bytes;
}

} // namespace cft
