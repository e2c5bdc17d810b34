// infer_file.h - checks of GGUF files before libllama sees them: it and ggml's reader abort the process on some damage.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace cft {

// gguf_value is what the checks need of one metadata pair.
struct gguf_value {
    int32_t     type         = -1; // gguf_type
    int32_t     element_type = -1; // of an array
    uint64_t    count        = 1;  // elements of an array
    uint64_t    number       = 0;  // of an integer or bool
    std::string text;              // of a string
};

struct gguf_tensor {
    std::string name;
    int32_t     type; // ggml_type
    int64_t     ne[4];
    uint64_t    bytes;
    size_t      part = 0; // of the model's files, the one that it lies in
};

struct gguf_outline {
    std::map<std::string, gguf_value> values; // of the first file
    std::vector<gguf_tensor>          tensors; // of all files
    std::vector<std::string>          parts;   // paths: one, or those of all shards in their order
    bool                              duplicate_tokens = false; // in tokenizer.ggml.tokens
};

// check_gguf_file walks the whole header of the file at path and throws failure where it cannot be opened
// (CFT_ERR_IO), is no GGUF, is damaged or is cut off (CFT_ERR_FORMAT). Of a model in shards path is the first one; the others are
// checked with it. After it, every key, string, array and tensor lies within its file.
gguf_outline check_gguf_file(const std::string &path);

// check_vocabulary throws CFT_ERR_FORMAT where libllama would abort on the vocabulary.
void check_vocabulary(const std::string &path, const gguf_outline &outline);
// check_model_keys does so for the hyperparameters.
void check_model_keys(const std::string &path, const gguf_outline &outline);
// check_adapter does so for a LoRA adapter.
void check_adapter(const std::string &path, const gguf_outline &outline);

} // namespace cft
