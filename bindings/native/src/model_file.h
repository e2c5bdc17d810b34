// model_file.h - reads keys and tensors of one GGUF, says which of them is wrong, and remembers which were asked for: what
// nobody asked for might change what the model computes, and is refused.
#pragma once

#include "infer_file.h"
#include "model.h"

#include "gguf.h"

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace cft {

class model_file {
  public:
    // path has passed check_gguf_file, which made outline, since ggml aborts on some of what that refuses; mapped are the
    // files mapped, in which weights lie. Both outlive this object.
    model_file(const std::string &path, const gguf_outline &outline, const std::deque<mapping> &mapped);

    [[noreturn]] void unsupported(const std::string &what) const;
    [[noreturn]] void damaged(const std::string &what) const;

    // Keys below are those under the architecture's name, "rope.freq_base" for "llama.rope.freq_base".
    const std::string &architecture() const { return architecture_; }
    std::string        full(const std::string &key) const { return architecture_ + "." + key; }

    bool        has_key(const std::string &key);
    std::string text(const std::string &key, const std::string &otherwise);
    // A whole number within [1, limit]; where the key is missing, otherwise, or a failure if that is negative. 0 passes where
    // otherwise is 0.
    int number(const std::string &key, int64_t limit, int64_t otherwise = -1);
    // A positive number; where the key is missing, otherwise, or a failure if that is not positive.
    float real(const std::string &key, float otherwise);

    bool               has(const std::string &tensor) const;
    int64_t            rows_of(const std::string &tensor) const; // a failure where it is missing
    weight             matrix(const std::string &name, int64_t rows, int64_t cols);
    std::vector<float> vector(const std::string &name, int64_t n);
    std::vector<float> vector_if(const std::string &name, int64_t n, bool required); // empty where it is missing
    // n matrices in one tensor, as one of n * rows rows.
    weight matrices(const std::string &name, int64_t n, int64_t rows, int64_t cols);

    // Refuses tensors, and keys under the architecture's name, that were not asked for.
    void refuse_others() const;

    uint64_t count_bytes(uint64_t &n_params) const;

  private:
    struct free_gguf {
        void operator()(gguf_context *g) const { gguf_free(g); }
    };
    struct free_ggml {
        void operator()(ggml_context *c) const { ggml_free(c); }
    };

    // part is one of the model's files: the only one, or a shard.
    struct part {
        std::unique_ptr<gguf_context, free_gguf> gguf;
        std::unique_ptr<ggml_context, free_ggml> tensors;
        const mapping                           &file;
    };
    struct found {
        const part        *in = nullptr;
        const ggml_tensor *tensor = nullptr;
    };

    void    open_part(const std::string &path, const mapping &mapped);
    found   locate(const std::string &tensor) const; // NULLs where it is missing
    int64_t find(const std::string &key);
    weight  tensor(const std::string &name, int64_t cols, int64_t rows, int64_t n);

    std::string                              path_, architecture_;
    const gguf_outline                      &outline_;
    std::vector<part>                        parts_;
    const gguf_context                      *gguf_ = nullptr; // of the first part, which has the metadata
    std::set<std::string>                    used_; // names of tensors, full names of keys
};

} // namespace cft
